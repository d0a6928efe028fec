"""From files, folders and globs to streams of UTF-8: unpacked, recoded, without byte order mark."""

import bz2
import fnmatch
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, layout
from lmcli.config.data import ReadConfig
from lmcli.errors import DataError, MissingInputError, StorageError

JSONL = (".jsonl", ".ndjson")
TEXT = ".txt .text .md .rst .tex"
CODE = ".py .pyi .c .h .cc .cpp .hpp .java .js .ts .go .rs .rb .sh .sql"
SUFFIXES = (*JSONL, *TEXT.split(), *CODE.split())
FORMATS = dict.fromkeys(JSONL, "jsonl") | dict.fromkeys(CODE.split(), "code")
FORMATS |= {".csv": "csv", ".tsv": "tsv"}
PACKED: dict[str, tuple[str, Callable[..., Any]]] = {
    ".gz": ("gzip", gzip.open),
    ".bz2": ("bzip2", bz2.open),
    ".xz": ("xz", lzma.open),
}


def plain_suffix(path: Path) -> str:
    bare = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return bare.suffix.lower()


def format_of(path: Path) -> str:
    """`jsonl`, `csv`, `tsv`, `code` or `text`, by the suffix."""
    return FORMATS.get(plain_suffix(path), "text")


def name_of(path: Path) -> str:
    """What a source is called in messages and manifests."""
    return "standard input" if layout.is_spool(path) else str(path)


def find_files(inputs: Sequence[str], exclude: Sequence[str] = ()) -> list[Path]:
    """The files that inputs (files, folders, globs) name, in a fixed order, each once.

    Folders are walked for known text suffixes (tables have to be named: each has other columns),
    hidden entries and those whose name matches a pattern in `exclude` left out; a file named
    explicitly is read whatever its suffix. Raises MissingInputError or DataError naming the input.
    """
    paths: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            there = list(_walk(path, exclude))
            inside = sorted(p for p in there if plain_suffix(p) in SUFFIXES)
            if not inside:
                raise DataError(
                    f"{name}: no text in this folder; files ending in {' '.join(SUFFIXES)} count, "
                    f"also with {' '.join(PACKED)}; name other files one by one or with a glob"
                )
            paths += inside
            left = [p.name for p in there if plain_suffix(p) in (".csv", ".tsv", ".json")]
            if left:
                more = f" and {len(left) - 1} more" if len(left) > 1 else ""
                console.warn(
                    f"{name}: {left[0]}{more} left out, as no text ends so; name what to read there"
                )
        elif path.exists():
            paths.append(path)
        else:
            matches = sorted(p for p in glob.glob(name, recursive=True) if os.path.isfile(p))
            if not matches:
                raise MissingInputError(f"{name}: no such file or folder")
            paths += map(Path, matches)
    found: dict[str, Path] = {}  # by real path: one file under two names is read once
    for path in paths:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: a pipe or device is read only once; save it to a file first")
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _walk(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    """The files under a folder that are neither hidden nor excluded."""
    hidden = (".*", "__pycache__", *exclude)

    def wanted(names: list[str]) -> list[str]:
        return [n for n in names if not any(fnmatch.fnmatchcase(n, p) for p in hidden)]

    def refuse(error: OSError) -> None:  # os.walk would pass over the folder in silence
        raise StorageError(f"{error.filename}: {error.strerror}") from None

    for base, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = wanted(folders)
        for path in filter(Path.is_symlink, (Path(base, name) for name in folders)):
            console.warn_once(f"{path}: a link to a folder, left out; name what to read there")
        yield from (Path(base, name) for name in wanted(names))


def fingerprint(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and sha256 of each source as it lies on disk."""
    return [{"path": name_of(path), **files.facts(path)} for path in paths]


@contextmanager
def opened(path: Path, config: ReadConfig, place: Callable[[], str]) -> Iterator[tuple[Any, int]]:
    """A file as unpacked UTF-8, and the length of the byte order mark it stands behind.

    Errors name the file, and `place` says how far it was read.
    """
    packing, unpack = PACKED.get(path.suffix.lower(), ("", open))
    try:
        with unpack(path, "rb") as file:
            mark = "\ufeff".encode(config.encoding, "ignore")
            start = len(mark) if mark and file.peek(len(mark)).startswith(mark) else 0
            file.read(start)
            yield (file if config.plain else _Recoded(file, config)), start
    except UnicodeDecodeError as error:
        raise DataError(f"{name_of(path)}: not {error.encoding} after {place()}") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"{name_of(path)}: {error.strerror or error}") from None
        raise DataError(f"{name_of(path)}: broken {packing} after {place()} ({error})") from None


class _Recoded:
    """A file in another encoding, or with other line ends than were asked for, as UTF-8.

    Bytes that are not UTF-8 where they should be pass through, for the reader to name.
    """

    def __init__(self, file: Any, config: ReadConfig) -> None:
        self._errors = "surrogateescape" if config.is_utf8 else "strict"
        newline = None if config.newlines == "lf" else "\n"
        self._text = io.TextIOWrapper(file, config.encoding, self._errors, newline)

    def readline(self, size: int) -> bytes:
        return self._text.readline(size).encode(errors=self._errors)

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode(errors=self._errors)
