"""The key/value cache: slot == position, so prompts of different lengths need no second mask.

A query at position p attends to slots <= p. What lies behind, pads of a shorter prompt or the text
of an earlier row, is therefore invisible, and is overwritten when the row gets there.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcli.model.attention import LayerCache
from lmcli.model.transformer import Transformer

SLOTS = 64  # at first; then twice as many each time


class Cache:
    """One LayerCache per decoder block, and beside them each slot's token and its logprob."""

    def __init__(self, model: Transformer) -> None:
        config, weight = model.config, model.embed.weight  # whose device and type it has
        empty = weight.new_empty(0, config.n_kv_heads, 0, config.head_dim)
        self.layers = [LayerCache(empty, empty) for _ in range(config.n_layers)]
        self.ids = weight.new_empty((0, 0), dtype=torch.long)  # [rows, slots]
        self.logprobs = weight.new_empty((0, 0), dtype=torch.float32)
        width = config.n_kv_heads * config.head_dim
        self.slot_bytes = 2 * config.n_layers * width * weight.itemsize

    def reserve(self, rows: int, slots: int) -> None:
        """Makes room for so many rows and slots; they begin as zeros."""
        have_rows, have = self.ids.shape
        more = max(0, rows - have_rows)
        wider = max(SLOTS, 2 * have, slots) - have if slots > have else 0
        if more or wider:
            for layer in self.layers:
                room = (0, 0, 0, wider, 0, 0, 0, more)
                layer.k, layer.v = F.pad(layer.k, room), F.pad(layer.v, room)
            self.ids = F.pad(self.ids, (0, wider, 0, more))
            self.logprobs = F.pad(self.logprobs, (0, wider, 0, more))

    def read(self, rows: Tensor, n: int) -> None:
        """The next forward pass reads n tokens of prompts, for `rows`."""
        for layer in self.layers:
            layer.reading, layer.used = rows, n

    def step(self, at: Tensor, used: int) -> None:
        """The next forward pass reads a token at each slot `at` [R, 1] of the first R rows, or of
        all at the last slot [1, 1], and sees the first `used` ones."""
        for layer in self.layers:
            layer.reading, layer.at, layer.used = None, at, used

    def copy(self, to: Tensor, source: Tensor, slots: slice) -> None:
        """Some slots of the rows `source` over those of `to`."""
        moved = to != source
        if moved.any():
            to, source = to[moved], source[moved]
            for layer in self.layers:
                layer.k[to, :, slots] = layer.k[source, :, slots]
                layer.v[to, :, slots] = layer.v[source, :, slots]
            self.ids[to, slots] = self.ids[source, slots]
            self.logprobs[to, slots] = self.logprobs[source, slots]


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had, where the system says; else a lot."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    room = [1 << 40]
    with contextlib.suppress(OSError, KeyError):
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        room.append(int(found["MemAvailable"].split()[0]) << 10)
        room += _group_rooms(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
    return max(0, min(room))


def _group_rooms(text: str, root: Path) -> Iterator[int]:
    """What the control groups of this process, such as those of a Slurm job, leave it: their limit
    less what cannot be dropped. In Linux's second version of them and in its first."""
    for line in text.splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        base = root / kinds
        limit, used = ("memory.limit_in_bytes", "total_rss") if kinds else ("memory.max", "anon")
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError, KeyError):  # without limit, or hidden
                most = int((folder / limit).read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
                yield most - int(dict(pair.split() for pair in stat)[used])
            if folder == base:
                break
