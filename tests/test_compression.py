"""Bytes per token by script, and losses counted character by character."""

import pytest

from lmcli.text import imported
from lmcli.text.compression import Compression, Losses, script
from lmcli.text.readers import Piece
from lmcli.text.tokenizer import Tokenizer


def measure(tokenizer, *texts, where="a.txt") -> dict:
    counts = Compression(tokenizer)
    for text in texts:
        counts.add(Piece(text, where))
    return counts.facts()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" fox", "Latin"), ("狐", "Han"), ("々", "Han"), ("ひらがな", "Kana"), ("カタ", "Kana"),
        ("лиса", "Cyrillic"), ("ثعلب", "Arabic"), ("लोमड़ी", "Devanagari"), ("\u093f", "Devanagari"),
        ("여우", "Hangul"), ("จิ้ง", "Thai"), ("αλ", "Greek"), ("שועל", "Hebrew"),
        ("12", "digits"), ("٣", "digits"), ("!?", "other"), ("\n", "other"), ("", "other"),
        ("\u0301", "other"), ("1a", "Latin"),
    ],
)  # fmt: skip
def test_script_of_the_first_letter(text, name):
    assert script(text) == name


def test_bytes_and_tokens_add_up_by_script():
    tokenizer = Tokenizer.train(["狐狐 лиса"], 261, "char")
    facts = measure(tokenizer, "ab 狐狐лиса 12", "狐")
    assert facts["bytes"] == 2 + 1 + 6 + 8 + 1 + 2 + 3
    assert facts["tokens"] == 2 + 1 + 2 + 8 + 1 + 2 + 1
    assert facts["bytes_per_token"] == facts["bytes"] / facts["tokens"]
    assert facts["words"] == 4
    assert facts["scripts"] == {
        "Han": {"bytes": 9, "bytes_per_token": 3.0},
        "Cyrillic": {"bytes": 8, "bytes_per_token": 1.0},
        "Latin": {"bytes": 2, "bytes_per_token": 1.0},
        "other": {"bytes": 2, "bytes_per_token": 1.0},
        "digits": {"bytes": 2, "bytes_per_token": 1.0},
    }
    assert (facts["unknown"], facts["dropped"], facts["added"]) == (0, 0, 0)


def test_source_code_is_its_own_kind():
    tokenizer = Tokenizer.train(["x"], None, "byte")
    for where in ("a.py", "a.py:12", "src/a.rs.gz", "10:30/a.py", "C:/a.py:7"):
        assert set(measure(tokenizer, "def 狐 1", where=where)["scripts"]) == {"code"}
    assert set(measure(tokenizer, "def f", where="a.md")["scripts"]) == {"Latin", "other"}


def test_losses_are_the_difference_of_two_bags_of_characters():
    losses = Losses()
    losses.add("AaB\n", "aab ")
    losses.add("same", "same")
    assert losses.facts() == {
        "dropped": 3,
        "added": 3,
        "most_dropped": {"\n": 1, "A": 1, "B": 1},
    }


def test_what_bert_loses_is_counted_exactly(test_data):
    bert = imported.load(imported.find([str(test_data / "tokenizer-bert/bert-base-uncased")]))
    facts = measure(bert, "The Fox\njumps \U0001f98a\U0001f98a  é")
    # T, F and the accent become others; the line end is a space, two spaces shrink to one each.
    assert bert.decode(bert.encode("The Fox\njumps \U0001f98a\U0001f98a  é")) == "the fox jumps e"
    assert facts["unknown"] == 2
    assert facts["most_dropped"] == {
        " ": 1, "\U0001f98a": 2, "\n": 1, "F": 1, "T": 1, "é": 1,
    }  # fmt: skip
    assert (facts["dropped"], facts["added"]) == (7, 3)


def test_every_byte_is_counted_for_every_script_of_real_text(test_data):
    texts = [p.read_text("utf-8") for p in sorted((test_data / "udhr").glob("*.txt"))]
    gpt2 = imported.load(imported.find([str(test_data / "tokenizer-gpt2")]))
    facts = measure(gpt2, *texts)
    assert facts["bytes"] == sum(len(t.encode()) for t in texts)
    assert facts["bytes"] == sum(s["bytes"] for s in facts["scripts"].values())
    assert facts["tokens"] == sum(len(gpt2.encode(t)) for t in texts)
    assert facts["dropped"] == 0
    assert {"Latin", "Han", "Cyrillic", "Arabic", "Devanagari", "Hangul", "Kana", "Thai"} <= set(
        facts["scripts"]
    )
    assert (
        facts["scripts"]["Latin"]["bytes_per_token"] > facts["scripts"]["Thai"]["bytes_per_token"]
    )
