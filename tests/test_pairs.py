"""Datasets of pairs: every form of input, what is dropped, and what is shown."""

import gzip
import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from lmcli.artifacts import layout, manifest
from lmcli.dataset.store import Dataset, StoreWriter
from lmcli.text import tasks
from lmcli.text.tasks import Template
from lmcli.text.tokenizer import Tokenizer

WHOLE = ("--val-fraction", 0, "--test-fraction", 0)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory) -> Path:
    """A root with the tokenizers `tok` (bpe) and `bytes`."""
    from lmcli.cli import main

    root = tmp_path_factory.mktemp("pairs") / "artifacts"
    line = ["tokenizer", "train", str(REPOSITORY / "data" / "pairs-en-zh.tsv"), "--text-key", "en"]
    for extra in (["--name", "tok", "--vocab-size", "300"], ["--name", "b", "--algorithm", "byte"]):
        assert main([*line, *extra, "--artifacts", str(root), "-q"]) == 0
    return root


@pytest.fixture
def build(cli, root, tokenized):
    """build(args, tokenizer="tok") -> Result of building the dataset `d`, in place of the last."""
    import shutil

    shutil.copytree(tokenized, root)

    def run(*args, tokenizer="tok"):
        return cli("data", "build", *args, "--tokenizer", tokenizer, "--name", "d", "--force")

    return run


def write(**texts: str | bytes) -> None:
    for name, text in texts.items():
        data = text.encode() if isinstance(text, str) else text
        Path(name.replace("_", ".")).write_bytes(data)


def jsonl(*records: object) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def rows(split: str = "train") -> list[tuple[str, str]]:
    """The pairs of `d`, decoded; both sides of each must end in <eos>."""
    dataset = Dataset.open(Path("artifacts/datasets/d"), hashes=True)
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    source, target = dataset.sources[split], dataset.splits[split]
    found = []
    for i in range(target.n_documents):
        sides = [store.document(i).tolist() for store in (source, target)]
        assert all(ids[-1] == tokenizer.eos_id for ids in sides)
        found.append(tuple(tokenizer.decode(ids) for ids in sides))
    return found


def config() -> dict:
    return manifest.read(Path("artifacts/datasets/d"), "dataset").config


def dropped() -> dict[str, int]:
    return {reason: n for reason, n in config()["dropped"].items() if n}


LETTERS = "ab é狐\U0001f98a\u2028\x85\x0b\x00\u202e<eos>\t"


def unicode_lines(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["x" + "".join(draw.choices(LETTERS, k=draw.randrange(40))) for _ in range(n)]


@pytest.mark.parametrize("tokenizer", ["tok", "b"])
def test_parallel_lines_come_back_byte_for_byte(build, cli, tokenizer):
    sources = [f"{i} {line}" for i, line in enumerate(unicode_lines(400, 1))]
    targets = unicode_lines(400, 2)
    write(a_en="\n".join(sources) + "\n", a_de="\n".join(targets))
    assert build("--target", "a.de", "--source", "a.en", tokenizer=tokenizer).code == 0
    splits = {s: rows(s) for s in layout.SPLITS}
    order = {s: i for i, s in enumerate(sources)}
    both = sorted(sum(splits.values(), []), key=lambda pair: order[pair[0]])
    assert both == list(zip(sources, targets, strict=True))
    assert all(2 <= len(splits[s]) <= 50 for s in ("val", "test"))
    counts = config()["splits"]["train"]
    source, target = ("".join(side) for side in zip(*splits["train"], strict=True))
    assert counts["bytes"] == len(target.encode())
    assert counts["source_bytes"] == len(source.encode())
    dataset = Dataset.open(Path("artifacts/datasets/d"))
    assert counts["tokens"] == dataset.splits["train"].n_tokens
    assert counts["source_tokens"] == dataset.sources["train"].n_tokens
    assert counts["words"] == sum(len(t.split()) for _, t in splits["train"])
    assert cli("data", "verify", "d").out.startswith("ok: ") and cli("verify", "d").code == 0
    assert "d " in cli("ls", "datasets").out and "form               pairs" in cli("show", "d").out


def test_files_go_together_one_by_one_packed_or_not(build):
    write(a_en="one\n", b_en="two\nthree", a_de=gzip.compress(b"eins\n"), b_de="zwei\r\ndrei\r\n")
    Path("a.de").rename("a.gz")
    sides = ["--source", "a.en", "--source", "b.en", "--target", "a.gz", "--target", "b.de"]
    assert build(*sides, "--newlines", "lf", *WHOLE).code == 0
    assert rows() == [("one", "eins"), ("two", "zwei"), ("three", "drei")]
    other = build(*sides[:-2], *WHOLE)
    assert other.code == 65 and "2 files of sources but 1 of targets" in other.err


@pytest.mark.parametrize(("sources", "targets"), [(3, 5), (5, 3), (1000, 1001)])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_unequal_files_are_named_with_their_counts(build, sources, targets, on_error):
    write(a_en="x\n" * sources, a_de="y\n" * targets)
    result = build("--source", "a.en", "--target", "a.de", *WHOLE, "--on-error", on_error)
    assert result.code == 65 and not Path("artifacts/datasets/d").exists()
    assert f"a.en has {sources:,} lines but a.de has {targets:,}" in result.err


def test_a_blank_side_drops_its_pair_and_nothing_else(build):
    write(a_en="one\n\n three\n   \nfive\n\n", a_de="eins\nzwei\n\ndrei\nfünf\n\n")
    result = build("--source", "a.en", "--target", "a.de", *WHOLE)
    assert result.code == 0 and "4 pairs dropped: 4 by empty" in result.err
    assert rows() == [("one", "eins"), ("five", "fünf")] and dropped() == {"empty": 4}


def test_a_chat_without_a_reply_is_dropped_and_counted(build):
    asked = {"role": "user", "content": "hello?"}
    answered = [asked, {"role": "assistant", "content": "yes"}]
    write(a_jsonl=jsonl(*({"messages": turns} for turns in ([asked], [], answered))))
    assert build("a.jsonl", "--pairs", *WHOLE).code == 0
    assert rows() == [("hello?", "yes")] and dropped() == {"empty": 2}


def test_lines_that_cannot_be_read_are_skipped_together(build):
    write(a_en=b"one\n\xff\nthree\n", a_de=b"eins\nzwei\n\xff\n")
    args = ["--source", "a.en", "--target", "a.de", *WHOLE]
    assert "a.en:2: not UTF-8 at byte 0; mend it" in build(*args).err
    assert build(*args, "--on-error", "skip").code == 0
    assert rows() == [("one", "eins")] and config()["skipped"] == 2


def test_held_out_files_and_a_source_in_two_splits(build):
    write(a_en="one\ntwo\n", a_de="eins\nzwei\n", v_en="two\n", v_de="2\n", t_en="six\n", t_de="6")
    args = ["--source", "a.en", "--target", "a.de", "--val-source", "v.en", "--val-target", "v.de"]
    args += ["--test-source", "t.en", "--test-target", "t.de"]
    result = build(*args)
    assert result.code == 65 and "a.en:2: this source stands in train and in val" in result.err
    assert build(*args, "--on-error", "skip").code == 0
    assert [rows(s) for s in layout.SPLITS] == [[("one", "eins")], [("two", "2")], [("six", "6")]]
    assert config()["skipped"] == 1
    write(t_en="two\n")
    assert "t.en:1: this source stands in val and in test" in build(*args).err


def test_equal_sources_never_part(build):
    write(a_tsv="s\tt\n" + "".join(f"{i % 50}\tt{i}\n" for i in range(300)))
    keys = ("--source-key", "s", "--target-key", "t")
    assert build("a.tsv", *keys, "--val-fraction", 0.3, "--test-fraction", 0.3).code == 0
    sources = [{source for source, _ in rows(split)} for split in layout.SPLITS]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 50


PAIRS = [("a, b", 'say "x"'), ("c", "d")]


@pytest.mark.parametrize(
    ("name", "text", "args"),
    [
        ("a.tsv", 's\tmore\tt\na, b\t1\tsay "x"\nc\t2\td\n', ("s", "t")),
        ("a.csv", 't,s\n"say ""x""","a, b"\nd,c\n', ("s", "t")),
        ("a.tsv", 'a, b\tsay "x"\t1\n\nc\td\t2\n', ("1", "2")),
        ("cmn.txt", 'a, b\tsay "x"\nc\td\n', ("1", "2", "--format", "tsv")),
        ("a.csv", '\n9,"say ""x""","a, b"\n\n8,d,c', ("3", "2")),
        ("a.jsonl", jsonl(*({"t": t, "s": s} for s, t in PAIRS)), ("s", "t")),
        ("a.jsonl", jsonl(*({"1": s, "2": t} for s, t in PAIRS)), ("1", "2")),
    ],
)
def test_fields_of_records(build, name, text, args):
    Path(name).write_text(text)
    source, target, *more = args
    assert build(name, "--source-key", source, "--target-key", target, *more, *WHOLE).code == 0
    assert rows() == PAIRS


def test_several_fields_are_joined_by_line_ends(build):
    write(a_jsonl=jsonl({"q": "who?", "c": "it was I", "a": "I"}))
    assert build("a.jsonl", "--source-key", "q,c", "--target-key", "a", *WHOLE).code == 0
    assert rows() == [("who?\nit was I", "I")]


def test_prompts_and_completions_and_chats_are_recognised(build):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    write(a_jsonl=jsonl({"prompt": "p", "completion": "c"}), c_jsonl=jsonl({"messages": chat}))
    write(both_jsonl=jsonl({"messages": chat}, {"prompt": "p", "completion": "c"}))
    write(v_jsonl=jsonl({"prompt": "v", "completion": "w"}))
    assert build("a.jsonl", "--pairs", "--val", "v.jsonl", "--test-fraction", 0).code == 0
    assert rows() == [("p", "c")] and rows("val") == [("v", "w")]
    # a template is around all pairs of a dataset or around none
    mixed = build("both.jsonl", "--pairs", *WHOLE)
    assert mixed.code == 65 and "both.jsonl:2: messages in some records only" in mixed.err
    mixed = build("c.jsonl", "--pairs", "--val", "v.jsonl", "--test-fraction", 0)
    assert mixed.code == 65 and "of some splits only" in mixed.err
    assert build("c.jsonl", "--pairs", *WHOLE).code == 0 and rows() == [("hello", "yes?")]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "say <eos>"},
    {"role": "assistant", "content": "<sep>!"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "no"},
]


def test_each_turn_of_the_assistant_is_a_pair_and_content_stays_text(build, cli):
    write(a_jsonl=jsonl({"messages": CHAT}))
    assert build("a.jsonl", "--pairs", *WHOLE, tokenizer="b").code == 0
    dataset = Dataset.open(Path("artifacts/datasets/d"))
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    text, sep, eos = tokenizer.encode, [tokenizer.sep_id], [tokenizer.eos_id]
    first = text("Be brief.") + sep + text("say <eos>") + sep
    second = first + text("<sep>!") + eos + text("again") + sep
    sources, targets = dataset.sources["train"], dataset.splits["train"]
    assert [sources.document(i).tolist() for i in range(2)] == [first + eos, second + eos]
    assert [targets.document(i).tolist() for i in range(2)] == [
        text("<sep>!") + eos,
        text("no") + eos,
    ]
    shown = [json.loads(line) for line in cli("data", "show", "d", "--json").out.splitlines()]
    assert shown[1]["source"] == "Be brief.<sep>say <eos><sep><sep>!<eos>again<sep>"
    assert shown[1]["target"] == "no" and shown[1]["source_tokens"] == len(second) + 1


def test_the_turns_of_a_chat_never_part(build):
    chats = []
    for i in range(60):
        turns = ("user", f"question {i}"), ("assistant", "a"), ("user", "more"), ("assistant", "b")
        chats.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    write(a_jsonl=jsonl(*chats))
    assert build("a.jsonl", "--pairs", "--val-fraction", 0.3, "--test-fraction", 0.3).code == 0
    for split in layout.SPLITS:
        found = rows(split)
        assert found[1::2] == [(f"{source}amore", "b") for source, _ in found[::2]]


@pytest.mark.parametrize(
    "template",
    [
        {"user": "User: {content}\n", "assistant": "Assistant: {content}\n"},
        {"user": "{content}", "assistant": " so {content}<eos>"},
        {"user": "{content} ", "assistant": "the {content}<eos>"},
        {"user": "<bos>ask {content}<pad><sep>", "assistant": "<bos> {content}<sep>"},
    ],
)
def test_a_prompt_has_the_ids_of_a_turn_in_the_data(build, cli, template):
    write(chat_json=json.dumps(template), a_jsonl=jsonl({"messages": CHAT[1:3]}))
    data = str(REPOSITORY / "data" / "pairs-en-zh.tsv")
    line = ["tokenizer", "train", data, "--text-key", "en", "--name", "own", "--vocab-size", "300"]
    assert cli(*line, "--chat-template", "chat.json").code == 0
    assert build("a.jsonl", "--pairs", *WHOLE, tokenizer="own").code == 0
    dataset = Dataset.open(Path("artifacts/datasets/d"))
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    around = Template.parse(tasks.template("decoder", "chat", tokenizer, template), tokenizer)
    asked = around.prompt(tokenizer.encode("say <eos>"))
    assert dataset.sources["train"].document(0).tolist() == [*asked, tokenizer.eos_id]


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_tokenizer_keeps_its_own_template(build, cli, suffix):
    template = {"user": "<bos>U: {content}\n", "assistant": "A: {content}<sep>"}
    text = "\n".join(f"{role} = {json.dumps(turn)}" for role, turn in template.items())
    Path(f"chat.{suffix}").write_text(json.dumps(template) if suffix == "json" else text)
    write(corpus_txt="some text\n" * 50, a_jsonl=jsonl({"messages": CHAT[1:3]}))
    train = ["tokenizer", "train", "corpus.txt", "--name", "own", "--algorithm", "byte"]
    assert cli(*train, "--chat-template", f"chat.{suffix}").code == 0
    assert json.loads(cli("show", "own", "--json").out)["config"]["chat_template"] == template
    assert cli(*train).code == 78
    assert build("a.jsonl", "--pairs", *WHOLE, tokenizer="own").code == 0
    dataset = Dataset.open(Path("artifacts/datasets/d"))
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    source, target = (s["train"].document(0).tolist() for s in (dataset.sources, dataset.splits))
    assert source == [tokenizer.bos_id, *tokenizer.encode("U: say <eos>\nA: "), tokenizer.eos_id]
    assert target == [*tokenizer.encode("<sep>!"), tokenizer.sep_id, tokenizer.eos_id]
    assert config()["chat_template"] == template
    write(a_jsonl=jsonl({"messages": CHAT}))
    system = build("a.jsonl", "--pairs", *WHOLE, tokenizer="own")
    assert system.code == 65
    assert "a.jsonl:1: no role 'system' in the chat template, only assistant, user" in system.err


def test_an_imported_tokenizer_takes_a_template_of_its_special_tokens(build, cli):
    inner = json.loads(Path("artifacts/tokenizers/b/tokenizer.json").read_text())
    for token in inner["added_tokens"]:
        token["content"] = token["content"].replace("<", "<|").replace(">", "|>")
    text = json.dumps(inner)
    for name in ("pad", "bos", "eos", "sep"):
        text = text.replace(f'"<{name}>"', f'"<|{name}|>"')
    write(tok_json=text, chat_json='{"user": "{content}<|sep|>", "assistant": "{content}<eos>"}')
    line = ["tokenizer", "import", "tok.json", "--eos", "<|eos|>", "--name", "foreign"]
    assert cli(*line, "--chat-template", "chat.json").code == 0
    write(a_jsonl=jsonl({"messages": CHAT[1:]}))
    assert build("a.jsonl", "--pairs", *WHOLE, tokenizer="foreign").code == 0
    shown = json.loads(cli("data", "show", "d", "--json", "--document", 1).out)
    assert shown["source"] == "say <eos><|sep|><sep>!<|eos|>again<|sep|>"
    source = Dataset.open(Path("artifacts/datasets/d")).sources["train"].document(1)
    assert source.tolist().count(config()["eos_id"]) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON or TOML"),
        ("[]", "it names roles"),
        ('{"user": "{content}"}', "assistant among them"),
        ('{"assistant": "x"}', "{content} once"),
        ('{"assistant": 1}', "{content} once"),
        ('{"assistant": "{content}{content}"}', "{content} once"),
    ],
)
def test_a_bad_template_is_one_sentence(cli, root, text, says):
    Path("chat.json").write_text(text)
    line = ["tokenizer", "train", "x.txt", "--name", "t", "--chat-template"]
    result = cli(*line, "chat.json")
    assert result.code == 2 and says in result.err and result.err.count("\n") == 1
    assert cli(*line, "none.json").code == 66


def test_filters_count_what_they_drop_by_reason(build, cli):
    lengths = [(9, 9), (10, 1), (1, 6), (1, 2), (3, 1), (1, 0)]
    pairs = [("a" * source, "b" * target) for source, target in lengths]
    write(a_tsv="s\tt\n" + "".join(f"{s}\t{t}\n" for s, t in pairs))
    args = ["a.tsv", "--source-key", "s", "--target-key", "t", *WHOLE]
    build(*args, tokenizer="b")
    assert rows() == pairs[:-1] and dropped() == {"empty": 1}
    limits = ["--max-source-length", 10, "--max-target-length", 6, "--max-length-ratio", 1.5]
    result = build(*args, *limits, tokenizer="b")  # every length with its <eos>
    assert rows() == [("a", "bb")]
    want = {"empty": 1, "source_length": 1, "target_length": 2, "length_ratio": 1}
    assert dropped() == want
    assert "train: 5 pairs dropped" in result.err and "train: 1 pairs" in result.err
    info = cli("data", "info", "d").out
    assert all(f"{n} by {reason}" in info for reason, n in want.items())
    assert json.loads(cli("data", "info", "d", "--json").out)["dropped"]["target_length"] == 2
    assert build(*args, "--max-source-length", 1, tokenizer="b").code == 65


def test_only_exact_duplicates_are_dropped(build):
    pairs = [("a", "b"), ("a", "c"), ("a", "b"), ("a ", "b"), ("ab", "c"), ("a", "bc"), ("a", "c")]
    write(a_tsv="s\tt\n" + "".join(f"{s}\t{t}\n" for s, t in pairs))
    args = ["a.tsv", "--source-key", "s", "--target-key", "t", *WHOLE]
    build(*args)
    assert rows() == pairs and dropped() == {}
    build(*args, "--drop-duplicates")
    assert rows() == list(dict.fromkeys(pairs)) and dropped() == {"duplicate": 2}


@pytest.mark.parametrize(
    ("name", "args", "n"),
    [
        ("pairs-en-zh.tsv", ["--source-key", "en", "--target-key", "zh"], 64),
        ("qa.jsonl", ["--source-key", "question,context", "--target-key", "answer"], 23),
        ("summaries.jsonl", ["--source-key", "document", "--target-key", "summary"], 22),
        ("code.jsonl", ["--pairs"], 23),
    ],
)
def test_the_shipped_files_are_pairs(build, cli, name, args, n):
    assert build(REPOSITORY / "data" / name, *args, *WHOLE).code == 0
    assert len(rows()) == n and dropped() == {}
    assert cli("data", "verify", "d").out.startswith("ok: ")
    if name == "code.jsonl":
        assert rows()[0][0].startswith("def clamp(") and rows()[0][1].endswith(")\n")


@pytest.mark.parametrize("line", ["{", "[]", '"a"', "", '{"s": 1, "t": "b"}', '{"s": "a"}', "\xff"])
@pytest.mark.parametrize("keys", [("--source-key", "s", "--target-key", "t"), ("--pairs",)])
def test_a_bad_record_is_named_by_its_line(build, line, keys):
    good = jsonl({"s": "a", "t": "b", "prompt": "a", "completion": "b"})
    write(a_jsonl=good.encode() + line.encode("latin-1") + b"\n" + good.encode())
    result = build("a.jsonl", *keys, *WHOLE)
    if line:
        assert result.code == 65 and "a.jsonl:2: " in result.err and result.err.count("\n") == 1
    assert build("a.jsonl", *keys, *WHOLE, "--on-error", "skip").code == 0
    assert rows() == [("a", "b")] * 2 and config()["skipped"] == bool(line)


def hostile(draw: random.Random, depth: int = 3) -> object:
    kinds = [None, True, 7, "", " ", "text", "\ud800", [], {}]
    if depth and draw.random() < 0.7:
        keys = draw.choices(["messages", "prompt", "completion", "role", "content", "x"], k=3)
        value = {k: hostile(draw, depth - 1) for k in keys}
        return draw.choice([value, [value, hostile(draw, depth - 1)], {"messages": [value]}])
    return draw.choice([*kinds, "assistant", "user"])


@pytest.mark.parametrize("seed", range(5))
def test_no_json_breaks_the_reader(build, seed):
    draw = random.Random(seed)
    good = {"prompt": "last", "completion": "one"}
    write(a_jsonl=jsonl(*(hostile(draw) for _ in range(300)), good))
    assert build("a.jsonl", "--pairs", *WHOLE, "--on-error", "skip").code == 0
    assert rows()[-1] == ("last", "one") and config()["skipped"] > 100


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name FILES, or parallel lines by --source and --target"),
        (["--source", "a.txt"], "--target is missing"),
        (["--target", "a.txt"], "--source is missing"),
        (["--val-source", "a.txt", "--val-target", "a.txt"], "--source is missing"),
        (["--source", "a.txt", "--target", "a.txt", "--test-source", "a"], "--test-target is mis"),
        (["a.txt", "--source", "a.txt", "--target", "a.txt"], "FILES, --val, --test"),
        (["--source", "a.txt", "--target", "a.txt", "--val", "a.txt"], "--val-source"),
        (["--source", "a.txt", "--target", "a.txt", "--source-key", "a"], "go together"),
        (["a.txt", "--source-key", "a"], "--source-key and --target-key go together"),
        (["a.txt", "--max-source-length", 9], "--max-source-length is for pairs"),
        (["a.txt", "--drop-duplicates"], "--drop-duplicates is for pairs"),
        (["a.txt", "--pairs", "--text-key", "x"], "--text-key is for a dataset of text"),
        (["a.txt", "--pairs", "--document", "line"], "--document is for a dataset of text"),
        (["a.txt", "--pairs", "--split-by", "position"], "would cut pairs"),
        (["a.txt", "--pairs", "--max-length-ratio", -1], "--max-length-ratio must be at least 0"),
    ],
)
def test_flags_that_do_not_go_together(build, args, says):
    write(a_txt="text\n")
    result = build(*args)
    assert (result.code, result.out) == (2, "") and says in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("a.txt", ["a.txt", "--pairs"], "a.txt: pairs are read from JSONL, CSV or TSV"),
        ("a.tsv", ["--source", "a.tsv", "--target", "a.tsv"], "a.tsv: records, not lines"),
        (
            "a.tsv",
            ["a.tsv", "--source-key", "1", "--target-key", "3"],
            "no field '3' (--target",
        ),
        ("a.tsv", ["a.tsv", "--pairs"], "neither prompt and completion nor messages"),
    ],
)
def test_files_of_another_form(build, name, args, says):
    Path(name).write_text("a\tb\nc\td\n")
    result = build(*args, *WHOLE)
    assert result.code == 65 and says in result.err and result.err.count("\n") == 1


def test_standard_input_and_a_dry_run(build, cli):
    line = ["data", "build", "-", "--format", "jsonl", "--pairs", "--tokenizer", "tok"]
    text = jsonl({"prompt": "a", "completion": "b"})
    assert cli(*line, "--name", "d", *WHOLE, input=text).code == 0
    assert rows() == [("a", "b")]
    write(a_en="x\n", a_de="y\n")
    result = build("--source", "a.en", "--target", "a.de", "--dry-run", "--json")
    said = json.loads(result.out)
    assert said["split_rule"] == "hash" and said["splits"] == ["train", "val", "test"]
    assert said["read"]["train.target"] == {"files": 1, "bytes": 2}


def test_the_same_command_again_and_another_form(build, cli):
    write(a_jsonl=jsonl({"text": "x", "prompt": "a", "completion": "b"}))
    line = ["data", "build", "a.jsonl", "--tokenizer", "tok", "--name", "d", "--json", *WHOLE]
    first = cli(*line, "--pairs")
    again = cli(*line, "--pairs")
    assert "there already" in again.err and json.loads(again.out) == json.loads(first.out)
    assert json.loads(build("a.jsonl", "--pairs", *WHOLE, "--json").out)["id"] in first.out
    limit = cli(*line, "--pairs", "--max-source-length", 9)
    assert limit.code == 78 and "max source length 0, not 9" in limit.err
    assert cli(*line).code == 78
    assert cli(*line, "--force").code == 0 and "form" not in config()
    assert Dataset.open(Path("artifacts/datasets/d")).sources == {}
    assert cli(*line, "--pairs").code == 78


def test_show_marks_sides_in_a_pipe_and_colours_the_loss_on_a_terminal(build, cli):
    write(a_tsv="s\tt\nthe fox\t狐狸\n")
    build("a.tsv", "--source-key", "s", "--target-key", "t", *WHOLE)
    piped = cli("data", "show", "d")
    assert piped.out == "[source] the fox<eos>\n[target] 狐狸<eos>\n" and "pair 0: " in piped.err
    shown = json.loads(cli("data", "show", "d", "--json").out)
    assert (shown["document"], shown["source"], shown["target"]) == (0, "the fox", "狐狸")
    counts = config()["splits"]["train"]
    assert (shown["source_tokens"], shown["target_tokens"]) == (
        counts["source_tokens"],
        counts["tokens"],
    )

    def terminal(**more: str) -> str:
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | more
        ours, theirs = pty.openpty()
        line = [sys.executable, "-m", "lmcli", "data", "show", "d"]
        subprocess.run(line, stdout=theirs, stderr=subprocess.DEVNULL, env=env, check=True)
        os.close(theirs)
        with open(ours, "rb", buffering=0) as file:
            return file.read(4096).decode().replace("\r\n", "\n")

    assert terminal() == "the fox<eos>\n\x1b[32m狐狸<eos>\x1b[0m\n"
    assert terminal(NO_COLOR="1") == piped.out


def test_damage_is_named(build, cli):
    write(a_tsv="s\tt\n" + "".join(f"{i}\tt{i}\n" for i in range(60)))
    build("a.tsv", "--source-key", "s", "--target-key", "t")
    path = Path("artifacts/datasets/d")
    old = manifest.read(path)
    data = (path / "train.source.bin").read_bytes()
    (path / "train.source.bin").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    flipped = cli("data", "verify", "d")
    assert flipped.code == 65 and "train.source.bin: content differs" in flipped.out

    def relabel(**changes: object) -> None:
        (path / "manifest.json").unlink()
        manifest.write(path, "dataset", "d", old.parents, old.config | changes)

    tokenizer = Tokenizer.load(path / layout.TOKENIZER)
    writer = StoreWriter(path, "train.source", tokenizer.vocab_size, 7)
    for _ in range(old.config["splits"]["train"]["documents"]):
        writer.add([9], True)
    writer.close()
    relabel()
    assert "train.source.bin: document 0 does not end in <eos>" in cli("data", "verify", "d").out
    writer = StoreWriter(path, "train.source", tokenizer.vocab_size, tokenizer.eos_id)
    writer.add([9], True)
    writer.close()
    relabel()
    info = cli("data", "info", "d")
    assert info.code == 65 and "targets to 1 sources" in info.err
    for wrong in ({"form": []}, {"dropped": None}, {"splits": {}}):
        relabel(**wrong)
        assert "not what lmcli writes there" in cli("data", "info", "d").err
    (path / "train.source.idx").unlink()
    assert cli("data", "info", "d").code == 65


def test_multi30k_comes_back_line_by_line(build, test_data, monkeypatch):
    folder = test_data / "multi30k"
    if not folder.is_dir():
        pytest.skip(f"no multi30k in {test_data}")
    args = []
    for prefix, name in (("", "train"), ("val-", "val"), ("test-", "test_2016_flickr")):
        for side, language in (("source", "en"), ("target", "de")):
            args += [f"--{prefix}{side}", folder / f"{name}.{language}"]
    twice = build(*args)
    assert twice.code == 65 and "this source stands in train and in val" in twice.err
    assert build(*args, "--on-error", "skip").code == 0
    for split, name in (("val", "val"), ("test", "test_2016_flickr")):
        lines = [(folder / f"{name}.{x}").read_text().split("\n")[:-1] for x in ("en", "de")]
        assert rows(split) == list(zip(*lines, strict=True))
    counts = config()["splits"]["train"]
    assert counts["documents"] + config()["skipped"] + dropped().get("empty", 0) == 29_000


def test_tatoeba_has_no_header(build, test_data):
    path = test_data / "tatoeba-cmn-eng" / "cmn.txt"
    if not path.is_file():
        pytest.skip(f"no tatoeba-cmn-eng in {test_data}")
    keys = ("--format", "tsv", "--source-key", "1", "--target-key", "2")
    assert build(path, *keys, "--max-source-length", 40).code == 0
    assert ("Hi.", "嗨。") in rows() + rows("val") + rows("test")
    total = sum(counts["documents"] for counts in config()["splits"].values())
    assert total + sum(dropped().values()) == 29_155 and dropped()["source_length"] > 1000
