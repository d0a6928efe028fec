"""The Transformer: a decoder stack alone (GPT, Llama) or an encoder and a decoder (Vaswani 2017).

An encoder is the decoder's stack without the causal mask; cross-attention is an optional part of
the same block. Parameter names are the file format.

Shapes: B batch, T target length, S source length, H heads, C d_model, V vocabulary.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcli.config.model import ModelConfig
from lmcli.model.attention import Attention, LayerCache, relative_bucket, rotation
from lmcli.model.kernels import Dropout, Linear, RMSNorm, as_bias

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu2": lambda x: F.relu(x) * x,  # several times faster to differentiate than a square
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class Embedding(nn.Embedding):
    """Without torch's initial values, like `Linear`."""

    def reset_parameters(self) -> None:
        pass


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)


class MLP(nn.Module):
    """down(act(up x)), or down(act(gate x) * up x) for the gated ones (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, f, bias = config.d_model, config.d_ff, config.mlp_bias
        self.up = Linear(c, f, bias=bias)
        gated = config.activation in ("swiglu", "geglu")
        self.gate = Linear(c, f, bias=bias) if gated else None
        self.down = Linear(f, c, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        h = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        return self.down(h)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, MLP; each behind a residual."""

    def __init__(self, config: ModelConfig, causal: bool, cross_attention: bool) -> None:
        super().__init__()
        self.causal, self.pre = causal, config.norm_position == "pre"
        self.attn_norm, self.attn = make_norm(config), Attention(config)
        self.cross_norm = make_norm(config) if cross_attention else None
        self.cross_attn = Attention(config) if cross_attention else None
        self.mlp_norm, self.mlp = make_norm(config), MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, Tensor] | None,
        memory_mask: Tensor | None,
        cache: LayerCache | None,
    ) -> Tensor:
        def add(x: Tensor, norm: nn.Module, layer: nn.Module, *args: Any, **more: Any) -> Tensor:
            y = self.dropout(layer(norm(x) if self.pre else x, *args, **more))
            return x + y if self.pre else norm(x + y)  # type: ignore[no-any-return]

        x = add(x, self.attn_norm, self.attn, mask, self.causal, rotary, cache=cache)
        if self.cross_attn is not None and self.cross_norm is not None:
            x = add(x, self.cross_norm, self.cross_attn, memory_mask, False, memory=memory)
        return add(x, self.mlp_norm, self.mlp)


class Stack(nn.Module):
    """N blocks and, for pre-norm, a final norm."""

    def __init__(
        self, config: ModelConfig, n_layers: int, causal: bool, cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.causal, self.config = causal, config
        self.recompute = False  # keep no activations of a block for the backward pass
        self.blocks = nn.ModuleList(Block(config, causal, cross_attention) for _ in range(n_layers))
        self.norm = make_norm(config) if config.norm_position == "pre" else None
        # T5 shares one table of 32 distance buckets among the layers of a stack.
        self.bias = Embedding(32, config.n_heads) if config.position == "relative" else None

    def mask(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        padding: Tensor | None,
        cache: list[LayerCache] | None,
    ) -> Tensor | None:
        """What the queries of `x` at `positions` [B or 1, T] may see, of each other or of a cache,
        whose slots are positions; None: all before them, or all.

        The only mask there is: causality, window, packing, padding and relative bias in one.
        """
        window, keys = self.config.sliding_window, positions
        plain = cache is None or positions.numel() == 1  # all rows are at the last slot
        if plain and not window and segments is None and padding is None and self.bias is None:
            return None
        if cache is not None:
            keys = torch.arange(cache[0].used, device=x.device)[None]
        distance = keys[:, None, :] - positions[:, :, None]  # [B, T, S]
        seen = distance <= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if window:
            seen = seen & (distance.abs() < window)
        if segments is not None:
            seen = seen & (segments[:, :, None] == segments[:, None, :])
        if padding is not None:
            seen = seen & padding[:, None, :]
        seen = seen[:, None]  # [B, 1, T, S]
        if self.bias is not None:
            bias: Tensor = self.bias(relative_bucket(distance, self.causal))
            return bias.permute(0, 3, 1, 2).masked_fill(~seen, -math.inf)  # [B, H, T, S]
        if cache is not None or x.dtype == torch.bfloat16:
            return as_bias(seen, x.dtype)  # once, and not in every layer
        return seen

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        padding: Tensor | None = None,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        mask, rotary = self.mask(x, positions, segments, padding, cache), None
        if self.config.position == "rope":
            rotary = rotation(positions, self.config, x.dtype)
        unread = [None] * len(self.blocks)
        layers = zip(self.blocks, memory or unread, cache or unread, strict=True)
        for block, read, slots in layers:
            run: Callable[..., Tensor] = block
            if self.recompute and self.training:
                from torch.utils.checkpoint import checkpoint  # imports torch._dynamo

                run = functools.partial(checkpoint, block, use_reentrant=False)
            x = run(x, mask, rotary, read, memory_mask, slots)
        return x if self.norm is None else self.norm(x)


class Transformer(nn.Module):
    """Both families; `config` must be resolved. Its weights have no values before `init_weights`,
    or a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        both = config.arch == "encoder-decoder"
        self.embed = Embedding(config.vocab_size, config.d_model)
        learned = config.position == "learned"
        self.position = Embedding(config.context_length, config.d_model) if learned else None
        self.encoder = Stack(config, config.n_encoder_layers, causal=False) if both else None
        self.decoder = Stack(config, config.n_layers, causal=True, cross_attention=both)
        self.output: nn.Linear | None = None
        self.output_bias: nn.Parameter | None = None
        if not config.tie_embeddings:
            self.output = Linear(config.d_model, config.vocab_size, bias=config.output_bias)
        elif config.output_bias:
            self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.dropout = Dropout(config.dropout)

    def embed_tokens(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, C] with learned or sinusoidal positions added."""
        x = self.embed(ids)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.position is not None:
            x = x + self.position(positions)
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(positions, self.config.d_model).to(x.dtype)
        return self.dropout(x)  # type: ignore[no-any-return]

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """source_ids [B, S] -> memory [B, S, C]; `source_mask` is True on real tokens."""
        assert self.encoder is not None, "a decoder-only model has no encoder"
        positions = torch.arange(source_ids.shape[1], device=source_ids.device)[None]
        x = self.embed_tokens(source_ids, positions)
        return self.encoder(x, positions, padding=source_mask)  # type: ignore[no-any-return]

    def memory(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the encoded source for each decoder block, computed once."""
        return [block.cross_attn.keys_values(encoded) for block in self.decoder.blocks]  # type: ignore[operator,union-attr]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        source_ids: Tensor | None = None,
        source_mask: Tensor | None = None,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """input_ids [B, T] -> hidden [B, T, C]; `logits` turns hidden into scores.

        `segments` [B, T] keeps packed texts apart. `memory` replaces `source_ids` when the source
        was encoded before.
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if source_ids is not None:
            memory = self.memory(self.encode(source_ids, source_mask))
        memory_mask = source_mask[:, None, None, :] if source_mask is not None else None
        x = self.embed_tokens(input_ids, positions)
        if memory_mask is not None and x.dtype == torch.bfloat16:
            memory_mask = as_bias(memory_mask, x.dtype)
        return self.decoder(  # type: ignore[no-any-return]
            x, positions, segments, None, memory, memory_mask, cache
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [.., C] -> scores [.., V] before softmax: hW^T + b."""
        if self.output is not None:
            return self.output(hidden)  # type: ignore[no-any-return]
        return F.linear(hidden, self.embed.weight, self.output_bias)

    @property
    def output_weight(self) -> Tensor:
        """W of `logits` [V, C], which is the embedding where the two are tied."""
        return self.embed.weight if self.output is None else self.output.weight

    @property
    def output_bias_or_none(self) -> Tensor | None:
        return self.output_bias if self.output is None else self.output.bias

    def n_parameters(self, embeddings: bool = True) -> int:
        """Parameters in all, or without token and position embeddings and an untied output."""
        skip = () if embeddings else ("embed.", "position.", "output.")
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith(skip))

    @property
    def embedding_std(self) -> float:
        """Size of the embedding's entries at the start."""
        if self.config.init == "gpt2":
            return 0.02
        tied = self.config.tie_embeddings or self.config.init == "xavier"
        return self.config.d_model**-0.5 if tied else 1.0

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Sets every parameter from (seed, its name) alone: order and device do not matter.

        | parameter             | zero-out                       | gpt2                     |
        | --------------------- | ------------------------------ | ------------------------ |
        | embed, position       | normal(1); tied: normal(C^-.5) | normal(0.02)             |
        | q, k, v, up, gate     | normal(fan_in^-0.5)            | normal(0.02)             |
        | o_proj, down          | 0                              | normal(0.02 / sqrt(2 N)) |
        | output                | 0                              | normal(0.02)             |
        | norm weights          | 1                              | 1                        |
        | biases, relative bias | 0                              | 0                        |

        xavier: embed, position normal(C^-0.5), every matrix uniform(sqrt(6 / (fan_in + fan_out)))
        (Glorot and Bengio 2010).
        """
        config = self.config
        for name, parameter in self.named_parameters():
            shape = parameter.shape
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            if "bias" in name:
                parameter.zero_()
                continue
            last = name.split(".")[-2]
            if last in ("embed", "position"):
                std = self.embedding_std
            elif config.init == "xavier":
                most = math.sqrt(2 / sum(shape)) * math.sqrt(3)
                parameter.copy_((2 * draw(seed, name, shape, torch.rand) - 1) * most)
                continue
            elif config.init == "gpt2":
                std = 0.02 / math.sqrt(2 * config.n_layers if last in ("o_proj", "down") else 1)
            else:
                std = 0.0 if last in ("o_proj", "down", "output") else shape[1] ** -0.5
            parameter.copy_(draw(seed, name, shape) * std)


def draw(
    seed: int, name: str, shape: torch.Size, law: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Random numbers that depend on nothing but the seed and a parameter's name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return law(shape, generator=generator)


def parameters(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a resolved config, by name; no memory is taken."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """[B, T] -> [B, T, width]: sines in the first half, cosines in the second.

    Pair i turns at 10000^(-2i / width) as in Vaswani et al. 2017, who interleave the pairs; halves
    are the same numbers permuted. tensor2tensor ends at exactly 1/10000 instead: other numbers.
    """
    half = width // 2
    rate = torch.exp(torch.arange(half, device=positions.device) * (-2 * math.log(10000.0) / width))
    angle = positions[..., None].float() * rate
    out = torch.cat((angle.sin(), angle.cos()), dim=-1)
    return F.pad(out, (0, width - 2 * half))
