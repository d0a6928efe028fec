"""lmcli data: what is shown, and every problem that verify can name."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY


def test_info_counts_every_split(cli, tiny_copy):
    facts = json.loads(cli("data", "info", "corpus", "--json").out)
    assert set(facts["splits"]) == {"train", "val", "test"}
    assert (
        facts["order"] == "feistel-v1" and facts["eos_id"] == 2 and "tokenizer" in facts["parents"]
    )
    table = cli("data", "info", "corpus")
    assert table.err == "" and f"{facts['splits']['train']['tokens']:,}" in table.out


def test_show_prints_documents_alone(cli, tiny_copy):
    shown = cli("data", "show", "corpus", "--split", "val", "--document", 0, "--json")
    record = json.loads(shown.out)
    plain = cli("data", "show", "corpus", "--split", "val", "--document", 0)
    assert plain.out == record["text"] + "\n" and "val document 0" in plain.err
    assert cli("data", "show", "corpus", "--limit", 0).out == ""


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["show", "corpus", "--split", "dev"], 2, "--split dev: corpus has train, val, test"),
        (["show", "corpus", "--document", 99], 2, "--document 99: train has 1 documents"),
        (["show", "corpus", "--limit", -1], 2, "--limit"),
        (["info", "nowhere"], 66, "no dataset called 'nowhere'"),
        (
            ["build", "x.txt", "--tokenizer", "none", "--name", "d"],
            66,
            "no tokenizer called 'none'",
        ),
        (["build", "no.txt", "--tokenizer", "tok", "--name", "d"], 66, "no.txt: no such file"),
        (["build", "x.txt", "--tokenizer", "tok", "--name", "a b"], 2, "cannot be a name"),
        (
            ["build", "x.txt", "--tokenizer", "tok", "--name", "d", "--val-fraction", 0.1],
            65,
            "x.txt: no text to read (empty)",
        ),
        (
            [
                "build",
                "x.txt",
                "--tokenizer",
                "tok",
                "--name",
                "d",
                "--val-fraction",
                "0.6",
                "--test-fraction",
                "0.6",
            ],
            2,
            "leave less than 5%",
        ),
    ],
)
def test_bad_input_is_one_sentence(cli, tiny_copy, args, code, says):
    (tiny_copy.parent / "x.txt").touch()
    result = cli("data", *args)
    assert (result.code, result.out) == (code, "")
    assert says in result.err and result.err.count("\n") == 1


def test_verify_names_every_damaged_file(cli, tiny_copy):
    assert json.loads(cli("data", "verify", "corpus", "--json").out)["ok"]
    for split in ("train", "val"):
        path = tiny_copy / "datasets" / "corpus" / f"{split}.bin"
        path.write_bytes(path.read_bytes()[:-2] + b"\7\0")
    result = cli("data", "verify", "corpus")
    assert result.code == 65 and "2 problem(s)" in result.err
    assert [line.split("/")[-1].partition(":")[0] for line in result.out.splitlines()] == [
        "train.bin",
        "val.bin",
    ]


def test_verify_reads_the_ids_that_honest_hashes_cover(cli, tiny_copy):
    """A writer's bug, not a disk's: sizes and hashes hold, yet the content breaks the format."""
    from lmcli.artifacts import manifest

    path = tiny_copy / "datasets" / "corpus"
    old = manifest.read(path)
    for split, position, token in (("train", 600, 320), ("val", -1, 7)):
        tokens = np.fromfile(path / f"{split}.bin", dtype="<u2")
        tokens[position] = token
        tokens.tofile(path / f"{split}.bin")
    (path / "manifest.json").unlink()
    manifest.write(path, "dataset", "corpus", old.parents, old.config)
    result = cli("data", "verify", "corpus")
    assert result.code == 65
    assert "token id 320 is outside the vocabulary of 320, in document 0 at token 600" in result.out
    assert cli("verify", "corpus").out == result.out
    trained = cli("train", "--data", "corpus", "--name", "x", *TINY, "--batch-size", 64)
    assert trained.code == 65 and "train.bin: token id 320" in trained.err
    assert "val.bin: document 0 does not end in <eos>; corrupt" in result.out


def test_a_dry_run_reads_sizes_and_writes_nothing(cli, tiny_copy):
    before = sorted(tiny_copy.rglob("*"))
    line = ["data", "build", "README.md", "--tokenizer", "tok", "--name", "dry", "--dry-run"]
    Path("README.md").write_text("text")
    said = json.loads(cli(*line, "--json").out)
    assert said["read"] == {"train": {"files": 1, "bytes": 4}} and not said["exists"]
    assert said["split_rule"] == "position" and said["splits"] == ["train", "val", "test"]
    assert "split by           hash" in cli(*line, "--val-fraction", 0, "--test-fraction", 0).out
    assert sorted(tiny_copy.rglob("*")) == before
