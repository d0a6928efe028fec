"""From pairs to a dataset: dealt by a hash of the source, encoded, filtered and written."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from lmcli.artifacts import layout
from lmcli.config.data import PairConfig, SplitConfig
from lmcli.dataset.build import Builder, by_hash, document_hash
from lmcli.dataset.store import PAIR_COUNTS
from lmcli.errors import DataError
from lmcli.text.chat import Chat, Side
from lmcli.text.pairs import Pair, PairReader, text_of
from lmcli.text.readers import Reader

REASONS = ("empty", "source_length", "target_length", "length_ratio", "duplicate")


class PairBuilder(Builder[Pair]):
    """Pairs, dealt by their sources; what `config` does not want is counted in `dropped`.

    `readers` has for each split one reader of sources and one of targets, or one of records; sides
    that are not parallel are a DataError.
    """

    sides, keys = layout.SIDES, PAIR_COUNTS

    def __init__(
        self,
        readers: Mapping[str, Sequence[Reader]],
        split: SplitConfig,
        config: PairConfig,
        template: Mapping[str, str],
    ) -> None:
        super().__init__(readers, split)
        self._config, self._template = config, template
        self._seen = set[tuple[int, ...]]()
        self.dropped = {split: Counter[str]() for split in self.counts}

    def fill(self) -> dict[str, Any]:
        chat = Chat(self._template, self.tokenizer.special)
        kinds = set[bool | None]()
        for split in ("val", "test", "train"):
            if split in self.readers:
                reader = PairReader(self.readers[split], self._config, chat)
                found = self.apart(reader.pairs(), split)
                is_train = split == "train"
                self.run(by_hash(found, self.shares) if is_train else zip(repeat(split), found))
                self.dropped[split]["empty"] += reader.empty
                kinds |= {reader.chats} - {None}
        if len(kinds) > 1:
            raise DataError("messages in the records of some splits only; make two datasets")
        for split, reasons in self.dropped.items():
            if reasons.total():
                said = ", ".join(f"{n:,} by {reason}" for reason, n in reasons.items() if n)
                self.progress.say(f"{split}: {reasons.total():,} pairs dropped: {said}")
        total = sum(self.dropped.values(), Counter[str]())
        dropped = {reason: total[reason] for reason in REASONS}
        return {"split_rule": "hash", "dropped": dropped, "chat": True in kinds}

    def encode(self, held: Sequence[tuple[str, Pair]]) -> None:
        sides = self._encoded([side for _, p in held for side in (p.source, p.target)])
        for (split, pair), source, target in zip(held, sides, sides, strict=True):
            if reason := self._unwanted(pair, len(source) + 1, len(target) + 1):
                self.dropped[split][reason] += 1
                continue
            for writer, ids in zip(self.writers[split], (source, target), strict=True):
                writer.add(ids, True)
            self.count(split, text_of(pair.source), source, "source_")
            self.count(split, text_of(pair.target), target)

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
