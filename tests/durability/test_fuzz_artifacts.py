"""No content of an artifact makes a traceback, a hang or a mess, not even behind hashes that hold.

Every file is changed and sealed again, as a broken or malicious writer would, and every command
that reads it must answer or refuse; nothing outside the artifact root is touched.
"""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from durable import scratch
from fuzzing import EVIL, fuzz, hostile, kept, reseal, run, seal
from hypothesis import given
from hypothesis import strategies as st

from lmcli.artifacts import files, layout

pytestmark = pytest.mark.durability

LAST = "runs/base/checkpoints/step-000003"
EVAL = "runs/base/evals/corpus-test-step-000003.json"
BASE = [
    *("train", "--name", "base", "--data", "corpus", "--steps", "2", "--save-every", "1"),
    *("--n-layers", "1", "--d-model", "8", "--n-heads", "2", "--context-length", "16"),
    *("--batch-size", "4", "--threads", "1", "--eval-tokens", "64", "--log-every", "1"),
]
READERS = {
    "tokenizers/tok": (
        ["tokenizer", "info", "tok"],
        ["show", "tok"],
        ["verify", "tok"],
        ["data", "build", "{text}", "--tokenizer", "tok", "--name", "new"],
        ["tokenizer", "train", "{text}", "--name", "tok", "--vocab-size", "300"],
    ),
    "datasets/corpus": (
        ["data", "info", "corpus"],
        ["data", "show", "corpus"],
        ["data", "verify", "corpus"],
        ["verify", "corpus"],
        ["show", "corpus"],
        ["eval", "base", "--data", "corpus"],
        ["train", "--data", "corpus", "--name", "new", "--dry-run"],
        ["data", "build", "{text}", "--tokenizer", "tok", "--name", "corpus"],
    ),
    "runs/base": (
        ["sample", "base", "x", "--max-new-tokens", "1"],
        ["eval", "base"],
        ["show", "base"],
        ["status", "base"],
        ["verify", "base"],
        ["train", "--name", "base", "--max-time", "1s"],
        ["train", "--name", "base", "--steps", "4", "--max-time", "1s"],
        ["prove", "base", "--steps", "1"],
        ["report", "base"],
        ["rm", "tok"],
    ),
}
READERS[LAST] = READERS["runs/base"]


def value_of(path: Path) -> dict[str, Any]:
    """A JSON file without its seal."""
    value: dict[str, Any] = json.loads(path.read_text())
    value.pop("check", None)
    return value


@pytest.fixture(scope="module")
def pristine() -> Iterator[Path]:
    with scratch() as folder:
        root = Path(shutil.copytree(REPOSITORY / "tests/golden/format-1", folder / "root"))
        shutil.rmtree(root / "runs")
        for line in (BASE, [*BASE[:3], "--steps", "3"], ["eval", "base", "--split", "test"]):
            assert run(root, *line).code == 0
        (folder / "text.txt").write_text("Some text, and more of it.\n" * 40)
        yield root


@pytest.fixture
def root(pristine) -> Path:
    return pristine


def commands(artifact: str) -> st.SearchStrategy[list[str]]:
    return st.sampled_from([["ls"], *READERS[artifact]])


def read(root: Path, line: list[str]) -> None:
    """A command on a copy of the root; what lies beside it stays as it is."""
    beside = sorted(root.parent.iterdir())
    trial = root.parent / "trial"
    shutil.copytree(root, trial)
    try:
        run(trial, *(word.format(text=root.parent / "text.txt") for word in line))
    finally:
        shutil.rmtree(trial)
    assert sorted(root.parent.iterdir()) == beside


@pytest.mark.parametrize("artifact", READERS)
def test_sealed_manifests(root, artifact):
    path = root / artifact / layout.MANIFEST

    @fuzz(80)
    @given(value=hostile(value_of(path)), line=commands(artifact))
    def law(value, line):
        with kept(path):
            seal(root / artifact, value)
            read(root, line)

    law()


@pytest.mark.parametrize("name", ["tokenizers/tok", "datasets/corpus", "runs/base", LAST])
@pytest.mark.parametrize("evil", ["../../../escape", "/etc/passwd", "a/../../b", "", ".", "a\0b"])
def test_a_manifest_cannot_list_a_file_outside(root, name, evil):
    path = root / name / layout.MANIFEST
    with kept(path):
        value = value_of(path)
        value["files"][evil] = next(iter(value["files"].values()))
        seal(root / name, value)
        done = run(root, "verify", f"./{root / name}".replace(".//", "/"))
        assert done.code == 65


SEALED = {
    "runs/base/status.json": "runs/base",
    "runs/base/checkpoints/index.json": "runs/base",
    EVAL: "runs/base",
}


@pytest.mark.parametrize("name", SEALED)
def test_other_sealed_json(root, name):
    @fuzz(50)
    @given(value=hostile(value_of(root / name)), line=commands(SEALED[name]))
    def law(value, line):
        with kept(root / name):
            files.write_sealed(root / name, value)
            read(root, line)

    law()


LISTED = {
    "runs/base/config.json": "runs/base",
    f"{LAST}/state.json": LAST,
    "tokenizers/tok/tokenizer.json": "tokenizers/tok",
    "datasets/corpus/tokenizer.json": "datasets/corpus",
}


@pytest.mark.parametrize("name", LISTED)
def test_json_behind_a_manifest(root, name):
    folder = root / LISTED[name]

    @fuzz(80)
    @given(value=hostile(value_of(root / name)), line=commands(LISTED[name]))
    def law(value, line):
        with kept(root / name, folder / layout.MANIFEST):
            files.write_json(root / name, value)
            reseal(folder)
            if folder.name == "base":  # a checkpoint of the run that it now is
                adopt(root)
            read(root, line)

    law()


def adopt(root: Path) -> None:
    """Makes the checkpoints those of the run as it is."""
    id_ = files.read_json(root / "runs/base" / layout.MANIFEST)["id"]
    for folder in (root / "runs/base/checkpoints").glob("step-*"):
        value = files.read_json(folder / layout.MANIFEST)
        value.pop("check")
        seal(folder, value | {"parents": {"run": id_}})


EVENTS: list[dict[str, Any]] = [
    {"step": 2, "change": {"steps": 3, "micro_batch_size": 2}},
    {"step": 2, "rewind": 3, "why": "x"},
    {"step": 1, "skip": "x"},
]


@fuzz(60)
@given(event=st.one_of(*map(hostile, EVENTS)), line=commands("runs/base"))
def test_events(pristine, event, line):
    run_ = pristine / "runs/base"
    with kept(run_ / layout.EVENTS, run_ / layout.STATUS):
        data = json.dumps(event).encode() + b"\n"
        (run_ / layout.EVENTS).write_bytes(data)
        status = files.read_sealed(run_ / layout.STATUS)
        status["logs"][layout.EVENTS] = {
            "bytes": len(data),
            "sha256": files.sha256_file(run_ / layout.EVENTS),
        }
        files.write_sealed(run_ / layout.STATUS, status)
        read(pristine, line)


IDS = st.lists(st.sampled_from([0, 1, 2, 5, 299, 300, 65535]), max_size=60)
OFFSETS = st.lists(st.sampled_from([0, 1, 2, 3, 7, 60, -1, 2**40, -(2**62)]), max_size=9)


@fuzz(80)
@given(
    ids=IDS.map(lambda v: np.array(v, "<u2").tobytes()) | st.binary(max_size=90),
    offsets=OFFSETS.map(lambda v: np.array(v, "<i8").tobytes()) | st.binary(max_size=40),
    split=st.sampled_from(["train", "val", "test"]),
    line=commands("datasets/corpus"),
)
def test_token_files(pristine, ids, offsets, split, line):
    folder = pristine / "datasets/corpus"
    paths = [folder / f"{split}.bin", folder / f"{split}.idx"]
    with kept(*paths, folder / layout.MANIFEST):
        for path, data in zip(paths, (ids, offsets), strict=True):
            path.write_bytes(data)
        reseal(folder)
        read(pristine, line)


def tensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def packed(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def spoil_tensors(data: bytes, draw: st.DataObject) -> bytes:
    """A safetensors file with a header that means harm."""
    header, body = tensors(data)
    text = json.dumps(header).encode()
    names = [name for name in header if name != "__metadata__"]
    name = draw.draw(st.sampled_from(names))
    kind = draw.draw(st.sampled_from(["length", "value", "twice", "nested", "noise", "renamed"]))
    if kind == "length":
        return packed(text, body, draw.draw(st.sampled_from([0, 1, 2**20, 2**40, 2**64 - 1])))
    if kind == "twice":
        entry = f', "{name}": {json.dumps(header[names[0]])}}}'.encode()
        return packed(text[:-1] + entry, body)
    if kind == "nested":
        return packed(b'{"a":' * 5000 + b"1" + b"}" * 5000, body)
    if kind == "noise":
        return draw.draw(st.binary(max_size=200))
    if kind == "renamed":
        header[draw.draw(st.sampled_from(["x", "step.x", "exp_avg", ".", "é"]))] = header.pop(name)
    else:
        evil = [
            *EVIL,
            "F64",
            "I32",
            "BF16",
            "BOOL",
            [0, 4],
            [4, 0],
            [0, 2**40],
            [8, 8],
            [2**32, 2**32],
        ]
        key = draw.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        header[name][key] = draw.draw(st.sampled_from(evil))
    try:
        return packed(json.dumps(header).encode(), body)
    except ValueError:
        return b""


@pytest.mark.parametrize("name", [layout.MODEL, layout.OPTIMIZER])
def test_tensor_files(root, name):
    path = root / LAST / name

    @fuzz(80)
    @given(draw=st.data(), line=commands(LAST))
    def law(draw, line):
        with kept(path, root / LAST / layout.MANIFEST):
            path.write_bytes(spoil_tensors(path.read_bytes(), draw))
            reseal(root / LAST)
            read(root, line)

    law()
