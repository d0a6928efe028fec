"""Batches as a pure function of (seed, step, rank, world size): resume state is one integer.

Shapes: B rows, T tokens.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

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


class Batches(Protocol):
    """Where a step's rows come from. `index` is that of a global batch, from 0; `batch_size` is in
    rows, of which a forward pass takes `micro` (0: all)."""

    def rows(self, index: int, batch_size: int) -> int: ...

    def parts(
        self, index: int, batch_size: int, micro: int = 0, rank: int = 0, world: int = 1
    ) -> list[Batch]: ...


class Ahead:
    """Batches of which the next is read on another thread, while a device is busy with this one."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.rows = batches, batches.rows
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[tuple[int, ...], Future[list[Batch]]] | None = None

    def parts(
        self, index: int, batch_size: int, micro: int = 0, rank: int = 0, world: int = 1
    ) -> list[Batch]:
        rest = (batch_size, micro, rank, world)
        if self._next is not None and self._next[0] == (index, *rest):
            parts = self._next[1].result()
        else:
            parts = self.batches.parts(index, *rest)
        self._next = (index + 1, *rest), self._pool.submit(self.batches.parts, index + 1, *rest)
        return parts


class Windows:
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

    def rows(self, index: int, batch_size: int) -> int:
        return batch_size

    def parts(
        self, index: int, batch_size: int, micro: int = 0, rank: int = 0, world: int = 1
    ) -> list[Batch]:
        """This rank's share of global batch `index`: consecutive samples, `micro` at a time."""
        size, rest = divmod(batch_size, world)
        if rest:
            raise ValueError(f"{batch_size} rows do not divide among {world} ranks")
        first = index * batch_size + rank * size
        samples = np.arange(first, first + size)
        micro = micro or size
        return [self._batch(samples[i : i + micro], index) for i in range(0, size, micro)]

    def _batch(self, samples: np.ndarray, index: int) -> Batch:
        where = self.starts(samples)[:, None] + np.arange(self.context_length + 1)[None, :]
        rows = self.store.take(where)  # [B, T + 1]
        inputs, targets, source = rows[:, :-1].copy(), rows[:, 1:].copy(), None
        if self.prefix_eos is not None:
            cut = 1 + mix(self.seed, index, 2) % self.context_length
            eos = np.full((len(rows), 1), self.prefix_eos)
            source = np.concatenate([rows[:, :cut], eos], axis=1)
            targets = rows[:, cut:].copy()
            inputs = np.concatenate([eos, targets[:, :-1]], axis=1)
        positions = np.arange(targets.shape[1])[None, :]
        mask = np.ones(targets.shape, dtype=bool)
        return Batch(inputs, targets, mask, positions, source_ids=source)
