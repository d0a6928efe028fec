"""Law 1 for every algorithm: any text comes back, byte for byte; and what each one learns."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer

from lmcli.errors import DataError, UsageError
from lmcli.text.algorithms import ALPHABET, SPECIAL
from lmcli.text.tokenizer import Tokenizer

ALGORITHMS = ("bpe", "unigram", "wordpiece", "char", "byte")
SIZES = {"bpe": 400, "unigram": 400, "wordpiece": 700, "char": 300, "byte": 260}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HARD = [
    "",
    " ",
    "\0\1\x7f",
    "a\r\n\n\n  b\t ",
    "## heading\n### more ##ing #a##b # #",
    "<pad><bos><eos><sep> a<eos>b",
    "\u2581under \u0120 \u010a",
    "e\u0301\u212b\ufb01\ufeff\u200d",
    "x" * 1000 + "狐" * 300 + " " * 500,
    "".join(map(chr, range(0x300))),
    "\U0001f469\u200d\U0001f680\U0010ffff\ud7ff\ue000\uffff",
]


@pytest.fixture(scope="module")
def trained(prose) -> dict[str, Tokenizer]:
    return {a: Tokenizer.train([prose], SIZES[a], a) for a in ALGORITHMS}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(text=ANY_TEXT)
def test_decode_of_encode_is_the_same_bytes(trained, algorithm, text):
    tokenizer = trained[algorithm]
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert not ids or min(ids) > 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_text_comes_back_also_from_the_file(trained, tmp_path, algorithm, text):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(trained[algorithm].to_bytes())
    loaded = Tokenizer.load(path)
    ids = loaded.encode(text)
    assert ids == trained[algorithm].encode(text) == loaded.encode_batch([text])[0]
    assert loaded.decode_bytes(ids) == text.encode()
    assert not ids or min(ids) > 3, "text became a special token"
    # The library alone reads it the same way.
    assert HFTokenizer.from_file(str(path)).decode(ids) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_real_text_in_many_scripts_comes_back(trained, test_data, algorithm):
    tokenizer = trained[algorithm]
    paths = [
        path
        for folder in ("naughty-strings", "unicode-stress", "udhr")
        for path in sorted((test_data / folder).glob("*.txt"))
    ]
    assert len(paths) > 15
    for path in paths:
        text = path.read_bytes().decode("utf-8", "replace")[:60_000]
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode(), path


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sizes_and_special_ids(trained, algorithm):
    tokenizer = trained[algorithm]
    assert tokenizer.vocab_size == SIZES[algorithm] and tokenizer.exact
    special = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.sep_id)
    assert special == (0, 1, 2, 3)
    assert tokenizer.unknown_id not in tokenizer.encode("狐 fox \U0001f98a" * 50)
    newline = tokenizer.encode("\n")
    assert set(newline) & tokenizer.newline_ids
    assert not set(tokenizer.encode("ab c")) & tokenizer.newline_ids


def test_char_is_a_token_for_each_common_character_and_bytes_for_the_rest():
    tokenizer = Tokenizer.train(["狐狐狐狸狸犬 abc"], 262, "char")
    assert tokenizer.vocab_size == 262
    assert len(tokenizer.encode("狐狸")) == 2 and len(tokenizer.encode("犬")) == 3
    assert tokenizer.encode("狐") == [260] and tokenizer.encode("狸") == [261]
    assert tokenizer.encode("abc") == [4 + ALPHABET.index(c) for c in "abc"]


def test_byte_is_one_token_for_each_byte():
    tokenizer = Tokenizer.train(["anything"], None, "byte")
    assert tokenizer.vocab_size == 260
    assert len(tokenizer.encode("狐 fox")) == 7
    with pytest.raises(DataError, match="--vocab-size 261 is out of reach: .* 260 tokens"):
        Tokenizer.train(["anything"], 261, "byte")


def test_wordpiece_takes_the_longest_match_first():
    tokenizer = Tokenizer.train(["low lower lowest newer newest " * 50], 530, "wordpiece")
    inner = HFTokenizer.from_str(tokenizer.to_bytes().decode())
    pieces = inner.encode(" lowest", add_special_tokens=False).tokens
    vocab = inner.get_vocab()
    assert "".join(p.removeprefix("##") for p in pieces) == "\u0120lowest"
    longest = next("\u0120lowest"[:n] for n in range(7, 0, -1) if "\u0120lowest"[:n] in vocab)
    assert pieces[0] == longest and len(longest) > 2
    assert all(p.startswith("##") for p in pieces[1:])


def test_smallest_sizes():
    for algorithm in ALGORITHMS:
        least = 516 if algorithm == "wordpiece" else 260
        with pytest.raises(UsageError, match=f"--vocab-size {least - 1} is too small: {least}"):
            Tokenizer.train(["abc"], least - 1, algorithm)
    assert Tokenizer.train(["abc abc"], 516, "wordpiece").vocab_size == 516


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_process_learns_the_same_file(trained, prose, tmp_path, algorithm):
    """The library hashes with other seeds in each process, and adds in another order."""
    (tmp_path / "a.txt").write_text(prose)
    code = (
        "import hashlib, sys; from lmcli.text.tokenizer import Tokenizer;"
        "text = open(sys.argv[1], encoding='utf-8', newline='').read();"
        "t = Tokenizer.train([text], int(sys.argv[2]), sys.argv[3]);"
        "print(hashlib.sha256(t.to_bytes()).hexdigest())"
    )
    args = [str(tmp_path / "a.txt"), str(SIZES[algorithm]), algorithm]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(trained[algorithm].to_bytes()).hexdigest()


def test_bytes_per_token_of_the_algorithms_on_a_novel(test_data):
    """Held-out bytes per token at 4,096 tokens; Unigram without whole words gave 2.9."""
    text = (test_data / "gutenberg-en" / "sherlock-holmes_1661.txt").read_text("utf-8", "replace")
    learn, held_out = text[:500_000], text[500_000:560_000]
    size = len(held_out.encode())
    rates = {
        a: size / len(Tokenizer.train([learn], n, a).encode(held_out))
        for a, n in (("bpe", 4096), ("unigram", 4096), ("wordpiece", 4096), ("byte", 260))
    }
    assert rates["byte"] == 1
    assert 3.3 < rates["bpe"] < 4 and rates["unigram"] > 0.95 * rates["bpe"]
    assert rates["wordpiece"] > 0.95 * rates["bpe"]


def test_merges_of_byte_level_bpe_equal_a_published_reference(test_data):
    """CS336's 243 merges on its corpus; of pairs of equal count theirs takes another one first."""
    folder = test_data / "bpe-reference"
    text = (folder / "corpus.en").read_text("utf-8")
    lines = (folder / "cs336-train-bpe-reference-merges.txt").read_text("utf-8").splitlines()
    theirs = [tuple(line.rsplit(" ", 1)) for line in lines if line.strip()]
    inner = json.loads(Tokenizer.train([text], 260 + len(theirs)).to_bytes())
    ours = [tuple(pair) for pair in inner["model"]["merges"]]
    assert len(theirs) == 243 and len(ours) == 243
    same = len(set(ours) & set(theirs))
    assert ours[:30] == theirs[:30] and same >= 236, same


def test_special_tokens_are_the_first_ids(trained):
    for tokenizer in trained.values():
        vocab = HFTokenizer.from_str(tokenizer.to_bytes().decode()).get_vocab()
        assert [vocab[token] for token in SPECIAL] == [0, 1, 2, 3]
