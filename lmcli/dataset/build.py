"""From documents to a dataset: split, encode, write, in one streaming pass.

Documents are dealt by a hash of their text, so that a split does not depend on order and equal
documents never part. A corpus too small for that is cut by position instead: each document gives
its first part to train and its last parts to val and test.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, Generic, TypeVar

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import SplitConfig
from lmcli.config.units import show_bytes, show_count
from lmcli.dataset import order
from lmcli.dataset.store import COUNTS, StoreWriter
from lmcli.errors import DataError
from lmcli.text.compression import Losses
from lmcli.text.readers import Piece, Reader
from lmcli.text.tokenizer import Tokenizer

FEWEST_TO_HASH = 20
BATCH_BYTES = 2**20

P = TypeVar("P", bound=Piece)
Shares = Mapping[str, float]  # of the splits that are dealt, in the order of a cut document


def document_hash(text: str) -> int:
    """64 bits of a document's first piece; decides its split, and what counts as the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _split_of(text: str, shares: Shares) -> str:
    place = document_hash(text) / 2**64
    test = shares.get("test", 0.0)
    return "test" if place < test else "val" if place < test + shares.get("val", 0.0) else "train"


def choose_rule(pieces: Iterable[Piece], split_by: str, shares: Shares) -> tuple[str, list[int]]:
    """`hash`, or `position` with each document's length in characters.

    Reads until every split has a document and there are 20, so a large corpus is hardly touched.
    """
    if split_by == "hash" or len(shares) == 1:
        return "hash", []
    missing = set(shares)
    lengths: list[int] = []
    for piece in pieces:
        if piece.starts_document:
            lengths.append(0)
            missing.discard(_split_of(piece.text, shares))
            if split_by == "auto" and not missing and len(lengths) >= FEWEST_TO_HASH:
                return "hash", []
        lengths[-1] += len(piece.text)
    return "position", lengths


def by_hash(pieces: Iterable[P], shares: Shares) -> Iterator[tuple[str, P]]:
    for piece in pieces:
        if piece.starts_document:
            split = _split_of(piece.text, shares)
        yield split, piece


def _by_position(
    pieces: Iterable[Piece], lengths: list[int], shares: Shares
) -> Iterator[tuple[str, Piece]]:
    """Cuts each document at the first line end after its train share, then after its val share."""
    splits = list(shares)
    document = -1
    for piece in pieces:
        if piece.starts_document:
            document, part, place = document + 1, 0, 0
            ends = [total * lengths[document] for total in accumulate(shares.values())]
        text = piece.text
        while part < len(splits) - 1 and place + len(text) > ends[part]:
            cut = text.find("\n", max(0, int(ends[part]) - place - 1)) + 1
            if not cut or (cut == len(text) and piece.ends_document):
                break
            yield splits[part], Piece(text[:cut], piece.where)
            place, text, part = place + cut, text[cut:], part + 1
        if text or piece.ends_document:
            yield splits[part], Piece(text, piece.where, ends_document=piece.ends_document)
        place += len(text)


def deal(readers: Mapping[str, Any], config: SplitConfig) -> tuple[Shares, list[str]]:
    """The shares dealt out of train, and every split there will be."""
    val = 0.0 if "val" in readers else config.val_fraction
    test = 0.0 if "test" in readers else config.test_fraction
    dealt = {"train": 1 - val - test, "val": val, "test": test}
    shares = {split: share for split, share in dealt.items() if share}
    return shares, [s for s in layout.SPLITS if s in readers or s in shares]


class Builder(ABC, Generic[P]):
    """A dataset in the making: what is read is dealt, encoded in batches, written and counted.

    `readers` has those of train, and of val and test where they do not come out of train.
    """

    sides: tuple[str, ...] = ("",)
    keys: tuple[str, ...] = COUNTS  # of `counts`, for the manifest

    def __init__(self, readers: Mapping[str, Sequence[Reader]], config: SplitConfig) -> None:
        self.readers, self.config = readers, config
        self.shares, splits = deal(readers, config)
        self.counts = {s: Counter[str]() for s in splits}
        self.losses = Losses()
        self._held_out: dict[int, str] = {}  # the documents of val and test

    def build(self, path: Path, tokenizer_path: Path, recorded: dict[str, Any]) -> Manifest:
        """Writes the dataset `path`; the caller holds its lock. `recorded` goes into the manifest.

        Raises DataError for an empty split or a document that stands in two splits.
        """
        readers = [reader for each in self.readers.values() for reader in each]
        size = sum(reader.size for reader in readers)
        self.tokenizer = Tokenizer.load(tokenizer_path / layout.TOKENIZER)
        vocab_size, eos_id = self.tokenizer.vocab_size, self.tokenizer.eos_id
        tokenizer_id = manifest.read(tokenizer_path, "tokenizer", hashes=True).id
        with (
            files.staged_directory(path) as folder,
            console.Progress("encoding", size, "bytes") as self.progress,
        ):
            self.writers = {
                s: [StoreWriter(folder, layout.side(s, i), vocab_size, eos_id) for i in self.sides]
                for s in self.counts
            }
            facts = self.fill()
            self._close()
            for split, counts in self.counts.items():
                if not counts["documents"]:
                    raise DataError(_empty(split, facts["split_rule"]))
            files.copy(tokenizer_path / layout.TOKENIZER, folder / layout.TOKENIZER)
            made = {
                **recorded,
                **facts,
                "vocab_size": vocab_size,
                "eos_id": eos_id,
                "order": order.OF_PAIRS if recorded.get("form") == "pairs" else order.NAME,
                "skipped": sum(reader.skipped for reader in readers),
                "splits": {s: {key: c[key] for key in self.keys} for s, c in self.counts.items()},
                "losses": None if self.tokenizer.exact else self.losses.facts(),
            }
            result = manifest.write(folder, "dataset", path.name, {"tokenizer": tokenizer_id}, made)
        _say(made)
        return result

    @abstractmethod
    def fill(self) -> dict[str, Any]:
        """Runs everything there is to read; what the manifest says of how."""

    @abstractmethod
    def encode(self, held: Sequence[tuple[str, P]]) -> None:
        """Writes and counts some pieces, each in its split."""

    def apart(self, pieces: Iterable[P], split: str) -> Iterator[P]:
        """What was read for a split, without the documents that another split holds.

        Of those of val and test a note is kept; one in both is an error, one in train too unless
        `--on-error skip` leaves it out there.
        """
        other, reader = split, self.readers[split][0]
        for piece in pieces:
            if piece.starts_document and (self._held_out or split != "train"):
                key = document_hash(piece.text)
                other = self._held_out.get(key, split)
                if split != "train":
                    self._held_out[key] = split
                if other != split:
                    this = f"{piece.where}: this {piece.NOUN} stands in"
                    if split != "train":
                        raise DataError(f"{this} val and in test; leave one out")
                    if reader.config.on_error != "skip":
                        advice = "remove it, or use --on-error skip to leave it out of train"
                        raise DataError(f"{this} train and in {other}; {advice}")
                    reader.skipped += 1
            if other == split:
                yield piece

    def run(self, dealt: Iterable[tuple[str, P]]) -> None:
        """Encodes pieces, each for a split, and writes them."""
        held: list[tuple[str, P]] = []
        size = 0
        for part in self.progress.over(dealt, lambda part: part[1].size):
            held.append(part)
            size += part[1].size
            if size >= BATCH_BYTES:
                self.encode(held)
                held, size = [], 0
        self.encode(held)

    def count(self, split: str, text: str, ids: list[int], prefix: str = "") -> None:
        """Notes what the ids of a text are worth, and what decoding them would lose."""
        self.counts[split][f"{prefix}bytes"] += len(text.encode())
        self.counts[split][f"{prefix}words"] += len(text.split())
        if not self.tokenizer.exact:
            self.losses.add(text, self.tokenizer.decode(ids))

    def _close(self) -> None:
        for split, writers in self.writers.items():
            for writer, prefix in zip(reversed(writers), ("", "source_"), strict=False):
                writer.close()
                self.counts[split][f"{prefix}documents"] = writer.documents
                self.counts[split][f"{prefix}tokens"] = writer.tokens


class TextBuilder(Builder[Piece]):
    """Documents, dealt by hash or cut by position."""

    def fill(self) -> dict[str, Any]:
        for split in ("val", "test"):
            if split in self.readers:
                self.run(zip(repeat(split), self._pieces(split), strict=False))
        # Apart before dealing: what position cut out no longer looks like its document.
        rule, lengths = choose_rule(self._pieces("train"), self.config.split_by, self.shares)
        if rule == "hash":
            self.run(by_hash(self._pieces("train"), self.shares))
        else:
            if self.config.split_by == "auto":
                few = "1 document is" if len(lengths) == 1 else f"{len(lengths)} documents are"
                self.progress.say(
                    f"{few} too few to split by hash: each is cut by position, "
                    "at a line end, into train, val and test"
                )
            self.run(_by_position(self._pieces("train"), lengths, self.shares))
        return {"split_rule": rule}

    def _pieces(self, split: str) -> Iterator[Piece]:
        [reader] = self.readers[split]
        return self.apart(reader.pieces(), split)

    def encode(self, held: Sequence[tuple[str, Piece]]) -> None:
        encoded = self.tokenizer.encode_batch([piece.text for _, piece in held])
        for (split, piece), ids in zip(held, encoded, strict=True):
            self.writers[split][0].add(ids, piece.ends_document)
            self.count(split, piece.text, ids)


def _say(made: dict[str, Any]) -> None:
    """What a dataset holds now, and what it lost."""
    noun = made.get("form", "documents")
    if skipped := made["skipped"]:
        console.warn(f"{skipped} {noun} could not be read or stood in two splits; left out")
    if (losses := made["losses"]) and (losses["dropped"] or losses["added"]):
        dropped, added, most = losses.values()
        console.warn(
            f"the tokenizer does not give back this text: {dropped:,} characters dropped, "
            f"{added:,} added; most of all {json.dumps(''.join(most), ensure_ascii=False)}"
        )
    for split, counts in made["splits"].items():
        console.say(
            f"{split}: {counts['documents']:,} {noun}, {show_count(counts['tokens'])} tokens, "
            f"{show_bytes(counts['bytes'])}"
        )


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
