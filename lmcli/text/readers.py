"""From files, folders and globs to documents, streaming: memory stays flat on any corpus.

A document arrives as one or more pieces. Bytes are UTF-8, strictly, unless another encoding is
named, and reach the tokenizer as they are: no newline translation unless it is asked for, no
normalisation; only a byte order mark at the start of a file is dropped. Formats: plain text, JSONL,
CSV and TSV (as registered with IANA: quotes are text).
"""

import codecs
import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmcli import console
from lmcli.config.data import ReadConfig
from lmcli.errors import DataError
from lmcli.text.sources import find_files, format_of, name_of, opened

TABLES: dict[str, dict[str, Any]] = {
    "csv": {},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
RECORDS = ("jsonl", *TABLES)
LONGEST_FIELD = 2**26  # characters: a quote that is never closed must not eat the memory
# In characters. The tokenizer library needs some 150 times the size of a piece to work on it.
PIECE_LENGTH = 2**18
READ_BYTES = 2**18
# What is longer is refused, so that no input can fill the memory.
LONGEST_LINE = 2**26
LONGEST_RUN = 2**22  # without a place to cut

_SAFE = re.compile(r"(?<=\S)[ \n\t]")
# Where text has no white space: no pre-token spans a Chinese comma or stop and a letter after it.
_UNSPACED = re.compile("(?<=、|。|，|！|？|：|；)(?=[\u4e00-\u9fff])")

Line = tuple[int, int, bytes]  # number, byte offset, content


@dataclass(frozen=True)
class Piece:
    """Text of one document; most documents are one piece, huge files several."""

    NOUN: ClassVar[str] = "document"
    text: str
    where: str
    starts_document: bool = True
    ends_document: bool = True

    @property
    def size(self) -> int:
        return len(self.text.encode())


class Reader:
    """Documents of some files under a ReadConfig; `skipped` counts what could not be read."""

    def __init__(
        self, inputs: Sequence[str], config: ReadConfig, exclude: Sequence[str] = ()
    ) -> None:
        self.paths = find_files(inputs, exclude)
        for path in self.paths if config.format == "auto" else ():
            if path.suffix.lower() == ".json" and _first(path) == b"[":
                console.warn(
                    f"{path}: a JSON list, read as text, brackets and all; make it JSONL by "
                    "jq -c '.[]' FILE > FILE.jsonl, or say --format text"
                )
        self.config = config
        self.skipped = 0

    @property
    def size(self) -> int:
        """Size on disk, for progress."""
        return sum(p.stat().st_size for p in self.paths)

    def warn_of_skipped(self) -> None:
        if self.skipped:
            console.warn(f"{self.skipped} documents could not be read and were left out")

    def pieces(self) -> Iterator[Piece]:
        """Every piece of every document; DataError when there is not a single one."""
        self.skipped = 0
        empty = True
        for path in self.paths:
            for piece in self._file(path):
                empty = False
                yield piece
        if empty:
            names = ", ".join(map(name_of, self.paths[:3]))
            reason = f"{self.skipped} unreadable" if self.skipped else "empty"
            raise DataError(f"{names}: no text to read ({reason})")

    def kind(self, path: Path) -> str:
        """`--format`, or `jsonl`, `csv`, `tsv`, `code` or `text` by the suffix."""
        return format_of(path) if self.config.format == "auto" else self.config.format

    def units(
        self, path: Path, keys: Sequence[str] = (), named: bool = True
    ) -> Iterator[tuple[int, int, Any]]:
        """(number, byte offset, content) of a table's rows, or of blocks or lines with text. The
        `keys` that are read, text's by default, may each name one column only."""
        kind = self.kind(path)
        if kind in TABLES:
            return self._rows(path, keys or [self.config.text_key], named)
        if kind not in RECORDS and self.config.document == "block":
            return _blocks(self.lines(path))
        return (line for line in self.lines(path) if line[2].strip())

    def _file(self, path: Path) -> Iterator[Piece]:
        """A file's documents: records, rows, lines, blocks or the whole; blank ones are none."""
        name, is_record = name_of(path), self.kind(path) in RECORDS
        if not is_record and self.config.document == "file":
            yield from self._whole(path)
            return
        for number, offset, data in self.units(path):
            where = f"{name}:{number}"
            try:
                if is_record:
                    key = self.config.text_key
                    text = field_of(record_of(data, where), key, "--text-key", where)
                elif self.config.document == "block":
                    text = decode(data, name, offset)
                else:
                    text = decode(data.removesuffix(b"\n"), where)
                parts = cut(text, where)
            except DataError as error:
                self.skip(error)
                continue
            for i, part in enumerate(parts, 1):
                yield Piece(part, where, i == 1, i == len(parts))

    def skip(self, error: DataError) -> None:
        """Counts a document that cannot be read, or passes its error on."""
        if self.config.on_error != "skip":
            mend = "mend it, name its --encoding" if "not UTF-8" in str(error) else "mend it"
            raise DataError(f"{error}; {mend} or use --on-error skip")
        self.skipped += 1

    def _rows(
        self, path: Path, keys: Sequence[str], named: bool
    ) -> Iterator[tuple[int, int, dict[str, str]]]:
        """The rows of a table under the names in its header, or under the numbers of its columns;
        quoted line ends are kept."""
        csv.field_size_limit(LONGEST_FIELD)
        name, place, header = name_of(path), 0, list[str]()

        def text(line: Line) -> str:
            nonlocal place
            place = line[0]
            return line[2].decode()

        rows = csv.reader(map(text, self.lines(path)), strict=True, **TABLES[self.kind(path)])
        while True:
            first = place + 1
            try:
                row = next(rows, None)
            except (csv.Error, UnicodeDecodeError) as error:
                self.skip(DataError(f"{name}:{first}: not a valid row ({error})"))
                continue
            if row is None:
                return
            if not header and named:
                header = row
                if twice := [key for key in keys if header.count(key) > 1]:
                    raise DataError(f"{name}:{first}: two columns are called {twice[0]!r}")
                continue
            header = header or [str(i + 1) for i in range(len(row))]
            if row and len(row) == len(header):
                yield first, 0, dict(zip(header, row, strict=True))
            elif row:
                where = f"{name}:{first}: {len(row)} fields"
                self.skip(DataError(f"{where} under {len(header)} column names"))

    def lines(self, path: Path) -> Iterator[Line]:
        """Every line of a file, its end included."""
        number = 0
        try:
            with opened(path, self.config, lambda: f"line {number}") as (file, offset):
                for number, line in lines(file, name_of(path)):
                    yield number, offset, line
                    offset += len(line)
        except DataError as error:
            self.skip(error)

    def _whole(self, path: Path) -> Iterator[Piece]:
        """The file as one document; a huge one is validated first when bad files are skipped."""
        try:
            if self.config.on_error == "skip":
                for _ in self._chunks(path):
                    pass
            yield from self._chunks(path)
        except DataError as error:
            self.skip(error)

    def _chunks(self, path: Path) -> Iterator[Piece]:
        held, name, first, data, offset = "", name_of(path), True, b"more", 0
        decoder = codecs.getincrementaldecoder("utf-8")()
        with opened(path, self.config, lambda: f"{offset} bytes") as (file, start):
            offset = start
            while data:
                pending, _ = decoder.getstate()  # the beginning of a character
                data = file.read(READ_BYTES)
                try:
                    held += decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise _not_utf8(name, offset - len(pending) + error.start) from None
                offset += len(data)
                *parts, held = cut(held, name) or [""]
                for part in parts:
                    yield Piece(part, name, first, False)
                    first = False
        if held:
            yield Piece(held, name, first)


def record_of(data: Any, where: str) -> dict[str, Any]:
    """A row of a table as it is, or a line of JSON as the object it spells."""
    record = data
    if isinstance(data, bytes):
        try:
            record = json.loads(decode(data, where))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object but {type(record).__name__}")
    return record


def keys_of(record: dict[str, Any]) -> str:
    """The first fields of a record, for a message."""
    return ", ".join(map(str, list(record)[:6])) or "none"


def field_of(record: dict[str, Any], key: str, flag: str, where: str) -> str:
    """The text in a record's field, which `flag` named."""
    if key not in record:
        raise DataError(f"{where}: no field {key!r} ({flag}); it has {keys_of(record)}")
    text = record[key]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {key!r} is not text but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {key!r} holds half a surrogate pair") from None
    return text


def _blocks(lines: Iterable[Line]) -> Iterator[Line]:
    """Runs of lines between blank ones, each under its first line's number and offset."""
    for has_text, run in itertools.groupby(lines, lambda line: bool(line[2].strip())):
        if has_text:
            numbers, offsets, data = zip(*run, strict=True)
            yield numbers[0], offsets[0], b"".join(data).rstrip(b"\r\n")


def _first(path: Path) -> bytes:
    """The first byte that is no white space, near the start."""
    with open(path, "rb") as file:
        return file.read(64).lstrip()[:1]


def lines(file: Any, where: str) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a stream; a DataError for a line that memory should not have to hold."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        if len(line) >= LONGEST_LINE and not line.endswith(b"\n"):
            raise DataError(
                f"{where}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; break it"
            )
        yield number, line


def cut(text: str, where: str) -> list[str]:
    """A long text in parts that encode to the ids of the whole: cut where white space follows
    something else, which no pre-token of GPT-2's pattern spans."""
    starts = [0]
    while len(text) - starts[-1] > PIECE_LENGTH:
        bounds = starts[-1] + PIECE_LENGTH, starts[-1] + LONGEST_RUN
        place = _SAFE.search(text, *bounds) or _UNSPACED.search(text, *bounds)
        if place:
            starts.append(place.start())
        elif len(text) > bounds[1]:
            size = LONGEST_RUN >> 20
            raise DataError(f"{where}: {size} MiB without white space; break it into words")
        else:
            break
    return [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])] if text else []


def decode(data: bytes, where: str, offset: int = 0) -> str:
    """Strict UTF-8, or a DataError naming the byte; `offset` is the place of `data`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(where, offset + error.start) from None


def _not_utf8(where: str, place: int) -> DataError:
    return DataError(f"{where}: not UTF-8 at byte {place}")
