"""Model shapes by name: a modern family that grows, and GPT-2 as published."""

from lmcli.config.fields import suggest
from lmcli.config.model import ModelConfig
from lmcli.errors import UsageError


def _gpt2(n_layers: int, n_heads: int, d_model: int) -> ModelConfig:
    """Radford et al. 2019, table 2; parameters as released."""
    return ModelConfig(
        vocab_size=50257,
        context_length=1024,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        position="learned",
        norm="layernorm",
        norm_eps=1e-5,
        norm_bias=True,
        activation="gelu_tanh",
        qk_norm=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
        init="gpt2",
    )


def _modern(n_layers: int, n_heads: int, d_model: int, context_length: int) -> ModelConfig:
    """RMSNorm, rotary positions, QK-norm, squared ReLU, no biases, untied zero output layer."""
    return ModelConfig(
        context_length=context_length, d_model=d_model, n_layers=n_layers, n_heads=n_heads
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
}


def preset(name: str) -> ModelConfig:
    """The shape called `name`, or a UsageError that lists them."""
    if name not in PRESETS:
        names = ", ".join(PRESETS)
        raise UsageError(f"--preset {name!r} is not one of {names}{suggest(name, PRESETS)}")
    return PRESETS[name]
