"""What the commands do with damaged artifacts: go back to what is good and say so, or refuse with
one sentence; never a traceback, never another result than the undamaged one."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from durable import artifacts, digest, restored, scratch, warm
from forks import Forks

from lmcli.artifacts import files, inventory, layout, manifest

pytestmark = pytest.mark.durability

LAST = "runs/base/checkpoints/step-000006"
PARTS = (layout.MODEL, layout.OPTIMIZER, layout.STATE, layout.MANIFEST)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "older": lambda path: shutil.copyfile(str(path).replace("step-000006", "step-000004"), path),
    "another run's": lambda path: shutil.copyfile(str(path).replace("base", "other"), path),
}


@pytest.fixture(scope="module")
def good() -> Iterator[Path]:
    with scratch() as folder:
        yield artifacts(folder)


@pytest.fixture(scope="module")
def forks() -> Forks:
    return warm()[0]


@pytest.fixture
def root(good) -> Path:
    return restored(good, good.parent / "root")


def content(root: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "lock" not in path.name.lower()
    }


def refuses(forks: Forks, root: Path, code: int, says: str, *line: str) -> None:
    got, _, said = forks.run(*line, "--artifacts", root, "-q")
    assert got == code, said
    assert says in said and said.count("lmcli: ") == 1 and "Traceback" not in said, said


def trains_to_the_same(forks: Forks, root: Path, good: Path, *says: str) -> None:
    code, _, said = forks.run("train", "--name", "base", "--artifacts", root)
    assert code == 0, said
    for words in says:
        assert words in said
    assert digest(root) == digest(good)
    assert inventory.verify(root / "runs/base")[0] == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", PARTS)
def test_training_goes_back_to_the_newest_good_checkpoint(forks, root, good, part, damage):
    DAMAGE[damage](root / LAST / part)
    trains_to_the_same(forks, root, good, "step-000006", "going back", "from step 4 of 6")


def test_training_goes_back_twice(forks, root, good):
    flip(root / LAST / layout.MODEL)
    flip(root / LAST.replace("6", "4") / layout.STATE)
    trains_to_the_same(forks, root, good, "step-000006", "step-000004", "from step 2 of 6")


def test_training_starts_again_where_no_checkpoint_is_good(forks, root, good):
    for folder in (root / LAST).parent.glob("step-*"):
        flip(folder / layout.OPTIMIZER)
    trains_to_the_same(forks, root, good, "no checkpoint is good", "step 0")


@pytest.mark.parametrize("name", ["status.json", "perf.jsonl", "checkpoints/index.json"])
@pytest.mark.parametrize("damage", ["flipped", "halved", "emptied", "deleted"])
def test_training_goes_on_without_what_only_informs(forks, root, good, name, damage):
    DAMAGE[damage](root / "runs/base" / name)
    code, _, said = forks.run("train", "--name", "base", "--steps", "8", "--artifacts", root)
    assert code == 0, said
    if name != "checkpoints/index.json" and damage != "deleted":
        assert name in said
    if name != "perf.jsonl":
        assert inventory.verify(root / "runs/base")[0] == []


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["flipped", "halved", "emptied", "deleted", "a folder"])
def test_training_refuses_logs_that_changed(forks, root, name, damage):
    DAMAGE[damage](root / "runs/base" / name)
    before = content(root)
    refuses(forks, root, 65, name, "train", "--name", "base", "--steps", "8")
    assert content(root) == before


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", PARTS)
def test_sampling_and_scoring_refuse_a_damaged_checkpoint(forks, root, part, damage):
    DAMAGE[damage](root / LAST / part)
    for line in (["sample", "base", "x"], ["eval", "base"], ["prove", "base"]):
        refuses(forks, root, 65, "use another checkpoint of 2, 4, 6", *line)
    for which in ("2", "4"):
        assert forks.run("sample", "base", "x", "--checkpoint", which, "--artifacts", root)[0] == 0


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tokenizers/tok/tokenizer.json", "tokenizer encode tok"),
        ("tokenizers/tok/manifest.json", "tokenizer encode tok"),
        ("tokenizers/tok/tokenizer.json", "data build {root}/text.txt --tokenizer tok --name new"),
        ("datasets/corpus/train.bin", "train --data corpus --name new --steps 1"),
        ("datasets/corpus/train.idx", "train --name base --steps 8"),
        ("datasets/corpus/tokenizer.json", "train --data corpus --name new --steps 1"),
        ("datasets/corpus/manifest.json", "train --name base --steps 8"),
        ("datasets/corpus/test.bin", "eval base"),
        ("runs/base/config.json", "sample base x"),
        ("runs/base/config.json", "train --name base"),
        ("runs/base/manifest.json", "eval base"),
        ("runs/base/tokenizer.json", "sample base x"),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "halved", "emptied", "deleted", "a folder"])
def test_everything_that_is_loaded_is_checked(forks, root, path, line, damage):
    (root / "text.txt").write_text("Some text.\n" * 20)
    DAMAGE[damage](root / path)
    before = content(root)
    refuses(forks, root, 65, Path(path).name, *line.format(root=root).split())
    assert content(root) == before


def reseal(folder: Path, kind: str, **changes: object) -> None:
    """A manifest whose hashes and seal hold, although what it says is not what it was."""
    old = manifest.parse(folder)
    manifest.write(folder, kind, old.name, old.parents, old.config)
    value = asdict(manifest.parse(folder)) | changes
    files.write_sealed(folder / layout.MANIFEST, value)


@pytest.mark.parametrize(
    ("artifact", "line"),
    [
        ("tokenizers/tok", "tokenizer encode tok"),
        ("datasets/corpus", "eval base"),
        ("runs/base", "sample base x"),
        (LAST, "sample base x"),
        (LAST, "train --name base"),
    ],
)
def test_a_newer_format_is_refused(forks, root, artifact, line):
    reseal(root / artifact, manifest.parse(root / artifact).kind, format=2)
    refuses(forks, root, 78, "upgrade", *line.split())


def test_a_newer_config_is_refused(forks, root):
    run = root / "runs" / "twin"
    shutil.rmtree(run / layout.CHECKPOINTS)
    config = files.read_json(run / layout.CONFIG) | {"format": 2}
    for path in run.iterdir():
        if path.name not in (layout.CONFIG, layout.TOKENIZER, layout.MANIFEST):
            path.unlink()
    files.write_json(run / layout.CONFIG, config)
    reseal(run, "run")
    refuses(forks, root, 78, "upgrade", "train", "--name", "twin")


def test_a_checkpoint_of_another_run_is_refused(forks, root, good):
    shutil.rmtree(root / LAST)
    shutil.copytree(root / LAST.replace("base", "other"), root / LAST)
    assert any("another run" in p for p in inventory.verify(root / "runs/base")[0])
    refuses(forks, root, 65, "another run", "sample", "base", "x")
    trains_to_the_same(forks, root, good, "another run", "from step 4 of 6")


def test_a_checkpoint_in_the_place_of_another_is_refused(forks, root, good):
    shutil.rmtree(root / LAST)
    shutil.copytree(root / LAST.replace("6", "4"), root / LAST)
    refuses(forks, root, 65, "another place", "sample", "base", "x")
    trains_to_the_same(forks, root, good, "another place", "from step 4 of 6")


@pytest.fixture(scope="module")
def points(forks, good) -> int:
    """How many crash points training from step 6 to 9 has."""
    root = restored(good, good.parent / "points")
    code, n, _ = forks.run("train", "--name", "base", "--steps", "9", "--artifacts", root)
    assert code == 0
    return n


@pytest.mark.parametrize("share", [i / 20 for i in range(20)])
def test_a_killed_run_is_not_called_damaged(forks, root, points, share):
    line = ["train", "--name", "base", "--steps", "9", "--artifacts", root]
    assert forks.run(*line, crash_at=1 + int(share * points))[0] == -9
    assert inventory.verify(root / "runs/base")[0] == []
    assert forks.run(*line)[0] == 0
    assert inventory.verify(root / "runs/base")[0] == []
