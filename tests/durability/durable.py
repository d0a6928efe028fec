"""What the durability tests share: a small corpus, scenarios, and what must not differ."""

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from conftest import REPOSITORY
from forks import ENVIRONMENT, Forks

SHAPE = [
    *("--n-layers", "1", "--d-model", "16", "--n-heads", "2", "--context-length", "16"),
    *("--batch-size", "4", "--threads", "1", "--eval-tokens", "256", "--dropout", "0.1"),
]
# What may differ between two runs that did the same: times, hosts, and who holds the lock.
LIVING = ("status.json", "perf.jsonl", "LOCK", ".lock")


DATA = (
    ["tokenizer", "train", "{text}", "--name", "tok", "--vocab-size", "300"],
    ["data", "build", "{text}", "--tokenizer", "tok", "--name", "corpus"],
)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: fsync costs nothing there."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="lmcli-durability-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def corpus(folder: Path, n_characters: int = 12_000) -> Path:
    path = folder / "corpus.txt"
    text = "".join((REPOSITORY / "data" / name).read_text() for name in ("en.txt", "zh.txt"))
    path.write_text((text * (1 + n_characters // len(text)))[:n_characters])
    return path


_servers: list[Forks] = []
_open = ExitStack()
atexit.register(_open.close)


def warm(number: int = 2) -> list[Forks]:
    """Processes that have done once whatever commands do; the same ones for every test."""

    def started(_: int) -> Forks:
        with scratch() as folder:
            text, train = corpus(folder), ["train", "--name", "base", "--save-every", "1"]
            lines = [
                *([word.format(text=text) for word in line] for line in DATA),
                [*train, "--data", "corpus", *SHAPE, "--steps", "2", "--eval-every", "1"],
                [*train, "--steps", "3"],
                *(["eval", "base"], ["sample", "base", "a"], ["ls"]),
            ]
            return Forks(
                [[*line, "--artifacts", str(folder / "root")] for line in lines]
            ).__enter__()

    missing = range(len(_servers), number)
    with ThreadPoolExecutor(number) as pool:
        new = list(pool.map(started, missing))
    for forks in new:
        _open.push(forks)
    _servers.extend(new)
    return _servers[:number]


def prepared(folder: Path, *more: list[object]) -> Path:
    """An artifact root with tokenizer `tok` and dataset `corpus`, and what `more` lines make."""
    text, root = corpus(folder), folder / "root"
    for line in (*DATA, *more):
        words = [str(word).format(text=text) for word in line]
        code, _, said = warm()[0].run(*words, "--artifacts", root)
        assert code == 0, said
    return root


def artifacts(folder: Path) -> Path:
    """A root with two tokenizers, two datasets, two extended and evaluated runs of different seeds
    with three checkpoints each, and a run, `twin`, to which nothing ever happened."""
    from lmcli.artifacts import inventory
    from lmcli.cli import main

    text, root, other = corpus(folder), folder / "artifacts", folder / "twin.txt"
    other.write_text(text.read_text()[::-1])
    train = ["train", "--data", "corpus", *SHAPE, "--save-every", "2", "--eval-every", "2"]
    train += ["--log-every", "1", "--keep-last", "3", "--steps", "4"]
    for line in (
        ["tokenizer", "train", text, "--name", "tok", "--vocab-size", "300"],
        ["tokenizer", "train", other, "--name", "twin", "--vocab-size", "300"],
        ["data", "build", text, "--tokenizer", "tok", "--name", "corpus"],
        ["data", "build", other, "--tokenizer", "tok", "--name", "twin"],
        [*train, "--name", "base"],
        ["train", "--name", "base", "--steps", "6"],
        [*train, "--name", "other", "--seed", "1"],
        ["train", "--name", "other", "--steps", "6"],
        [*train, "--name", "twin"],
        *(["eval", run, "--split", s] for run in ("base", "other") for s in ("val", "test")),
    ):
        assert main([*map(str, line), "--artifacts", str(root), "-q"]) == 0
    for path in root.glob("*/*/"):
        assert inventory.verify(path)[0] == [], path
    return root


def restored(good: Path, root: Path) -> Path:
    """`root` as a fresh copy of `good`."""
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(good, root))


def digest(root: Path) -> dict[str, str]:
    """Every file under an artifact root by what must not depend on interruptions.

    A manifest counts with its id, which is content alone. Leftovers show as names too many.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or path.name in LIVING or path.name.startswith(".lock-"):
            continue
        data = path.read_bytes()
        if path.name == "manifest.json":
            data = json.loads(data)["id"].encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def spawn(
    *words: object, root: Path, prefix: Sequence[object] = (), **more: object
) -> subprocess.Popen[str]:
    """`lmcli WORDS` in a real process, the leader of its own group; a `prefix` may wrap it."""
    # Whoever runs the tests in the background may have them ignore signals.
    heard = ["env", "--default-signal=INT,HUP,QUIT"]
    line = [*heard, *prefix, sys.executable, "-m", "lmcli", *words, "--artifacts", root]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options |= {"env": {**os.environ, **ENVIRONMENT}, "text": True, "start_new_session": True}
    return subprocess.Popen([str(word) for word in line], **{**options, **more})


def call(*words: object, root: Path, **more: object) -> tuple[int, str, str]:
    """(exit code or minus the signal, stdout, stderr) of a real process."""
    process = spawn(*words, root=root, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def sentence(said: str) -> str:
    """The one sentence with which a command failed, which is the last thing it says."""
    before, lmcli, last = said.rpartition("lmcli: ")
    assert lmcli and "lmcli: " not in before and "Traceback" not in said, said
    assert last.strip() and "\n" not in last.strip(), said
    return last.strip()
