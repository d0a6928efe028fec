"""Shared fixtures: an isolated artifact root, the CLI in-process, a tiny trained run."""

import io
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken by the other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = [
    *("--n-layers", "2", "--d-model", "32", "--n-heads", "2", "--context-length", "32"),
    *("--batch-size", "4", "--threads", "1", "--eval-tokens", "512"),
]

EVERY = ["--eval-every", "10", "--save-every", "5"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


class _Stdin(io.TextIOWrapper):
    """Standard input with a `.buffer`, never a terminal."""

    def __init__(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def cli(capfdbinary, monkeypatch):
    """Runs `lmcli ARGS` in-process: cli("train", "--name", "x", input="...") -> Result."""
    from lmcli import console
    from lmcli.cli import main

    def run(*args: object, input: str | bytes = "") -> Result:
        monkeypatch.setattr(sys, "stdin", _Stdin(input))
        capfdbinary.readouterr()
        console._warned.clear()
        code = main([str(a) for a in args])
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        console.quiet = False
        return Result(code, out.decode(), err.decode())

    return run


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty artifact root in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "artifacts"
    monkeypatch.setenv("LMCLI_ARTIFACTS", str(path))
    return path


@pytest.fixture(scope="session")
def prose() -> str:
    """About 50 kB of English and Chinese: texts that do not change when a document does."""
    names = ("data/en.txt", "data/zh.txt", "data/stories-en.txt", "data/stories-zh.txt", "LICENSE")
    text = "".join((REPOSITORY / n).read_text() for n in names)
    return text * (1 + 40_000 // len(text))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, prose) -> Path:
    """A root with tokenizer `tok`, dataset `corpus` and a finished run `base` of 20 steps."""
    from lmcli.cli import main

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "corpus.txt").write_text(prose)
    root = folder / "artifacts"
    for line in (
        ["tokenizer", "train", folder / "corpus.txt", "--name", "tok", "--vocab-size", "320"],
        ["data", "build", folder / "corpus.txt", "--tokenizer", "tok", "--name", "corpus"],
        [
            "train",
            "--data",
            "corpus",
            "--name",
            "base",
            "--steps",
            "20",
            "--eval-every",
            "10",
            "--save-every",
            "5",
        ]
        + TINY,
    ):
        assert main([*map(str, line), "--artifacts", str(root), "-q"]) == 0
    return root


@pytest.fixture
def tiny_copy(tiny, root, monkeypatch) -> Path:
    """A private copy of `tiny`, as the current root."""
    import shutil

    shutil.copytree(tiny, root)
    return root


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real corpora for the slow tests, where there are any."""
    path = Path(os.environ.get("LMCLI_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no corpora at {path}; set LMCLI_TEST_DATA")
    return path


@pytest.fixture(autouse=True)
def denormals():
    """Training flushes denormals to zero in its process; the next test has them again."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
