"""Model shapes by name: a modern family that grows, GPT-2 and the 2017 Transformer as published."""

import math
from dataclasses import replace
from typing import Any

from lmcli.config.fields import suggest
from lmcli.config.model import ModelConfig
from lmcli.errors import UsageError

# RMSNorm, rotary positions, QK-norm, squared ReLU, no biases, untied zero output layer.
MODERN = ModelConfig()
# What GPT-2 and the 2017 Transformer have in common.
CLASSIC = replace(MODERN, norm="layernorm", norm_eps=1e-5, norm_bias=True, qk_norm=False)
CLASSIC = replace(CLASSIC, qkv_bias=True, o_bias=True, mlp_bias=True, tie_embeddings=True)
# Radford et al. 2019, table 2; parameters as released.
GPT2 = replace(CLASSIC, position="learned", activation="gelu_tanh", init="gpt2", vocab_size=50257)
# Vaswani et al. 2017, table 3: post-norm, sinusoids on scaled embeddings, all three shared.
PAIRS = replace(CLASSIC, arch="encoder-decoder", position="sinusoidal", embedding_scale=0.0)
PAIRS = replace(PAIRS, norm_position="post", activation="relu", init="xavier")


def _shape(
    family: ModelConfig, n_layers: int, n_heads: int, d_model: int, context: int, **other: Any
) -> ModelConfig:
    other |= {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}
    return replace(family, context_length=context, **other)


PRESETS = {
    "nano": _shape(MODERN, 4, 4, 192, 256),
    "micro": _shape(MODERN, 4, 4, 256, 256),
    "mini": _shape(MODERN, 6, 6, 384, 256),
    "small": _shape(MODERN, 8, 8, 512, 512),
    "medium": _shape(MODERN, 12, 12, 768, 1024),
    "gpt2": _shape(GPT2, 12, 12, 768, 1024),
    "gpt2-medium": _shape(GPT2, 24, 16, 1024, 1024),
    "gpt2-large": _shape(GPT2, 36, 20, 1280, 1024),
    "gpt2-xl": _shape(GPT2, 48, 25, 1600, 1024),
    # Wu et al. 2021, for Multi30k, and fairseq's for IWSLT
    "transformer-tiny": _shape(PAIRS, 4, 4, 128, 256, d_ff=256, dropout=0.3),
    "transformer-small": _shape(PAIRS, 6, 4, 512, 256, d_ff=1024, dropout=0.3),
    "transformer-base": _shape(PAIRS, 6, 8, 512, 256, d_ff=2048, dropout=0.1),
    "transformer-big": _shape(PAIRS, 6, 16, 1024, 256, d_ff=4096, dropout=0.3),
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
    parameters: int, ratio: float, encoder: bool = False, context_length: int = 0
) -> tuple[ModelConfig, dict[str, Any]]:
    """The shape of about so many parameters in its blocks, and how to train it on `ratio` tokens
    for each: one number k gives k blocks of k heads of 64 (docs/recipes.md), and as many of an
    `encoder`."""
    block = N_BLOCK * 28 / 12 if encoder else N_BLOCK  # with an encoder's and cross-attention
    k = max(1, round((parameters / block) ** (1 / 3)))
    context = context_length or (256 if k <= 6 else 512 if k <= 10 else 1024)
    tokens = ratio * block * k**3
    batch = 2 ** max(0, round(math.log2(2 * math.sqrt(tokens) / context)))
    steps = max(1, math.ceil(tokens / (batch * context)))
    micro = min(batch, max(1, 8192 // context))
    training = {"optimizer": "muon", "lr": 0.02, "batch_size": batch, "micro_batch_size": micro}
    return _shape(MODERN, k, k, 64 * k, context), training | paced(steps)


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
