"""Model shapes by name: a modern family that grows, GPT-2 and the 2017 Transformer as published."""

import math
from typing import Any

from lmcli.config.fields import suggest
from lmcli.config.model import ModelConfig
from lmcli.errors import UsageError

# What GPT-2 and the 2017 Transformer have in common.
CLASSIC: Any = {"norm": "layernorm", "norm_eps": 1e-5, "norm_bias": True, "qk_norm": False}
CLASSIC |= {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "tie_embeddings": True}


def _size(n_layers: int, n_heads: int, d_model: int, context_length: int) -> dict[str, Any]:
    sizes = {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}
    return sizes | {"context_length": context_length}


def _gpt2(n_layers: int, n_heads: int, d_model: int) -> ModelConfig:
    """Radford et al. 2019, table 2; parameters as released."""
    own: Any = {"position": "learned", "activation": "gelu_tanh", "init": "gpt2"}
    return ModelConfig(
        vocab_size=50257, **_size(n_layers, n_heads, d_model, 1024), **own, **CLASSIC
    )


def _modern(n_layers: int, n_heads: int, d_model: int, context_length: int) -> ModelConfig:
    """RMSNorm, rotary positions, QK-norm, squared ReLU, no biases, untied zero output layer."""
    return ModelConfig(**_size(n_layers, n_heads, d_model, context_length))


def _transformer(
    n_layers: int, n_heads: int, d_model: int, d_ff: int, dropout: float
) -> ModelConfig:
    """Vaswani et al. 2017, table 3: post-norm, sinusoids on scaled embeddings, all three shared."""
    own: Any = {"arch": "encoder-decoder", "d_ff": d_ff, "dropout": dropout, "init": "xavier"}
    own |= {"position": "sinusoidal", "norm_position": "post", "activation": "relu"}
    return ModelConfig(
        embedding_scale=0.0, **_size(n_layers, n_heads, d_model, 256), **own, **CLASSIC
    )


PRESETS = {
    "nano": _modern(4, 4, 192, 256),
    "micro": _modern(4, 4, 256, 256),
    "mini": _modern(6, 6, 384, 256),
    "small": _modern(8, 8, 512, 512),
    "medium": _modern(12, 12, 768, 1024),
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "transformer-tiny": _transformer(4, 4, 128, 256, 0.3),  # Wu et al. 2021, for Multi30k
    "transformer-small": _transformer(6, 4, 512, 1024, 0.3),  # fairseq's for IWSLT
    "transformer-base": _transformer(6, 8, 512, 2048, 0.1),
    "transformer-big": _transformer(6, 16, 1024, 4096, 0.3),
}
_PEAK = {"tiny": (5e-3, 2000), "small": (5e-4, 4000), "base": (7e-4, 4000), "big": (5e-4, 4000)}
# How the shapes that were published with a recipe are trained, unless settings say otherwise.
TRAINING: dict[str, dict[str, Any]] = {
    f"transformer-{size}": {"lr": lr, "warmup_steps": warmup, "schedule": "inverse-sqrt"}
    | {"label_smoothing": 0.1, "beta2": 0.98, "adam_eps": 1e-9, "weight_decay": 0.0}
    for size, (lr, warmup) in _PEAK.items()
}


N_BLOCK = 12 * 64**2  # of the sizes: k blocks of k heads of 64 have this times k^3 parameters


def sized(
    parameters: int, ratio: float, encoder: bool = False
) -> tuple[ModelConfig, dict[str, Any]]:
    """The shape of about so many parameters in its blocks, and how to train it on `ratio` tokens
    for each: one number k gives k blocks of k heads of 64 (docs/recipes.md), and as many of an
    `encoder`."""
    block = N_BLOCK * 28 / 12 if encoder else N_BLOCK  # with an encoder's and cross-attention
    k = max(1, round((parameters / block) ** (1 / 3)))
    context = 256 if k <= 6 else 512 if k <= 10 else 1024
    tokens = ratio * block * k**3
    batch = 2 ** max(0, round(math.log2(2 * math.sqrt(tokens) / context)))
    steps = max(1, math.ceil(tokens / (batch * context)))
    training = {
        "optimizer": "muon",
        "lr": 0.02,
        "batch_size": batch,
        "micro_batch_size": min(batch, max(1, 8192 // context)),
    } | paced(steps)
    return _modern(k, k, 64 * k, context), training


def paced(steps: int) -> dict[str, Any]:
    """Schedule and intervals of a run whose number of steps was derived."""
    every = max(1, steps // 20)
    pace = {"steps": steps, "schedule": "wsd", "decay_fraction": 0.6}
    return pace | {"warmup_steps": min(100, every), "eval_every": every, "save_every": every}


def preset(name: str) -> ModelConfig:
    """The shape called `name`, or a UsageError that lists them."""
    if name not in PRESETS:
        names = ", ".join(PRESETS)
        raise UsageError(f"--preset {name!r} is not one of {names}{suggest(name, PRESETS)}")
    return PRESETS[name]
