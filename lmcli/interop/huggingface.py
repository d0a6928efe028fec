"""A Hugging Face model folder, read and written: config, safetensors, tokenizer; never any code.

A folder is somebody else's: every name in it stays in it, pickles are refused, and its config is
read by our own tables. `auto_map` and Python files are not looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import processors
from torch import Tensor

from lmcli.artifacts import files
from lmcli.config.model import ModelConfig
from lmcli.errors import DataError, MismatchError, MissingInputError, RefusedError, UsageError
from lmcli.interop import gpt2
from lmcli.text import imported
from lmcli.text.tokenizer import Tokenizer

CONFIG, MODEL, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER = "tokenizer.json"
MOST_JSON = 2**28  # bytes


@dataclass(frozen=True)
class Folder:
    """What a model folder holds, checked against each other."""

    model: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    sources: list[Path]


def read(folder: Path) -> Folder:
    """Raises MissingInputError, DataError, RefusedError (pickles, names that lead out) or
    MismatchError (what lmcli cannot represent), each naming file, key or tensor."""
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder")
    config_path = _inside(folder, CONFIG)
    config = files.read_json(config_path)
    kind = config.get("model_type")
    if kind != gpt2.MODEL_TYPE:
        raise MismatchError(f"{config_path}: model_type {kind!r}, not {gpt2.MODEL_TYPE}")
    shards = _shards(folder)
    tokenizer, tokenizer_files = _tokenizer(folder, config.get("eos_token_id"))
    try:
        model = gpt2.read_config(config)
        if model.vocab_size != tokenizer.vocab_size:  # nothing is resized
            raise MismatchError(
                f"vocab_size is {model.vocab_size}, but the tokenizer has {tokenizer.vocab_size}"
            )
        weights = gpt2.read_weights({n: t for path in shards for n, t in _load(path)}, model)
    except (MismatchError, DataError) as error:
        raise type(error)(f"{folder}: {error}") from None
    return Folder(model, weights, tokenizer, [config_path, *shards, *tokenizer_files])


def _load(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        yield from load_file(path).items()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path.name} is not readable as safetensors ({error})") from None


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; RefusedError for a name or a link that leads out of it.

    Hugging Face's own cache links each file of `snapshots/ID` into the `blobs` next to it.
    """
    path, home = folder / name, folder.resolve()
    homes = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    if Path(name).name != name or path.resolve().parent not in homes:
        raise RefusedError(f"{folder}: {name!r} leads out of the folder; put the file itself there")
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    if path.suffix == ".json" and path.stat().st_size > MOST_JSON:
        raise DataError(f"{path}: more than {MOST_JSON >> 20} MiB of JSON; not a model's file")
    return path


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of the model."""
    if (folder / MODEL).exists():
        return [_inside(folder, MODEL)]
    if (folder / INDEX).exists():
        index = _inside(folder, INDEX)
        names = files.read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise DataError(f"{index}: no weight_map from tensors to files")
        return [_inside(folder, name) for name in sorted(set(names.values()))]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise RefusedError(
            f"{folder}: only {pickles[0]}, and lmcli loads no pickles, which can run code; convert "
            "it where you trust it: python -c 'from transformers import AutoModelForCausalLM as M; "
            f'M.from_pretrained("{folder}").save_pretrained("{folder}")\''
        )
    raise MissingInputError(f"{folder}: no {MODEL} and no {INDEX}")


def _tokenizer(folder: Path, eos: Any) -> tuple[Tokenizer, list[Path]]:
    """The tokenizer of the folder and its files; `eos` is the id that the config gives."""
    paths = [_inside(folder, path.name) for path in imported.find([str(folder)])]
    eos = eos[0] if isinstance(eos, list) and eos else eos
    try:
        return imported.load(paths, eos if isinstance(eos, int) else None), paths
    except UsageError:
        raise MismatchError(f"{folder}: eos_token_id {eos} is no token of the tokenizer") from None


def write(
    folder: Path, model: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer, card: str
) -> None:
    """The same layout, for `AutoModelForCausalLM` and `AutoTokenizer`, into a staged folder.

    The tokenizer puts the end of text before every text, as our engine and training do.
    """
    config = gpt2.write_config(model)
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    ids["pad_token_id"] = tokenizer.pad_id
    names = {key.removesuffix("_id"): tokenizer.token(id_) for key, id_ in ids.items()}
    eos = names["eos_token"]
    inner = HFTokenizer.from_str(tokenizer.to_bytes().decode())
    inner.post_processor = processors.TemplateProcessing(
        single=[eos, "$A"], pair=[eos, "$A", "$B"], special_tokens=[(eos, tokenizer.eos_id)]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    files.write_json(folder / CONFIG, config | ids | {"dtype": "float32"})
    files.write_json(folder / "generation_config.json", ids)
    files.write_json(folder / "tokenizer_config.json", settings | names)
    files.write_json(folder / "special_tokens_map.json", names)
    files.write_file(folder / TOKENIZER, inner.to_str(pretty=True).encode())
    files.write_file(folder / "README.md", card.encode())
    tensors = gpt2.write_weights(weights, model)
    files.write_with(folder / MODEL, lambda path: save_file(tensors, path, {"format": "pt"}))
