"""From files, folders and globs to documents, streaming: memory stays flat on any corpus.

A document arrives as one or more pieces. Bytes are UTF-8, strictly, and reach the tokenizer as they
are: no newline translation, no normalisation. Formats: plain text and JSONL, both also gzipped.
"""

import codecs
import fnmatch
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lmcli.artifacts.files import sha256_file
from lmcli.config.data import ReadConfig
from lmcli.errors import DataError, MissingInputError, StorageError

JSONL = (".jsonl", ".ndjson")
TEXT = ".txt .text .md .rst .tex .py .pyi .c .h .cc .cpp .hpp .java .js .ts .go .rs .rb .sh .sql"
SUFFIXES = (*JSONL, *TEXT.split())
# The tokenizer library needs some 150 times the size of a piece while it works on it.
PIECE_BYTES = 2**18
READ_BYTES = 2**18


@dataclass(frozen=True)
class Piece:
    """Text of one document; most documents are one piece, huge files several."""

    text: str
    ends_document: bool
    where: str


def _plain_suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def find_files(inputs: Sequence[str], exclude: Sequence[str] = ()) -> list[Path]:
    """The files that inputs (files, folders, globs) name, in a fixed order, each once.

    Folders are walked for known text suffixes, hidden entries and those whose name matches a
    pattern in `exclude` left out; a file named explicitly is read whatever its suffix. Raises
    MissingInputError or DataError naming the input.
    """
    found: dict[str, Path] = {}  # by real path: one file under two names is read once

    def add(*paths: Path) -> None:
        for path in paths:
            found.setdefault(os.path.realpath(path), path)

    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(_walk(path, exclude))
            if not inside:
                raise DataError(
                    f"{name}: no text in this folder; files ending in {' '.join(SUFFIXES)} count, "
                    "also gzipped; name other files one by one or with a glob"
                )
            add(*inside)
        elif path.is_file():
            add(path)
        elif path.exists():
            raise DataError(f"{name}: a pipe or device is read only once; save it to a file first")
        else:
            matches = sorted(p for p in glob.glob(name, recursive=True) if os.path.isfile(p))
            if not matches:
                raise MissingInputError(f"{name}: no such file or folder")
            add(*map(Path, matches))
    return list(found.values())


def _walk(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    hidden = (".*", "__pycache__", *exclude)

    def wanted(names: list[str]) -> list[str]:
        return [n for n in names if not any(fnmatch.fnmatchcase(n, p) for p in hidden)]

    def refuse(error: OSError) -> None:  # os.walk would pass over the folder in silence
        raise StorageError(f"{error.filename}: {error.strerror}") from None

    for base, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = wanted(folders)
        for name in wanted(names):
            path = Path(base, name)
            if _plain_suffix(path) in SUFFIXES:
                yield path


def fingerprint(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and sha256 of each source as it lies on disk."""
    return [{"path": str(p), "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in paths]


class Reader:
    """Documents of some files under a ReadConfig; `skipped` counts what could not be read."""

    def __init__(
        self, inputs: Sequence[str], config: ReadConfig, exclude: Sequence[str] = ()
    ) -> None:
        self.paths = find_files(inputs, exclude)
        self.config = config
        self.skipped = 0

    @property
    def size(self) -> int:
        """Size on disk, for progress."""
        return sum(p.stat().st_size for p in self.paths)

    def pieces(self) -> Iterator[Piece]:
        """Every piece of every document; DataError when there is not a single one."""
        self.skipped = 0
        empty = True
        for path in self.paths:
            for piece in self._file(path):
                empty = False
                yield piece
        if empty:
            names = ", ".join(str(p) for p in self.paths[:3])
            reason = f"{self.skipped} unreadable" if self.skipped else "empty"
            raise DataError(f"{names}: no text to read ({reason})")

    def _file(self, path: Path) -> Iterator[Piece]:
        if _plain_suffix(path) in JSONL:
            return self._records(path, self._parse_json)
        if self.config.document == "line":
            return self._records(path, lambda line, where: _decode(line, where))
        if self.config.document == "block":
            return self._blocks(path)
        return self._whole(path)

    def _skip(self, error: DataError) -> None:
        """Counts a document that cannot be read, or passes its error on."""
        if self.config.on_error != "skip":
            raise DataError(f"{error}; mend it or use --on-error skip")
        self.skipped += 1

    def _records(self, path: Path, parse: Callable[[bytes, str], str]) -> Iterator[Piece]:
        """One document per line; blank lines are none."""
        for number, _, line in self._lines(path):
            line = line.removesuffix(b"\n")
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                text = parse(line, where)
            except DataError as error:
                self._skip(error)
                continue
            if text:
                yield Piece(text, True, where)

    def _parse_json(self, line: bytes, where: str) -> str:
        try:
            record = json.loads(_decode(line, where))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from None
        key = self.config.text_key
        if not isinstance(record, dict):
            raise DataError(f"{where}: not a JSON object but {type(record).__name__}")
        if key not in record:
            keys = ", ".join(map(str, list(record)[:6])) or "none"
            raise DataError(f"{where}: no field {key!r} (--text-key); it has {keys}")
        text = record[key]
        if not isinstance(text, str):
            raise DataError(f"{where}: field {key!r} is not text but {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: field {key!r} holds half a surrogate pair") from None
        return text

    def _blocks(self, path: Path) -> Iterator[Piece]:
        """One document per run of lines between blank ones."""
        block: list[bytes] = []
        start = offset = 1
        for number, begin, line in self._lines(path, end=True):
            if line.strip():
                if not block:
                    start, offset = number, begin
                block.append(line)
                continue
            if block:
                where = f"{path}:{start}"
                try:
                    text = _decode(b"".join(block).rstrip(b"\r\n"), str(path), offset)
                    yield Piece(text, True, where)
                except DataError as error:
                    self._skip(error)
                block = []

    def _lines(self, path: Path, end: bool = False) -> Iterator[tuple[int, int, bytes]]:
        """(line number, byte offset, line) of a file; `end` adds a blank line after the last."""
        number = offset = 0
        try:
            with _open(path) as file:
                for line in file:
                    number += 1
                    yield number, offset, line
                    offset += len(line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._skip(DataError(f"{path}: broken gzip after line {number} ({error})"))
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from None
        if end:
            yield number + 1, offset, b""

    def _whole(self, path: Path) -> Iterator[Piece]:
        """The file as one document; a huge one is validated first when bad files are skipped."""
        try:
            if self.config.on_error == "skip":
                for _ in self._chunks(path):
                    pass
            yield from self._chunks(path)
        except DataError as error:
            self._skip(error)

    def _chunks(self, path: Path) -> Iterator[Piece]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        held, size, offset, searched = "", 0, 0, 1
        try:
            with _open(path) as file:
                while data := file.read(READ_BYTES):
                    pending = len(decoder.getstate()[0])
                    held += _feed(decoder, data, path, offset - pending, False)
                    offset += len(data)
                    size += len(data)
                    if size >= PIECE_BYTES:
                        cut = _safe_cut(held, searched)
                        searched = len(held)
                        if cut:
                            yield Piece(held[:cut], False, str(path))
                            held, size, searched = held[cut:], 0, 1
                pending = len(decoder.getstate()[0])
                held += _feed(decoder, b"", path, offset - pending, True)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: broken gzip after {offset} bytes of text ({error})") from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from None
        if held:
            yield Piece(held, True, str(path))


def _open(path: Path) -> IO[bytes]:
    try:
        if path.name.lower().endswith(".gz"):
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return open(path, "rb")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None


def _decode(data: bytes, where: str, offset: int = 0) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {offset + error.start}") from None


def _feed(
    decoder: codecs.IncrementalDecoder, data: bytes, path: Path, offset: int, final: bool
) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {offset + error.start}") from None


def _safe_cut(text: str, start: int = 1) -> int:
    """The last place from `start` on where white space follows something else, or 0.

    No pre-token of GPT-2's pattern spans such a place, so encoding the parts gives the ids of the
    whole.
    """
    for i in range(len(text) - 1, start - 1, -1):
        if text[i] in " \n\t" and not text[i - 1].isspace():
            return i
    return 0
