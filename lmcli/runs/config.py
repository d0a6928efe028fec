"""A run's config.json, and how it follows from what the user gave."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, layout, manifest, schema
from lmcli.config import fields
from lmcli.config.model import ModelConfig
from lmcli.config.training import CHANGEABLE, TrainingConfig
from lmcli.dataset.store import Dataset
from lmcli.errors import DataError, MismatchError, UsageError
from lmcli.model.presets import preset
from lmcli.model.transformer import parameters as parameters
from lmcli.text.tokenizer import Tokenizer
from lmcli.training import checkpoint, events, precision

CONFIG_FORMAT = 1

# Settings whose 0 or `auto` is resolved before step 1; asking for that again asks for no change.
AUTOMATIC = (
    *("vocab_size", "head_dim", "n_kv_heads", "n_encoder_layers", "d_ff"),
    *("attention_scale", "embedding_scale"),
    *("micro_batch_size", "threads", "device", "dtype"),
)
SHAPE = {f.name for f in dataclasses.fields(ModelConfig)}
FREE = ("dropout", "attention_dropout")  # what says nothing about the weights
DERIVED = (
    *(("head_dim", "n_heads"), ("head_dim", "d_model"), ("d_ff", "d_model")),
    ("n_kv_heads", "n_heads"),
)


@dataclass(frozen=True)
class RunConfig:
    """A run's config.json: immutable, and law when the run is continued.

    `origin` is what its weights began as, where they were not drawn: name of a run and id of its
    checkpoint. An imported run has those of a folder, and no `data`.
    """

    model: ModelConfig
    training: TrainingConfig
    data: dict[str, str]
    origin: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        path = run / layout.CONFIG
        value = files.read_json(path, schema.CONFIG, CONFIG_FORMAT)
        try:
            model = fields.build(ModelConfig, value["model"], lambda k: f"model.{k}")
            training = fields.build(TrainingConfig, value["training"], lambda k: f"training.{k}")
            derived = model.resolved()
        except UsageError as error:
            raise MismatchError(f"{path}: {error}") from None
        if not model.vocab_size or derived != model:
            raise DataError(f"{path}: not a run's config (derived values are missing); restore it")
        return cls(model, training, value["data"], value.get("origin", {}))

    @classmethod
    def trained(cls, run: Path) -> "RunConfig":
        """The config of a run that training may continue: not of an imported one."""
        config = cls.read(run)
        if not config.data:
            raise MismatchError(
                f"run {run.name} was imported; train a run that begins with its weights: "
                f"lmcli train --from {run.name} --data DATASET --name NEW"
            )
        return config

    def now(self, run: Path) -> TrainingConfig:
        """The training settings after the run's recorded changes."""
        training = self.training
        for event in events.read(run):
            training = events.changed(training, event)
        return training

    def as_json(self) -> dict[str, Any]:
        value = {
            "format": CONFIG_FORMAT,
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.training) if self.data else {},
            "data": self.data,
        }
        return value | {"origin": self.origin} if self.origin else value


@dataclass(frozen=True)
class Asked:
    """What the user gave to start or continue a run, each part of it optional."""

    data: str | None = None
    preset: str | None = None
    origin: str | None = None  # --from: the run whose best weights a new one begins with
    given: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_tokenizer(run: Path, data: str, dataset: Dataset) -> None:
    """MismatchError unless run and dataset have the same tokenizer."""
    ours = manifest.read(run, "run").parents["tokenizer"]
    theirs = dataset.manifest.parents["tokenizer"]
    if ours != theirs:
        raise MismatchError(
            f"dataset {data} was built with tokenizer {theirs[:12]}, but run "
            f"{run.name} has {ours[:12]}; rebuild the data with the run's tokenizer"
        )


def plan(root: Path, asked: Asked) -> tuple[RunConfig, Dataset, Path | None]:
    """A new run's config from what the user gave, everything automatic already resolved; its
    dataset; and the checkpoint that it begins with, if any."""
    if asked.data is None:
        raise UsageError("--data names the dataset of a new run; build one: lmcli data build")
    data, given, start, origin = asked.data, asked.given, None, {}
    dataset = Dataset.open(layout.find(root, data, "dataset"), hashes=True)
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    if dataset.vocab_size != tokenizer.vocab_size:
        raise DataError(f"{dataset.path}: its vocab_size is not its tokenizer's; rebuild it")
    if asked.origin is None:
        model = shape(asked.preset or "nano", given)
    else:
        run = layout.find(root, asked.origin, "run")
        check_tokenizer(run, data, dataset)
        start, _ = checkpoint.choose(run, "best")
        origin = {"name": run.name, "id": manifest.read(start, "checkpoint").id}
        model = shape_of(RunConfig.read(run), asked)
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
    return RunConfig(model, training, source, origin), dataset, start


def shape(preset_name: str, given: dict[str, Any]) -> ModelConfig:
    """A preset with the model settings of `given` in place of its own; not yet resolved."""
    own = {k: v for k, v in given.items() if k in SHAPE}
    base = dataclasses.asdict(preset(preset_name)) | {"vocab_size": 0}
    # A derived value follows the one it derives from, unless the user pinned both.
    for key, pinned in DERIVED:
        if pinned in own:
            base[key] = 0
    return fields.build(ModelConfig, base | own)


def shape_of(source: RunConfig, asked: Asked) -> ModelConfig:
    """The model of the run that `--from` names, of which only dropout may change."""
    own = {key: value for key, value in asked.given.items() if key in SHAPE}
    free = {key: own.pop(key) for key in FREE if key in own}
    changes(source, source.training, Asked(preset=asked.preset, given=own))
    return dataclasses.replace(source.model, **free)


def changes(stored: RunConfig, current: TrainingConfig, asked: Asked) -> dict[str, Any]:
    """What the user asks to change; MismatchError for anything a run may not change."""
    origin = stored.origin.get("name")
    if asked.origin is not None and Path(asked.origin).name != origin:
        began = f"from {origin}" if origin else "with random weights"
        raise MismatchError(
            f"--from {asked.origin}: the run was started {began}; leave it out to continue, or "
            "choose another --name"
        )
    wanted = dict(asked.given)
    if asked.preset is not None:
        model = shape(asked.preset, asked.given).resolved(stored.model.vocab_size)
        wanted |= dataclasses.asdict(model)
    changes = {}
    for key, value in wanted.items():
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
