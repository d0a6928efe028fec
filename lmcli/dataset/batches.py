"""Batches as a pure function of (seed, step, rank, world size): resume state is one integer.

Shapes: B rows, T tokens.
"""

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


class Windows:
    """Windows of T + 1 tokens over the flat stream of a split.

    An epoch starts at its own offset in [0, T) and visits each of `n_windows` windows once, in an
    order of its own; sample number step * batch_size + row walks through the epochs.
    """

    def __init__(self, store: TokenStore, context_length: int, seed: int) -> None:
        if store.n_tokens < context_length + 1:
            raise DataError(
                f"--context-length {context_length} needs {context_length + 1} tokens, but the "
                f"{store.split} split has {store.n_tokens}; shorten it or add text"
            )
        self.store, self.context_length, self.seed = store, context_length, seed
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

    def batch(
        self,
        step: int,
        batch_size: int,
        micro: int = 0,
        n_micro: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> Batch:
        """Micro-batch `micro` of this rank's share of global step `step` (from 0).

        The global batch is `batch_size` consecutive samples; part rank * n_micro + micro of
        world * n_micro equal parts is this one.
        """
        size, rest = divmod(batch_size, world * n_micro)
        if rest:
            raise ValueError(f"{batch_size} rows do not divide into {world} x {n_micro} parts")
        first = step * batch_size + (rank * n_micro + micro) * size
        starts = self.starts(np.arange(first, first + size))
        where = starts[:, None] + np.arange(self.context_length + 1)[None, :]
        rows = self.store.take(where)  # [B, T + 1]
        return Batch(
            input_ids=rows[:, :-1].copy(),
            targets=rows[:, 1:].copy(),
            loss_mask=np.ones((size, self.context_length), dtype=bool),
            positions=np.arange(self.context_length)[None, :],
        )
