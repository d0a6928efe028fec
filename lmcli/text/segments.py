r"""Hypotheses and references: one segment a line, or a field of one record a line, in order.

A line ends at `\n` only (a `\r` before it and a byte order mark are dropped), and a blank line is a
blank segment. `.jsonl` has a record a line, `.tsv` a header and columns without quoting; all may be
packed by gzip, bzip2 or xz.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli.config.data import ReadConfig
from lmcli.errors import DataError, MissingInputError
from lmcli.text.readers import decode, keys_of, record_of
from lmcli.text.sources import JSONL, PACKED, opened, plain_suffix


@dataclass(frozen=True)
class Source:
    """What one file, or standard input, holds: (place, text or record) in order."""

    name: str
    rows: list[tuple[str, Any]]
    keyed: bool  # records, not text

    def segments(self, key: str, single: bool = False) -> list[list[str]]:
        """The texts of each segment: one or, unless `single`, as many as a record's field lists."""
        found = []
        for where, record in self.rows:
            if self.keyed and key not in record:
                said = f"no field {key!r} (--hyp-key, --ref-key); it has {keys_of(record)}"
                raise DataError(f"{where}: {said}")
            value = record[key] if self.keyed else record
            texts = [value] if single or not isinstance(value, list) else value
            if not texts or not all(isinstance(text, str) for text in texts):
                raise DataError(f"{where}: field {key!r} must be text, or texts for --ref-key")
            found.append(texts)
        return found


def stream(name: str) -> AbstractContextManager[Any]:
    """A file, or standard input (`-`), as bytes that come as they are read; a packed file at once.

    Raises MissingInputError, OSError or, for what is packed and broken, DataError.
    """
    path = Path(name)
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    if not path.exists():
        raise MissingInputError(f"{name}: no such file")
    if path.suffix.lower() not in PACKED:
        return path.open("rb")
    with opened(path, ReadConfig(), lambda: "a part") as (file, _):
        return io.BytesIO(file.read())


def read(name: str, key: str) -> Source:
    """All of a file, or of standard input (`-`): lines, or JSONL where a `key` is asked for."""
    title, place, suffix = name, f"{name}:", plain_suffix(Path(name))
    if name == "-":
        title, place, suffix = "standard input", "standard input, line ", ".jsonl" if key else ""
    with stream(name) as file:
        lines = list(file)
    placed = ((f"{place}{n}", line) for n, line in enumerate(lines, 1))
    texts = ((where, decode(line, where).strip("\ufeff\r\n")) for where, line in placed)
    parse = _json if suffix in JSONL else _table if suffix == ".tsv" else iter
    if not (rows := list(parse(texts))):
        raise DataError(f"{title}: no text to read (empty)")
    return Source(title, rows, keyed=parse is not iter)


def lines(name: str, flag: str) -> list[str]:
    """The lines of the plain file that a flag names."""
    if (source := read(name, "")).keyed:
        raise DataError(f"{flag} {name}: a file of plain lines is wanted here")
    return [text for _, text in source.rows]


def _json(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines:
        if line:
            yield where, record_of(line.encode(), where)


def _table(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, dict[str, str]]]:
    header: list[str] = next((line for _, line in lines), "").split("\t")
    for where, cells in ((where, line.split("\t")) for where, line in lines):
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} columns where the header has {len(header)}")
        yield where, dict(zip(header, cells, strict=True))
