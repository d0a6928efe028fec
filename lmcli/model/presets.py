"""Model shapes by name: a modern family that grows, GPT-2 and the 2017 Transformer as published."""

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


def preset(name: str) -> ModelConfig:
    """The shape called `name`, or a UsageError that lists them."""
    if name not in PRESETS:
        names = ", ".join(PRESETS)
        raise UsageError(f"--preset {name!r} is not one of {names}{suggest(name, PRESETS)}")
    return PRESETS[name]
