"""From pairs to a dataset: a split's sources and targets, each in a store of its own.

Pairs are dealt by a hash of their source, so that what is asked for in test was never answered in
training.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.config.data import PairConfig, SplitConfig
from lmcli.config.units import show_count
from lmcli.dataset import order
from lmcli.dataset.build import BATCH_CHARS, dealt, document_hash, empty, split_of
from lmcli.dataset.store import StoreWriter
from lmcli.errors import DataError, UsageError
from lmcli.text.pairs import Pair, Side, default_chat, encode, pairs
from lmcli.text.readers import Reader
from lmcli.text.tokenizer import Tokenizer


def _size(pair: Pair | None) -> int:
    return sum(len(text.encode()) for side in pair[1:] for text in side) if pair else 0


def plan_pairs(readers: Mapping[str, Reader], config: SplitConfig) -> dict[str, Any]:
    """The splits that `build_pairs` would write, and its rule."""
    return {"split_rule": "hash", "splits": dealt(readers, config)[1]}


def build_pairs(
    path: Path,
    readers: Mapping[str, Reader],
    tokenizer_path: Path,
    split: SplitConfig,
    config: PairConfig,
    recorded: dict[str, Any],
) -> Manifest:
    """Writes a dataset of pairs; like `build`. `readers` has a split's pairs, or its sources under
    the split's name and its targets under `<split>.target`.

    Pairs are dealt by a hash of their source. Raises DataError for a pair in two splits.
    """
    if split.split_by == "position":
        raise UsageError("--split-by position cuts documents; pairs are dealt by a hash")
    tokenizer = Tokenizer.load(tokenizer_path / layout.TOKENIZER)
    made = manifest.read(tokenizer_path, "tokenizer", hashes=True)
    chat = made.config.get("chat_template") or default_chat(tokenizer)
    shares, splits = dealt(readers, split)
    total = sum(reader.size for reader in readers.values())
    with (
        files.staged_directory(path) as folder,
        console.Progress("encoding", total, "bytes") as progress,
    ):
        writer = _PairWriter(folder, tokenizer, splits, config)
        held_out: dict[int, str] = {}
        for name in ("val", "test", "train"):
            if name not in readers:
                continue
            found = pairs(readers[name], readers.get(f"{name}.target"), config, chat)
            for pair in progress.over(found, _size):
                if pair is None:
                    writer.dropped["empty or unreadable"] += 1
                    continue
                where, source, target = pair
                text = "\0".join(source)
                key = document_hash(text + "\0" + target[0])
                other = held_out.get(key, name)
                if name != "train":
                    held_out[key] = name
                if other != name:
                    if readers[name].config.on_error != "skip":
                        raise DataError(
                            f"{where}: this pair stands in {name} and in {other}; remove it, or "
                            "use --on-error skip to leave it out"
                        )
                    writer.dropped[f"in {other} too"] += 1
                    continue
                to = split_of(text, shares) if name == "train" else name
                writer.add(to, source, target, key)
        writer.close()
        for name, counts in writer.counts.items():
            if not counts["documents"]:
                raise DataError(empty(name, "hash"))
        files.write_file(
            folder / layout.TOKENIZER, (tokenizer_path / layout.TOKENIZER).read_bytes()
        )
        recorded = {
            **recorded,
            "form": "pairs",
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "order": order.NAME,
            "split_rule": "hash",
            "splits": writer.counts,
            "dropped": dict(writer.dropped),
        }
        if writer.chats:
            recorded["chat_template"] = chat
        result = manifest.write(folder, "dataset", path.name, {"tokenizer": made.id}, recorded)
    for reason, n in writer.dropped.items():
        console.say(f"left out: {n:,} pairs, {reason}")
    for name, counts in writer.counts.items():
        console.say(
            f"{name}: {counts['documents']:,} pairs, {show_count(counts['source_tokens'])} source "
            f"and {show_count(counts['tokens'])} target tokens"
        )
    return result


class _PairWriter:
    """Encodes pairs in batches, leaves out what the filters say, and counts both."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, splits: list[str], config: PairConfig
    ) -> None:
        self._tokenizer, self._config = tokenizer, config
        self._writers = {
            (s, side): StoreWriter(folder, f"{s}.{side}", tokenizer.vocab_size, tokenizer.eos_id)
            for s in splits
            for side in ("source", "target")
        }
        self._held: list[tuple[str, Side, Side]] = []
        self._size = 0
        self._seen: set[int] = set()
        self.chats = False
        self.dropped: Counter[str] = Counter()
        names = ("documents", "tokens", "bytes", "words", "source_tokens", "source_bytes")
        self.counts = {s: dict.fromkeys(names, 0) for s in splits}

    def add(self, split: str, source: Side, target: Side, key: int) -> None:
        if self._config.drop_duplicates:
            if key in self._seen:
                self.dropped["duplicate"] += 1
                return
            self._seen.add(key)
        self.chats = self.chats or len(source) > 1
        self._held.append((split, source, target))
        self._size += sum(map(len, source + target))
        if self._size >= BATCH_CHARS:
            self._encode()

    def _encode(self) -> None:
        sources = encode([source for _, source, _ in self._held], self._tokenizer)
        targets = encode([target for _, _, target in self._held], self._tokenizer)
        for (split, source, target), ours, theirs in zip(self._held, sources, targets, strict=True):
            if reason := self._unwanted(len(ours), len(theirs)):
                self.dropped[reason] += 1
                continue
            self._writers[split, "source"].add(ours, True)
            self._writers[split, "target"].add(theirs, True)
            counts = self.counts[split]
            counts["bytes"] += len(target[0].encode())
            counts["words"] += len(target[0].split())
            counts["source_bytes"] += sum(len(part.encode()) for part in source[::2])
        self._held, self._size = [], 0

    def _unwanted(self, n_source: int, n_target: int) -> str:
        config = self._config
        if config.max_source_length and n_source > config.max_source_length:
            return f"a source of more than {config.max_source_length} tokens"
        if config.max_target_length and n_target > config.max_target_length:
            return f"a target of more than {config.max_target_length} tokens"
        ratio = max(n_source, n_target) / max(1, min(n_source, n_target))
        if config.max_length_ratio and ratio > config.max_length_ratio:
            return f"a side more than {config.max_length_ratio:g} times longer"
        return ""

    def close(self) -> None:
        self._encode()
        for (split, side), writer in self._writers.items():
            writer.close()
            self.counts[split]["documents"] = writer.documents
            self.counts[split]["source_tokens" if side == "source" else "tokens"] = writer.tokens
