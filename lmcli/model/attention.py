"""Multi-head attention with everything its relatives add: GQA, rotary positions, biases, windows.

Shapes: B batch, T queries, S keys, H heads, K key/value heads, D head dim, C d_model.
Attention is softmax(q k^T * scale + bias) v (Vaswani et al. 2017, section 3.2.1).
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcli.config.model import ModelConfig


class LayerCache(Protocol):
    """What a layer needs of a key/value cache: store new slots, see all of them."""

    def update(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]: ...


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight in a few passes; torch's own takes about twice as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        scale = (mean_square + eps).rsqrt()
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
            out: Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return out
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, positions: Tensor, theta: float, scaling: float) -> Tensor:
    """Rotary position embedding of x [B, H, T, D], halves paired (Su et al. 2021).

    Positions [B or 1, T] are divided by `scaling` first (Chen et al. 2023). The dot product of two
    rotated vectors depends on the difference of their positions only.
    """
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angle = (positions[..., None].float() / scaling) * theta**-exponent  # [B, T, D/2]
    cos, sin = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def relative_bucket(distance: Tensor, causal: bool, n_buckets: int = 32, far: int = 128) -> Tensor:
    """T5's buckets of key position minus query position: exact near by, logarithmic far away."""
    bucket = torch.zeros_like(distance)
    if causal:
        distance = (-distance).clamp(min=0)
    else:
        n_buckets //= 2
        bucket = (distance > 0).long() * n_buckets
        distance = distance.abs()
    exact = n_buckets // 2
    log = torch.log(distance.clamp(min=1).float() / exact) / math.log(far / exact)
    large = (exact + (log * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return bucket + torch.where(distance < exact, distance, large)


class Attention(nn.Module):
    """q from x; k and v from x too, or from `memory` in cross-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, d = config.d_model, config.head_dim
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, d
        self.q_proj = nn.Linear(c, config.n_heads * d, bias=config.qkv_bias)
        self.k_proj = nn.Linear(c, config.n_kv_heads * d, bias=config.qkv_bias)
        self.v_proj = nn.Linear(c, config.n_kv_heads * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_heads * d, c, bias=config.o_bias)
        self.q_norm = RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.scale, self.dropout = config.attention_scale, config.attention_dropout
        self.theta, self.scaling = config.rope_theta, config.rope_scaling
        self.rope = config.position == "rope"
        # Given each call's weights [B, H, T, S], to look inside; the output does not depend on it.
        self.watch: Callable[[Tensor], None] | None = None

    def heads(self, x: Tensor, n: int) -> Tensor:
        return x.view(*x.shape[:2], n, self.head_dim).transpose(1, 2)  # [B, n, T, D]

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, K, S, D], without positions; cross-attention computes them once."""
        k = self.heads(self.k_proj(memory), self.n_kv_heads)
        v = self.heads(self.v_proj(memory), self.n_kv_heads)
        return (self.k_norm(k) if self.k_norm is not None else k), v

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool,
        positions: Tensor | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [B, T, C] -> [B, T, C].

        `mask` broadcasts to [B, H, T, S]: bool (True = may attend) or an additive float bias.
        `causal` without a mask takes the fast path. `positions` rotate q and k in
        self-attention; `memory` is (k, v) of the other sequence.
        """
        q = self.heads(self.q_proj(x), self.n_heads)
        if self.q_norm is not None:
            q = self.q_norm(q)
        beams = 1
        if memory is not None:
            k, v = memory
            beams = len(q) // len(k)  # of one source: the queries of one row
            if beams > 1:
                q = q.view(len(k), beams, *q.shape[1:]).transpose(1, 2).flatten(2, 3)
        else:
            k, v = self.keys_values(x)
            if self.rope:
                assert positions is not None
                q = rotate(q, positions, self.theta, self.scaling)
                k = rotate(k, positions, self.theta, self.scaling)
            if cache is not None:
                assert positions is not None
                k, v = cache.update(k, v, positions)
        if self.watch is not None:
            seen = mask
            if causal and mask is None:
                ones = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
                seen = ones.tril(k.shape[2] - q.shape[2])
            shared = k.repeat_interleave(self.n_heads // self.n_kv_heads, 1)
            self.watch(attention_weights(q, shared, self.scale, seen))
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16  # its kernels are, there
        with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
            y = F.scaled_dot_product_attention(
                *((q.float(), k.float(), v.float()) if slow else (q, k, v)),
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=causal and mask is None,
                scale=self.scale,
                enable_gqa=self.n_kv_heads != self.n_heads,
            )
        if beams > 1:
            y = y.view(len(k), self.n_heads, beams, -1, self.head_dim)
            y = y.transpose(1, 2).flatten(0, 1)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attention_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) [.., T, S], written out for tests and for looking inside."""
    logits = q @ k.transpose(-2, -1) * scale
    if mask is not None:
        floating = mask.is_floating_point()
        logits = logits + mask if floating else logits.masked_fill(~mask, -math.inf)
    return logits.softmax(dim=-1)
