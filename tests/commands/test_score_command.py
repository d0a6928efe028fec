"""`lmcli score` from files and pipes."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def texts(root):
    Path("hyp.txt").write_text("the cat sat\na dog\u2028barks\n\n")
    Path("ref.txt").write_text("the cat sat down\na dog barks\nsilence\n")
    Path("two.txt").write_text("the cat sat\nthe dog barks\nquiet\n")
    Path("bad.txt").write_text("x\ny\nz\n")


def scores(result):
    return {s["name"]: s for s in json.loads(result.out)["scores"]}


def test_files_and_several_references(cli, texts):
    args = ["--metric", "rouge1", "--metric", "exact", "--json"]
    one = scores(cli("score", "hyp.txt", "--ref", "ref.txt", *args))
    two = scores(cli("score", "hyp.txt", "--ref", "ref.txt", "--ref", "two.txt", *args))
    assert one["exact"]["value"] == 0 and two["exact"]["value"] == pytest.approx(100 / 3)
    assert one["rouge1"]["value"] < two["rouge1"]["value"]
    default = scores(cli("score", "hyp.txt", "--ref", "ref.txt", "--json"))
    assert list(default) == ["BLEU", "chrF2", "TER"] or list(default) == ["bleu", "chrf", "ter"]
    assert "nrefs:1|case:mixed" in default["bleu"]["signature"]
    assert (
        "nrefs:2"
        in scores(cli("score", "hyp.txt", "--ref", "ref.txt", "--ref", "two.txt", "--json"))[
            "bleu"
        ]["signature"]
    )


def test_segments_and_the_table(cli, texts):
    args = ["--ref", "ref.txt", "--metric", "f1", "--metric", "em", "--segments"]
    result = cli("score", "hyp.txt", *args)
    rows = result.out.splitlines()
    assert len(rows) == 5 and rows[2] == "0.00\t0.00" and "norm:squad" in result.err
    said = json.loads(cli("score", "hyp.txt", *args, "--json").out)
    assert len(said["segments"]["f1"]) == 3


def test_records(cli, texts):
    rows = [{"completion": "a b", "reference": ["a b", "c"]}, {"completion": "d", "reference": "e"}]
    Path("r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = scores(cli("score", "r.jsonl", "--metric", "exact", "--json"))
    assert said["exact"]["value"] == 50
    Path("r.tsv").write_text("completion\treference\na b\ta b\nd\te\n")
    assert scores(cli("score", "r.tsv", "--metric", "exact", "--json")) == said
    Path("hyp.gz").write_bytes(gzip.compress(b"a b\nd\n"))
    zipped = cli("score", "hyp.gz", "--ref", "r.jsonl", "--metric", "exact", "--json")
    assert scores(zipped) == said


def test_a_pipe(texts):
    line = [sys.executable, "-m", "lmcli", "score", "-", "--ref", "ref.txt", "--metric", "ter"]
    text = Path("hyp.txt").read_text()
    done = subprocess.run(line, input=text, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ter") and len(done.stdout.splitlines()) == 1


def test_a_baseline(cli, texts):
    line = ["score", "hyp.txt", "--ref", "ref.txt", "--metric", "rouge1", "--samples", 200]
    said = scores(cli(*line, "--baseline", "bad.txt", "--json"))["rouge1"]
    assert said["difference"] == said["value"] and 0 < said["p"] <= 1
    assert said["test"] == "bootstrap|n:200|seed:0" and said["low"] <= said["value"] <= said["high"]
    table = cli(*line, "--baseline", "hyp.txt", "--test", "randomisation")
    assert table.out.splitlines()[1].split()[-1] == "1.0000"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["hyp.txt", "--ref", "short.txt"], 65, "hyp.txt has 3 segments and short.txt 1"),
        (["hyp.txt", "--ref", "ref.txt", "--baseline", "short.txt"], 65, "short.txt 1"),
        (["hyp.txt"], 2, "--ref names the file"),
        (["none.txt", "--ref", "ref.txt"], 66, "none.txt: no such file"),
        (["empty.txt", "--ref", "ref.txt"], 65, "empty.txt: empty"),
        (["latin.txt", "--ref", "ref.txt"], 65, "latin.txt:2: not UTF-8 at byte 3"),
        (["bad.jsonl"], 65, "bad.jsonl:1: no field 'completion'; there are text"),
        (["broken.jsonl"], 65, "broken.jsonl:1: not a JSON object"),
        (["bad.tsv"], 65, "bad.tsv:2: no column 'completion'; there are a, b"),
        (["torn.gz", "--ref", "ref.txt"], 65, "torn.gz: broken gzip"),
        (["hyp.txt", "--ref", "ref.txt", "--metric", "blue"], 2, "did you mean 'bleu'?"),
        (["hyp.txt", "--ref", "ref.txt", "--tokenize", "13b"], 2, "did you mean '13a'?"),
    ],
)
def test_mistakes(cli, texts, args, code, says):
    Path("short.txt").write_text("one\n")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"a\ncaf\xe9\nb\n")
    Path("bad.jsonl").write_text('{"text": "x"}\n')
    Path("broken.jsonl").write_text("[1\n")
    Path("bad.tsv").write_text("a\tb\n1\t2\n")
    Path("torn.gz").write_bytes(gzip.compress(b"abc\n" * 50)[:20])
    result = cli("score", *args)
    assert result.code == code and says in result.err and not result.out
