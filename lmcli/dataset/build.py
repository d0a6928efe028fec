"""From documents to a dataset: split, encode, write, in one streaming pass.

Documents are dealt by a hash of their text, so that a split does not depend on order and equal
documents never part. A corpus too small for that is cut by position instead: each document gives
its first part to train and its last parts to val and test.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import SplitConfig
from lmcli.config.units import show_bytes, show_count
from lmcli.dataset import order
from lmcli.dataset.store import StoreWriter
from lmcli.errors import DataError
from lmcli.text.compression import Losses
from lmcli.text.readers import Piece, Reader
from lmcli.text.tokenizer import Tokenizer

FEWEST_TO_HASH = 20
BATCH_CHARS = 2**20

T = TypeVar("T")
P = TypeVar("P", bound=Piece)
Shares = Mapping[str, float]  # of the splits that are dealt, in the order of a cut document
Dealt = tuple[str, str, bool]  # split, text, ends the document


def document_hash(text: str) -> int:
    """64 bits of a document's first piece; decides its split, and what counts as the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_of(text: str, shares: Shares) -> str:
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
            missing.discard(split_of(piece.text, shares))
            if split_by == "auto" and not missing and len(lengths) > FEWEST_TO_HASH:
                return "hash", []
        lengths[-1] += len(piece.text)
    if split_by == "auto" and not missing and len(lengths) >= FEWEST_TO_HASH:
        return "hash", []
    return "position", lengths


def _by_hash(pieces: Iterable[Piece], shares: Shares) -> Iterator[Dealt]:
    for piece in pieces:
        if piece.starts_document:
            split = split_of(piece.text, shares)
        yield split, piece.text, piece.ends_document


def _by_position(pieces: Iterable[Piece], lengths: list[int], shares: Shares) -> Iterator[Dealt]:
    """Cuts each document at the first line end after its train share, then after its val share."""
    splits = list(shares)
    document = -1
    for piece in pieces:
        if piece.starts_document:
            document, part, place = document + 1, 0, 0
            ends = [total * lengths[document] for total in accumulate(shares.values())]
        text = piece.text
        while text:
            cut = -1
            if part < len(splits) - 1 and place + len(text) > ends[part]:
                cut = text.find("\n", max(0, int(ends[part]) - place - 1))
            if cut < 0 or (cut + 1 == len(text) and piece.ends_document):
                break
            yield splits[part], text[: cut + 1], True
            place, text, part = place + cut + 1, text[cut + 1 :], part + 1
        if text or piece.ends_document:
            yield splits[part], text, piece.ends_document
        place += len(text)


def batched(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of about BATCH_CHARS characters, for the tokenizer."""
    held: list[T] = []
    total = 0
    for item in items:
        held.append(item)
        total += size(item)
        if total >= BATCH_CHARS:
            yield held
            held, total = [], 0
    yield held


class _Builder:
    """Encodes dealt text in batches and counts what went where."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, splits: list[str], progress: console.Progress
    ) -> None:
        self._tokenizer, self._progress = tokenizer, progress
        self._writers = {
            s: StoreWriter(folder, s, tokenizer.vocab_size, tokenizer.eos_id) for s in splits
        }
        self.losses = Losses()
        self.counts = {s: {"documents": 0, "tokens": 0, "bytes": 0, "words": 0} for s in splits}

    def run(self, dealt: Iterable[Dealt]) -> None:
        parts = self._progress.over(dealt, lambda part: len(part[1].encode()))
        for held in batched(parts, lambda part: len(part[1])):
            self._encode(held)

    def _encode(self, held: list[Dealt]) -> None:
        encoded = self._tokenizer.encode_batch([text for _, text, _ in held])
        for (split, text, ends_document), ids in zip(held, encoded, strict=True):
            self._writers[split].add(ids, ends_document)
            self.counts[split]["bytes"] += len(text.encode())
            self.counts[split]["words"] += len(text.split())
            if not self._tokenizer.exact:
                self.losses.add(text, self._tokenizer.decode(ids))

    def close(self) -> None:
        for split, writer in self._writers.items():
            writer.close()
            self.counts[split] |= {"documents": writer.documents, "tokens": writer.tokens}


def deal(readers: Mapping[str, Any], config: SplitConfig) -> tuple[Shares, list[str]]:
    """The shares dealt out of train, and every split there will be."""
    val = 0.0 if "val" in readers else config.val_fraction
    test = 0.0 if "test" in readers else config.test_fraction
    dealt = {"train": 1 - val - test, "val": val, "test": test}
    shares = {split: share for split, share in dealt.items() if share}
    return shares, [s for s in layout.SPLITS if s in readers or s in shares]


def preview(readers: Mapping[str, Reader], config: SplitConfig) -> dict[str, Any]:
    """The splits that `build` would write and its rule; reads as much text as that takes."""
    shares, splits = deal(readers, config)
    rule, _ = choose_rule(readers["train"].pieces(), config.split_by, shares)
    return {"split_rule": rule, "splits": splits}


def build(
    path: Path,
    readers: Mapping[str, Reader],
    tokenizer_path: Path,
    config: SplitConfig,
    recorded: dict[str, Any],
) -> Manifest:
    """Writes the dataset `path`; the caller holds its lock. `recorded` goes into the manifest.

    `readers` has one for train, and for val and test where they do not come out of train. Raises
    DataError for an empty split or a document that stands in two splits.
    """
    shares, splits = deal(readers, config)

    def fill(folder: Path, tokenizer: Tokenizer, progress: console.Progress) -> dict[str, Any]:
        builder = _Builder(folder, tokenizer, splits, progress)
        held_out: dict[int, str] = {}

        def pieces(split: str) -> Iterator[Piece]:
            return apart(readers[split].pieces(), readers[split], split, held_out)

        for split in ("val", "test"):
            if split in readers:
                builder.run((split, p.text, p.ends_document) for p in pieces(split))
        # Apart before dealing: what position cut out no longer looks like its document.
        rule, lengths = choose_rule(pieces("train"), config.split_by, shares)
        if rule == "hash":
            builder.run(_by_hash(pieces("train"), shares))
        else:
            if config.split_by == "auto":
                few = "1 document is" if len(lengths) == 1 else f"{len(lengths)} documents are"
                progress.say(
                    f"{few} too few to split by hash: each is cut by position, "
                    "at a line end, into train, val and test"
                )
            builder.run(_by_position(pieces("train"), lengths, shares))
        builder.close()
        return {
            "split_rule": rule,
            "splits": builder.counts,
            "skipped": sum(reader.skipped for reader in readers.values()),
            "losses": None if tokenizer.exact else builder.losses.facts(),
        }

    size = sum(reader.size for reader in readers.values())
    return assemble(path, tokenizer_path, size, recorded, fill)


def assemble(
    path: Path,
    tokenizer_path: Path,
    size: int,
    recorded: dict[str, Any],
    fill: Callable[[Path, Tokenizer, console.Progress], dict[str, Any]],
) -> Manifest:
    """The dataset whose splits `fill` writes into a staged folder; it returns what came of it.

    `size` is what there is to read, in bytes. Raises DataError for an empty split.
    """
    tokenizer = Tokenizer.load(tokenizer_path / layout.TOKENIZER)
    tokenizer_id = manifest.read(tokenizer_path, "tokenizer", hashes=True).id
    with (
        files.staged_directory(path) as folder,
        console.Progress("encoding", size, "bytes") as progress,
    ):
        came = fill(folder, tokenizer, progress)
        for split, counts in came["splits"].items():
            if not counts["documents"]:
                raise DataError(_empty(split, came["split_rule"]))
        data = (tokenizer_path / layout.TOKENIZER).read_bytes()
        files.write_file(folder / layout.TOKENIZER, data)
        made = {
            **recorded,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "order": order.NAME,
            **came,
        }
        result = manifest.write(folder, "dataset", path.name, {"tokenizer": tokenizer_id}, made)
    if skipped := came["skipped"]:
        console.warn(f"{skipped} documents could not be read or stood in two splits; left out")
    if (losses := came["losses"]) and (losses["dropped"] or losses["added"]):
        dropped, added, most = losses.values()
        console.warn(
            f"the tokenizer does not give back this text: {dropped:,} characters dropped, "
            f"{added:,} added; most of all {json.dumps(''.join(most), ensure_ascii=False)}"
        )
    for split, counts in came["splits"].items():
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


def apart(pieces: Iterable[P], reader: Reader, split: str, held_out: dict[int, str]) -> Iterator[P]:
    """The pieces that `reader` read without the documents that another split holds.

    Those of val and test are noted in `held_out`; one in both is an error, one in train too unless
    `--on-error skip` leaves it out there.
    """
    other = split
    for piece in pieces:
        if piece.starts_document and (held_out or split != "train"):
            key = document_hash(piece.text)
            other = held_out.get(key, split)
            if split != "train":
                if other != split:
                    raise DataError(
                        f"{piece.where}: this {piece.NOUN} stands in val and in test; leave one out"
                    )
                held_out[key] = split
            elif other != split:
                if reader.config.on_error != "skip":
                    raise DataError(
                        f"{piece.where}: this {piece.NOUN} stands in train and in {other}; remove "
                        "it, or use --on-error skip to leave it out of train"
                    )
                reader.skipped += 1
        if other == split:
            yield piece
