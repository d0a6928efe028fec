"""Damage to any file of any artifact is seen: by `lmcli verify`, which names it, and on load."""

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from durable import artifacts, restored, scratch

from lmcli.artifacts import files, inventory, layout, manifest
from lmcli.errors import LmcliError

pytestmark = pytest.mark.durability

RUN_PLACES = ["runs/base/checkpoints", "runs/base/evals", "runs/base/checkpoints/step-000004"]
SMALL_JSON = [
    *("runs/base/manifest.json", "runs/base/config.json", "runs/base/status.json"),
    *("runs/base/checkpoints/index.json", "runs/base/evals/corpus-val-step-000006.json"),
    *(f"runs/base/checkpoints/step-000006/{name}" for name in ("manifest.json", "state.json")),
    *("datasets/corpus/manifest.json", "tokenizers/tok/manifest.json"),
]
COPIES = {  # files that are good somewhere else: the same step of another run, or another step
    "runs/base/checkpoints/step-000006": "runs/base/checkpoints/step-000004",
    "runs/base": "runs/other",
    "datasets/corpus": "datasets/twin",
    "tokenizers/tok": "tokenizers/twin",
}


@pytest.fixture(scope="module")
def good() -> Iterator[Path]:
    with scratch() as folder:
        yield artifacts(folder)


@pytest.fixture
def root(good) -> Path:
    return restored(good, good.parent / "root")


def artifact_of(path: Path, root: Path) -> Path:
    return root.joinpath(*path.relative_to(root).parts[:2])


def covered(root: Path) -> list[Path]:
    """Every file that a hash covers: all but locks, whose text is only a message."""
    kept = ("tokenizers/tok", "datasets/corpus", "runs/base")
    found = [p for name in kept for p in sorted((root / name).rglob("*")) if p.is_file()]
    return [p for p in found if p.name not in (layout.LOCK, layout.EVALS_LOCK)]


def change(at: float) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(at * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return spoil


def header(spoil: Callable[[bytes, int], bytes]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(spoil(data, struct.unpack("<Q", data[:8])[0]))

    return change


def other_copy(path: Path) -> Path | None:
    for here, there in COPIES.items():
        if f"/{here}/" in str(path):
            found = Path(str(path).replace(here, there))
            return found if found.is_file() and found.read_bytes() != path.read_bytes() else None
    return None


DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    **{f"byte at {at}": change(at) for at in (0, 0.5, 1)},
    **{
        f"cut at {at}": lambda path, at=at: os.truncate(path, int(at * path.stat().st_size))
        for at in (0.01, 0.1, 0.25, 0.5, 0.75, 0.99)
    },
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "byte appended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "line appended": lambda path: path.write_bytes(path.read_bytes() + b"{}\n"),
    "line end appended": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
HEADERS = {
    "longer header": header(lambda data, n: struct.pack("<Q", n + 1) + data[8:]),
    "endless header": header(lambda data, n: b"\xff" * 8 + data[8:]),
    "header JSON": header(lambda data, n: data[: n // 2] + b"!" + data[n // 2 + 1 :]),
    "renamed tensor": lambda path: path.write_bytes(path.read_bytes().replace(b"embed", b"embod")),
}


def names(problems: list[str], path: Path) -> bool:
    """A damaged manifest is named by its folder where it is not there at all."""
    wanted = str(path.parent) if path.name == layout.MANIFEST else str(path)
    return any(wanted in problem for problem in problems)


@pytest.mark.parametrize("damage", [*DAMAGE, *HEADERS, "another's", "a link"])
def test_verify_names_every_damaged_file(good, root, damage):
    tried = 0
    for path in covered(root):
        artifact, original = artifact_of(path, root), good / path.relative_to(root)
        if damage in HEADERS and path.suffix != ".safetensors":
            continue
        if damage == "deleted" and path.parent.name == layout.EVALS:
            continue  # evals may be deleted
        if damage == "another's":
            source = other_copy(path)
            if source is None:
                continue
            shutil.copyfile(source, path)
        elif damage == "a link":
            path.unlink()
            path.symlink_to(original)
        else:
            (DAMAGE | HEADERS)[damage](path)
        found = inventory.verify(artifact)[0]
        assert names(found, path), (path, found)
        shutil.rmtree(artifact)
        shutil.copytree(good / artifact.relative_to(root), artifact)
        tried += 1
    assert tried >= (6 if damage in HEADERS else 20)


def problems(read: Callable[[], object]) -> list[str]:
    try:
        found = read()
    except LmcliError as error:
        return [str(error)]
    return found if isinstance(found, list) else []


def reading(path: Path) -> Callable[[], object]:
    """What must refuse this file when a bit of it differs."""
    if path.name == layout.MANIFEST:
        return lambda: manifest.parse(path.parent)
    if path.name in (layout.STATUS, layout.INDEX) or path.parent.name == layout.EVALS:
        return lambda: files.read_sealed(path)
    return lambda: manifest.verify(path.parent, foreign=False)


def flipped(path: Path, bits: Iterable[int]) -> Iterator[int]:
    """Each of these bits flipped in turn; the file is whole again afterwards."""
    data = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for bit in bits:
            os.pwrite(file.fileno(), bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
            yield bit
            os.pwrite(file.fileno(), data[bit // 8 : bit // 8 + 1], bit // 8)


@pytest.mark.parametrize("name", SMALL_JSON)
def test_every_bit_of_json_counts(root, tmp_path, name):
    path = root / name
    if path.name in (layout.CONFIG, layout.STATE):  # alone, it costs less to hash
        path = Path(shutil.copy(path, (tmp_path / "alone").mkdir() or tmp_path / "alone"))
        manifest.write(path.parent, "thing", "alone")
    read = reading(path)
    assert problems(read) == []
    missed = [b for b in flipped(path, range(8 * path.stat().st_size)) if not problems(read)]
    assert missed == []


def test_a_thousand_random_bits_of_data_are_seen(root):
    draw = random.Random(0)
    data = [p for p in covered(root) if p.suffix != ".json" or p.name == layout.TOKENIZER]
    for path in data:
        listed = (path.parent / layout.MANIFEST).exists() and path.suffix != ".jsonl"
        whole = artifact_of(path, root)
        bits = [draw.randrange(8 * path.stat().st_size) for _ in range(1 + 1000 // len(data))]
        for bit in flipped(path, bits):
            found = manifest.verify(path.parent) if listed else inventory.verify(whole)[0]
            assert names(found, path), (path, bit, found)


@pytest.mark.parametrize("place", ["tokenizers/tok", "datasets/corpus", "runs/base"] + RUN_PLACES)
@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "model.bin"])
def test_verify_names_what_lmcli_did_not_write(root, place, name):
    stranger = root / place / name
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to(root / place)):
        make(stranger)
        found = inventory.verify(artifact_of(stranger, root))[0]
        assert names(found, stranger), found
        stranger.rmdir() if stranger.is_dir() and not stranger.is_symlink() else stranger.unlink()


@pytest.mark.parametrize("name", ["config.json", "events.jsonl", "LOCK"])
def test_a_known_name_in_a_wrong_place_is_foreign(root, name):
    for place in ("tokenizers/tok", "datasets/corpus", "runs/other/checkpoints/step-000006"):
        (root / place / name).write_text("{}\n")
        found = inventory.verify(artifact_of(root / place / name, root))[0]
        assert names(found, root / place / name), found


def test_a_run_without_decisions_has_none_put_into_it(root):
    run = root / "runs" / "twin"
    (run / layout.EVENTS).write_text('{"step": 2, "skip": "because"}\n')
    assert names(inventory.verify(run)[0], run / layout.EVENTS)
