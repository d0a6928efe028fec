"""From files, folders and globs to documents, streaming: memory stays flat on any corpus.

A document arrives as one or more pieces. Bytes are UTF-8, strictly, and reach the tokenizer as they
are: no newline translation, no normalisation. Formats: plain text and JSONL, both also gzipped.
"""

import fnmatch
import glob
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lmcli import console
from lmcli.artifacts.files import sha256_file
from lmcli.config.data import ReadConfig
from lmcli.errors import DataError, MissingInputError, StorageError

JSONL = (".jsonl", ".ndjson")
TEXT = ".txt .text .md .rst .tex .py .pyi .c .h .cc .cpp .hpp .java .js .ts .go .rs .rb .sh .sql"
SUFFIXES = (*JSONL, *TEXT.split())
# The tokenizer library needs some 150 times the size of a piece while it works on it.
PIECE_BYTES = 2**18
READ_BYTES = 2**18
# What is longer is refused, so that no input can fill the memory.
LONGEST_LINE = 2**26
LONGEST_RUN = 2**22  # without white space

_SAFE = re.compile(r"(?<=\S)[ \n\t]")

Line = tuple[int, int, bytes]  # number, byte offset, content


@dataclass(frozen=True)
class Piece:
    """Text of one document; most documents are one piece, huge files several."""

    text: str
    where: str
    starts_document: bool = True
    ends_document: bool = True

    @property
    def size(self) -> int:
        return len(self.text.encode())


def _plain_suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def find_files(inputs: Sequence[str], exclude: Sequence[str] = ()) -> list[Path]:
    """The files that inputs (files, folders, globs) name, in a fixed order, each once.

    Folders are walked for known text suffixes, hidden entries and those whose name matches a
    pattern in `exclude` left out; a file named explicitly is read whatever its suffix. Raises
    MissingInputError or DataError naming the input.
    """
    paths: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(_walk(path, exclude))
            if not inside:
                raise DataError(
                    f"{name}: no text in this folder; files ending in {' '.join(SUFFIXES)} count, "
                    "also gzipped; name other files one by one or with a glob"
                )
            paths += inside
        elif path.is_file():
            paths.append(path)
        elif path.exists():
            raise DataError(f"{name}: a pipe or device is read only once; save it to a file first")
        else:
            matches = sorted(p for p in glob.glob(name, recursive=True) if os.path.isfile(p))
            if not matches:
                raise MissingInputError(f"{name}: no such file or folder")
            paths += map(Path, matches)
    found: dict[str, Path] = {}  # by real path: one file under two names is read once
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
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
            names = ", ".join(str(p) for p in self.paths[:3])
            reason = f"{self.skipped} unreadable" if self.skipped else "empty"
            raise DataError(f"{names}: no text to read ({reason})")

    def _file(self, path: Path) -> Iterator[Piece]:
        """A file's documents: records, lines, blocks or the whole; blank lines are none."""
        is_json = _plain_suffix(path) in JSONL
        if not is_json and self.config.document == "file":
            yield from self._whole(path)
            return
        blocks = not is_json and self.config.document == "block"
        lines = self._lines(path)
        for number, offset, data in _blocks(lines) if blocks else lines:
            if not data.strip():
                continue
            where = f"{path}:{number}"
            try:
                if is_json:
                    text = self._parse_json(data, where)
                elif blocks:
                    text = decode(data, str(path), offset)
                else:
                    text = decode(data.removesuffix(b"\n"), where)
                parts = cut(text, where)
            except DataError as error:
                self._skip(error)
                continue
            for i, part in enumerate(parts, 1):
                yield Piece(part, where, i == 1, i == len(parts))

    def _skip(self, error: DataError) -> None:
        """Counts a document that cannot be read, or passes its error on."""
        if self.config.on_error != "skip":
            raise DataError(f"{error}; mend it or use --on-error skip")
        self.skipped += 1

    def _parse_json(self, line: bytes, where: str) -> str:
        try:
            record = json.loads(decode(line, where))
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

    def _lines(self, path: Path) -> Iterator[Line]:
        number = offset = 0
        try:
            with _open(path, lambda: f"line {number}") as file:
                for number, line in lines(file, str(path)):
                    yield number, offset, line
                    offset += len(line)
        except DataError as error:
            self._skip(error)

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
        held, offset, size, searched = bytearray(), 0, 0, 1  # offset: of `held` in the file
        with _open(path, lambda: f"{offset + len(held)} bytes of text") as file:
            while data := file.read(READ_BYTES):
                held += data
                size += len(data)
                if size >= PIECE_BYTES:
                    place = _safe_cut(held, searched)
                    searched = len(held)
                    if not place and len(held) > LONGEST_RUN:
                        raise _unbroken(str(path))
                    if place:
                        text = decode(held[:place], str(path), offset)
                        yield Piece(text, str(path), offset == 0, False)
                        del held[:place]
                        offset, size, searched = offset + place, 0, 1
        if held:
            yield Piece(decode(held, str(path), offset), str(path), offset == 0)


@contextmanager
def _open(path: Path, place: Callable[[], str]) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked; errors name it, and `place` says how far it was read."""
    unpack: Callable[[Path, str], Any] = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with unpack(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: broken gzip after {place()} ({error})") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None


def _blocks(lines: Iterable[Line]) -> Iterator[Line]:
    """Runs of lines between blank ones, each under its first line's number and offset."""
    for has_text, run in itertools.groupby(lines, lambda line: bool(line[2].strip())):
        if has_text:
            numbers, offsets, data = zip(*run, strict=True)
            yield numbers[0], offsets[0], b"".join(data).rstrip(b"\r\n")


def lines(file: IO[bytes], where: str) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a stream; a DataError for a line that memory should not have to hold."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise DataError(
                f"{where}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; break it"
            )
        yield number, line


def cut(text: str, where: str) -> list[str]:
    """A long text in parts that encode to the ids of the whole; see `_safe_cut`."""
    starts = [0]
    while len(text) - starts[-1] > PIECE_BYTES:
        place = _SAFE.search(text, starts[-1] + PIECE_BYTES)
        end = place.start() if place else len(text)
        if end - starts[-1] > LONGEST_RUN:
            raise _unbroken(where)
        if not place:
            break
        starts.append(end)
    return [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])] if text else []


def _unbroken(where: str) -> DataError:
    return DataError(f"{where}: {LONGEST_RUN >> 20} MiB without white space; break it into words")


def decode(data: bytes | bytearray, where: str, offset: int = 0) -> str:
    """Strict UTF-8, or a DataError naming the byte; `offset` is the place of `data`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {offset + error.start}") from None


def _safe_cut(data: bytearray, start: int) -> int:
    """The last place from `start` on where white space follows something else, or 0.

    No pre-token of GPT-2's pattern spans such a place, so encoding the parts gives the ids of the
    whole.
    """
    for i in range(len(data) - 1, start - 1, -1):
        if data[i] in b" \n\t":
            before = data[max(0, i - 4) : i].decode("utf-8", "ignore")
            if not before[-1:].isspace():
                return i
    return 0
