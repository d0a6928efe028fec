"""What a corpus may look like on disk: tables, packing, encodings, line ends, standard input."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from lmcli import console
from lmcli.config.data import ReadConfig
from lmcli.errors import DataError, UsageError
from lmcli.text import readers
from lmcli.text.readers import Reader


def documents(path, **config) -> list[str]:
    out, held = [], ""
    for piece in Reader([str(path)], ReadConfig(**config)).pieces():
        held += piece.text
        if piece.ends_document:
            out.append(held)
            held = ""
    return out


CSV = 'id,text\r\n1,plain\r\n2,"a, ""b""\r\nand more"\r\n3,\r\n\r\n4,last'


def test_a_column_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(CSV.encode())
    assert documents(path) == ["plain", 'a, "b"\r\nand more', "last"]
    assert documents(path, text_key="id") == ["1", "2", "3", "4"]
    wheres = [p.where for p in Reader([str(path)], ReadConfig()).pieces()]
    assert wheres == [f"{path}:2", f"{path}:3", f"{path}:7"]
    (tmp_path / "a.tsv").write_text('en\tzh\n"Hi," he said.\t“嗨。”\na "b" c\t丙\n')
    assert documents(tmp_path / "a.tsv", text_key="en") == ['"Hi," he said.', 'a "b" c']
    assert documents(tmp_path / "a.tsv", text_key="zh") == ["“嗨。”", "丙"]


def test_csv_edge_cases_equal_the_expected_json(test_data, tmp_path):
    """The collection came through a checkout that made CRLF into LF; its JSON still has CRLF.

    One file's JSON is a single object, with another phone number than its CSV.
    """
    folder = test_data / "csv-edge" / "csv-spectrum"
    paths = sorted((folder / "csvs").glob("*.csv"))
    assert len(paths) == 12
    for path in paths:
        data = path.read_bytes()
        if path.stem.endswith("_crlf") and b"\r" not in data:
            data = data.replace(b"\n", b"\r\n")
        (tmp_path / path.name).write_bytes(data)
        rows = json.loads((folder / "json" / f"{path.stem}.json").read_text("utf-8"))
        rows = rows if isinstance(rows, list) else [rows]
        for key in rows[0].keys() - {"Contact Phone Number"}:
            expected = [row[key] for row in rows if row[key]]
            if expected:
                assert documents(tmp_path / path.name, text_key=key) == expected, path.name
            else:
                with pytest.raises(DataError, match="no text to read"):
                    documents(tmp_path / path.name, text_key=key)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"id,text\n1,a\n2,b,c\n", "a.csv:3: 3 fields under 2 column names"),
        ("a.csv", b"id,text\n1\n", "a.csv:2: 1 fields under 2"),
        ("a.csv", b'id,text\n1,"a" b\n', "a.csv:2: not a valid row"),
        ("a.csv", b'id,text\n1,a\n2,"open\n3,b\n', "a.csv:3: not a valid row (unexpected end"),
        ("a.csv", b"id,text\n1,\xff\n", "a.csv:2: not a valid row ('utf-8' codec can't decode"),
        ("a.csv", b"id,body\n1,a\n", "a.csv:2: no field 'text' (--text-key); it has id, body"),
        ("a.tsv", b"text\na\tb\n", "a.tsv:2: 2 fields under 1"),
        (
            "a.csv.gz",
            gzip.compress(b"text\nab\n" * 999, mtime=0)[:-9],
            "a.csv.gz: broken gzip after line",
        ),
        ("a.txt.bz2", bz2.compress(b"ab\n" * 999)[:-9], "a.txt.bz2: broken bzip2 after"),
        ("a.txt.bz2", b"not packed", "a.txt.bz2: broken bzip2 after"),
        ("a.jsonl.xz", lzma.compress(b"{}\n" * 999)[:-9], "a.jsonl.xz:1: no field 'text'"),
        ("a.txt.xz", lzma.compress(b"ab\n" * 999)[:-9], "a.txt.xz: broken xz after"),
        ("a.txt.xz", b"not packed", "a.txt.xz: broken xz after"),
    ],
)
def test_a_broken_row_or_file_is_named(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        documents(tmp_path / name)
    assert says in str(caught.value) and str(caught.value).count("--on-error skip") == 1


def test_rows_that_cannot_be_read_are_skipped_one_by_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\na,1\nb\n"c" d,2\ne\xff,3\nf,4\n"g\ng",5\n"open,6\n')
    reader = Reader([str(path)], ReadConfig(on_error="skip"))
    assert [p.text for p in reader.pieces()] == ["a", "f", "g\ng"]
    assert reader.skipped == 4


def test_a_quote_that_is_never_closed_does_not_eat_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_FIELD", 1000)
    (tmp_path / "a.csv").write_text('text\n"' + "line\n" * 5000)
    with pytest.raises(DataError, match=r"a.csv:2: not a valid row \(field larger than field lim"):
        documents(tmp_path / "a.csv")


def test_a_long_field_is_text_like_any_other(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert documents(tmp_path / "a.csv") == ["x" * 300_000]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_packed_files_of_every_kind(tmp_path, suffix, pack):
    for name, data, texts in (
        ("a.txt", b"\xef\xbb\xbfone\r\ntwo", ["one\r\ntwo"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        ("a.csv", b"text\na\nb\n", ["a", "b"]),
    ):
        (tmp_path / (name + suffix)).write_bytes(pack(data))
        assert documents(tmp_path / (name + suffix)) == texts
    names = [p.name for p in readers.find_files([str(tmp_path)])]
    assert names == [f"a.jsonl{suffix}", f"a.txt{suffix}"], "tables have to be named"


def test_a_byte_order_mark_is_dropped_at_the_start_of_a_file_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone \ufeff two\n\ufeffthree".encode())
    assert documents(path) == ["one \ufeff two\n\ufeffthree"]
    assert documents(path, document="line") == ["one \ufeff two", "\ufeffthree"]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,id\na,1\n")
    assert documents(tmp_path / "a.csv") == ["a"]
    path.write_bytes(b"\xef\xbb\xbfab \xff")
    with pytest.raises(DataError, match="a.txt: not UTF-8 at byte 6"):
        documents(path)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"):
        mark = "" if encoding in ("utf-16", "utf-32", "utf-8-sig") else "\ufeff"
        path.write_bytes((mark + "狐 \ufeff x").encode(encoding))
        assert documents(path, encoding=encoding) == ["狐 \ufeff x"], encoding


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "utf-16", "shift_jis"])
def test_another_encoding_gives_the_same_documents(tmp_path, encoding):
    text = "fox 1\r\n\n狐狸 2\u3000\nlast" if encoding[0] in "gus" else "Füchse\r\n\nßä 2\xa0\nlast"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.txt").write_bytes(text.encode())
    for document in ("file", "line", "block"):
        for newlines in ("keep", "lf"):
            config = {"document": document, "newlines": newlines}
            expected = documents(tmp_path / "b.txt", **config)
            assert documents(tmp_path / "a.txt", encoding=encoding, **config) == expected
            assert document != "file" or ("\r" in expected[0]) == (newlines == "keep")


def test_real_latin_1(test_data):
    path = test_data / "gutenberg-en" / "dracula_345_latin1.txt"
    with pytest.raises(DataError, match="not UTF-8 at byte"):
        documents(path)
    assert documents(path, encoding="latin-1") == [path.read_bytes().decode("latin-1")]


def test_line_ends_are_kept_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READ_BYTES", 3)
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n\r\n")
    assert documents(tmp_path / "a.txt") == ["a\r\nb\rc\n\r\n"]
    assert documents(tmp_path / "a.txt", newlines="lf") == ["a\nb\nc\n\n"]
    (tmp_path / "b.txt").write_bytes(b"ok\r\nbad \xff\r\nok\r\n")
    with pytest.raises(DataError, match="b.txt:2: not UTF-8 at byte 4"):
        documents(tmp_path / "b.txt", newlines="lf", document="line")
    good = documents(tmp_path / "b.txt", newlines="lf", document="line", on_error="skip")
    assert good == ["ok", "ok"]


def test_what_is_not_in_the_encoding_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes("fox\n狐".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="a.txt: not utf-16-le after 0 bytes; mend it"):
        documents(tmp_path / "a.txt", encoding="utf-16")
    (tmp_path / "b.txt").write_bytes("é".encode())
    with pytest.raises(DataError, match="b.txt: not ascii"):
        documents(tmp_path / "b.txt", encoding="ascii")
    for name in ("klingon", "rot13", "hex"):
        with pytest.raises(UsageError, match=f"--encoding {name} is not one that Python knows"):
            ReadConfig(encoding=name)


def test_a_line_that_is_too_long_is_refused_in_any_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_LINE", 50)
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "a.txt").write_bytes(("é" * 40 + "\n" + "é" * 60 + "\n").encode(encoding))
        with pytest.raises(DataError, match="a.txt:[12]: a line of more than"):
            documents(tmp_path / "a.txt", document="line", encoding=encoding)


def test_format_wins_over_the_suffix(tmp_path):
    (tmp_path / "a.txt").write_text("en\ttext\nx\ty\n")
    assert documents(tmp_path / "a.txt", format="tsv") == ["y"]
    (tmp_path / "a.csv").write_text("text\na\n")
    assert documents(tmp_path / "a.csv", format="text") == ["text\na\n"]


@pytest.mark.parametrize(
    "config",
    [{"format": "csv"}, {"newlines": "lf"}, {"encoding": "utf-16"}, {"document": "line"}],
    ids=str,
)
def test_memory_stays_flat(tmp_path, config):
    """60 MB through tables, recoding and packing: peak growth stays small."""
    encoding = config.get("encoding", "utf-8")
    with gzip.open(tmp_path / "big.txt.gz", "wt", 1, encoding, newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "id"])
        page = io.StringIO()
        for i in range(200):
            csv.writer(page).writerow(["the quick brown fox\n" + "jumps over " * 25, i])
        for _ in range(60_000_000 // len(page.getvalue())):
            file.write(page.getvalue())
    code = (
        "import json, resource, sys; from lmcli.text.readers import Reader;"
        "from lmcli.config.data import ReadConfig;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "reader = Reader([sys.argv[1]], ReadConfig(**json.loads(sys.argv[2])));"
        "n = sum(len(p.text) for p in reader.pieces());"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.txt.gz"), json.dumps(config)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    characters, grown = map(int, done.stdout.split())
    assert characters > 40_000_000
    assert grown < 40_000, f"{grown} KiB more than before reading"


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; lmcli() {{ {sys.executable} -m lmcli \"$@\"; }}; {line}"],
        capture_output=True, text=True, env=os.environ | path | env,
    )  # fmt: skip


def test_standard_input_in_real_pipes(root, prose):
    (root.parent / "a.txt").write_text(prose)
    train = "lmcli tokenizer train {} --name {} --vocab-size 300 --json"
    made = shell("cat a.txt | " + train.format("-", "piped"))
    assert made.returncode == 0, made.stderr
    from_file = json.loads(shell(train.format("a.txt", "filed")).stdout)
    assert json.loads(made.stdout)["id"] == from_file["id"]
    recorded = json.loads((root / "tokenizers" / "piped" / "manifest.json").read_text())
    assert [s["path"] for s in recorded["config"]["sources"]["train"]] == ["standard input"]

    again = shell("cat a.txt | " + train.format("-", "piped"))
    assert again.returncode == 0 and "there already" in again.stderr
    other = shell("head -c 9000 a.txt | " + train.format("-", "piped"))
    assert other.returncode == 78 and "other content of standard input" in other.stderr

    # Cut by position, so read twice: once for the lengths.
    data = shell("cat a.txt | lmcli data build - --tokenizer piped --name d")
    assert data.returncode == 0 and "1 document is too few" in data.stderr
    parts = [shell(f"lmcli data show d --split {s} -q").stdout for s in ("train", "val", "test")]
    assert "".join(part.removesuffix("\n") for part in parts) == prose
    left = [p.name for p in root.rglob(".tmp-*")]
    assert left == []


def test_standard_input_that_is_empty_broken_or_named_twice(cli, root, tiny_copy):
    train = ("tokenizer", "train", "-", "--name", "new")
    empty = cli(*train)
    assert empty.code == 65 and "standard input: no text to read (empty)" in empty.err
    broken = cli(*train, input=b"good\nbad \xff\n")
    assert broken.code == 65 and "standard input: not UTF-8 at byte 9" in broken.err
    lines = cli(*train, "--document", "line", input=b"good\nbad \xff\n")
    assert "standard input:2: not UTF-8 at byte 4" in lines.err
    records = cli(*train, "--format", "jsonl", "--text-key", "body", input='{"body": "abc"}\n')
    assert records.code == 0
    build = ("data", "build", "-", "--val", "-", "--tokenizer", "tok", "--name", "d")
    twice = cli(*build, "--document", "line", input="a\nb\nc\n")
    assert twice.code == 65 and "standard input:1: this document stands in train and" in twice.err
    assert not list(root.rglob(".tmp-*"))


def test_standard_input_under_force_leaves_the_old_one_where_it_fails(cli, tiny_copy):
    before = cli("tokenizer", "info", "tok", "--json").out
    failed = cli("tokenizer", "train", "-", "--name", "tok", "--force", input=b"\xff")
    assert failed.code == 65
    assert cli("tokenizer", "info", "tok", "--json").out == before


def test_a_name_of_two_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,id,text\na,1,b\n")
    with pytest.raises(DataError, match="a.csv:1: two columns are called 'text'"):
        documents(tmp_path / "a.csv")
    assert documents(tmp_path / "a.csv", text_key="id") == ["1"]


def test_a_link_to_a_folder_is_left_out_and_said(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/a.txt").write_text("a")
    (tmp_path / "out/b.txt").write_text("b")
    (tmp_path / "in/more").symlink_to("../out")
    console._warned.clear()
    assert documents(tmp_path / "in") == ["a"]
    assert "in/more: a link to a folder, left out; name what to read" in capsys.readouterr().err
    assert documents(tmp_path / "in/more") == ["b"]


def test_what_a_folder_leaves_out_and_a_json_list_are_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.csv").write_text(CSV)
    assert documents(tmp_path) == ["text"]
    assert "b.csv left out, as no text ends so; name what to read there" in capsys.readouterr().err
    (tmp_path / "a.json").write_text(' [{"text": "a"}]')
    assert len(documents(tmp_path / "a.json")) == 1
    assert "a JSON list, read as text" in capsys.readouterr().err
    assert len(documents(tmp_path / "a.json", format="text")) == 1
    assert capsys.readouterr().err == ""
