"""Real limits: small disks, few files, little memory, odd environments and names of folders."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from durable import DATA, SHAPE, call, corpus, digest, prepared, scratch, sentence, warm

from lmcli.artifacts import inventory

pytestmark = pytest.mark.durability

LINE = ["train", "--data", "corpus", "--name", "base", *SHAPE, "--steps", "3"]
LINE += ["--save-every", "1", "--log-every", "1", "--keep-last", "1"]
LARGE = ["--d-model", "128", "--n-heads", "4"]  # a checkpoint of 3 MB
WIDE = [
    "--d-model",
    "32",
    "--n-heads",
    "2",
    "--d-ff",
    "65536",
]  # 375 MiB for 3,000 tokens in bfloat16
# Root may write everywhere unless it gives that up.
PLAIN_USER = """
import ctypes
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0
"""
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def shell(script: str, *before: str, then: str = 'exec "$@"') -> list[str]:
    """A prefix that runs a script and becomes the command."""
    return [*before, "sh", "-c", f"{script} && {then}", "sh"]


@pytest.fixture(scope="module")
def stage():
    """(a root with a dataset, the digest of the run that LINE makes of it, warm forks)."""
    with scratch() as folder:
        root = prepared(folder)
        end = folder / "end"
        shutil.copytree(root, end)
        forks = warm()[0]
        assert forks.run(*LINE, "--artifacts", end)[0] == 0
        yield root, digest(end / "runs/base"), forks


@pytest.fixture
def root(stage, tmp_path) -> Path:
    shutil.copytree(stage[0], tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def mounts():
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")


def ends_well(stage, root: Path) -> None:
    code, _, said = stage[2].run(*LINE, "--artifacts", root)
    assert code == 0, said
    assert digest(root / "runs/base") == stage[1]


def test_a_disk_too_small_for_two_checkpoints_is_refused_before_the_first_step(root, mounts):
    (root / "runs").mkdir()
    look = f'"$@"; echo $?; find {root}/runs -type f'
    small = shell(f"mount -t tmpfs -o size=5m none {root}/runs", *UNSHARE, then=look)
    _, out, said = call(*LINE, *LARGE, root=root, prefix=small)
    assert "MiB free" in sentence(said) and str(root) in said
    assert out.startswith("74\n") and "metrics.jsonl" not in out


def test_a_disk_that_fills_up_while_training(stage, root, mounts):
    """Somebody else takes the room; when it is free again the run goes on to the same bits."""
    train = 'code=0; "$@" || code=$?; echo $code'
    script = f"""
        mount -t tmpfs -o size=8m none {root}/runs
        (for _ in $(seq 3000); do
             ls {root}/runs/base/checkpoints/step-* >/dev/null 2>&1 && break; sleep 0.01
         done; head -c 9m /dev/zero > {root}/runs/other 2>/dev/null) &
        {train}; wait; rm {root}/runs/other; {train}; cp -r {root}/runs/base {root}/kept"""
    (root / "runs").mkdir()
    line = [*LINE, "--steps", "100"]
    _, out, said = call(*line, root=root, prefix=[*UNSHARE, "sh", "-c", script, "sh"])
    assert out.split() == ["74", "0"], (out, said)
    assert os.strerror(28) in said and str(root) in said and "Traceback" not in said
    assert stage[2].run(*line, "--artifacts", root)[0] == 0
    assert digest(root / "kept") == digest(root / "runs/base")


def test_files_that_may_not_grow(stage, root):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))"
    code, _, said = stage[2].run(*LINE, "--artifacts", root, before=limit)
    assert code == 74 and str(root) in sentence(said) and os.strerror(27) in said
    ends_well(stage, root)


def test_few_open_files(stage, root):
    assert call(*LINE, root=root, prefix=shell("ulimit -n 64"))[0] == 0
    assert digest(root / "runs/base") == stage[1]


def test_a_root_that_may_not_be_written(stage, root):
    text = corpus(root.parent)
    for folder in (root, root / "tokenizers"):
        folder.chmod(0o555)
    for line in (LINE, ["tokenizer", "train", text, "--name", "new"]):
        code, _, said = stage[2].run(*line, "--artifacts", root, before=PLAIN_USER)
        assert code == 74 and str(root) in sentence(said) and os.strerror(13) in said
    for folder in (root, root / "tokenizers"):
        folder.chmod(0o755)
    ends_well(stage, root)


def test_a_run_that_may_only_be_read_can_be_used(stage, root):
    ends_well(stage, root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for line in (["sample", "base", "a"], ["verify", "base"], ["status", "base"], ["ls"]):
        code, _, said = stage[2].run(*line, "--artifacts", root, before=PLAIN_USER)
        assert code == 0, (line, said)
    code, _, said = stage[2].run("eval", "base", "--artifacts", root, before=PLAIN_USER)
    assert code == 74 and str(root) in sentence(said) and os.strerror(13) in said


def test_a_read_only_mount(stage, root, mounts):
    bound = shell(f"mount --bind {root} {root} && mount -o remount,ro,bind {root}", *UNSHARE)
    code, _, said = call(*LINE, root=root, prefix=bound)
    assert code == 74 and str(root) in sentence(said) and os.strerror(30) in said
    ends_well(stage, root)


LITTLE_MEMORY = """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20,) * 2)
"""


@pytest.mark.parametrize(
    ("shape", "code", "says"),
    [
        (["--context-length", "1024", "--batch-size", "32"], 0, "sequences per forward pass"),
        (["--context-length", "3000", "--batch-size", "1", *WIDE], 71, "out of memory"),
    ],
)
def test_memory(stage, root, shape, code, says):
    """A batch that does not fit is halved until it does; one sequence that does not is 71."""
    line = [*LINE, *LARGE, *shape, "--steps", "1", "--artifacts", root]
    got, _, said = stage[2].run(*line, before=LITTLE_MEMORY)
    assert got == code and says in said and "Traceback" not in said, said


def test_a_temporary_folder_that_is_full_and_no_home(stage, root, mounts):
    full = f"mount -t tmpfs -o size=4k none {root}/tmp && ! head -c 1m /dev/zero > {root}/tmp/x"
    (root / "tmp").mkdir()
    prefix = shell(f"{full} 2>/dev/null && export TMPDIR={root}/tmp && unset HOME", *UNSHARE)
    code, _, said = call(*LINE, root=root, prefix=prefix)
    assert code == 0, said
    assert digest(root / "runs/base") == stage[1]


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o000])
def test_modes_follow_the_umask(stage, tmp_path, mask):
    root, text = tmp_path / "fresh", corpus(tmp_path)
    umask = f"import os; os.umask({mask})"
    for line in (*DATA, LINE, ["eval", "base"]):
        words = [str(word).format(text=text) for word in line]
        assert stage[2].run(*words, "--artifacts", root, before=umask)[0] == 0
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in (root, *root.rglob("*"))}
    assert modes == {(True, 0o777 & ~mask), (False, 0o666 & ~mask)}


def test_a_locale_of_ascii_alone(stage, root):
    """Text stays what it is, whatever the terminal is said to show."""
    ends_well(stage, root)
    ascii_ = ["env", "LC_ALL=C", "LANG=C", "PYTHONCOERCECLOCALE=0", "PYTHONUTF8=0"]
    greedy = ["--temperature", "0", "--max-new-tokens", "8"]
    for words in (["sample", "base", "你好", "--echo", *greedy], ["data", "show", "corpus"]):
        code, shown, said = call(*words, root=root, prefix=ascii_, encoding="utf-8")
        assert code == 0, said
        assert shown == call(*words, root=root, encoding="utf-8")[1]


def test_a_prompt_that_is_not_text(stage, root):
    ends_well(stage, root)
    code, _, said = call("sample", "base", os.fsdecode(b"\xff"), root=root)
    assert code == 2 and "not UTF-8" in sentence(said)


@pytest.mark.parametrize("name", ["with space", "two\nlines", "x" * 255, "-dash", "é语"])
def test_folders_of_any_name(stage, tmp_path, name):
    shutil.copytree(stage[0], tmp_path / name)
    ends_well(stage, tmp_path / name)
    assert inventory.verify(tmp_path / name / "runs/base")[0] == []
