"""Batches as a pure function of (seed, step, rank, world size): resume state is one integer.

Shapes: B rows, T tokens.
"""

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lmcli.dataset.order import permute
from lmcli.dataset.store import TokenStore
from lmcli.errors import DataError
from lmcli.randomness import mix


@dataclass(frozen=True)
class Batch:
    """What a model is trained on; inputs and targets never share memory.

    `segments` keeps packed texts apart; `source_*` is the encoder's side of a pair.
    """

    input_ids: np.ndarray  # int64 [B, T]
    targets: np.ndarray  # int64 [B, T]
    loss_mask: np.ndarray  # bool [B, T]: which targets count
    positions: np.ndarray  # int64 [1 or B, T]
    segments: np.ndarray | None = None  # int64 [B, T]
    source_ids: np.ndarray | None = None  # int64 [B, S]
    source_mask: np.ndarray | None = None  # bool [B, S]


class Batches(ABC):
    """Where a step's rows come from; `index` is that of a global batch of `batch_size`, from 0."""

    of_pairs = False

    @abstractmethod
    def members(self, index: int, batch_size: int) -> np.ndarray:
        """The numbers of what is in global batch `index`."""

    @abstractmethod
    def read(self, members: np.ndarray, index: int) -> Batch:
        """Some members of global batch `index`."""

    def parts(
        self, index: int, batch_size: int, micro: int = 0, rank: int = 0, world: int = 1
    ) -> list[Batch]:
        """This rank's share of global batch `index`, `micro` members at a time (0: all at once)."""
        mine = np.array_split(self.members(index, batch_size), world)[rank]
        micro = micro or len(mine)
        return [self.read(mine[i : i + micro], index) for i in range(0, len(mine), micro)]


class Ahead(Batches):
    """Batches of which the next is read on another thread, while a device is busy with this one."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self._pool = batches, ThreadPoolExecutor(1)
        self.of_pairs = batches.of_pairs
        self._next: dict[tuple[int, ...], Future[list[Batch]]] = {}

    def members(self, index: int, batch_size: int) -> np.ndarray:
        return self._batches.members(index, batch_size)

    def read(self, members: np.ndarray, index: int) -> Batch:
        return self._batches.read(members, index)

    def parts(self, index: int, *rest: int) -> list[Batch]:
        begun = self._next.get((index, *rest))
        parts = begun.result() if begun else self._batches.parts(index, *rest)
        after = (index + 1, *rest)
        self._next = {after: self._pool.submit(self._batches.parts, *after)}
        return parts


class Windows(Batches):
    """Windows of T + 1 tokens over the flat stream of a split.

    An epoch starts at its own offset in [0, T) and visits each of `n_windows` windows once, in an
    order of its own; sample number step * batch_size + row walks through the epochs.

    With `prefix_eos`, for an encoder: each batch is cut at a place of its own, the encoder reads
    what stands before it and `<eos>`, and the decoder learns the rest (prefix LM, Raffel et al.
    2020, section 3.2.1).
    """

    def __init__(
        self, store: TokenStore, context_length: int, seed: int, prefix_eos: int | None = None
    ) -> None:
        if store.n_tokens < context_length + 1:
            raise DataError(
                f"--context-length {context_length} needs {context_length + 1} tokens, but the "
                f"{store.split} split has {store.n_tokens}; shorten it or add text"
            )
        self.store, self.context_length, self.seed = store, context_length, seed
        self.prefix_eos = prefix_eos
        whole = (store.n_tokens - 1) // context_length
        # one window is given up so that every offset in [0, T) leaves the same number
        self.n_windows = max(1, whole - 1)
        self._slack = store.n_tokens - 1 - self.n_windows * context_length

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """First token of each sample's window."""
        starts = np.empty_like(samples)
        epochs = samples // self.n_windows
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix(self.seed, int(epoch))
            offset = mix(key, 1) % (min(self._slack, self.context_length - 1) + 1)
            window = permute(key, self.n_windows, samples[here] % self.n_windows)
            starts[here] = offset + window * self.context_length
        return starts

    def members(self, index: int, batch_size: int) -> np.ndarray:
        return np.arange(index * batch_size, (index + 1) * batch_size)

    def read(self, members: np.ndarray, index: int) -> Batch:
        where = self.starts(members)[:, None] + np.arange(self.context_length + 1)[None, :]
        rows = self.store.take(where)  # [B, T + 1]
        inputs, targets, source = rows[:, :-1].copy(), rows[:, 1:].copy(), None
        if self.prefix_eos is not None:
            cut = 1 + mix(self.seed, index, 2) % self.context_length
            eos = np.full((len(rows), 1), self.prefix_eos)
            read = rows[:, max(0, cut + 1 - self.context_length) : cut]  # room for its <eos>
            source = np.concatenate([read, eos], axis=1)
            targets = rows[:, cut:].copy()
            inputs = np.concatenate([eos, targets[:, :-1]], axis=1)
        positions = np.arange(targets.shape[1])[None, :]
        mask = np.ones(targets.shape, dtype=bool)
        return Batch(inputs, targets, mask, positions, source_ids=source)
