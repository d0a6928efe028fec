"""GPT-2 (Radford et al. 2019) as Hugging Face ships it: GPT2Config and GPT2LMHeadModel.

Its linear layers are `Conv1D`, whose weights lie transposed; `c_attn` is q, k and v side by side.
"""

from dataclasses import replace

from lmcli.interop.family import Family
from lmcli.model.presets import PRESETS

_H, _BLOCK = "transformer.h.{}.", "decoder.blocks.{}."

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base=replace(PRESETS["gpt2"], dropout=0.1, attention_dropout=0.1),
    keys={
        "vocab_size": "vocab_size",
        "n_positions": "context_length",
        "n_ctx": "context_length",
        "n_embd": "d_model",
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "n_inner": "d_ff",
        "activation_function": "activation",
        "layer_norm_epsilon": "norm_eps",
        "embd_pdrop": "dropout",
        "resid_pdrop": "dropout",
        "attn_pdrop": "attention_dropout",
        "scale_attn_weights": "attention_scale",
        "tie_word_embeddings": "tie_embeddings",
    },
    values={
        "activation": {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
        | {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"},
        "attention_scale": {True: 0.0, False: 1.0},
    },
    only={
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    ignored=r"model_type|architectures|auto_map|_name_or_path|_attn_implementation\w*|_commit_hash"
    r"|(bos|eos|pad)_token_id|(torch_)?dtype|transformers_version|initializer_range|use_cache"
    r"|summary_\w+|task_specific_params|gradient_checkpointing|output_\w+|id2label|label2id",
    weights={
        "transformer.wte": ("embed",),
        "transformer.wpe": ("position",),
        _H + "ln_1": (_BLOCK + "attn_norm",),
        _H + "attn.c_attn": tuple(f"{_BLOCK}attn.{x}_proj" for x in "qkv"),
        _H + "attn.c_proj": (_BLOCK + "attn.o_proj",),
        _H + "ln_2": (_BLOCK + "mlp_norm",),
        _H + "mlp.c_fc": (_BLOCK + "mlp.up",),
        _H + "mlp.c_proj": (_BLOCK + "mlp.down",),
        "transformer.ln_f": ("decoder.norm",),
        "lm_head": ("output",),
    },
    transposed=r".*\.c_\w+\.weight",
    prefix="transformer.",
    buffers=r"h\.\d+\.attn\.(masked_)?bias",
)
