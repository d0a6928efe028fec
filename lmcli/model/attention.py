"""Multi-head attention with everything its relatives add: GQA, rotary positions, biases, windows.

Shapes: B batch, T queries, S keys, H heads, K key/value heads, D head dim, C d_model.
Attention is softmax(q k^T * scale + bias) v (Vaswani et al. 2017, section 3.2.1).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lmcli.config.model import ModelConfig
from lmcli.model.kernels import Linear, RMSNorm, attend, linear


class LayerCache:
    """Keys and values of one layer, [rows, K, slots, D]; a slot is a position (inference.cache)."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v, self.used = k, v, 0
        self.reading: Tensor | None = None  # the rows whose prompts are being read
        # The slots that are written otherwise: [R, 1], or the last one of all rows, [1, 1].
        self.at = torch.arange(0)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, K, T, D]; returns the slots they may see.

        A prompt sees itself alone. Otherwise the first B rows each get one slot and see the used
        ones.
        """
        if self.reading is not None:
            self.k[self.reading, :, : self.used] = k
            self.v[self.reading, :, : self.used] = v
            return k, v
        keys, values = (x[: len(k), :, : self.used] for x in (self.k, self.v))
        if self.at.numel() == 1:  # several times faster than places in a list
            keys[:, :, -1:], values[:, :, -1:] = k, v
        else:
            rows = torch.arange(len(k), device=k.device)[:, None]
            keys[rows, :, self.at] = k.transpose(1, 2)
            values[rows, :, self.at] = v.transpose(1, 2)
        return keys, values


def rotation(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles of each position, for `rotate`: [B or 1, T] -> [B or 1, 1, T, D/2].

    Positions are divided by `rope_scaling` first (Chen et al. 2023).
    """
    half = config.head_dim // 2
    exponent = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angle = (positions[..., None].float() / config.rope_scaling) * config.rope_theta**-exponent
    return angle.cos()[:, None].to(dtype), angle.sin()[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [B, H, T, D], halves paired (Su et al. 2021): the dot product
    of two rotated vectors depends on the difference of their positions only."""
    a, b = x.chunk(2, -1)
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
        self.q_proj = Linear(c, config.n_heads * d, bias=config.qkv_bias)
        self.k_proj = Linear(c, config.n_kv_heads * d, bias=config.qkv_bias)
        self.v_proj = Linear(c, config.n_kv_heads * d, bias=config.qkv_bias)
        self.o_proj = Linear(config.n_heads * d, c, bias=config.o_bias)
        self.q_norm = RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.scale, self.dropout = config.attention_scale, config.attention_dropout
        self.joined: nn.Module | None = None  # q, k and v in one, of a model that only infers
        # Given each call's weights [B, H, T, S], to look inside; the output does not depend on it.
        self.watch: Callable[[Tensor], None] | None = None

    def heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        x = x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)  # [B, n, T, D]
        return x if norm is None else norm(x)

    def joined_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of q, k and v in one."""
        layers = self.q_proj, self.k_proj, self.v_proj
        bias = None if self.q_proj.bias is None else torch.cat([layer.bias for layer in layers])
        return torch.cat([layer.weight for layer in layers]), bias

    def qkv(self, x: Tensor) -> Sequence[Tensor]:
        """The three projections; in one product where joining the weights pays: in training, or
        once and for all."""
        layers = self.q_proj, self.k_proj, self.v_proj
        if self.joined is not None:
            joined = self.joined(x)
        elif self.training and all(type(layer) is Linear for layer in layers):
            joined = linear(x, *self.joined_weights())
        else:
            return [layer(x) for layer in layers]
        # Cut between heads, so that the gradients of all three are copied once.
        by_head = joined.view(*x.shape[:2], -1, self.head_dim)
        return torch.split(by_head, [self.n_heads, self.n_kv_heads, self.n_kv_heads], 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, K, S, D] of another sequence, which are computed once."""
        return self.heads(self.k_proj(memory), self.k_norm), self.heads(self.v_proj(memory))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool,
        rotary: tuple[Tensor, Tensor] | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [B, T, C] -> [B, T, C].

        `mask` broadcasts to [B, H, T, S]: bool (True = may attend) or an additive float bias.
        `causal` without a mask takes the fast path. `rotary` and `cache` are for self-attention;
        `memory` is (k, v) of the other sequence.
        """
        if memory is None:
            q, k, v = self.qkv(x)
            k, v = self.heads(k, self.k_norm), self.heads(v)
        else:
            q, (k, v) = self.q_proj(x), memory
        q = self.heads(q, self.q_norm)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v)
        beams = len(q) // len(k)  # of one source: the queries of one row
        if beams > 1:
            q = q.view(len(k), beams, *q.shape[1:]).transpose(1, 2).flatten(2, 3)
        if self.watch is not None:
            seen = mask
            if causal and mask is None:
                seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            shared = k.repeat_interleave(self.n_heads // self.n_kv_heads, 1)
            self.watch(attention_weights(q, shared, self.scale, seen))
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask, causal, self.scale, dropout)
        if beams > 1:
            y = y.view(len(k), self.n_heads, beams, -1, self.head_dim).transpose(1, 2).flatten(0, 1)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attention_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) [.., T, S], written out for tests and for looking inside."""
    logits = q @ k.transpose(-2, -1) * scale
    if mask is not None:
        floating = mask.is_floating_point()
        logits = logits + mask if floating else logits.masked_fill(~mask, -math.inf)
    return logits.softmax(dim=-1)
