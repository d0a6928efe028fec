"""Building a dataset: decode(memmap) == documents, splits, errors, the same command again."""

import json

import pytest

from lmcli.artifacts import layout
from lmcli.dataset.store import Dataset
from lmcli.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(cli, root, prose):
    (root.parent / "prose.txt").write_text(prose)
    assert cli("tokenizer", "train", "prose.txt", "--name", "tok", "--vocab-size", 300).code == 0


def build(cli, *args):
    return cli("data", "build", *args, "--tokenizer", "tok", "--name", "d")


def decoded(root, split) -> list[str]:
    dataset = Dataset.open(root / "datasets" / "d")
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    store = dataset.splits[split]
    documents = [store.document(i) for i in range(store.n_documents)]
    assert all(ids[-1] == tokenizer.eos_id for ids in documents)
    return [tokenizer.decode(ids.tolist()) for ids in documents]


def test_law_1_the_memmap_decodes_to_the_documents(cli, root, tokenizer):
    lines = [f"document {i} 狐狸 \u2028 <eos> {'x' * i}" for i in range(300)]
    (root.parent / "lines.txt").write_text("\n".join(lines))
    assert build(cli, "lines.txt", "--document", "line").code == 0
    splits = {s: decoded(root, s) for s in layout.SPLITS}
    assert sorted(sum(splits.values(), [])) == sorted(lines)
    assert 2 <= len(splits["val"]) <= 40 and 2 <= len(splits["test"]) <= 40
    info = json.loads(cli("data", "info", "d", "--json").out)
    assert sum(c["bytes"] for c in info["splits"].values()) == sum(len(s.encode()) for s in lines)


def test_the_split_of_a_document_does_not_depend_on_order(cli, root, tokenizer):
    lines = [f"document number {i}" for i in range(400)]
    seen = []
    for order in (lines, lines[::-1]):
        (root.parent / "lines.txt").write_text("\n".join(order))
        assert build(cli, "lines.txt", "--document", "line", "--force").code == 0
        seen.append({s: sorted(decoded(root, s)) for s in layout.SPLITS})
    assert seen[0] == seen[1]


def test_a_small_corpus_is_cut_by_position_at_line_ends(cli, root, tokenizer):
    texts = ["".join(f"{name} line {i}\n" for i in range(500)) for name in "ab"]
    for name, text in zip("ab", texts, strict=True):
        (root.parent / f"{name}.txt").write_text(text)
    result = build(cli, "a.txt", "b.txt")
    assert result.code == 0 and "2 documents are too few to split by hash" in result.err
    parts = [decoded(root, s) for s in layout.SPLITS]
    for i, text in enumerate(texts):
        assert "".join(p[i] for p in parts) == text
        assert all(p[i].endswith("\n") for p in parts)
    assert 0.89 < len(parts[0][0]) / len(texts[0]) < 0.91


def test_position_split_of_a_document_in_pieces(cli, root, tokenizer, monkeypatch):
    from lmcli.text import readers

    monkeypatch.setattr(readers, "PIECE_LENGTH", 500)
    monkeypatch.setattr(readers, "READ_BYTES", 100)
    text = "".join(f"line {i}\n" for i in range(900))
    (root.parent / "a.txt").write_text(text)
    assert build(cli, "a.txt", "--val-fraction", 0.2, "--test-fraction", 0.3).code == 0
    parts = [decoded(root, s) for s in layout.SPLITS]
    assert [len(p) for p in parts] == [1, 1, 1]
    assert "".join(p[0] for p in parts) == text
    assert abs(len(parts[1][0]) / len(text) - 0.2) < 0.02


def test_explicit_splits_and_a_document_in_two(cli, root, tokenizer):
    (root.parent / "train.txt").write_text("one\ntwo\nthree\n")
    (root.parent / "val.txt").write_text("four\ntwo\n")
    (root.parent / "test.txt").write_text("five\n")
    args = ["train.txt", "--val", "val.txt", "--test", "test.txt", "--document", "line"]
    result = build(cli, *args)
    assert result.code == 65
    assert "train.txt:2: this document stands in train and in val" in result.err
    assert not (root / "datasets" / "d").exists()
    assert build(cli, *args, "--on-error", "skip").code == 0
    assert [decoded(root, s) for s in layout.SPLITS] == [
        ["one", "three"],
        ["four", "two"],
        ["five"],
    ]


@pytest.mark.parametrize("fractions", [(), ("--test-fraction", 0), ("--split-by", "position")])
def test_a_document_that_is_cut_by_position_is_still_known(cli, root, tokenizer, fractions):
    """The same file as train and val must not pass because train holds only a part of it."""
    (root.parent / "a.txt").write_text("".join(f"line {i}\n" for i in range(500)))
    (root.parent / "b.txt").write_text("".join(f"row {i}\n" for i in range(500)))
    result = build(cli, "a.txt", "b.txt", "--val", "a.txt", *fractions)
    assert result.code == 65 and "stands in train and in val" in result.err
    skipping = build(cli, "a.txt", "b.txt", "--val", "a.txt", "--on-error", "skip", *fractions)
    assert skipping.code == 0 and "1 documents could not be read or stood in two" in skipping.err
    assert decoded(root, "train")[0].startswith("row 0\n") and len(decoded(root, "train")) == 1
    info = json.loads(cli("data", "info", "d", "--json").out)
    assert info["skipped"] == 1


def test_lines_cannot_be_cut_by_position(cli, root, tokenizer):
    (root.parent / "a.txt").write_text("one\ntwo\nthree\n")
    result = build(cli, "a.txt", "--document", "line")
    assert result.code == 65
    assert "no document has a line end at its share" in result.err
    assert "--val-fraction 0" in result.err


def test_exclude_holds_for_every_split(cli, root, tokenizer):
    (root.parent / "v" / "old").mkdir(parents=True)
    (root.parent / "a.txt").write_text("some text\n" * 300)
    (root.parent / "v" / "b.txt").write_text("held out\n")
    (root.parent / "v" / "old" / "c.txt").write_text("left out\n")
    assert build(cli, "a.txt", "--val", "v", "--exclude", "old", "--test-fraction", 0).code == 0
    assert decoded(root, "val") == ["held out\n"]


def test_again_says_so_and_another_config_is_78(cli, root, tokenizer):
    (root.parent / "a.txt").write_text("some text\n" * 300)
    first = json.loads(build(cli, "a.txt", "--json").out)
    again = build(cli, "a.txt", "--json")
    assert again.code == 0 and "there already" in again.err
    assert json.loads(again.out)["id"] == first["id"]
    other = build(cli, "a.txt", "--val-fraction", 0.1)
    assert other.code == 78 and "val fraction 0.05, not 0.1" in other.err
    (root.parent / "a.txt").write_text("some test\n" * 300)
    changed = build(cli, "a.txt")
    assert changed.code == 78 and "other content of a.txt" in changed.err
    forced = build(cli, "a.txt", "--force", "--json")
    assert forced.code == 0 and json.loads(forced.out)["id"] != first["id"]
    assert (root / ".trash" / "datasets-d-0" / "manifest.json").exists()


def test_a_rebuild_has_the_same_id(cli, root, tokenizer):
    (root.parent / "a.txt").write_text("some text\n" * 300)
    ids = [json.loads(build(cli, "a.txt", "--force", "--json").out)["id"] for _ in range(2)]
    assert ids[0] == ids[1]


def test_too_small_to_split(cli, root, tokenizer):
    (root.parent / "a.txt").write_text("one line only")
    result = build(cli, "a.txt")
    assert result.code == 65 and "the val split is empty" in result.err
    assert build(cli, "a.txt", "--val-fraction", 0, "--test-fraction", 0).code == 0


def test_show_and_verify(cli, root, tokenizer):
    (root.parent / "a.txt").write_text("some text\n" * 300)
    build(cli, "a.txt")
    shown = cli("data", "show", "d", "--split", "val", "--limit", 1)
    assert shown.code == 0 and set(shown.out.split("\n")) == {"some text", ""}
    assert cli("data", "verify", "d").out.startswith("ok: ")
    path = root / "datasets" / "d" / "train.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    flipped = cli("data", "verify", "d")
    assert flipped.code == 65 and "train.bin: content differs" in flipped.out
    path.write_bytes(data[:-2])
    assert cli("data", "verify", "d").code == 65
    assert "train.bin" in cli("data", "info", "d").err


def test_memory_stays_flat_on_a_corpus_larger_than_what_is_held(cli, root, tokenizer):
    """40 MB of text in one document, one line file and one JSONL: peak growth stays small."""
    import subprocess
    import sys

    line = "the quick brown fox jumps over the lazy dog\n"
    with open(root.parent / "big.txt", "w") as file:
        for _ in range(40):
            file.write(line * (2**20 // len(line)))
    code = (
        "import resource, sys; from lmcli.text.readers import Reader;"
        "from lmcli.config.data import ReadConfig;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "reader = Reader(['big.txt'], ReadConfig(document=sys.argv[1]));"
        "n = sum(len(p.text) for p in reader.pieces());"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    for document in ("file", "line"):
        done = subprocess.run(
            [sys.executable, "-c", code, document], capture_output=True, text=True, check=True
        )
        characters, grown = map(int, done.stdout.split())
        assert characters > 35_000_000
        assert grown < 30_000, f"{document}: {grown} KiB more than before reading"


def test_force_puts_the_old_one_back_when_the_new_one_fails(cli, root, tokenizer):
    (root.parent / "a.txt").write_text("some text\n" * 300)
    first = json.loads(build(cli, "a.txt", "--json").out)
    (root.parent / "bad.txt").write_bytes(b"\xff")
    assert build(cli, "bad.txt", "--force").code == 65
    assert json.loads(build(cli, "a.txt", "--json").out)["id"] == first["id"]
