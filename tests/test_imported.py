"""Tokenizers of others: the ids of the original, and their own special tokens."""

import json

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers

from lmcli.errors import DataError, MissingInputError, UsageError
from lmcli.text import imported
from lmcli.text.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"
PLACES = {
    "gpt-2": ("tokenizer-gpt2", "tokenizer-gpt2/gpt2_tokenizer.json"),
    "llama-spm": ("tokenizer-llama2/tinyllama-tokenizer.json",),
    "bert-bge": ("tokenizer-bert/bert-base-uncased",),
}


def load(path, eos=None) -> Tokenizer:
    return imported.load(imported.find([str(path)]), eos)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, places in PLACES.items() for place in places]
)
def test_ids_equal_the_reference_on_46_texts(test_data, tmp_path, name, place):
    folder = test_data / "tokenizer-vectors"
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    assert len(lines) == 46 and len(texts) == 47 and texts[46] == ""
    (tmp_path / "t.json").write_bytes(load(test_data / place).to_bytes())
    for tokenizer in (load(test_data / place), Tokenizer.load(tmp_path / "t.json")):
        for text, line in zip(texts[:46], lines, strict=True):
            assert tokenizer.encode(text) == [int(i) for i in line.split()], text


@pytest.mark.parametrize(
    ("place", "special"),
    [
        ("tokenizer-gpt2", (50256, 50256, 50256, None)),
        ("tokenizer-bert/bert-base-uncased", (0, 101, 102, 102)),
        ("tokenizer-llama2/tinyllama-tokenizer.json", (2, 1, 2, None)),
    ],
)
def test_special_tokens_of_the_original(test_data, tmp_path, place, special):
    (tmp_path / "t.json").write_bytes(load(test_data / place).to_bytes())
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    found = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.sep_id)
    assert found == special
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    for word in tokenizer.roles.values():
        ids = tokenizer.encode(f"a {word} b")
        assert tokenizer.eos_id not in ids and tokenizer.bos_id not in ids


def test_gpt2_is_exact_and_bert_is_not(test_data):
    gpt2, bert = load(test_data / "tokenizer-gpt2"), load(test_data / PLACES["bert-bge"][0])
    assert gpt2.exact and not bert.exact
    text = "".join(map(chr, range(1, 0x2000))) + " \n\n Hello"
    assert gpt2.decode_bytes(gpt2.encode(text)) == text.encode()
    assert bert.decode(bert.encode("Hello, WORLD")) == "hello, world"
    assert bert.newline_ids == frozenset()
    assert set(gpt2.encode("a\nb")) & gpt2.newline_ids == set(gpt2.encode("\n"))


def test_decoding_is_the_librarys_where_tokens_are_no_bytes(test_data):
    place = test_data / "tokenizer-llama2/tinyllama-tokenizer.json"
    tokenizer, library = load(place), HFTokenizer.from_file(str(place))
    for text in ("Hello world", " two  spaces", "狐狸 jumps\n\n\tover", "\U0001f98a"):
        ids = tokenizer.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == library.decode(ids) == text


def tiny_file(folder, **changes) -> str:
    inner = HFTokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2, "<stop>": 3}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(inner.to_str()) | changes))
    return str(path)


def test_an_end_of_text_token_is_asked_for(tmp_path):
    path = tiny_file(tmp_path)
    with pytest.raises(DataError, match="no token that ends a text is known; name it with --eos"):
        load(path)
    with pytest.raises(UsageError, match="--eos <end> is not in the vocabulary"):
        load(path, "<end>")
    tokenizer = load(path, "<stop>")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (3, 3, 3)
    assert tokenizer.encode("a x b") == [0, 2, 1] and tokenizer.unknown_id == 2


def test_a_file_that_cuts_or_pads_does_not_here(tmp_path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = load(tiny_file(tmp_path, truncation=cut), "<stop>")
    assert tokenizer.encode("a b a b") == [0, 1, 0, 1]
    assert tokenizer.encode_batch(["a b a", "a"]) == [[0, 1, 0], [0]]


def test_dropout_is_switched_off(tmp_path):
    inner = HFTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")], dropout=0.9))
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(tmp_path)
    assert all(tokenizer.encode("ab") == [2] for _ in range(30))


def test_other_files_are_one_sentence(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere: no tokenizer.json here, nor vocab.json"):
        imported.find([str(tmp_path / "nowhere")])
    with pytest.raises(MissingInputError, match=r"no tokenizer.json here"):
        imported.find([str(tmp_path)])
    (tmp_path / "spm.model").write_bytes(b"\x0a\x0e\x0a")
    with pytest.raises(DataError, match="spm.model: not a tokenizer.json.*save_pretrained"):
        load(tmp_path / "spm.model")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version\nx y\n")
    with pytest.raises(DataError, match="vocab.json: not a tokenizer.json"):
        load(tmp_path)


def test_a_file_that_the_library_panics_at_is_one_sentence(tmp_path):
    inner = HFTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")]))
    value = json.loads(inner.to_str())
    value["model"]["continuing_subword_prefix"] = "####"
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="not a tokenizer.json"):
        load(tmp_path)


def test_a_role_for_a_token_that_is_not_there(test_data, tmp_path):
    value = json.loads(load(test_data / "tokenizer-gpt2").to_bytes())
    assert value["added_tokens"][0]["roles"] == ["bos", "pad", "eos"]
    value["added_tokens"][0]["roles"] = ["eos"]
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"t.json: .*pad"):
        Tokenizer.load(tmp_path / "t.json")
