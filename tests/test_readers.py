"""Readers: documents out of files, streaming, and one sentence for each thing that can be wrong."""

import gzip
import os

import pytest

from lmcli.config.data import ReadConfig
from lmcli.errors import DataError, MissingInputError, StorageError
from lmcli.text import readers, sources
from lmcli.text.readers import Reader
from lmcli.text.sources import find_files


def documents(path, **config) -> list[str]:
    out, held = [], ""
    for piece in Reader([str(path)], ReadConfig(**config)).pieces():
        held += piece.text
        if piece.ends_document:
            out.append(held)
            held = ""
    return out


def test_file_line_and_block(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n\n\nthree\nfour")
    assert documents(path) == ["one\r\ntwo\n\n\nthree\nfour"]
    assert documents(path, document="line") == ["one\r", "two", "three", "four"]
    assert documents(path, document="block") == ["one\r\ntwo", "three\nfour"]


def test_jsonl_and_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress('{"body": "æ"}\n\n{"body": "two\\nlines"}\n'.encode()))
    assert documents(path, text_key="body") == ["æ", "two\nlines"]


def test_folders_are_walked_in_order_without_hidden_and_foreign_files(tmp_path):
    for name in ("b.txt", "a.md", ".hidden.txt", "photo.png", "sub/c.py", "skip/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [p.name for p in find_files([str(tmp_path)], exclude=["skip"])]
    assert names == ["a.md", "b.txt", "c.py"]
    assert len(find_files([str(tmp_path / "*.txt"), str(tmp_path / "b.txt")])) == 1


def test_one_file_under_several_names_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to("a.txt")
    names = ["a.txt", "./a.txt", str(tmp_path / "a.txt"), "link.txt", "*.txt", "."]
    assert [str(p) for p in find_files(names)] == ["a.txt"]


def test_text_without_spaces_is_cut_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_LENGTH", 50)
    monkeypatch.setattr(readers, "READ_BYTES", 50)
    monkeypatch.setattr(readers, "LONGEST_RUN", 300)
    text = "我们在这里写了很长的一段话，没有空格。" * 40 + "（完）"
    for name, config in (("a.txt", {}), ("b.txt", {"document": "line"})):
        (tmp_path / name).write_text(text)
        pieces = list(Reader([str(tmp_path / name)], ReadConfig(**config)).pieces())
        assert "".join(piece.text for piece in pieces) == text and len(pieces) > 2
        assert all(piece.text[-1] in "，。" for piece in pieces[:-1])
        (tmp_path / name).write_text(text.replace("，", "").replace("。", ""))
        with pytest.raises(DataError, match="without white space; break it"):
            documents(tmp_path / name, **config)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "fifo.txt")
    for name in ("fifo", "folder"):
        with pytest.raises(DataError, match="fifo.*: a pipe or device is read only once; save it"):
            find_files([str(tmp_path / name)])


def test_an_unreadable_folder_is_not_passed_over(tmp_path, monkeypatch):
    """As root nothing is unreadable, so the refusal is made up."""

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/secret"))
        return iter(())

    monkeypatch.setattr(sources.os, "walk", walk)
    with pytest.raises(StorageError, match="secret: Permission denied"):
        find_files([str(tmp_path)])


def test_text_is_cut_where_it_can_be_however_late(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_LENGTH", 50)
    monkeypatch.setattr(readers, "READ_BYTES", 50)
    path = tmp_path / "a.txt"
    path.write_text("x" * 5000 + " " + "y" * 5000)
    pieces = [p.text for p in Reader([str(path)], ReadConfig()).pieces()]
    assert pieces == ["x" * 5000, " " + "y" * 5000]


def test_a_huge_document_arrives_in_pieces_with_the_ids_of_the_whole(tmp_path, monkeypatch, prose):
    from lmcli.text.tokenizer import Tokenizer

    monkeypatch.setattr(readers, "PIECE_LENGTH", 3000)
    monkeypatch.setattr(readers, "READ_BYTES", 997)
    path = tmp_path / "a.txt"
    path.write_text(prose)
    pieces = list(Reader([str(path)], ReadConfig()).pieces())
    assert len(pieces) > 5 and [p.ends_document for p in pieces].count(True) == 1
    tokenizer = Tokenizer.train([prose], 400)
    whole = tokenizer.encode(prose)
    assert [i for p in pieces for i in tokenizer.encode(p.text)] == whole


@pytest.mark.parametrize(
    ("name", "data", "config", "says"),
    [
        ("a.txt", b"good\nbad \xff here", {}, "a.txt: not UTF-8 at byte 9"),
        ("a.txt", b"good\nbad \xff here", {"document": "block"}, "a.txt: not UTF-8 at byte 9"),
        ("a.txt", b"ok\nbad \xff", {"document": "line"}, "a.txt:2: not UTF-8 at byte 4"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', {}, "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b"[1]", {}, "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b'{"body": "a"}', {}, "a.jsonl:1: no field 'text' (--text-key); it has body"),
        ("a.jsonl", b'{"text": 7}', {}, "field 'text' is not text but int"),
        ("a.jsonl", b'{"text": "\\ud800"}', {}, "half a surrogate pair"),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], {}, "a.txt.gz: broken gzip"),
        ("a.txt.gz", b"not gzip", {}, "a.txt.gz: broken gzip"),
    ],
)
def test_bad_input_names_file_and_place(tmp_path, name, data, config, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        documents(path, **config)
    assert says in str(caught.value) and "--on-error skip" in str(caught.value)


def test_skip_counts_exactly_what_it_left_out(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "mixed.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n{"text": "b"}\nnull\n')
    reader = Reader([str(tmp_path)], ReadConfig(on_error="skip"))
    assert [p.text for p in reader.pieces()] == ["good", "a", "b"]
    assert reader.skipped == 3


def test_nothing_to_read(tmp_path):
    with pytest.raises(MissingInputError, match="nowhere.txt: no such file"):
        find_files([str(tmp_path / "nowhere.txt")])
    with pytest.raises(DataError, match="no text in this folder"):
        find_files([str(tmp_path)])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty.txt: no text to read \(empty\)"):
        documents(tmp_path / "empty.txt")


def test_multi_byte_characters_across_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READ_BYTES", 5)
    path = tmp_path / "a.txt"
    path.write_text("狐狸跳过懒狗" * 20)
    assert documents(path) == ["狐狸跳过懒狗" * 20]
    path.write_bytes("狐".encode() * 7 + b"\xe7\x8b")
    with pytest.raises(DataError, match="not UTF-8 at byte 21"):
        documents(path)
