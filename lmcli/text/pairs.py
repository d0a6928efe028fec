"""Pairs of a source and a target: two files of parallel lines, or records of tables and JSONL.

A chat gives a pair for each turn of the assistant: everything before it, and the reply.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lmcli.config.data import PairConfig
from lmcli.errors import DataError
from lmcli.text.chat import Chat, Side
from lmcli.text.readers import RECORDS, Piece, Reader, cut, decode, field_of, keys_of, record_of
from lmcli.text.sources import name_of

FLAGS = ("--source-key", "--target-key")


def text_of(side: Side) -> str:
    """The text of a side, without its special tokens."""
    return "".join(run for run in side if isinstance(run, str))


@dataclass(frozen=True, kw_only=True)
class Pair(Piece):
    """`text` is what the split goes by: the source, or in a chat that of its first reply.

    The runs of text in a side are short enough for the tokenizer.
    """

    NOUN: ClassVar[str] = "source"
    source: Side
    target: Side
    chat: bool = False

    @property
    def size(self) -> int:
        return len((text_of(self.source) + text_of(self.target)).encode())


class PairReader:
    """The pairs of a split; `empty` counts those with a blank side, which are dropped, and `chats`
    says whether they come out of chats.

    `readers` are those of the sources and of the targets, or one of records.
    """

    def __init__(self, readers: Sequence[Reader], config: PairConfig, chat: Chat) -> None:
        self.readers, self.config, self._chat = readers, config, chat
        self.empty = 0
        self.chats: bool | None = None

    def pairs(self) -> Iterator[Pair]:
        """Every pair with text on both sides, in order."""
        read = self._parallel if len(self.readers) == 2 else self._records
        for pair in read(*self.readers):
            if not text_of(pair.source).strip() or not text_of(pair.target).strip():
                self.empty += 1
            elif self.chats in (None, pair.chat):
                self.chats = pair.chat
                yield pair
            else:
                said = f"{pair.where}: messages in some records only; make two datasets of them"
                self.readers[0].skip(DataError(said))

    def _parallel(self, source: Reader, target: Reader) -> Iterator[Pair]:
        for path in itertools.chain(source.paths, target.paths):
            if source.kind(path) in RECORDS:
                raise DataError(
                    f"{name_of(path)}: records, not lines; name it without --source or --target "
                    "and its fields by --source-key and --target-key, or say --format text"
                )
        if len(source.paths) != len(target.paths):
            raise DataError(
                f"{len(source.paths)} files of sources but {len(target.paths)} of targets; each "
                "file of one goes with a file of the other"
            )
        for paths in zip(source.paths, target.paths, strict=True):
            names = [name_of(path) for path in paths]
            counts = [0, 0]
            for lines in itertools.zip_longest(source.lines(paths[0]), target.lines(paths[1])):
                counts = [n + (line is not None) for n, line in zip(counts, lines, strict=True)]
                if None in lines:  # read on, to say how many there are
                    continue
                try:
                    texts = [
                        decode(data.removesuffix(b"\n"), f"{name}:{number}")
                        for name, (number, _, data) in zip(names, lines, strict=True)
                    ]
                    pair = _pair([texts[0]], [texts[1]], f"{names[0]}:{counts[0]}")
                except DataError as error:
                    source.skip(error)
                    continue
                yield pair
            if counts[0] != counts[1]:
                raise DataError(
                    f"{names[0]} has {counts[0]:,} lines but {names[1]} has {counts[1]:,}; line n "
                    "of one has to belong to line n of the other"
                )

    def _records(self, reader: Reader) -> Iterator[Pair]:
        for path in reader.paths:
            name = name_of(path)
            if reader.kind(path) not in RECORDS:
                raise DataError(
                    f"{name}: pairs are read from JSONL, CSV or TSV (see --format), or from "
                    "parallel lines by --source and --target"
                )
            keys = [key for side in self.config.keys or () for key in side]
            for number, _, data in reader.units(path, keys, not self.config.by_number):
                where = f"{name}:{number}"
                try:
                    found = list(self._of(record_of(data, where), where))
                except DataError as error:
                    reader.skip(error)
                    continue
                yield from found

    def _of(self, record: dict[str, Any], where: str) -> Iterator[Pair]:
        """The pairs of a record; those of a chat all go by the first of them."""
        keys = self.config.keys
        if not keys and "messages" in record:
            opening = ""
            for source, target in self._chat.replies(record["messages"], where):
                opening = opening or text_of(source)
                yield _pair(source, target, where, opening, chat=True)
            return
        if not keys and not {"prompt", "completion"} <= record.keys():
            raise DataError(
                f"{where}: neither prompt and completion nor messages among its fields; name two "
                f"by {' and '.join(FLAGS)}; it has {keys_of(record)}"
            )
        texts = [
            "\n".join(field_of(record, name, flag, where) for name in names)
            for names, flag in zip(keys or (["prompt"], ["completion"]), FLAGS, strict=True)
        ]
        yield _pair([texts[0]], [texts[1]], where)


def _pair(source: Side, target: Side, where: str, text: str = "", chat: bool = False) -> Pair:
    runs, learned = _runs(source, where), _runs(target, where)
    return Pair(text or text_of(source), where, source=runs, target=learned, chat=chat)


def _runs(side: Side, where: str) -> Side:
    """A side with its texts cut for the tokenizer."""
    runs: Side = []
    for run in side:
        runs += cut(run, where) if isinstance(run, str) else [run]
    return runs
