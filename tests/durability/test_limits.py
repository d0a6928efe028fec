"""Real limits: small disks, few files, little memory, odd environments and names of folders."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from durable import DATA, SHAPE, call, corpus, digest, prepared, scratch, sentence

from lmcli.artifacts import inventory

pytestmark = pytest.mark.durability

LINE = ["train", "--data", "corpus", "--name", "base", *SHAPE, "--steps", "3"]
LINE += ["--save-every", "1", "--log-every", "1", "--keep-last", "1"]
LARGE = ["--d-model", "128", "--n-heads", "4"]  # a checkpoint of 3 MB
# Root may write everywhere unless it gives that up.
PLAIN_USER = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if not os.geteuid() else []
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def shell(script: str, *before: str) -> list[str]:
    """A prefix that runs a script and becomes the command."""
    return [*before, "sh", "-c", f'{script} && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def stage():
    """(folder, root with a dataset, digest of the run that LINE makes of it)."""
    with scratch() as folder:
        root = prepared(folder)
        shutil.copytree(root, folder / "end")
        assert call(*LINE, root=folder / "end")[0] == 0
        yield folder, root, digest(folder / "end/runs/base")


@pytest.fixture
def root(stage, tmp_path) -> Path:
    shutil.copytree(stage[1], tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def mounts():
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")


def ends_well(stage, root: Path) -> None:
    code, _, said = call(*LINE, root=root)
    assert code == 0, said
    assert digest(root / "runs/base") == stage[2]


def test_a_disk_too_small_for_two_checkpoints_is_refused_before_the_first_step(root, mounts):
    (root / "runs").mkdir()
    small = shell(f"mount -t tmpfs -o size=5m none {root}/runs", *UNSHARE)
    look = f"{small[-2]}".replace('exec "$@"', f'"$@"; echo $?; find {root}/runs -type f')
    code, out, said = call(*LINE, *LARGE, root=root, prefix=[*small[:-2], look, "sh"])
    assert "MiB free" in sentence(said) and str(root) in said
    assert out.startswith("74\n") and "metrics.jsonl" not in out


def test_a_disk_that_fills_up_while_training(stage, root, mounts):
    """Somebody else takes the room; when it is free again the run goes on to the same bits."""
    train = 'code=0; "$@" || code=$?; echo $code'
    script = f"""
        mount -t tmpfs -o size=8m none {root}/runs
        (while [ ! -e {root}/runs/base/checkpoints/step-000001 ]; do sleep 0.01; done
         head -c 9m /dev/zero > {root}/runs/other 2>/dev/null) &
        {train}; wait; rm {root}/runs/other; {train}; cp -r {root}/runs/base {root}/kept"""
    (root / "runs").mkdir()
    steps = ["--steps", "40"]
    _, out, said = call(*LINE, *steps, root=root, prefix=[*UNSHARE, "sh", "-c", script, "sh"])
    assert out.split() == ["74", "0"], (out, said)
    assert os.strerror(28) in said and str(root) in said and "Traceback" not in said
    shutil.rmtree(root / "runs")
    assert call(*LINE, *steps, root=root)[0] == 0
    assert digest(root / "kept") == digest(root / "runs/base")


def test_files_that_may_not_grow(stage, root):
    code, _, said = call(*LINE, root=root, prefix=shell("ulimit -f 64"))
    assert code == 74 and str(root) in sentence(said) and os.strerror(27) in said
    ends_well(stage, root)


def test_few_open_files(stage, root):
    assert call(*LINE, root=root, prefix=shell("ulimit -n 64"))[0] == 0
    assert digest(root / "runs/base") == stage[2]


def test_a_root_that_may_not_be_written(stage, root):
    root.chmod(0o555)
    for words in (LINE, [*DATA[0][:2], root / "tokenizers", *DATA[0][3:5], "--vocab-size", "300"]):
        words = ["new" if word in ("base", "tok") else word for word in words]
        code, _, said = call(*words, root=root, prefix=PLAIN_USER)
        if "tokenizer" in words:
            continue
        assert code == 74 and str(root) in sentence(said) and os.strerror(13) in said
    root.chmod(0o755)
    ends_well(stage, root)


def test_a_read_only_mount(stage, root, mounts):
    bound = shell(f"mount --bind {root} {root} && mount -o remount,ro,bind {root}", *UNSHARE)
    code, _, said = call(*LINE, root=root, prefix=bound)
    assert code == 74 and str(root) in sentence(said) and os.strerror(30) in said
    ends_well(stage, root)


def limited(megabytes: int) -> str:
    """Python that runs lmcli with so much address space beside what torch itself takes."""
    return f"""
import resource, sys, torch
from lmcli.runs import start
from lmcli.cli import run
sys.argv[:] = sys.argv[:1] + sys.argv[4:]
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = size + {megabytes} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
run()
"""


@pytest.mark.parametrize(
    ("megabytes", "code", "says"),
    [(250, 0, "sequences per forward pass"), (60, 71, "out of memory")],
)
def test_memory(root, megabytes, code, says):
    """A batch that does not fit is halved until it does; one sequence that does not is 71."""
    import sys

    words = [*LINE, *LARGE, "--context-length", "1024", "--batch-size", "16"]
    prefix = [sys.executable, "-c", limited(megabytes)]
    got, _, said = call(*words, root=root, prefix=prefix)
    assert got == code and says in said and "Traceback" not in said, said


def test_a_temporary_folder_that_is_full_and_no_home(stage, root, mounts):
    full = f"mount -t tmpfs -o size=4k none {root}/tmp && ! head -c 1m /dev/zero > {root}/tmp/x"
    (root / "tmp").mkdir()
    prefix = shell(f"{full} 2>/dev/null && export TMPDIR={root}/tmp && unset HOME", *UNSHARE)
    code, _, said = call(*LINE, root=root, prefix=prefix)
    assert code == 0, said
    assert digest(root / "runs/base") == stage[2]


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o000])
def test_modes_follow_the_umask(stage, root, tmp_path, mask):
    fresh = tmp_path / "fresh"
    text = corpus(tmp_path)
    for line in (*DATA, LINE, ["eval", "base"]):
        words = [str(word).format(text=text) for word in line]
        assert call(*words, root=fresh, prefix=shell(f"umask {mask:o}"))[0] == 0
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in (fresh, *fresh.rglob("*"))}
    assert modes == {(True, 0o777 & ~mask), (False, 0o666 & ~mask)}


def test_a_locale_of_ascii_alone(root):
    """Text stays what it is, whatever the terminal is said to show."""
    ascii_ = ["env", "LC_ALL=C", "LANG=C", "PYTHONCOERCECLOCALE=0", "PYTHONUTF8=0"]
    for words in (LINE, ["sample", "base", "你好", "--echo"], ["data", "show", "corpus"]):
        code, _, said = call(*words, root=root, prefix=ascii_, encoding="utf-8", errors="replace")
        assert code == 0, said
    shown = call("data", "show", "corpus", root=root, prefix=ascii_, encoding="utf-8")[1]
    assert shown == call("data", "show", "corpus", root=root, encoding="utf-8")[1]


@pytest.mark.parametrize("name", ["with space", "two\nlines", "x" * 255, "-dash", "é语"])
def test_folders_of_any_name(stage, tmp_path, name):
    root = tmp_path / name
    shutil.copytree(stage[1], root)
    assert call(*LINE, root=root)[0] == 0
    assert digest(root / "runs/base") == stage[2]
    assert inventory.verify(root / "runs/base")[0] == []
