"""GPT-2 (Radford et al. 2019) as Hugging Face ships it: GPT2Config and GPT2LMHeadModel.

Two tables, each read in both directions: its config's keys and its tensors' names. Its linear
layers are `Conv1D`, whose weights lie transposed; `c_attn` is q, k and v side by side. Nothing of
what is read is ever run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from lmcli.config.fields import build, suggest
from lmcli.config.model import ModelConfig
from lmcli.errors import DataError, MismatchError, UsageError
from lmcli.model.presets import PRESETS
from lmcli.model.transformer import parameters

MODEL_TYPE, ARCHITECTURE = "gpt2", "GPT2LMHeadModel"
# What no key of theirs spells, and what an absent or null key means.
BASE = replace(PRESETS["gpt2"], dropout=0.1, attention_dropout=0.1)
KEYS = {  # their key -> our field
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
}
VALUES: dict[str, dict[Any, Any]] = {  # our field -> their values -> ours; the first is ours
    "activation": {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    | {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"},
    "attention_scale": {True: 0.0, False: 1.0},
}
ONLY = {  # their keys with the one value that we compute
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
# Keys that do not change the function.
IGNORED = (
    r"model_type|architectures|auto_map|_name_or_path|_attn_implementation\w*|_commit_hash"
    r"|(bos|eos|pad)_token_id|(torch_)?dtype|transformers_version|initializer_range|use_cache"
    r"|summary_\w+|task_specific_params|gradient_checkpointing|output_\w+|id2label|label2id"
)
PREFIX = "transformer."  # of their tensors' names, which some files leave out
_H, _BLOCK = PREFIX + "h.{}.", "decoder.blocks.{}."
WEIGHTS = {  # their module -> ours, one below the other; {}: layer
    PREFIX + "wte": ["embed"],
    PREFIX + "wpe": ["position"],
    _H + "ln_1": [_BLOCK + "attn_norm"],
    _H + "attn.c_attn": [f"{_BLOCK}attn.{x}_proj" for x in "qkv"],
    _H + "attn.c_proj": [_BLOCK + "attn.o_proj"],
    _H + "ln_2": [_BLOCK + "mlp_norm"],
    _H + "mlp.c_fc": [_BLOCK + "mlp.up"],
    _H + "mlp.c_proj": [_BLOCK + "mlp.down"],
    PREFIX + "ln_f": ["decoder.norm"],
    "lm_head": ["output"],
}
TRANSPOSED = r".*\.c_\w+\.weight"
BUFFERS = r"h\.\d+\.attn\.(masked_)?bias"  # tensors that are no parameters
OUTPUT = "lm_head.weight"  # absent, or a copy of the embedding, where the two are tied
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what float32 holds exactly


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Their config.json as ours; MismatchError for what ours cannot say."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if value is None or re.fullmatch(IGNORED, key):
            continue
        if key in ONLY:
            if value != ONLY[key]:
                raise MismatchError(f"{key} is {value!r}; lmcli computes {ONLY[key]!r}")
            continue
        if key not in KEYS:
            close = suggest(key, KEYS)
            raise MismatchError(f"{key!r} is no setting of {MODEL_TYPE} known here{close}")
        field = KEYS[key]
        table = VALUES.get(field)
        if table is not None:
            if not isinstance(value, str | bool) or value not in table:
                names = ", ".join(map(str, table))
                raise MismatchError(f"{key} is {value!r}; lmcli computes {names}")
            value = table[value]
        if found.setdefault(field, value) != value:
            raise MismatchError(
                f"{key} is {value!r}, but another key says {found[field]!r}, and lmcli has "
                f"only one {field}; give both one value"
            )
    spelled = {field: key for key, field in KEYS.items()}
    try:
        return build(ModelConfig, asdict(BASE) | found, lambda f: spelled.get(f, f)).resolved()
    except UsageError as error:
        raise MismatchError(str(error)) from None


def write_config(model: ModelConfig) -> dict[str, Any]:
    """Our config as theirs; MismatchError naming the first field that would not come back."""
    config = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **ONLY}
    for key, field in KEYS.items():
        value = getattr(model, field)
        if field in VALUES:  # what is not in the table comes back as something else
            theirs = (t for t, ours in VALUES[field].items() if ours == value)
            value = next(theirs, None)
        if value is not None:
            config[key] = value
    back = asdict(read_config(config))
    for field, value in asdict(model).items():
        if value != back[field] and field != "init":  # which says nothing once trained
            raise MismatchError(f"{field} is {value}, and {MODEL_TYPE} can only have {back[field]}")
    return config


def _rows(model: ModelConfig) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Each of their tensors, with the parameters of `model` in it and their shapes."""
    shapes = parameters(model)
    for theirs, ours in WEIGHTS.items():
        for layer in range(model.n_layers if "{}" in theirs else 1):
            for part in (".weight", ".bias"):
                names = [name.format(layer) + part for name in ours]
                if names[0] in shapes:
                    yield theirs.format(layer) + part, {name: shapes[name] for name in names}


def read_weights(found: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Their tensors as our float32 parameters: exactly those that the config asks for."""
    short = {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
    theirs = {n: tensor for n, tensor in short.items() if not re.fullmatch(BUFFERS, n)}
    if model.n_layers > len(theirs):  # before building whatever a config claims
        raise MismatchError(f"{model.n_layers} layers cannot be in {len(theirs)} tensors")
    ours: dict[str, Tensor] = {}
    for name, shapes in _rows(model):
        tensor = theirs.pop(name.removeprefix(PREFIX), None)
        if tensor is None:
            raise MismatchError(f"{name} is missing; the config asks for it")
        sizes = [shape[0] for shape in shapes.values()]
        turned = re.fullmatch(TRANSPOSED, name) is not None
        expected = [sum(sizes), *next(iter(shapes.values()))[1:]][:: -1 if turned else 1]
        if list(tensor.shape) != expected or tensor.dtype not in FLOATS:
            raise MismatchError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; the config asks for floats "
                f"{expected}"
            )
        if not torch.isfinite(tensor).all():
            raise DataError(f"{name} holds NaN or infinity; the file is damaged")
        parts = torch.split((tensor.T if turned else tensor).float(), sizes)
        ours |= {n: part.contiguous() for n, part in zip(shapes, parts, strict=True)}
    copy = theirs.pop(OUTPUT, None)
    if copy is not None and not torch.equal(copy.float(), ours["embed.weight"]):
        raise MismatchError(f"{OUTPUT} is not the embedding, but the config ties them")
    if theirs:
        raise MismatchError(f"{min(theirs)} is no tensor of {MODEL_TYPE}")
    return ours


def write_weights(ours: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Our parameters under their names, as they lie in their file."""
    theirs = {}
    for name, shapes in _rows(model):
        tensor = torch.cat([ours[n] for n in shapes])
        theirs[name] = (tensor.T if re.fullmatch(TRANSPOSED, name) else tensor).contiguous()
    return theirs
