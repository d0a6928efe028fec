"""A run's config.json, and how it follows from what the user gave."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmcli import console
from lmcli.artifacts import files, layout
from lmcli.config import fields
from lmcli.config.model import ModelConfig
from lmcli.config.training import CHANGEABLE, TrainingConfig
from lmcli.dataset.store import Dataset
from lmcli.errors import DataError, MismatchError, UsageError
from lmcli.model.presets import preset
from lmcli.model.transformer import Transformer
from lmcli.text.tokenizer import Tokenizer
from lmcli.training import events, precision

CONFIG_FORMAT = 1

# Settings whose 0 or `auto` is resolved before step 1; asking for that again asks for no change.
AUTOMATIC = (
    *("vocab_size", "head_dim", "n_kv_heads", "n_encoder_layers", "d_ff"),
    *("attention_scale", "embedding_scale"),
    *("micro_batch_size", "threads", "device", "dtype"),
)
SHAPE = {f.name for f in dataclasses.fields(ModelConfig)}
DERIVED = (
    *(("head_dim", "n_heads"), ("head_dim", "d_model"), ("d_ff", "d_model")),
    ("n_kv_heads", "n_heads"),
)


@dataclass(frozen=True)
class RunConfig:
    """A run's config.json: immutable, and law when the run is continued."""

    model: ModelConfig
    training: TrainingConfig
    data: dict[str, str]

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        path = run / layout.CONFIG
        value = files.read_json(path, CONFIG_FORMAT)
        try:
            model = fields.build(ModelConfig, value["model"], lambda k: f"model.{k}")
            training = fields.build(TrainingConfig, value["training"], lambda k: f"training.{k}")
            data = {key: str(value["data"][key]) for key in ("name", "id")}
            if not model.vocab_size or model.resolved() != model:
                raise ValueError("derived values are missing")
            return cls(model, training, data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: not a run's config ({error!r})") from None
        except UsageError as error:
            raise MismatchError(f"{path}: {error}") from None

    def now(self, run: Path) -> TrainingConfig:
        """The training settings after the run's recorded changes."""
        training = self.training
        for event in events.read(run):
            training = dataclasses.replace(training, **event.get("change", {}))
        return training

    def as_json(self) -> dict[str, Any]:
        return {
            "format": CONFIG_FORMAT,
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.training),
            "data": self.data,
        }


def parameters(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a resolved config, by name; no memory is taken."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def plan(
    root: Path, data: str, preset_name: str | None, given: dict[str, Any]
) -> tuple[RunConfig, Dataset]:
    """A new run's config from what the user gave, everything automatic already resolved."""
    dataset = Dataset.open(layout.find(root, data, "dataset"), hashes=True)
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    if dataset.vocab_size != tokenizer.vocab_size:
        raise DataError(f"{dataset.path}: its vocab_size is not its tokenizer's; rebuild it")
    model = shape(preset_name or "nano", given)
    if model.arch != "decoder":
        raise UsageError("--arch encoder-decoder needs a dataset of pairs; this is plain text")
    if model.vocab_size not in (0, tokenizer.vocab_size):
        raise MismatchError(
            f"--vocab-size {model.vocab_size}, but the tokenizer of {data} has "
            f"{tokenizer.vocab_size} tokens"
        )
    model = model.resolved(tokenizer.vocab_size)
    training = fields.build(TrainingConfig, {k: v for k, v in given.items() if k not in SHAPE})
    machine = precision.resolve(training.device, training.dtype, training.threads)
    training = dataclasses.replace(
        training,
        device=machine.device,
        dtype=machine.dtype,
        threads=machine.threads,
        micro_batch_size=training.micro_batch_size or training.batch_size,
    )
    console.say(f"{machine.device}, {machine.dtype}, {machine.threads} threads: {machine.why}")
    source = {"name": data, "id": dataset.manifest.id}
    return RunConfig(model, training, source), dataset


def shape(preset_name: str, given: dict[str, Any]) -> ModelConfig:
    """A preset with the model settings of `given` in place of its own; not yet resolved."""
    own = {k: v for k, v in given.items() if k in SHAPE}
    base = dataclasses.asdict(preset(preset_name)) | {"vocab_size": 0}
    # A derived value follows the one it derives from, unless the user pinned both.
    for key, pinned in DERIVED:
        if pinned in own:
            base[key] = 0
    return fields.build(ModelConfig, base | own)


def changes(
    stored: RunConfig, current: TrainingConfig, preset_name: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """What the user asks to change; MismatchError for anything a run may not change."""
    asked = dict(given)
    if preset_name is not None:
        wanted = shape(preset_name, given).resolved(stored.model.vocab_size)
        asked |= dataclasses.asdict(wanted)
    changes = {}
    for key, value in asked.items():
        in_model = hasattr(stored.model, key)
        old = getattr(stored.model if in_model else current, key)
        if value == old or (key in AUTOMATIC and value in (0, "auto")):
            continue
        if in_model or key not in CHANGEABLE:
            raise MismatchError(
                f"{fields.flag(key)} {value}: the run was started with {old}; leave it out to "
                "continue, or choose another --name"
            )
        changes[key] = value
    return changes
