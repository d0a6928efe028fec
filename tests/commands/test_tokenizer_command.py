"""lmcli tokenizer: lines through a pipe, and one sentence for each bad input."""

import gzip
import json

import pytest


def train(cli, *args):
    return cli("tokenizer", "train", *args, "--name", "new")


def test_lines_round_trip_through_a_pipe(cli, tiny_copy):
    lines = b"a\r\n\n \n<eos> \xe7\x8b\x90\nlast without an end"
    ids = cli("tokenizer", "encode", "tok", input=lines)
    assert ids.code == 0 and ids.err == "" and ids.out.count("\n") == 5
    text = cli("tokenizer", "decode", "tok", input=ids.out)
    assert (text.code, text.out) == (0, lines.decode() + "\n")


def test_json_round_trips_too(cli, tiny_copy):
    ids = cli("tokenizer", "encode", "tok", "--json", input="two words\n")
    assert all(isinstance(i, int) for i in json.loads(ids.out))
    text = cli("tokenizer", "decode", "tok", "--json", input=ids.out)
    assert json.loads(text.out) == "two words"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1 two", "'two' is not a token id"),
        ("-1", "'-1' is not a token id"),
        ("1_0", "'1_0' is not a token id"),
        (b"\xff", "is not a token id"),
        ("5 99999", "outside the vocabulary of 320"),
        ("9" * 5000, "line 2"),
    ],
)
def test_decode_names_the_bad_line(cli, tiny_copy, line, says):
    line = line if isinstance(line, bytes) else line.encode()
    result = cli("tokenizer", "decode", "tok", input=b"68\n" + line + b"\n")
    assert result.code == 65
    assert "standard input, line 2: " in result.err and says in result.err


def test_encode_names_the_line_that_is_not_utf8(cli, tiny_copy):
    result = cli("tokenizer", "encode", "tok", input=b"good\nbad \xff\n")
    assert result.code == 65 and "standard input, line 2: not UTF-8 at byte 4" in result.err


def test_info_measures_files_and_reports_what_it_skipped(cli, tiny_copy):
    (tiny_copy.parent / "a.txt").write_bytes(b"two words\n\xff\nthree more words\n")
    args = ["a.txt", "--document", "line", "--on-error", "skip", "--json"]
    result = cli("tokenizer", "info", "tok", *args)
    facts = json.loads(result.out)
    assert (facts["words"], facts["bytes"], facts["skipped"]) == (5, 25, 1)
    assert facts["bytes_per_token"] == 25 / facts["tokens"]
    assert "1 documents could not be read" in result.err
    assert "words" not in json.loads(cli("tokenizer", "info", "tok", "--json").out)


def test_train_again_says_so_and_another_size_is_78(cli, root, prose):
    (root.parent / "a.txt").write_text(prose)
    first = train(cli, "a.txt", "--vocab-size", 300, "--json")
    again = train(cli, "a.txt", "--vocab-size", 300, "--json")
    assert again.code == 0 and "there already" in again.err
    assert json.loads(first.out)["id"] == json.loads(again.out)["id"]
    other = train(cli, "a.txt", "--vocab-size", 310)
    assert other.code == 78 and "vocab size 300, not 310" in other.err and "--force" in other.err
    assert train(cli, "a.txt", "--vocab-size", 310, "--force").code == 0
    assert (root / ".trash" / "tokenizers-new-0" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "data", "flags", "code", "says"),
    [
        ("no.txt", None, [], 66, "no.txt: no such file"),
        ("a.txt", b"", [], 65, "a.txt: no text to read (empty)"),
        ("empty/", None, [], 65, "empty/: no text in this folder; files ending in .jsonl"),
        ("a.txt", b"ab\xffc", [], 65, "a.txt: not UTF-8 at byte 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', [], 65, "a.jsonl:2: not valid JSON"),
        ("a.txt.gz", gzip.compress(b"x" * 999)[:-9], [], 65, "a.txt.gz: broken gzip"),
        ("a.txt", b"abc abc", ["--vocab-size", "100"], 2, "--vocab-size 100 is too small: 260"),
        ("a.txt", b"abc abc", ["--vocab-size", "9k"], 65, "this text supports 263 tokens"),
        ("a.txt", b"abc", ["--vocab-size", "-5"], 2, "--vocab-size"),
        ("a.txt", b"abc", ["--document", "lines"], 2, "did you mean 'line'?"),
    ],
)
def test_bad_input_is_one_sentence(cli, root, name, data, flags, code, says):
    if name.endswith("/"):
        (root.parent / name).mkdir()
    elif data is not None:
        (root.parent / name).write_bytes(data)
    result = train(cli, name, *flags)
    assert (result.code, result.out) == (code, "")
    assert says in result.err and result.err.count("\n") == 1
    assert not (root / "tokenizers" / "new").exists()
