"""From pairs to a dataset: dealt by a hash of the source, encoded, filtered and written."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import layout
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import PairConfig, SplitConfig
from lmcli.dataset.build import Builder, apart, assemble, by_hash, deal, document_hash
from lmcli.dataset.store import PAIR_COUNTS
from lmcli.errors import DataError
from lmcli.text.chat import Chat, Side
from lmcli.text.pairs import Pair, PairReader, text_of
from lmcli.text.readers import Reader
from lmcli.text.tokenizer import Tokenizer

REASONS = ("empty", "source_length", "target_length", "length_ratio", "duplicate")


class _Builder(Builder[Pair]):
    """The same for pairs, less those that `config` does not want; why is counted in `dropped`."""

    sides = layout.SIDES

    def __init__(self, config: PairConfig, *of: Any) -> None:
        super().__init__(*of)
        self._config = config
        self._seen = set[tuple[int, ...]]()
        self.dropped = {split: Counter[str]() for split in self.writers}

    def _encode(self, held: list[tuple[str, Pair]]) -> None:
        sides = self._encoded([side for _, p in held for side in (p.source, p.target)])
        for (split, pair), source, target in zip(held, sides, sides, strict=True):
            if reason := self._unwanted(pair, len(source) + 1, len(target) + 1):
                self.dropped[split][reason] += 1
                continue
            for writer, ids in zip(self.writers[split], (source, target), strict=True):
                writer.add(ids, True)
            self._count(split, text_of(pair.source), source, "source_")
            self._count(split, text_of(pair.target), target)

    def _encoded(self, sides: list[Side]) -> Iterator[list[int]]:
        """Ids of each side without the closing `<eos>`, which the store writes."""
        texts = [run for side in sides for run in side if isinstance(run, str)]
        encoded = iter(self.tokenizer.encode_batch(texts))
        for side in sides:
            ids = [i for run in side for i in (next(encoded) if isinstance(run, str) else [run])]
            yield ids[:-1] if ids[-1:] == [self.tokenizer.eos_id] else ids

    def _unwanted(self, pair: Pair, source: int, target: int) -> str | None:
        """Why a pair of so many tokens is left out."""
        config = self._config
        if min(source, target) < 2:  # an inexact tokenizer left nothing but <eos>
            return "empty"
        if 0 < config.max_source_length < source:
            return "source_length"
        if 0 < config.max_target_length < target:
            return "target_length"
        if 0 < config.max_length_ratio * min(source, target) < max(source, target):
            return "length_ratio"
        if config.drop_duplicates:
            key = tuple(document_hash(str(side)) for side in (pair.source, pair.target))
            if key in self._seen:
                return "duplicate"
            self._seen.add(key)
        return None


def build(
    path: Path,
    readers: Mapping[str, Sequence[Reader]],
    tokenizer_path: Path,
    config: SplitConfig,
    pairs: PairConfig,
    template: Mapping[str, str],
    recorded: dict[str, Any],
) -> Manifest:
    """Writes the dataset of pairs `path`; the caller holds its lock.

    `readers` has for each split one reader of sources and one of targets, or one of records. Raises
    DataError as `lmcli.dataset.build.build` does, and for sides that are not parallel.
    """
    shares, splits = deal(readers, config)

    def fill(folder: Path, tokenizer: Tokenizer, progress: console.Progress) -> dict[str, Any]:
        builder = _Builder(pairs, folder, tokenizer, splits, progress)
        chat = Chat(template, tokenizer.special)
        held_out: dict[int, str] = {}
        kinds = set[bool | None]()
        for split in ("val", "test", "train"):
            if split in readers:
                reader = PairReader(readers[split], pairs, chat)
                found = apart(reader.pairs(), readers[split][0], split, held_out)
                dealt = by_hash(found, shares) if split == "train" else zip(repeat(split), found)
                builder.run(dealt)
                builder.dropped[split]["empty"] += reader.empty
                kinds |= {reader.chats} - {None}
        if len(kinds) > 1:
            raise DataError("messages in the records of some splits only; make two datasets")
        for split, reasons in builder.dropped.items():
            if reasons.total():
                said = ", ".join(f"{n:,} by {reason}" for reason, n in reasons.items() if n)
                progress.say(f"{split}: {reasons.total():,} pairs dropped: {said}")
        total = sum(builder.dropped.values(), Counter[str]())
        dropped = {reason: total[reason] for reason in REASONS}
        facts = builder.facts(PAIR_COUNTS)
        return {"split_rule": "hash", "dropped": dropped, "chat": True in kinds, **facts}

    everyone = [reader for each in readers.values() for reader in each]
    return assemble(path, tokenizer_path, everyone, recorded, fill)
