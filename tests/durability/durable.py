"""What the durability tests share: a small corpus, scenarios, and what must not differ."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import REPOSITORY

SHAPE = [
    *("--n-layers", "1", "--d-model", "16", "--n-heads", "2", "--context-length", "16"),
    *("--batch-size", "4", "--threads", "1", "--eval-tokens", "256", "--dropout", "0.1"),
]
# What may differ between two runs that did the same: times, hosts, and who holds the lock.
LIVING = ("status.json", "perf.jsonl", "LOCK", ".lock")


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
