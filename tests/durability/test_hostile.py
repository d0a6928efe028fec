"""Files whose every hash and seal holds, and that say what lmcli never writes: one sentence and the
exit code of the table."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from fuzzing import reseal, seal

from lmcli.artifacts import files, inventory, layout
from lmcli.artifacts.schema import misfit

pytestmark = pytest.mark.durability

RUN, DATA, TOK = Path("runs/base"), Path("datasets/corpus"), Path("tokenizers/tok")
LAST = RUN / "checkpoints/step-000500"


@pytest.fixture
def root(root) -> Path:
    return Path(shutil.copytree(REPOSITORY / "tests/golden/format-1", root))


def change(path: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    """Another value in a JSON file, and everything that vouches for it brought into line."""
    value = json.loads(path.read_bytes())
    sealed = value.pop("check", None) is not None
    spoil(value)
    if path.name == layout.MANIFEST:
        seal(path.parent, value)
    elif sealed:
        files.write_sealed(path, value)
    else:
        files.write_json(path, value)
        reseal(path.parent)


def log(root: Path, name: str, *lines: str) -> None:
    """A log of a run, and a status and checkpoints that have seen it."""
    data = "".join(line + "\n" for line in lines).encode()
    (root / RUN / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": files.sha256_file(root / RUN / name)}
    change(root / RUN / layout.STATUS, lambda v: v["logs"].update({name: entry}))
    if name == layout.METRICS:
        seen = {"metrics_bytes": entry["bytes"], "metrics_sha256": entry["sha256"]}
        for folder in (root / RUN / layout.CHECKPOINTS).glob("step-*"):
            change(folder / layout.STATE, lambda v: v.update(seen))


def weights(root: Path, data: bytes) -> None:
    (root / LAST / layout.MODEL).write_bytes(data)
    reseal(root / LAST)


def huge_id(value: dict[str, Any]) -> None:
    value["model"]["vocab"]["<a>"] = 2**32 - 1


EVAL = RUN / "evals/corpus-test-step-000500.json"
REPORT, STATUS, SHOW = ["report", "base"], ["status", "base"], ["show", "base"]
PROVE, SAMPLE = ["prove", "base", "--steps", "1"], ["sample", "base", "x"]
TRAIN = ["train", "--data", "corpus", "--name", "new", "--dry-run"]
ON = ["train", "--name", "base", "--steps", "501"]
CASES: list[tuple[Callable[[Path], object], int, str, list[list[str]]]] = [
    (lambda r: (r / RUN / layout.EVENTS).unlink(), 65, "events.jsonl: missing", [PROVE, ON]),
    (
        lambda r: change(r / DATA / layout.MANIFEST, lambda v: v["config"].update(order="x-v9")),
        *(78, "upgrade", [TRAIN, ["data", "info", "corpus"], ["verify", "corpus"]]),
    ),
    (
        lambda r: change(r / DATA / layout.MANIFEST, lambda v: v["config"]["splits"].pop("train")),
        *(65, "'config.splits.train' is not", [TRAIN, ["data", "info", "corpus"]]),
    ),
    (
        lambda r: change(r / TOK / layout.TOKENIZER, huge_id),
        *(65, "id 4294967295", [["tokenizer", "info", "tok"]]),
    ),
    (
        lambda r: change(r / LAST / layout.STATE, lambda v: v.update(step=499)),
        *(65, "it is of step 499", [SAMPLE, PROVE, ["verify", "base"]]),
    ),
    (
        lambda r: change(r / LAST / layout.STATE, lambda v: v.update(recent=[[1.0]])),
        *(65, "'recent.0' is not", [SAMPLE, PROVE, ["verify", "base"]]),
    ),
    (
        lambda r: change(r / RUN / layout.STATUS, lambda v: v.update(step="x", logs=3)),
        *(65, "'step' is not", [STATUS, REPORT, SHOW, ["verify", "base"]]),
    ),
    (
        lambda r: change(r / RUN / layout.STATUS, lambda v: v["logs"].update({"perf.jsonl": 1})),
        *(65, "'logs.perf.jsonl' is not", [STATUS, REPORT, ["verify", "base"]]),
    ),
    (lambda r: log(r, layout.PERF, '{"step": 1}'), 65, "perf.jsonl:1: 'seconds'", [REPORT]),
    (
        lambda r: log(r, layout.METRICS, "{}", '{"step": 1, "val_loss": NaN}'),
        *(65, "metrics.jsonl:1: 'step' is not", [REPORT, STATUS, SHOW]),
    ),
    (
        lambda r: log(r, layout.METRICS, '{"step": 1, "loss": 1e999}'),
        *(65, "metrics.jsonl:1: 'loss' is not", [REPORT, STATUS, SHOW]),
    ),
    (
        lambda r: log(r, layout.METRICS, '{"step": 1, "loss": NaN}'),
        *(65, "metrics.jsonl:1: not valid JSON", [REPORT, STATUS, SHOW]),
    ),
    (
        lambda r: log(r, layout.EVENTS, '{"step": 400, "rewind": 9223372036854775807}'),
        *(65, "events.jsonl:1: not what", [SHOW, ON, PROVE]),
    ),
    (
        lambda r: log(r, layout.EVENTS, '{"step": 400, "change": {"micro_batch_size": -3}}'),
        *(65, "events.jsonl, step 400: --micro-batch-size", [ON, PROVE]),
    ),
    (lambda r: change(r / EVAL, lambda v: v.update(scores=[{}])), 65, "'scores.0.name'", [REPORT]),
    (lambda r: weights(r, b"\xff" * 99), 65, "not readable as safetensors", [REPORT, SAMPLE]),
    (
        lambda r: weights(r, struct.pack("<Q", 2**40) + b"{}"),
        *(65, "not readable as safetensors", [REPORT, SAMPLE]),
    ),
]


@pytest.mark.parametrize(("spoil", "code", "says", "lines"), CASES, ids=[c[2] for c in CASES])
def test_what_no_lmcli_wrote_is_refused_by_name(cli, root, spoil, code, says, lines):
    spoil(root)
    for line in lines:
        result = cli(*line)
        assert result.code == code, (line, result)
        assert says in result.out + result.err and result.err.count("lmcli: ") == 1, (line, result)
        assert "Traceback" not in result.err


def test_a_run_goes_on_without_a_status_that_means_something(cli, root):
    change(root / RUN / layout.STATUS, lambda v: v.update(step="x"))
    assert cli("ls").out.splitlines()[-1].endswith("broken")
    result = cli(*ON)
    assert result.code == 0 and "status.json: damaged; it is written anew" in result.err
    assert cli("status", "base", "--field", "step").out == "501\n"


def test_names_that_are_no_text_are_shown_with_escapes(cli, root, tmp_path):
    """As the name of a file is that was not written in UTF-8."""
    change(root / DATA / layout.MANIFEST, lambda v: v["made"].update(command=["a\udcff", "\ud800"]))
    id_ = files.read_json(root / DATA / layout.MANIFEST)["id"]
    assert files.read_json(root / RUN / layout.MANIFEST)["parents"]["dataset"] == id_
    page = tmp_path / "page.html"
    for line in (SHOW, ["show", "corpus"], [*REPORT, "--out", str(page)], ["ls"]):
        result = cli(*line)
        assert result.code == 0, result
    assert "\\udcff" in page.read_text()


def test_other_keys_may_stand_beside_ours(cli, root):
    """Which a later lmcli of the same format may write."""
    change(root / DATA / layout.MANIFEST, lambda v: v["config"].update(form="x", more=[1]))
    change(root / LAST / layout.STATE, lambda v: v.update(more=1))
    change(root / RUN / layout.STATUS, lambda v: v.update(more=1))
    for line in (TRAIN, SAMPLE, STATUS, ["verify", "base"], ["data", "info", "corpus"]):
        assert cli(*line).code == 0, line
    assert inventory.state(root / LAST)["more"] == 1


@pytest.mark.parametrize(
    ("value", "schema", "where"),
    [
        ({"a": 1, "b": 2}, {"a": int}, None),
        ({"a?": 1}, {str: str}, ".a?"),
        ({"a": [1, "x"]}, {"a": [int]}, ".a.1"),
        ({}, {"a?": int, "b": int}, ".b"),
        ({"a": None}, {"a?": int}, ".a"),
        ({"a": 1}, {str: ()}, ".a"),
        ({}, {str: ()}, None),
        ([1, 2], [int, int], None),
        ([1], [int, int], ""),
        (True, int, ""),
        (-1, int, ""),
        (2**63, int, ""),
        (10**400, float, ""),
        (float("nan"), float, ""),
        (1, float, None),
        (None, (int, None), None),
        (5, range(5), ""),
    ],
)
def test_schemas(value, schema, where):
    assert misfit(value, schema) == where
