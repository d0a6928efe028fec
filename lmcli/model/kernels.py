"""Layers whose torch operators are slow on a CPU, with gradients of their own; elsewhere torch's.

Shapes: N rows, B batch, H heads, T queries, S keys, D head dim. What is measured is in
docs/benchmarks.md.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcli.randomness import INCREMENT

# Bytes of a layer's attention weights, of which causal ones are saved in half; beyond this torch's
# own kernel, which keeps none, but with dropout is several times slower and keeps more.
MOST_SAVED = 2**28
ROWS, LARGE = 512, 2**18  # of a weight's gradient at a time, where it has so many numbers
QUERIES, MOST_PARTS = 128, 2  # of causal attention at a time; each part has its own products
STEP = INCREMENT - 2**64  # of SplitMix64 (lmcli.randomness), as int64
MIX = (30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)
CACHED = 2**17  # of its numbers at a time
PARTS = 16  # that are added up in bfloat16; sums of many lose the small ones


class Function(torch.autograd.Function):
    """torch's, with a type for `apply`."""

    apply: ClassVar[Callable[..., Tensor]]


class _RMSNorm(Function):
    """x / rms(x) * weight in a few passes; torch's own takes about twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = (size.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = x * scale * weight
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        weight_grad = (grads[0] * normed).flatten(0, -2).sum(0)
        grad = grads[0] * weight
        mean = (grad * normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, mean, value=-1) * scale, weight_grad, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == self.weight.dtype:
            return _RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x: [N, O] and [N, I] -> [O, I]; of large weights some rows at a time, since oneDNN
    reads a transposed bfloat16 matrix of many rows at half the speed."""
    if len(x) <= 2 * ROWS or x.shape[1] * grad.shape[1] < LARGE:
        return grad.T @ x
    if len(x) > PARTS * ROWS:
        several = zip(*(torch.split(each, PARTS * ROWS) for each in (grad, x)), strict=True)
        total = torch.zeros(grad.shape[1], x.shape[1])
        for part in several:
            total += weight_grad(*part)
        return total.to(x.dtype)
    total = grad[:ROWS].T @ x[:ROWS]
    for start in range(ROWS, len(x), ROWS):
        total.addmm_(grad[start : start + ROWS].T, x[start : start + ROWS])
    return total


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad = grads[0].flatten(0, -2)
        return (
            (grad @ weight).view_as(x) if wanted[0] else None,
            weight_grad(grad, x.flatten(0, -2)) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """xW^T + b: [.., I], [O, I], [O] -> [.., O]."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A layer of `linear`, without torch's initial values, which are replaced anyway: they take a
    second for GPT-2, and another one for what asking for them on "meta" imports."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Dropout(nn.Module):
    """Zeroes a share `p` of entries in training and scales the rest to keep the mean.

    On a CPU from 16 random bits each, since torch's own draws take a sixth of a small model's step;
    `p` is exact to 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.share = round(p * 2**16)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share / 2**16)
        return x * keep(x, self.share)


def keep(x: Tensor, share: int) -> Tensor:
    """Factors like x, 0 for `share` of 65,536 entries, that keep the mean."""
    n, factor = (x.numel() + 3) // 4, 2**16 / (2**16 - share)
    if torch.compiler.is_compiling():
        bits = torch.randint(-(2**63), 2**63 - 1, (n,))
    elif x.itemsize == 2:
        bits = random_bits(n)
    else:  # those of earlier runs in float32, which go on with the same bits
        bits = torch.empty(n, dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape).ge_(share - 2**15)  # 0 or 1
    if x.itemsize == 2:  # the bits of 0 or of the factor, without a conversion
        pattern = torch.tensor(factor, dtype=x.dtype).view(torch.int16)
        return kept.mul_(pattern if torch.compiler.is_compiling() else pattern.item()).view(x.dtype)
    return kept.to(x.dtype).mul_(factor)


def random_bits(n: int) -> Tensor:
    """[n] random int64.

    SplitMix64 (Steele et al. 2014) from a place that torch's generator draws, with arithmetic
    shifts and without the last one: on all cores, where torch draws every number on one.
    """
    out = torch.empty(n, dtype=torch.int64)
    place = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    steps = splitmix_steps(CACHED)[: min(n, CACHED)] + place
    shifted = torch.empty_like(steps)
    for part in torch.split(out, CACHED):
        given = steps[: len(part)]
        for distance, factor in MIX:
            shift = torch.bitwise_right_shift(given, distance, out=shifted[: len(part)])
            given = torch.bitwise_xor(given, shift, out=part).mul_(factor)
        steps += STEP * CACHED % 2**64 - 2**64  # as int64
    return out


@functools.cache
def splitmix_steps(n: int) -> Tensor:
    return torch.arange(n).mul_(STEP)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, dropout: float
) -> Tensor:
    """softmax(q k^T * scale + mask) v: [B, H, T, D], twice [B, K, S, D] -> [B, H, T, D].

    `mask` broadcasts to [B, H, T, S]: bool, True = may attend, or added; `causal` counts without
    one. torch's bfloat16 kernel has a backward pass on a CPU that is slower than float32's.
    """
    groups = q.shape[1] // k.shape[1]
    causal = causal and mask is None and q.shape[2] > 1  # one query is the last one and sees all
    own = q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if own and (dropout or 2 * q[..., 0].numel() * k.shape[2] <= MOST_SAVED):
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if mask is None:
            bias = q.new_zeros(())
        else:
            bias = mask if mask.is_floating_point() else as_bias(mask, q.dtype)
        return _Attention.apply(q, k, v, bias, causal, scale, dropout)
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, causal, scale=scale, enable_gqa=groups > 1
    )


def as_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to logits: 0 where a key is seen, else the lowest number, so that a query that sees
    nothing has equal weights and not NaN."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


def joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class _Attention(Function):
    """Batched matrix products around a saved softmax; causal ones of some queries at a time, with
    the keys up to theirs."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        causal: bool,
        scale: float,
        dropout: float,
    ) -> Tensor:
        b, h, t, d = q.shape
        q, k, v = q.reshape(-1, t, d), k.reshape(b * h, -1, d), v.reshape(b * h, -1, d)
        # Compiled it is one part: to go through parts of t would take a graph for each t.
        parts = causal and not torch.compiler.is_compiling() and t > QUERIES
        step = max(QUERIES, -(-t // MOST_PARTS)) if parts else t
        ctx.starts = list(range(0, t, step)) if parts else [0]
        ctx.scale, ctx.bias_shape = scale, bias.shape
        outs: list[Tensor] = []  # not list[Tensor](), at which torch.compile would break
        saved: list[Tensor | None] = []
        for start in ctx.starts:
            some = q[:, start : start + step]
            n_keys = k.shape[1] - t + start + some.shape[1]
            seen = k[:, :n_keys].mT
            if causal:
                least = torch.finfo(q.dtype).min
                bias = q.new_full((some.shape[1], n_keys), least).triu_(1 + n_keys - some.shape[1])
            if bias.ndim <= 2:
                logits = torch.baddbmm(bias, some, seen, alpha=scale)
            else:
                logits = torch.baddbmm(bias.new_zeros(()), some, seen, beta=0, alpha=scale)
                logits.view(b, h, t, -1).add_(bias)
            weights = logits.softmax(-1)
            kept = keep(weights, round(dropout * 2**16)) if dropout else None
            saved += [weights, kept]
            outs.append(torch.bmm(weights if kept is None else weights * kept, v[:, :n_keys]))
        ctx.save_for_backward(q, k, v, *saved)
        return joined(outs).view(b, h, t, d)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        b, h, t, d = grads[0].shape
        none, scale, bias = grads[0].new_zeros(()), ctx.scale, None
        grad_q: list[Tensor] = []
        grad_k = grad_v = none
        for i in reversed(range(len(ctx.starts))):  # the last queries see all keys
            start, weights, kept = ctx.starts[i], saved[2 * i], saved[2 * i + 1]
            stop, n_keys = start + weights.shape[1], weights.shape[2]
            grad = grads[0].reshape(-1, t, d)[:, start:stop]
            used = weights if kept is None else weights * kept
            more_v = torch.bmm(used.mT, grad)
            grad_weights = torch.bmm(grad, v[:, :n_keys].mT)
            if kept is not None:
                grad_weights *= kept
            grad = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)  # noqa: SLF001
            if ctx.needs_input_grad[3]:
                bias = grad.view(b, h, t, -1).sum_to_size(ctx.bias_shape)
            some = q[:, start:stop]
            grad_q.insert(0, torch.baddbmm(none, grad, k[:, :n_keys], beta=0, alpha=scale))
            more_k = torch.baddbmm(none, grad.mT, some, beta=0, alpha=scale)
            if n_keys == k.shape[1]:
                grad_k, grad_v = more_k, more_v
            else:
                grad_k[:, :n_keys] += more_k
                grad_v[:, :n_keys] += more_v
        by_head = [each.view(b, h, -1, d) for each in (joined(grad_q), grad_k, grad_v)]
        return (*by_head, bias, None, None, None)
