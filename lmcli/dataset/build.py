"""From documents to a dataset: split, encode, write, in one streaming pass.

Documents are dealt by a hash of their text, so that a split does not depend on order and equal
documents never part. A corpus too small for that is cut by position instead: each document gives
its first part to train and its last parts to val and test.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import SplitConfig
from lmcli.config.units import show_bytes, show_count
from lmcli.dataset import order
from lmcli.dataset.store import StoreWriter
from lmcli.errors import DataError
from lmcli.text.readers import Piece, Reader
from lmcli.text.tokenizer import Tokenizer

FEWEST_TO_HASH = 20
BATCH_CHARS = 2**20

Dealt = tuple[str, str, bool]  # split, text, ends the document


@dataclass(frozen=True)
class Corpus:
    """The readers of each split; val and test come out of train where they have no own files."""

    train: Reader
    val: Reader | None = None
    test: Reader | None = None

    @property
    def readers(self) -> list[Reader]:
        return [r for r in (self.val, self.test, self.train) if r is not None]


def document_hash(text: str) -> int:
    """64 bits of a document's first piece; decides its split, and what counts as the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _split_of(text: str, val: float, test: float) -> str:
    place = document_hash(text) / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def _first_pieces(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Each piece with whether it starts a document."""
    starts = True
    for piece in pieces:
        yield piece, starts
        starts = piece.ends_document


def choose_rule(
    pieces: Iterable[Piece], split_by: str, val: float, test: float
) -> tuple[str, list[int]]:
    """`hash`, or `position` with each document's length in characters.

    Reads until every split has a document and there are 20, so a large corpus is hardly touched.
    """
    if split_by == "hash" or val + test == 0:
        return "hash", []
    missing = {s for s, share in (("train", 1.0), ("val", val), ("test", test)) if share}
    lengths: list[int] = []
    for piece, starts in _first_pieces(pieces):
        if starts:
            lengths.append(0)
            missing.discard(_split_of(piece.text, val, test))
            if split_by == "auto" and not missing and len(lengths) > FEWEST_TO_HASH:
                return "hash", []
        lengths[-1] += len(piece.text)
    if split_by == "auto" and not missing and len(lengths) >= FEWEST_TO_HASH:
        return "hash", []
    return "position", lengths


def _by_hash(pieces: Iterable[Piece], val: float, test: float) -> Iterator[Dealt]:
    split = "train"
    for piece, starts in _first_pieces(pieces):
        if starts:
            split = _split_of(piece.text, val, test)
        yield split, piece.text, piece.ends_document


def _by_position(
    pieces: Iterable[Piece], lengths: list[int], val: float, test: float
) -> Iterator[Dealt]:
    """Cuts each document at the first line end after its train share, then after its val share."""
    shares = [("train", 1 - val - test), ("val", val), ("test", test)]
    document, part, place, start = -1, 0, 0, True
    splits = [name for name, share in shares if share > 0]
    ends: list[float] = []
    for piece in pieces:
        if start:
            document, part, place = document + 1, 0, 0
            total, ends = 0.0, []
            for _, share in (s for s in shares if s[1] > 0):
                total += share
                ends.append(total * lengths[document])
        text = piece.text
        while text:
            cut = -1
            if part < len(splits) - 1 and place + len(text) > ends[part]:
                cut = text.find("\n", max(0, int(ends[part]) - place - 1))
            if cut < 0 or cut + 1 == len(text):
                break
            yield splits[part], text[: cut + 1], True
            place, text, part = place + cut + 1, text[cut + 1 :], part + 1
        if text or piece.ends_document:
            yield splits[part], text, piece.ends_document
        place += len(text)
        start = piece.ends_document


def _whole(pieces: Iterable[Piece], split: str) -> Iterator[Dealt]:
    for piece in pieces:
        yield split, piece.text, piece.ends_document


class _Builder:
    """Encodes dealt text in batches and counts what went where."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, splits: list[str]) -> None:
        self._tokenizer = tokenizer
        self._writers = {
            s: StoreWriter(folder, s, tokenizer.vocab_size, tokenizer.eos_id) for s in splits
        }
        self.counts = {s: {"documents": 0, "tokens": 0, "bytes": 0, "words": 0} for s in splits}
        self._held: list[tuple[str, str, bool]] = []
        self._size = 0

    def add(self, split: str, text: str, ends_document: bool) -> None:
        self._held.append((split, text, ends_document))
        self._size += len(text)
        if self._size >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        encoded = self._tokenizer.encode_batch([text for _, text, _ in self._held])
        for (split, text, ends_document), ids in zip(self._held, encoded, strict=True):
            self._writers[split].add(ids, ends_document)
            self.counts[split]["bytes"] += len(text.encode())
            self.counts[split]["words"] += len(text.split())
        self._held, self._size = [], 0

    def close(self) -> None:
        self.flush()
        for split, writer in self._writers.items():
            writer.close()
            self.counts[split] |= {"documents": writer.documents, "tokens": writer.tokens}


def build(
    path: Path,
    corpus: Corpus,
    tokenizer_path: Path,
    config: SplitConfig,
    recorded: dict[str, Any],
) -> Manifest:
    """Writes the dataset `path`; the caller holds its lock. `recorded` goes into the manifest.

    Raises DataError for an empty split or a document that stands in two splits.
    """
    tokenizer = Tokenizer.load(tokenizer_path / layout.TOKENIZER)
    tokenizer_id = manifest.read(tokenizer_path, "tokenizer", hashes=True).id
    val = 0.0 if corpus.val else config.val_fraction
    test = 0.0 if corpus.test else config.test_fraction
    splits = ["train"]
    splits += ["val"] if corpus.val or val else []
    splits += ["test"] if corpus.test or test else []
    with (
        files.staged_directory(path) as folder,
        console.Progress("encoding", sum(r.size for r in corpus.readers), "bytes") as progress,
    ):
        builder = _Builder(folder, tokenizer, splits)
        held_out: dict[int, str] = {}
        done = 0

        def run(dealt: Iterator[Dealt]) -> None:
            nonlocal done
            for split, text, ends_document in dealt:
                builder.add(split, text, ends_document)
                done += len(text.encode())
                progress.update(done)

        for split, reader in (("val", corpus.val), ("test", corpus.test)):
            if reader is not None:
                run(_whole(_checked(reader.pieces(), _remember(held_out, split)), split))

        def train_pieces() -> Iterator[Piece]:
            # Before dealing: a part that position cut out no longer looks like its document.
            return _checked(corpus.train.pieces(), _not_held_out(held_out, corpus.train))

        rule, lengths = choose_rule(train_pieces(), config.split_by, val, test)
        if rule == "position":
            if config.split_by == "auto":
                few = "1 document is" if len(lengths) == 1 else f"{len(lengths)} documents are"
                progress.say(
                    f"{few} too few to split by hash: each is cut by position, "
                    "at a line end, into train, val and test"
                )
            run(_by_position(train_pieces(), lengths, val, test))
        else:
            run(_by_hash(train_pieces(), val, test))
        builder.close()
        for split, counts in builder.counts.items():
            if not counts["documents"]:
                raise DataError(_empty(split, rule))
        data = (tokenizer_path / layout.TOKENIZER).read_bytes()
        files.write_file(folder / layout.TOKENIZER, data)
        skipped = sum(r.skipped for r in corpus.readers)
        made = {
            **recorded,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "order": order.NAME,
            "split_rule": rule,
            "splits": builder.counts,
            "skipped": skipped,
        }
        result = manifest.write(folder, "dataset", path.name, {"tokenizer": tokenizer_id}, made)
    if skipped:
        console.warn(f"{skipped} documents could not be read or stood in two splits; left out")
    for split, counts in builder.counts.items():
        console.say(
            f"{split}: {counts['documents']:,} documents, {show_count(counts['tokens'])} tokens, "
            f"{show_bytes(counts['bytes'])}"
        )
    return result


def _empty(split: str, rule: str) -> str:
    if split == "train":
        return "the train split is empty: all text went to val and test or was left out; give more"
    why = "no document falls into its share"
    if rule == "position":
        why = "cut by position, no document has a line end at its share"
    return (
        f"the {split} split is empty: {why}; give more text or --{split} FILE, or do without "
        f"by --{split}-fraction 0"
    )


def _checked(pieces: Iterable[Piece], keeps: Callable[[str, str], bool]) -> Iterator[Piece]:
    """The pieces of the documents that `keeps` accepts by their first piece and its place."""
    keep = True
    for piece, starts in _first_pieces(pieces):
        if starts:
            keep = keeps(piece.text, piece.where)
        if keep:
            yield piece


def _remember(held_out: dict[int, str], split: str) -> Callable[[str, str], bool]:
    """Notes each val or test document; the same one in the other split is an error."""

    def check(text: str, where: str) -> bool:
        key = document_hash(text)
        if held_out.setdefault(key, split) != split:
            raise DataError(f"{where}: this document stands in val and in test; leave one out")
        return True

    return check


def _not_held_out(held_out: dict[int, str], reader: Reader) -> Callable[[str, str], bool]:
    """Refuses (or with `--on-error skip` drops) a train document that val or test holds."""

    def check(text: str, where: str) -> bool:
        if not held_out or document_hash(text) not in held_out:
            return True
        split = held_out[document_hash(text)]
        if reader.config.on_error != "skip":
            raise DataError(
                f"{where}: this document stands in train and in {split}; remove it, or use "
                "--on-error skip to leave it out of train"
            )
        reader.skipped += 1
        return False

    return check
