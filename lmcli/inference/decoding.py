"""From logits to the next token: pure functions on [R, V], with the meaning and in the order that
they have in `transformers`.

Rules that know the text come first: `text` [R, L] has its ids and `n` [R] says how many are real.
A draw is the inverse of the cumulative distribution at a uniform number that depends only on
(seed, record, sample, position), never on the batch or its order.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcli.config.generation import GenerationConfig

INF = float("inf")


def _mark(like: Tensor, ids: Tensor, which: Tensor) -> Tensor:
    """Bool [R, V]: the ids [R, L] that `which` [R, L] picks."""
    rows, v = like.shape
    marked = torch.zeros((rows, v + 1), dtype=torch.bool, device=like.device)
    return marked.scatter_(1, torch.where(which, ids, v), True)[:, :v]


def penalize_repeats(logits: Tensor, text: Tensor, n: Tensor, penalty: float) -> Tensor:
    """What the text has, less likely: divided by the penalty, or times it below zero (Keskar et al.
    2019)."""
    if penalty == 1.0:
        return logits
    here = torch.arange(text.shape[1], device=text.device) < n[:, None]
    less = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(_mark(logits, text, here), less, logits)


def ban_ngrams(logits: Tensor, text: Tensor, n: Tensor, size: int) -> Tensor:
    """No token that would complete an n-gram of `size` which the text has; 0 bans none."""
    if not 0 < size <= text.shape[1]:
        return logits
    grams = text.unfold(1, size, 1)  # [R, L - size + 1, size]
    place = n[:, None] - size + 1 + torch.arange(size - 1, device=text.device)
    last = text.gather(1, place.clamp(min=0))
    same = (grams[:, :, :-1] == last[:, None]).all(-1)
    same &= torch.arange(grams.shape[1], device=text.device) + size <= n[:, None]
    return logits.masked_fill(_mark(logits, grams[:, :, -1], same), -INF)


Paths = Mapping[tuple[int, ...], Sequence[int]]


def paths(choices: Iterable[Sequence[int]], eos_id: int) -> Paths:
    """What may follow each beginning of a choice: the next ids of those that begin so, or its end.

    {(): [7, 8], (7,): [eos, 9], (7, 9): [eos], (8,): [eos]} for the choices 7, 7 9 and 8.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for ids in choices:
        for i, token in enumerate([*ids, eos_id]):
            following = found.setdefault(tuple(ids[:i]), [])
            if token not in following:
                following.append(token)
    return found


def keep_allowed(logits: Tensor, allowed: Iterable[Sequence[int]]) -> Tensor:
    """Only the allowed ids of each row."""
    kept = torch.full_like(logits, -INF)
    for row, ids in enumerate(allowed):
        kept[row, list(ids)] = logits[row, list(ids)]
    return kept


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of each row, the others -inf; 0 keeps all. Ties at the k-th stay."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -INF)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020)."""
    if p >= 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    # a token stays while the mass before it is still short of p; the first always stays
    drop = probability.cumsum(dim=-1) - probability >= p
    drop[:, 0] = False
    return logits.masked_fill(drop.scatter(-1, index, drop), -INF)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all."""
    if p <= 0:
        return logits
    least = logits.amax(dim=-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -INF)


def choose(logits: Tensor, config: GenerationConfig, draws: Tensor) -> Tensor:
    """Next ids [R] from logits [R, V] and uniform draws [R] (float64)."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits = (logits.cpu() if logits.device.type == "mps" else logits).double()
    # relative to the largest first: a tiny temperature then sends the others to -inf, not to NaN
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature
    logits = keep_top_p(keep_top_k(logits, config.top_k), config.top_p)
    mass = keep_min_p(logits, config.min_p).softmax(dim=-1).cumsum(dim=-1)
    ids = torch.searchsorted(mass, (draws.to(mass) * mass[:, -1])[:, None], right=True)[:, 0]
    return ids.clamp(max=logits.shape[-1] - 1)


def largest(logits: Tensor, k: int, block: int = 128) -> tuple[Tensor, Tensor]:
    """`logits.topk(k)` of [B, V]; of a large vocabulary only blocks that can hold one are read."""
    b, v = logits.shape
    if v < 4 * k * block:
        return logits.topk(k, dim=-1)
    blocks = F.pad(logits, (0, -v % block), value=-INF).view(b, -1, block)
    which = blocks.amax(-1).topk(k, dim=-1).indices  # the k largest lie in the k best blocks
    values, place = blocks[torch.arange(b)[:, None], which].flatten(1).topk(k, dim=-1)
    ids = which.gather(1, place // block) * block + place % block
    return values, ids.clamp(max=v - 1)  # where less than k are finite, padding is as good
