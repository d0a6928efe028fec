"""Files of segments for metrics: a line each, or a field of TSV or JSONL records.

Lines end at line feeds only; `-` is standard input; also gzipped. Nothing is stripped but a
carriage return at a line's end.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from lmcli.errors import DataError, MissingInputError
from lmcli.text.readers import decode


def read(name: str, key: str) -> list[list[str]]:
    """The texts of each segment: one, or those of a JSON list. `key` names the field of records."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        found = [_field(line, key, where) for line, where in _lines(name) if line]
    elif suffix == ".tsv":
        found = [[text] for text in _column(name, key)]
    else:
        found = [[line] for line, _ in _lines(name)]
    if not found:
        raise DataError(f"{name}: empty; there is nothing to score")
    return found


def _lines(name: str) -> Iterator[tuple[str, str]]:
    """(line, name:number)"""
    if name == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        try:
            data = Path(name).read_bytes()
            data = gzip.decompress(data) if name.endswith(".gz") else data
        except FileNotFoundError:
            raise MissingInputError(f"{name}: no such file") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{name}: broken gzip ({error})") from None
        except IsADirectoryError:
            raise DataError(f"{name}: a folder; name a file") from None
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], 1):
        where = f"{name}:{number}"
        yield decode(line, where).removesuffix("\r"), where


def _field(line: str, key: str, where: str) -> list[str]:
    try:
        value = json.loads(line)[key]
    except KeyError:
        keys = ", ".join(json.loads(line))
        raise DataError(f"{where}: no field {key!r}; there are {keys}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object ({error})") from None
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: field {key!r} is neither text nor a list of texts")
    return texts


def _column(name: str, key: str) -> Iterator[str]:
    """A column of a TSV file, by the name in its first line."""
    lines = (line for line, _ in _lines(name))
    for number, row in enumerate(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
        text = row.get(key)
        if text is None:
            keys = ", ".join(k for k in row if k)
            raise DataError(f"{name}:{number}: no column {key!r}; there are {keys}")
        yield text
