"""Artifacts of every format version still load, verify, sample, score and train on; a newer one is
refused. Each was made by `tests/golden/make.py` when its format was new, and never changed."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden"
sys.path.append(str(GOLDEN))

from make import EVAL, EXTEND, SAMPLE, bits_per_byte, outcome  # noqa: E402

from lmcli.artifacts import files, layout, manifest  # noqa: E402

FORMATS = sorted(path.name for path in GOLDEN.glob("format-*"))
NUMBERED = [
    *("tokenizers/tok", "datasets/corpus", "runs/base"),
    *("runs/base/checkpoints/step-000500", "runs/base/config.json"),
]
USES = {
    "tokenizers/tok": ["tokenizer", "info", "tok"],
    "datasets/corpus": ["data", "info", "corpus"],
}


@pytest.fixture(params=FORMATS)
def expected(request, root) -> dict[str, object]:
    """What the artifacts of a format, of which `root` becomes a copy, must give."""
    shutil.copytree(GOLDEN / request.param, root)
    value: dict[str, object] = json.loads((root / "expected.json").read_text())
    return value


def same_machine(expected) -> bool:
    """Whether bits may be compared: only for the recorded torch and kind of CPU."""
    import torch

    from lmcli.training import precision

    here = (torch.__version__, torch.backends.cpu.get_cpu_capability())
    same = here == (expected["torch"], expected["cpu_capability"])
    return same and expected["cpu"] in precision.cpu_name()


def test_there_is_one_of_the_present_format():
    assert f"format-{manifest.FORMAT}" in FORMATS


def test_every_hash_holds(cli, root, expected):
    for name in ("tokenizers/tok", "datasets/corpus", "runs/base"):
        result = cli("verify", name)
        assert result.code == 0, result.out
    assert cli("data", "verify", "corpus").code == 0


def test_greedy_text_is_the_same(cli, expected):
    assert cli(*SAMPLE).out == expected["greedy"]


def test_the_score_is_the_same(cli, expected):
    result = cli(*EVAL)
    assert bits_per_byte(result.out) == pytest.approx(expected["bits_per_byte"], abs=1e-6)


def test_training_goes_on_to_the_same_bits(cli, root, expected):
    result = cli(*EXTEND)
    assert result.code == 0, result.err
    got = outcome(root / "runs" / "base", 510)
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    if same_machine(expected):
        assert got["sha256"] == expected["sha256"]


def test_it_can_be_proved(cli, expected):
    result = cli("prove", "base", "--steps", "100")
    assert result.code == 0 if same_machine(expected) else result.code in (0, 78), result.err


@pytest.mark.parametrize("name", NUMBERED)
def test_a_newer_format_is_refused(cli, root, expected, name):
    path = root / name
    folder = path.parent if path.suffix else path
    if path.suffix:
        value = files.read_json(path)
        files.write_json(path, value | {"format": value["format"] + 1})
        old = manifest.parse(folder)
        for kept in folder.glob("*.jsonl"):
            kept.unlink()
        listed = {n: entry | describe(folder / n) for n, entry in old.files.items()}
        write(folder, asdict(old) | {"files": listed})
    else:
        old = manifest.parse(folder)
        write(folder, asdict(old) | {"format": old.format + 1})
    result = cli(*USES.get(name, ["sample", "base", "x"]))
    assert result.code == 78 and "upgrade" in result.err, result.err


def describe(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}


def write(folder: Path, value: dict[str, object]) -> None:
    """A manifest that holds in itself, whatever it says."""
    parts = {key: value[key] for key in ("format", "kind", "parents", "files")}
    files.write_sealed(folder / layout.MANIFEST, value | {"id": files.digest(parts)})
