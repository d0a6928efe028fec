"""The shape of a Transformer: one dataclass for both families and their published relatives."""

import dataclasses
from dataclasses import dataclass

from lmcli.config.fields import choice, option
from lmcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides parameter shapes and the function they compute.

    A value of 0 means "derived" where its help says so; `resolved()` replaces those, and only
    resolved configs are stored.
    """

    arch: str = choice(("decoder", "encoder-decoder"), "model family")
    vocab_size: int = option(0, "tokens in the vocabulary; 0: from the tokenizer")
    context_length: int = option(256, "longest sequence in tokens", low=1)
    d_model: int = option(192, "width of the residual stream", low=1)
    n_layers: int = option(4, "decoder blocks", low=1, high=1024)
    n_encoder_layers: int = option(0, "encoder blocks (encoder-decoder); 0: as n_layers", high=1024)
    n_heads: int = option(4, "query heads", low=1)
    n_kv_heads: int = option(0, "key and value heads (grouped-query); 0: as n_heads")
    head_dim: int = option(0, "width of one head; 0: d_model / n_heads")
    d_ff: int = option(0, "hidden width of the MLP; 0: 4 x d_model")
    dropout: float = option(0.0, "dropout on embeddings and sublayer outputs", high=0.95)
    attention_dropout: float = option(0.0, "dropout on attention weights", high=0.95)
    position: str = choice(
        ("rope", "learned", "sinusoidal", "relative", "none"), "position encoding"
    )
    rope_theta: float = option(10000.0, "base of the rotary wavelengths", low=1)
    rope_scaling: float = option(1.0, "positions are divided by this before rotation", low=1)
    norm: str = choice(("rmsnorm", "layernorm"), "normalisation")
    norm_position: str = choice(("pre", "post"), "norm before or after a sublayer")
    norm_eps: float = option(1e-6, "epsilon inside the norm")
    activation: str = option(
        "relu2",
        "MLP activation",
        choices=("relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu", "geglu"),
    )
    attention_scale: float = option(0.0, "factor on q.k; 0: 1/sqrt(head_dim)")
    qk_norm: bool = option(True, "RMS-normalise queries and keys per head")
    sliding_window: int = option(0, "attend to the last N positions only; 0: all")
    qkv_bias: bool = option(False, "bias on the q, k and v projections")
    o_bias: bool = option(False, "bias on the attention output projection")
    mlp_bias: bool = option(False, "bias on the MLP projections")
    norm_bias: bool = option(False, "bias in layernorm")
    output_bias: bool = option(False, "bias on the output layer: softmax(hW + b)")
    embedding_scale: float = option(1.0, "factor on token embeddings; 0: sqrt(d_model)")
    tie_embeddings: bool = option(False, "the output layer is the embedding, transposed")
    init: str = choice(
        ("zero-out", "gpt2", "xavier"),
        "weights at start: zero output projections, GPT-2's normal(0.02), or Xavier's uniform",
    )

    def resolved(self, vocab_size: int | None = None) -> "ModelConfig":
        """With every derived value filled in and the shape checked; errors name the flag."""
        head_dim = self.head_dim
        if not head_dim:
            if self.d_model % self.n_heads:
                raise UsageError(
                    f"--d-model {self.d_model} is not a multiple of --n-heads {self.n_heads}; "
                    "change one or set --head-dim"
                )
            head_dim = self.d_model // self.n_heads
        n_kv_heads = self.n_kv_heads or self.n_heads
        if self.n_heads % n_kv_heads:
            raise UsageError(
                f"--n-heads {self.n_heads} is not a multiple of --n-kv-heads {n_kv_heads}"
            )
        if self.position == "rope" and head_dim % 2:
            raise UsageError(f"--position rope needs an even --head-dim, not {head_dim}")
        n_encoder = self.n_encoder_layers or self.n_layers
        return dataclasses.replace(
            self,
            vocab_size=vocab_size or self.vocab_size,
            head_dim=head_dim,
            n_kv_heads=n_kv_heads,
            n_encoder_layers=n_encoder if self.arch == "encoder-decoder" else 0,
            d_ff=self.d_ff or 4 * self.d_model,
            attention_scale=self.attention_scale or head_dim**-0.5,
            embedding_scale=self.embedding_scale or self.d_model**0.5,
        )
