"""Batches of pairs: similar lengths together, sized in tokens, each pair once in an epoch.

Shapes: B rows, T target tokens, S source tokens.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmcli.dataset.batches import Batch, Batches
from lmcli.dataset.order import permute
from lmcli.dataset.store import TokenStore
from lmcli.errors import DataError
from lmcli.randomness import mix
from lmcli.text.tasks import Template

POOL = 8192  # pairs that are sorted by length together; part of the order's definition


@dataclass(frozen=True)
class Example:
    """A pair as a model reads it; the last `n_scored` of `ids` are what it is to write.

    `source` is the encoder's side; in a decoder-only model it stands at the start of `ids`.
    `before` is the input ahead of the first one, where that is not `<eos>`.
    """

    ids: np.ndarray
    n_scored: int
    source: np.ndarray | None = None
    before: int | None = None

    @property
    def n_read(self) -> int:
        """How many of `ids` stand before those that are scored."""
        return len(self.ids) - self.n_scored

    @property
    def n_source(self) -> int:
        return 0 if self.source is None else len(self.source)


@dataclass(eq=False)
class Examples:
    """Pair i of a split as an Example that fits the context: a longer source loses its end, a
    target that is longer than the context too."""

    source: TokenStore
    target: TokenStore
    template: Template
    context_length: int
    encoder: bool
    eos_id: int

    def __post_init__(self) -> None:
        extra, context_length = len(self.template.prompt([])), self.context_length
        sources = np.diff(self.source.offsets) + extra  # with <eos>
        targets = np.diff(self.target.offsets)
        # in tokens of a row: what decides which pairs share a batch, and how many
        self.target_lengths = targets if self.encoder else targets + sources - 1
        self.source_lengths = sources if self.encoder else np.zeros_like(sources)
        longest = np.maximum(self.target_lengths, self.source_lengths)
        self.n_cut = int((longest > context_length).sum())
        self.target_lengths = np.minimum(self.target_lengths, context_length)
        self.source_lengths = np.minimum(self.source_lengths, context_length)
        if extra >= context_length:
            raise DataError(f"--context-length {context_length} is all taken by the template")

    def __len__(self) -> int:
        return len(self.target_lengths)

    def example(self, i: int) -> Example:
        source = self.source.document(i)[:-1].tolist()
        target, room = self.target.document(i).astype(np.int64), self.context_length
        if self.encoder:
            prompt = [*self.template.prompt(source, room - 1), self.eos_id]
            return Example(target[:room], len(target[:room]), np.array(prompt))
        target = target[: room - len(self.template.prompt([]))]
        prompt = self.template.prompt(source, room - len(target))
        return Example(np.array([*prompt, *target.tolist()]), len(target))


def _padded(rows: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array, padded on the right, and where it is not padding."""
    lengths = np.array([len(row) for row in rows])
    there = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(there.shape, pad, dtype=np.int64)
    padded[there] = np.concatenate(rows)
    return padded, there


def collate(examples: Sequence[Example], eos_id: int, pad_id: int) -> Batch:
    """Rows padded on the right; the first input is `<eos>`, as after a document, or `before`."""
    targets, there = _padded([e.ids for e in examples], pad_id)
    positions = np.arange(targets.shape[1])[None, :]
    loss_mask = there & (positions >= np.array([[e.n_read] for e in examples]))
    first = np.array([[eos_id if e.before is None else e.before] for e in examples])
    inputs = np.concatenate([first, targets[:, :-1]], axis=1)
    sources = [e.source for e in examples if e.source is not None]
    source_ids, source_mask = _padded(sources, pad_id) if sources else (None, None)
    return Batch(inputs, targets, loss_mask, positions, None, source_ids, source_mask)


def pack(examples: Sequence[Example], width: int, eos_id: int, pad_id: int) -> Batch:
    """Several examples in a row of at most `width` tokens, apart by segment and position.

    First fit, longest first; a segment of -1 is padding.
    """
    bins: list[list[Example]] = []
    room: list[int] = []
    for e in sorted(examples, key=lambda e: -len(e.ids)):
        place = next((i for i, left in enumerate(room) if left >= len(e.ids)), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(width)
        bins[place].append(e)
        room[place] -= len(e.ids)

    def rows(of: Callable[[int, Example], np.ndarray], pad: int) -> np.ndarray:
        """What `of(segment, example)` says of each token."""
        found = [np.concatenate([of(i, e) for i, e in enumerate(row)]) for row in bins]
        return _padded(found, pad)[0]

    return Batch(
        input_ids=rows(lambda _, e: np.append(eos_id, e.ids[:-1]), pad_id),
        targets=rows(lambda _, e: e.ids, pad_id),
        loss_mask=rows(lambda _, e: np.arange(len(e.ids)) >= e.n_read, 0).astype(bool),
        positions=rows(lambda _, e: np.arange(len(e.ids)), 0),
        segments=rows(lambda i, e: np.full(len(e.ids), i), -1),
    )


def _even(rows: int) -> int:
    """At least three quarters of `rows`, a multiple of 32 where there are many: oneDNN prepares a
    product for each new number of tokens, in a third of the time for such ones."""
    return rows - rows % min(32, 1 << max(0, (rows // 4).bit_length() - 1))


@dataclass(eq=False)
class Pairs(Batches):
    """Every pair once in an epoch, in an order of its own.

    The order is cut into pools of POOL pairs; a pool is sorted by target and source length and cut
    into batches, whose order is then drawn. A batch holds `batch_size` pairs or, where
    `batch_tokens` is set, as many as have at most that many tokens on their longer side, padding
    included unless they are packed; of `even` batches `_even` so many.
    """

    of_pairs = True
    reader: Examples
    seed: int
    batch_tokens: int
    pack: bool
    pad_id: int
    even: bool = True

    def __post_init__(self) -> None:
        if not len(self.reader):
            raise DataError("the train split has no pairs")
        # Safe to share with the thread that reads ahead.
        self._batches = functools.lru_cache(1)(self._epoch)
        self._n_batches = functools.cache(lambda *which: len(self._batches(*which)))

    def _epoch(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """The pairs of each batch of an epoch."""
        key, n = mix(self.seed, epoch), len(self.reader)
        order = permute(key, n, np.arange(n))
        found: list[np.ndarray] = []
        for start in range(0, n, POOL):
            pool = order[start : start + POOL]
            t, s = self.reader.target_lengths[pool], self.reader.source_lengths[pool]
            by_length = np.lexsort((s, t))
            pool, longest = pool[by_length], np.maximum(t, s)[by_length]
            first = 0
            while first < len(pool):
                last = first + batch_size
                if self.batch_tokens:
                    lengths = longest[first : first + self.batch_tokens]
                    padded = np.maximum.accumulate(lengths) * np.arange(1, len(lengths) + 1)
                    sizes = lengths.cumsum() if self.pack else padded
                    most = max(1, int((sizes <= self.batch_tokens).sum()))
                    evened = self.even and not self.pack and first + most < len(pool)
                    last = first + (_even(most) if evened else most)
                found.append(pool[first:last])
                first = last
        shuffled = permute(mix(key, 1), len(found), np.arange(len(found)))
        return [found[i] for i in shuffled]

    def members(self, index: int, batch_size: int) -> np.ndarray:
        """The pairs of global batch `index`."""
        epoch = 0
        while index >= (n := self._n_batches(epoch, batch_size)):
            index -= n
            epoch += 1
        return self._batches(epoch, batch_size)[index]

    def read(self, members: np.ndarray, index: int) -> Batch:
        reader = self.reader
        examples = [reader.example(int(i)) for i in members]
        if self.pack:
            return pack(examples, reader.context_length, reader.eos_id, self.pad_id)
        return collate(examples, reader.eos_id, self.pad_id)
