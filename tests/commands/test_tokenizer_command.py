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
        ("9" * 5000, f"line 2: {'9' * 40!r} is not a token id"),
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
        ("a.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], [], 65, "a.txt.gz: broken gzip"),
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


def test_import_a_folder_again_and_another_file(cli, root, test_data):
    gpt2 = test_data / "tokenizer-gpt2"
    first = cli("tokenizer", "import", gpt2, "--name", "gpt2")
    assert first.code == 0 and "tokenizer gpt2: 50,257 tokens\n" in first.err
    again = cli("tokenizer", "import", gpt2, "--name", "gpt2", "--json")
    assert again.code == 0 and "there already" in again.err
    facts = json.loads(again.out)
    assert facts["algorithm"] == "imported" and facts["exact"] is True
    pair = [gpt2 / "vocab.bpe", gpt2 / "encoder.json"]  # in either order
    assert cli("tokenizer", "import", *pair, "--name", "gpt2").code == 0
    other = cli("tokenizer", "import", gpt2 / "gpt2_tokenizer.json", "--name", "gpt2")
    assert other.code == 78 and "train files 2 of them, not 1" in other.err
    ids = cli("tokenizer", "encode", "gpt2", input="Hello world<|endoftext|>\n").out.split()
    assert ids[:2] == ["15496", "995"] and "50256" not in ids


def test_import_says_what_is_wrong_in_one_sentence(cli, root, test_data):
    bert = test_data / "tokenizer-bert" / "bert-base-uncased"
    for args, code, says in (
        (["nowhere"], 66, "nowhere: no tokenizer.json here"),
        ([bert / "vocab.txt"], 65, "vocab.txt: not a tokenizer.json"),
        ([bert, "--eos", "<end>"], 2, "--eos <end> is not in the vocabulary"),
    ):
        result = cli("tokenizer", "import", *args, "--name", "new")
        assert result.code == code and says in result.err and result.err.count("\n") == 1
    assert not (root / "tokenizers" / "new").exists()
    lossy = cli("tokenizer", "import", bert, "--name", "bert")
    assert lossy.code == 0 and "it may change text: see lmcli tokenizer info" in lossy.err


def test_a_lossy_tokenizer_says_what_the_dataset_lost(cli, root, test_data):
    cli("tokenizer", "import", test_data / "tokenizer-bert" / "bert-base-uncased", "--name", "bert")
    (root.parent / "a.txt").write_text("The Fox \U0001f98a\njumps\n" * 300)
    args = ["a.txt", "--tokenizer", "bert", "--name", "d", "--test-fraction", "0"]
    built = cli("data", "build", *args, "--json")
    assert built.code == 0 and "1,500 characters dropped, 898 added; most" in built.err
    # Of 300 times two lines; spaces stand for line ends, but not for the last of the two parts.
    assert json.loads(built.out)["losses"] == {
        "dropped": 1500,
        "added": 898,
        "most_dropped": {"\n": 600, "F": 300, "T": 300, "\U0001f98a": 300},
    }
    cli("tokenizer", "train", "a.txt", "--name", "own", "--vocab-size", "270")
    exact = cli("data", "build", "a.txt", "--tokenizer", "own", "--name", "e", "--json")
    assert json.loads(exact.out)["losses"] is None and "give back" not in exact.err


def test_info_compares_tokenizers_in_one_table(cli, tiny_copy):
    (tiny_copy.parent / "a.txt").write_text("The fox 12 狐狸!\n" * 20)
    cli("tokenizer", "train", "a.txt", "--name", "bytes", "--algorithm", "byte")
    table = cli("tokenizer", "info", "tok", "tokenizers/bytes", "a.txt").out
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert rows["name"] == ["tok", "bytes"] and rows["vocab_size"] == ["320", "260"]
    assert rows["bytes_per_token"][1] == rows["Latin"][1] == rows["Han"][1] == "1.000"
    assert float(rows["Latin"][0]) > 1
    lines = cli("tokenizer", "info", "tok", "bytes", "a.txt", "--json").out.splitlines()
    first, second = map(json.loads, lines)
    assert second["tokens"] == second["bytes"] == first["bytes"] > first["tokens"]
    assert set(first["scripts"]) == {"Latin", "Han", "digits", "other"}
    assert first["dropped"] == 0 and first["exact"] is True
    # A file of that name is a file; a folder in front says which is meant.
    (tiny_copy.parent / "bytes").write_text("x")
    assert json.loads(cli("tokenizer", "info", "tok", "bytes", "--json").out)["bytes"] == 1
    assert cli("tokenizer", "info", "tok", "nowhere").code == 66


def test_a_sample_is_recorded_and_the_same_again(cli, root):
    (root.parent / "a.txt").write_text("".join(f"line {i} {i * i}\n" for i in range(9000)))
    args = ["a.txt", "--vocab-size", 300, "--sample-bytes", "20kB", "--json"]
    first, second = (train(cli, *args, "--force") for _ in range(2))
    assert first.code == 0 and json.loads(first.out)["id"] == json.loads(second.out)["id"]
    assert json.loads(first.out)["sample_bytes"] == 20_000
    other = train(cli, *args, "--seed", 1)
    assert other.code == 78 and "seed 0, not 1" in other.err
    whole = train(cli, "a.txt", "--vocab-size", 300, "--force", "--json")
    assert json.loads(whole.out)["id"] != json.loads(first.out)["id"]


@pytest.mark.parametrize("algorithm", ["unigram", "wordpiece", "char", "byte"])
def test_every_algorithm_builds_trains_and_samples(cli, root, prose, algorithm):
    from conftest import TINY

    (root.parent / "a.txt").write_text(prose)
    tokenizer = ["a.txt", "--name", "t", "--algorithm", algorithm, "--json"]
    if algorithm in ("unigram", "wordpiece"):
        tokenizer += ["--vocab-size", "600"]
    made = json.loads(cli("tokenizer", "train", *tokenizer).out)
    assert made["algorithm"] == algorithm and made["exact"] is True
    assert cli("data", "build", "a.txt", "--tokenizer", "t", "--name", "d").code == 0
    shown = [cli("data", "show", "d", "--split", s).out for s in ("train", "val", "test")]
    assert "".join(text.removesuffix("\n") for text in shown) == prose
    train = ["--data", "d", "--name", "r", "--steps", "2", *TINY]
    assert cli("train", *train).code == 0
    sampled = cli("sample", "r", "--max-new-tokens", "8", input="The fox\n狐狸\n")
    assert sampled.code == 0 and sampled.out.count("\n") == 2
    scored = json.loads(cli("eval", "r", "--data", "d", "--split", "val", "--json").out)
    assert "bits_per_byte" in {metric["name"] for metric in scored["scores"]}
