"""Law 1: byte-level BPE loses nothing; and the limits of vocabulary sizes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcli.errors import DataError, UsageError
from lmcli.text.tokenizer import SPECIAL, Tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def tokenizer(prose) -> Tokenizer:
    return Tokenizer.train([prose], 400)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(text=ANY_TEXT)
def test_decode_of_encode_is_the_same_bytes(tokenizer, text):
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_special_tokens_in_text_are_text(tokenizer, tmp_path):
    (tmp_path / "t.json").write_bytes(tokenizer.to_bytes())
    for t in (tokenizer, Tokenizer.load(tmp_path / "t.json")):
        for word in SPECIAL:
            ids = t.encode(f"a{word}b")
            assert min(ids) > 3 and t.decode(ids) == f"a{word}b"
            assert [t.encode_batch([f"a{word}b"])[0]] == [ids]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.sep_id) == (0, 1, 2, 3)
    assert tokenizer.decode([2, *tokenizer.encode("x"), 0]) == "x"


def test_training_is_deterministic(prose, tokenizer):
    parts = [prose[:9000], prose[9000:]]
    assert Tokenizer.train(parts, 350).to_bytes() == Tokenizer.train(parts, 350).to_bytes()


def test_vocabulary_sizes_out_of_reach():
    with pytest.raises(UsageError, match="--vocab-size 100 is too small: 260"):
        Tokenizer.train(["abc"], 100)
    with pytest.raises(DataError, match="this text supports 263 tokens"):
        Tokenizer.train(["abc abc"], 5000)
    assert Tokenizer.train(["abc abc"], None).vocab_size == 263


def test_a_cut_character_is_replaced_only_for_display(tokenizer):
    ids = tokenizer.encode("狐")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    cut = tokenizer.decode_bytes(ids[:1])
    assert 0 < len(cut) < 3 and "狐".encode().startswith(cut)


def test_newline_ids(tokenizer):
    assert tokenizer.encode("\n")[0] in tokenizer.newline_ids
    assert not set(tokenizer.encode("ab c")) & tokenizer.newline_ids


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json: not a tokenizer file"):
        Tokenizer.load(path)
    with pytest.raises(DataError, match="outside the vocabulary"):
        Tokenizer.train(["abc"], None).decode_bytes([9999])
    with pytest.raises(DataError, match="outside the vocabulary"):
        Tokenizer.train(["abc"], None).decode_bytes([-1])


@pytest.mark.parametrize("folder", ["naughty-strings", "unicode-stress", "udhr", "japanese-prose"])
def test_real_text_in_many_scripts_round_trips(tokenizer, test_data, folder):
    for path in (test_data / folder).glob("*.txt"):
        text = path.read_bytes().decode("utf-8", "ignore")[:100_000]
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode(), path
