"""From pairs to a dataset: dealt by a hash of the source, encoded, filtered and written."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import layout
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import PairConfig, SplitConfig
from lmcli.dataset.build import apart, assemble, batched, deal, document_hash, split_of
from lmcli.dataset.store import PAIR_COUNTS, StoreWriter
from lmcli.text.chat import Chat, Side
from lmcli.text.compression import Losses
from lmcli.text.pairs import Pair, PairReader, text_of
from lmcli.text.readers import Reader
from lmcli.text.tokenizer import Tokenizer

REASONS = ("empty", "source_length", "target_length", "length_ratio", "duplicate")


class _Builder:
    """Encodes dealt pairs in batches; counts what went where and why others went nowhere."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        splits: list[str],
        progress: console.Progress,
        config: PairConfig,
    ) -> None:
        self._tokenizer, self._progress, self._config = tokenizer, progress, config
        self._writers = {
            split: [
                StoreWriter(folder, layout.side(split, s), tokenizer.vocab_size, tokenizer.eos_id)
                for s in layout.SIDES
            ]
            for split in splits
        }
        self._seen = set[tuple[int, ...]]()
        self.losses = Losses()
        self.counts = {split: dict.fromkeys(PAIR_COUNTS, 0) for split in splits}
        self.dropped = {split: Counter[str]() for split in splits}

    def run(self, dealt: Iterable[tuple[str, Pair]]) -> None:
        pairs = self._progress.over(dealt, lambda item: item[1].size)
        for held in batched(pairs, lambda item: item[1].size):
            sides = self._encoded([side for _, p in held for side in (p.source, p.target)])
            for (split, pair), source, target in zip(held, sides, sides, strict=True):
                self._add(split, pair, source, target)

    def _encoded(self, sides: list[Side]) -> Iterator[list[int]]:
        """Ids of each side without the closing `<eos>`, which the store writes."""
        texts = [run for side in sides for run in side if isinstance(run, str)]
        encoded = iter(self._tokenizer.encode_batch(texts))
        for side in sides:
            ids = [i for run in side for i in (next(encoded) if isinstance(run, str) else [run])]
            yield ids[:-1] if ids[-1:] == [self._tokenizer.eos_id] else ids

    def _add(self, split: str, pair: Pair, source: list[int], target: list[int]) -> None:
        if reason := self._unwanted(pair, len(source), len(target)):
            self.dropped[split][reason] += 1
            return
        for writer, ids in zip(self._writers[split], (source, target), strict=True):
            writer.add(ids, True)
        counts, text = self.counts[split], text_of(pair.target)
        counts["bytes"] += len(text.encode())
        counts["words"] += len(text.split())
        counts["source_bytes"] += len(text_of(pair.source).encode())
        if not self._tokenizer.exact:
            for side, ids in ((pair.source, source), (pair.target, target)):
                self.losses.add(text_of(side), self._tokenizer.decode(ids))

    def _unwanted(self, pair: Pair, source: int, target: int) -> str | None:
        """Why a pair of so many tokens is left out, each side's `<eos>` not counted in."""
        config = self._config
        short, long = sorted((source + 1, target + 1))
        if not source or not target:
            return "empty"
        if config.max_source_length and source + 1 > config.max_source_length:
            return "source_length"
        if config.max_target_length and target + 1 > config.max_target_length:
            return "target_length"
        if config.max_length_ratio and long > config.max_length_ratio * short:
            return "length_ratio"
        if config.drop_duplicates:
            key = tuple(document_hash(str(side)) for side in (pair.source, pair.target))
            if key in self._seen:
                return "duplicate"
            self._seen.add(key)
        return None

    def close(self) -> None:
        for split, (source, target) in self._writers.items():
            source.close()
            target.close()
            self.counts[split] |= {
                "documents": target.documents,
                "tokens": target.tokens,
                "source_tokens": source.tokens,
            }


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
    everyone = [reader for each in readers.values() for reader in each]

    def fill(folder: Path, tokenizer: Tokenizer, progress: console.Progress) -> dict[str, Any]:
        builder = _Builder(folder, tokenizer, splits, progress, pairs)
        chat = Chat(template, tokenizer.special)
        held_out: dict[int, str] = {}
        for split in ("val", "test", "train"):
            if split in readers:
                reader = PairReader(readers[split], pairs, chat)
                found = apart(reader.pairs(), readers[split][0], split, held_out)
                if split == "train":
                    builder.run((split_of(pair.text, shares), pair) for pair in found)
                else:
                    builder.run(zip(itertools.repeat(split), found))
                builder.dropped[split]["empty"] += reader.empty
        builder.close()
        for split, dropped in builder.dropped.items():
            if dropped.total():
                said = ", ".join(f"{n:,} by {reason}" for reason, n in dropped.items() if n)
                progress.say(f"{split}: {dropped.total():,} pairs dropped: {said}")
        total = sum(builder.dropped.values(), Counter[str]())
        return {
            "split_rule": "hash",
            "splits": builder.counts,
            "skipped": sum(reader.skipped for reader in everyone),
            "losses": None if tokenizer.exact else builder.losses.facts(),
            "dropped": {reason: total[reason] for reason in REASONS},
        }

    size = sum(reader.size for reader in everyone)
    return assemble(path, tokenizer_path, size, recorded, fill)
