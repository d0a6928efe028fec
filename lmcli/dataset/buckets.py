"""Batches of pairs: similar lengths together, sized in tokens, each pair once in an epoch.

Shapes: B rows, T target tokens, S source tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmcli.dataset.batches import Batch
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
    def n_source(self) -> int:
        return 0 if self.source is None else len(self.source)


class Examples:
    """Pair i of a split as an Example that fits the context: a longer source loses its end, a
    target that is longer than the context too."""

    def __init__(
        self,
        source: TokenStore,
        target: TokenStore,
        template: Template,
        context_length: int,
        encoder: bool,
        eos_id: int,
    ) -> None:
        self.source, self.target, self.template = source, target, template
        self.context_length, self.encoder, self.eos_id = context_length, encoder, eos_id
        extra = len(template.before) + len(template.after)
        sources = np.diff(source.offsets) + extra  # with <eos>
        targets = np.diff(target.offsets)
        # in tokens of a row: what decides which pairs share a batch, and how many
        self.target_lengths = targets if encoder else targets + sources - 1
        self.source_lengths = sources if encoder else np.zeros_like(sources)
        longest = np.maximum(self.target_lengths, self.source_lengths)
        self.n_cut = int((longest > context_length).sum())
        self.target_lengths = np.minimum(self.target_lengths, context_length)
        self.source_lengths = np.minimum(self.source_lengths, context_length)
        if encoder is False and extra >= context_length:
            raise DataError(f"--context-length {context_length} is all taken by the template")

    def __len__(self) -> int:
        return len(self.target_lengths)

    def example(self, i: int) -> Example:
        source = self.source.document(i)[:-1]
        target = self.target.document(i).astype(np.int64)
        before, after = self.template.before, self.template.after
        extra, room = len(before) + len(after), self.context_length
        if self.encoder:
            target = target[:room]
            kept = source[: max(0, room - extra - 1)].tolist()
            return Example(target, len(target), np.array([*before, *kept, *after, self.eos_id]))
        target = target[: room - extra]
        kept = source[: max(0, room - extra - len(target))].tolist()
        return Example(np.array([*before, *kept, *after, *target.tolist()]), len(target))


def collate(examples: Sequence[Example], eos_id: int, pad_id: int) -> Batch:
    """Rows padded on the right; the first input is `<eos>`, as after a document, or `before`."""
    width = max(len(e.ids) for e in examples)
    shape = (len(examples), width)
    targets, loss_mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, e in enumerate(examples):
        targets[row, : len(e.ids)] = e.ids
        loss_mask[row, len(e.ids) - e.n_scored : len(e.ids)] = True
    first = [[eos_id if e.before is None else e.before] for e in examples]
    inputs = np.concatenate([np.array(first), targets[:, :-1]], axis=1)
    sources, source_mask = None, None
    if examples[0].source is not None:
        rows = [e.source for e in examples if e.source is not None]
        sources = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
        source_mask = np.zeros(sources.shape, dtype=bool)
        for row, ids in enumerate(rows):
            sources[row, : len(ids)], source_mask[row, : len(ids)] = ids, True
    return Batch(inputs, targets, loss_mask, np.arange(width)[None, :], None, sources, source_mask)


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
    shape = (len(bins), max(width - left for left in room))
    inputs, targets = (np.full(shape, pad_id, dtype=np.int64) for _ in range(2))
    loss_mask, segments = np.zeros(shape, dtype=bool), np.full(shape, -1, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for row, members in enumerate(bins):
        start = 0
        for segment, e in enumerate(members):
            end = start + len(e.ids)
            targets[row, start:end] = e.ids
            inputs[row, start], inputs[row, start + 1 : end] = eos_id, e.ids[:-1]
            loss_mask[row, end - e.n_scored : end] = True
            segments[row, start:end], positions[row, start:end] = segment, np.arange(end - start)
            start = end
    return Batch(inputs, targets, loss_mask, positions, segments)


class Pairs:
    """Every pair once in an epoch, in an order of its own.

    The order is cut into pools of POOL pairs; a pool is sorted by target and source length and cut
    into batches, whose order is then drawn. A batch holds `batch_size` pairs or, where
    `batch_tokens` is set, as many as have at most that many tokens on their longer side, padding
    included.
    """

    def __init__(
        self, reader: Examples, seed: int, batch_tokens: int, pack: bool, pad_id: int
    ) -> None:
        if not len(reader):
            raise DataError("the train split has no pairs")
        self.reader, self.seed, self.batch_tokens = reader, seed, batch_tokens
        self.pack, self.pad_id = pack, pad_id
        self._counts: list[int] = []  # batches of each epoch so far
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def _batches(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """The pairs of each batch of an epoch."""
        if self._epoch[0] == epoch:
            return self._epoch[1]
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
                    widths = np.maximum.accumulate(longest[first : first + self.batch_tokens])
                    if self.pack:
                        fits = longest[first : first + self.batch_tokens].cumsum()
                    else:
                        fits = widths * np.arange(1, len(widths) + 1)
                    last = first + max(1, int((fits <= self.batch_tokens).sum()))
                found.append(pool[first:last])
                first = last
        shuffled = permute(mix(key, 1), len(found), np.arange(len(found)))
        self._epoch = (epoch, [found[i] for i in shuffled])
        return self._epoch[1]

    def members(self, index: int, batch_size: int) -> np.ndarray:
        """The pairs of global batch `index`."""
        epoch = 0
        while True:
            if epoch == len(self._counts):
                self._counts.append(len(self._batches(epoch, batch_size)))
            if index < self._counts[epoch]:
                return self._batches(epoch, batch_size)[index]
            index -= self._counts[epoch]
            epoch += 1

    def rows(self, index: int, batch_size: int) -> int:
        return len(self.members(index, batch_size))

    def parts(
        self, index: int, batch_size: int, micro: int = 0, rank: int = 0, world: int = 1
    ) -> list[Batch]:
        """This rank's share of global batch `index`, `micro` pairs at a time (0: all at once)."""
        mine = self.members(index, batch_size)[rank::world]
        micro = micro or len(mine)
        return [self._collate(mine[i : i + micro]) for i in range(0, len(mine), micro)]

    def _collate(self, members: np.ndarray) -> Batch:
        reader = self.reader
        examples = [reader.example(int(i)) for i in members]
        if self.pack:
            return pack(examples, reader.context_length, reader.eos_id, self.pad_id)
        return collate(examples, reader.eos_id, self.pad_id)
