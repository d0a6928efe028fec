"""The key/value cache: slot == position, so prompts of different lengths need no second mask.

Rows are padded on the right. A query at position p attends to slots <= p; pad slots lie after each
row's position, are therefore invisible, and are overwritten when the row gets there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcli.config.model import ModelConfig

SLOTS = 32  # added at a time


class LayerSlots:
    """Keys and values of one layer: [B, K, slots, D]."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v, self.used = k, v, 0

    def update(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, K, T, D] at `positions` [B or 1, T]; returns the used slots."""
        if positions.shape[0] == 1:
            self.k[:, :, positions[0]] = k
            self.v[:, :, positions[0]] = v
        else:
            rows = torch.arange(len(k), device=k.device)[:, None]
            self.k[rows, :, positions] = k.transpose(1, 2)
            self.v[rows, :, positions] = v.transpose(1, 2)
        return self.k[:, :, : self.used], self.v[:, :, : self.used]


class Cache:
    """One LayerSlots per decoder block, for `rows` sequences; slots are added as they are used."""

    def __init__(
        self, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (rows, config.n_kv_heads, 0, config.head_dim)

        def empty() -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        self.layers = [LayerSlots(empty(), empty()) for _ in range(config.n_layers)]

    def use(self, slots: int) -> Tensor:
        """Makes the first `slots` slots visible; returns their positions [1, slots]."""
        more = slots - self.layers[0].k.shape[2]
        for layer in self.layers:
            if more > 0:
                room = (0, 0, 0, -(-more // SLOTS) * SLOTS)
                layer.k, layer.v = F.pad(layer.k, room), F.pad(layer.v, room)
            layer.used = slots
        return torch.arange(slots, device=self.layers[0].k.device)[None]

    def select(self, rows: Tensor) -> None:
        """Keeps, reorders or repeats the given rows."""

        def chosen(slots: Tensor, used: int) -> Tensor:
            new = slots.new_zeros((len(rows), *slots.shape[1:]))
            new[:, :, :used] = slots[rows, :, :used]
            return new

        for layer in self.layers:
            layer.k, layer.v = chosen(layer.k, layer.used), chosen(layer.v, layer.used)
