"""A run's config.json, and how it follows from what the user gave."""

import dataclasses
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmcli import console
from lmcli.artifacts import files, layout, manifest, schema
from lmcli.config import fields
from lmcli.config.model import ModelConfig
from lmcli.config.training import CHANGEABLE, Asked, TrainingConfig
from lmcli.config.tuning import TuningConfig
from lmcli.config.units import parse_duration
from lmcli.dataset import order
from lmcli.dataset.batches import Batches, Windows
from lmcli.dataset.buckets import Examples, Pairs
from lmcli.dataset.store import Dataset
from lmcli.errors import DataError, MismatchError, UsageError
from lmcli.model import lora
from lmcli.model.presets import TRAINING, paced, sized
from lmcli.model.presets import preset as preset
from lmcli.model.transformer import Transformer
from lmcli.model.transformer import parameters as parameters
from lmcli.text import tasks
from lmcli.text.tokenizer import Tokenizer
from lmcli.training import checkpoint, events, precision
from lmcli.training.checkpoint import State

CONFIG_FORMAT = 1

# Settings whose 0 or `auto` is resolved before step 1; asking for that again asks for no change.
AUTOMATIC = (
    *("vocab_size", "head_dim", "n_kv_heads", "n_encoder_layers", "d_ff"),
    *("attention_scale", "embedding_scale"),
    *("micro_batch_size", "threads", "device", "dtype", "compile"),
)
DECIDED = ("threads", "micro_batch_size", "compile", "budget")  # what a run itself may change
SHAPE = {f.name for f in dataclasses.fields(ModelConfig)}
SIZES = {"arch", "n_layers", "n_encoder_layers", "d_model", "n_heads", "n_kv_heads", "head_dim"}
SIZES |= {"d_ff"}  # what --size or --budget would choose
RATIO = 20.0  # tokens per parameter (Hoffmann et al. 2022)
WORTH_COMPILING, SMALL_STEP = 900.0, 2e10  # seconds of a run; operations of a step
# Operations a second that are likely reached, by device and precision.
RATES = {("cpu", "float32"): 1.5e11, ("cpu", "bfloat16"): 7e11, ("cuda", "bfloat16"): 2e14}
RATES |= {("cuda", "float32"): 3e13, ("mps", "float32"): 2e12, ("mps", "bfloat16"): 2e12}
FOR_PAIRS = ("task", "template", "batch_tokens", "pack", "best_by")
BATCH_TOKENS = 4096  # of pairs, where neither --batch-tokens nor --batch-size is given
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
    tuning: TuningConfig = TuningConfig()

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        path = run / layout.CONFIG
        value = files.read_json(path, schema.CONFIG, CONFIG_FORMAT)
        try:
            model = fields.build(ModelConfig, value["model"], "model.{}".format)
            training = fields.build(TrainingConfig, value["training"], "training.{}".format)
            tuning = fields.build(TuningConfig, value.get("tuning", {}), "tuning.{}".format)
            derived = model.resolved()
        except UsageError as error:
            raise MismatchError(f"{path}: {error}") from None
        if not model.vocab_size or derived != model:
            raise DataError(f"{path}: not a run's config (derived values are missing); restore it")
        return cls(model, training, value["data"], value.get("origin", {}), tuning)

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
        if self.tuning != TuningConfig():
            value["tuning"] = dataclasses.asdict(self.tuning)
        return value | {"origin": self.origin} if self.origin else value

    def chosen(self, run: Path, which: str | None) -> tuple[list[Path], State, str]:
        """The checkpoints to use, the last one's state, and the id of what they make: `best`,
        `last`, a step, or `mean`, the last ones; by default the mean where the run was told to
        average, else the best."""
        n = self.now(run).average_last if self.data else 0
        which = which or ("mean" if n else "best")
        folder, state = checkpoint.choose(run, "last" if which == "mean" else which)
        folders = [folder]
        if which == "mean":
            steps = [s for s in checkpoint.list_steps(run) if s] or [0]  # 0 is what it began with
            last = steps[-(n or self.training.keep_last) :]
            folders = [layout.checkpoint(run, step) for step in last]
            for each in folders:
                checkpoint.read_state(run, each)
        ids = [manifest.read(each, "checkpoint").id for each in folders]
        return folders, state, files.digest({"mean": ids}) if len(ids) > 1 else ids[0]

    def weights(self, folders: list[Path]) -> dict[str, Tensor]:
        """The mean of checkpoints as weights of a plain model: low-rank updates are merged."""
        total: dict[str, Tensor] = {}
        for folder in folders:
            tensors = checkpoint.load_model(folder)
            if self.data and self.training.ema and (folder / layout.OPTIMIZER).exists():
                state = checkpoint.load_tensors(folder / layout.OPTIMIZER)
                tensors |= {n[4:]: t for n, t in state.items() if n.startswith("ema.")}
            tensors = lora.merged(tensors, self.tuning)
            total = {n: total[n] + t for n, t in tensors.items()} if total else tensors
        return {n: t / len(folders) for n, t in total.items()} if len(folders) > 1 else total

    def build(self) -> Transformer:
        """The model as it is trained, its weights unset."""
        model = Transformer(self.model)
        lora.adapt(model, self.tuning)
        return model

    def template(self, tokenizer: Tokenizer) -> tasks.Template:
        """How the model reads a source; nothing is around it where it was not trained on pairs."""
        return tasks.Template.parse(self.tuning.template or "{source}", tokenizer)

    def reader(self, dataset: Dataset, split: str, tokenizer: Tokenizer) -> Examples:
        """The pairs of a split as this model reads them."""
        arch, tuning = self.model.arch, self.tuning
        text = tuning.template or tasks.template(arch, tuning.task, tokenizer)
        if dataset.manifest.config.get("chat"):  # whose sources have it around them already
            text = "{source}"
        template, both = tasks.Template.parse(text, tokenizer), arch == "encoder-decoder"
        stores = dataset.sources[split], dataset.splits[split]
        return Examples(*stores, template, self.model.context_length, both, tokenizer.eos_id)

    def batches(self, dataset: Dataset, tokenizer: Tokenizer) -> Batches:
        """What the run is trained on, from the dataset's train split."""
        if dataset.sources:
            reader, training = self.reader(dataset, "train", tokenizer), self.training
            even = dataset.manifest.config["order"] == order.OF_PAIRS
            size, pad = training.batch_tokens, tokenizer.pad_id
            return Pairs(reader, training.seed, size, training.pack, pad, even)
        prefix = tokenizer.eos_id if self.model.arch == "encoder-decoder" else None
        length = self.model.context_length
        return Windows(dataset.splits["train"], length, self.training.seed, prefix)


def check_tokenizer(run: Path, data: str, dataset: Dataset) -> None:
    """MismatchError unless run and dataset have the same tokenizer."""
    ours = manifest.read(run, "run").parents["tokenizer"]
    theirs = dataset.manifest.parents["tokenizer"]
    if ours != theirs:
        raise MismatchError(
            f"dataset {data} was built with tokenizer {theirs[:12]}, but run "
            f"{run.name} has {ours[:12]}; rebuild the data with the run's tokenizer"
        )


Begin = tuple[RunConfig, list[Path]]  # the run that a new one begins with, and its checkpoints


def plan(root: Path, asked: Asked, say: bool = True) -> tuple[RunConfig, Dataset, Begin | None]:
    """A new run's config from what the user gave, everything automatic already resolved, which it
    says; its dataset; and what it begins with, if anything."""
    if asked.data is None:
        raise UsageError("--data names the dataset of a new run; build one: lmcli data build")
    data, given, begin, origin, tokens = asked.data, asked.given, None, {}, 0
    dataset = Dataset.open(layout.find(root, data, "dataset"), hashes=True)
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    if dataset.vocab_size != tokenizer.vocab_size:
        raise DataError(f"{dataset.path}: its vocab_size is not its tokenizer's; rebuild it")
    if asked.origin is None:
        size, ratio = given.get("size"), given.get("ratio")
        if size is not None and asked.preset is not None:
            raise UsageError(f"--size {size} and --preset {asked.preset}: give one of them")
        if ratio is not None and size is None:
            raise UsageError("--ratio is tokens per parameter of --size")
        base, usual = preset(asked.preset or "nano"), TRAINING.get(asked.preset or "", {})
        if size is not None:
            both = given.get("arch") == "encoder-decoder"
            base, usual = sized(size, ratio or RATIO, both, given.get("context_length", 0))
            tokens = usual["steps"] * usual["batch_size"] * base.context_length
            if dataset.sources:
                usual |= {"micro_batch_size": 0}  # whose rows are many and short
        model = shape(base, given)
    else:
        if dial := {"size", "ratio"} & given.keys():
            flag = fields.flag(min(dial, key=len))
            raise UsageError(f"{flag} is for new weights; --from {asked.origin} has its own shape")
        run = layout.find(root, asked.origin, "run")
        check_tokenizer(run, data, dataset)
        source = RunConfig.read(run)
        folders, _, id_ = source.chosen(run, None)
        begin, origin = (source, folders), {"name": run.name, "id": id_}
        model, usual = shape_of(source, asked), asked.usual
    if model.vocab_size not in (0, tokenizer.vocab_size):
        raise MismatchError(
            f"--vocab-size {model.vocab_size}, but the tokenizer of {data} has "
            f"{tokenizer.vocab_size} tokens"
        )
    model = model.resolved(tokenizer.vocab_size)
    if dataset.sources:
        before = begin[0].tuning if begin else TuningConfig()
        given = _for_pairs(given, model, tokenizer, before, dataset)
    elif only := [key for key in FOR_PAIRS if given.get(key) not in (None, 0, "loss", "pass@1")]:
        raise UsageError(f"{fields.flag(only[0])} is for pairs, but {data} is plain text")
    if "val" not in dataset.splits:
        for key in ("patience", "best_by", "eval_prompt"):
            if given.get(key) not in (None, 0, "loss"):
                raise UsageError(
                    f"{fields.flag(key)} goes by validation, but {data} has no val split"
                )
    tuning = fields.pick(TuningConfig, given)
    if tokens:  # as many as the dial says, whatever batch was asked for
        rows = given.get("batch_size", usual["batch_size"])
        size = given.get("batch_tokens") or rows * model.context_length
        usual = usual | paced(given.get("steps") or math.ceil(tokens / size))
    training = fields.pick(TrainingConfig, usual | given)
    if tuning.lora_rank and begin is None:
        raise UsageError("--lora-rank updates weights that are there: name a run with --from")
    machine = precision.resolve(training.device, training.dtype, training.threads)
    whole = 0 if training.batch_tokens else training.batch_size
    per_step = training.batch_tokens or whole * model.context_length
    compiled = training.compile
    if compiled == "auto":
        pays = not dataset.sources and pays_to_compile(model, training, machine, per_step)
        compiled = "on" if pays else "off"
    training = dataclasses.replace(
        training,
        warmup_steps=math.ceil(training.warmup_tokens / per_step) or training.warmup_steps,
        compile=compiled,
        device=machine.device,
        dtype=machine.dtype,
        threads=machine.threads,
        micro_batch_size=training.micro_batch_size or whole,
        keep_last=max(training.keep_last, training.average_last),
    )
    if say:
        why = "as asked"
        if given.get("compile", "auto") == "auto":
            why = "it pays back in this run" if compiled == "on" else "it would not pay back here"
        how = f"{machine.device}, {machine.dtype}, {machine.threads} threads"
        console.say(f"{how}: {machine.why}; compile {compiled}: {why}")
    named = {"name": data, "id": dataset.manifest.id}
    return RunConfig(model, training, named, origin, tuning), dataset, begin


def _for_pairs(
    given: dict[str, Any],
    model: ModelConfig,
    tokenizer: Tokenizer,
    before: TuningConfig,
    dataset: Dataset,
) -> dict[str, Any]:
    """Settings of a run on pairs: template and task are those of the run `before` it, if any,
    but a chat has a template of its own."""
    task, facts = given.get("task") or before.task, dataset.manifest.config
    chat = facts["chat_template"] if facts.get("chat") else None
    if chat and given.get("template"):
        raise UsageError("--template: the chats of this dataset have that of their tokenizer")
    text = given.get("template") or (None if chat else before.template)
    text = text or tasks.template(model.arch, task, tokenizer, chat)
    tasks.Template.parse(text, tokenizer)
    if given.get("pack") and model.arch != "decoder":
        raise UsageError("--pack is for decoder-only models")
    usual = {} if "batch_size" in given else {"batch_tokens": BATCH_TOKENS}
    return usual | given | {"task": task, "template": text}


def pays_to_compile(
    model: ModelConfig, training: TrainingConfig, machine: precision.Machine, tokens: int
) -> bool:
    """Whether a run of windows is so long that a tenth is worth most of a minute: on a CPU of a
    small model only, as large ones do not gain (docs/benchmarks.md).

    It is guessed from its arithmetic, so that the same command decides the same on one machine.
    """
    layers, width = model.n_layers + model.n_encoder_layers, model.d_model
    weights = width * (layers * (4 * width + 2 * model.d_ff) + model.vocab_size)
    step = 6 * weights * tokens
    seconds = step * training.steps / RATES[machine.device, machine.dtype]
    if training.budget is not None:
        seconds = parse_duration(training.budget)
    gains = machine.device == "cuda" or (
        step < SMALL_STEP and shutil.which(os.environ.get("CXX", "g++")) is not None
    )
    return gains and seconds > WORTH_COMPILING


def shape(base: ModelConfig, given: dict[str, Any]) -> ModelConfig:
    """A preset with the model settings of `given` in place of its own; not yet resolved."""
    values = dataclasses.asdict(base) | {"vocab_size": 0}
    # A derived value follows the one it derives from, unless the user pinned both.
    values |= {key: 0 for key, pinned in DERIVED if pinned in given}
    return fields.pick(ModelConfig, values | given)


def shape_of(source: RunConfig, asked: Asked) -> ModelConfig:
    """The model of the run that `--from` names, of which only dropout may change."""
    own = {key: value for key, value in asked.given.items() if key in SHAPE}
    free = {key: own.pop(key) for key in FREE if key in own}
    changes(source, source.training, Asked(preset=asked.preset, given=own))
    return fields.build(ModelConfig, dataclasses.asdict(source.model) | free)


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
    size, _ = wanted.pop("size", None), wanted.pop("ratio", None)
    if size is not None or asked.preset is not None:
        base = preset(asked.preset or "nano")
        if size is not None:
            base, _ = sized(size, RATIO, stored.model.arch == "encoder-decoder")
        wanted |= vars(shape(base, wanted).resolved(stored.model.vocab_size))
    before = vars(current) | vars(stored.tuning) | vars(stored.model)
    changes = {}
    for key, value in wanted.items():
        old = before[key]
        if key == "warmup_steps" and wanted.get("warmup_tokens"):
            continue  # which come before them
        if key == "keep_last" and max(value, current.average_last) == old:
            continue
        if value == old or (key in AUTOMATIC and value in (0, "auto")):
            continue
        if key in DECIDED and value == getattr(stored.training, key):
            continue  # what the run has decided since stays
        if key not in CHANGEABLE:
            was = "without it" if old is None else f"with {old}"
            raise MismatchError(
                f"{fields.flag(key)} {value}: the run was started {was}; leave it out to "
                "continue, or choose another --name"
            )
        changes[key] = value
    return changes
