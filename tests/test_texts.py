"""`data/`: what its README says is there, and the examples are right."""

import hashlib
import json
import re

import pytest
from conftest import REPOSITORY

DATA = REPOSITORY / "data"
PANGRAM = "The quick brown fox jumps over the lazy dog"


def records(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_every_file_has_its_line_and_its_hash():
    listed = dict(
        re.findall(r"\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|", (DATA / "README.md").read_text())
    )
    there = {p.name for p in DATA.iterdir()} - {"README.md"}
    assert set(listed) == there
    for name, sha256 in listed.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256, name
    assert sum(p.stat().st_size for p in DATA.iterdir()) < 120_000


def test_the_pangram_and_the_pairs():
    assert PANGRAM in (DATA / "en.txt").read_text()
    rows = [line.split("\t") for line in (DATA / "pairs-en-zh.tsv").read_text().splitlines()]
    assert rows[0] == ["en", "zh"] and len(rows) > 60 and {len(row) for row in rows} == {2}
    assert rows[1][0] == PANGRAM + "."
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == len(rows)


def test_answers_stand_in_their_context_and_summaries_are_shorter():
    questions, summaries = records("qa.jsonl"), records("summaries.jsonl")
    assert len(questions) >= 20 and len(summaries) >= 20
    assert all(q["answer"] in q["context"] for q in questions)
    assert all(0 < len(s["summary"]) < len(s["document"]) / 1.5 for s in summaries)


@pytest.mark.parametrize("example", records("code.jsonl"), ids=lambda e: e["prompt"][4:20])
def test_the_code_passes_its_test_and_the_test_can_fail(example):
    exec(example["prompt"] + example["completion"] + example["test"], {})
    with pytest.raises((AssertionError, TypeError)):
        exec(example["prompt"] + "    return None\n" + example["test"], {})


def test_there_are_enough_code_examples():
    assert len(records("code.jsonl")) >= 20
