"""From logits to the next token: pure functions on [B, V].

A draw is the inverse of the cumulative distribution at a uniform number that depends only on
(seed, record, sample, position), never on the batch or its order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcli.config.generation import GenerationConfig


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of each row, the others -inf; 0 keeps all. Ties at the k-th stay."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020)."""
    if p >= 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    # a token stays while the mass before it is still short of p; the first always stays
    drop = probability.cumsum(dim=-1) - probability >= p
    drop[:, 0] = False
    return logits.masked_fill(drop.scatter(-1, index, drop), float("-inf"))


def choose(logits: Tensor, config: GenerationConfig, draws: Tensor) -> Tensor:
    """Next ids [B] from logits [B, V] and uniform draws [B] (float64)."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double()
    # relative to the largest first: a tiny temperature then sends the others to -inf, not to NaN
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature
    logits = keep_top_k(logits, config.top_k)
    mass = keep_top_p(logits, config.top_p).softmax(dim=-1).cumsum(dim=-1)
    ids = torch.searchsorted(mass, (draws.to(mass) * mass[:, -1])[:, None], right=True)[:, 0]
    return ids.clamp(max=logits.shape[-1] - 1)


def largest(logits: Tensor, k: int, block: int = 128) -> tuple[Tensor, Tensor]:
    """`logits.topk(k)` of [B, V]; of a large vocabulary only blocks that can hold one are read."""
    b, v = logits.shape
    if v < 4 * k * block:
        return logits.topk(k, dim=-1)
    blocks = F.pad(logits, (0, -v % block), value=float("-inf")).view(b, -1, block)
    which = blocks.amax(-1).topk(k, dim=-1).indices  # the k largest lie in the k best blocks
    values, place = blocks[torch.arange(b)[:, None], which].flatten(1).topk(k, dim=-1)
    return values, which.gather(1, place // block) * block + place % block
