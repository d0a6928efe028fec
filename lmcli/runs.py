"""The composition root: directories in, a live Trainer or Engine out.

A run has three starts (scratch, weights of another run, resume); the Trainer cannot tell them
apart. This is the only place that knows artifacts, text, data, model, training and inference.
"""

import dataclasses
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, layout, lock, manifest
from lmcli.artifacts.again import creating
from lmcli.config import fields
from lmcli.config.evaluation import EvaluationConfig
from lmcli.config.model import ModelConfig
from lmcli.config.training import CHANGEABLE, TrainingConfig
from lmcli.config.units import show_count
from lmcli.dataset.batches import Windows
from lmcli.dataset.store import Dataset
from lmcli.errors import DataError, LmcliError, MismatchError, UsageError
from lmcli.evaluation.evaluate import SplitScorer
from lmcli.inference.engine import Engine
from lmcli.metrics import perplexity
from lmcli.model.presets import preset
from lmcli.model.transformer import Transformer
from lmcli.text.tokenizer import Tokenizer
from lmcli.training import checkpoint, precision
from lmcli.training.optimizers import Optimizer
from lmcli.training.precision import Machine
from lmcli.training.trainer import Evaluate, Trainer, update, write_status

CONFIG_FORMAT = 1

# Settings whose 0 or `auto` is resolved before step 1; asking for that again asks for no change.
AUTOMATIC = (
    *("vocab_size", "head_dim", "n_kv_heads", "n_encoder_layers", "d_ff"),
    *("attention_scale", "embedding_scale"),
    *("micro_batch_size", "threads", "device", "dtype"),
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
        value = files.read_json(path)
        if isinstance(value.get("format"), int) and value["format"] > CONFIG_FORMAT:
            raise MismatchError(f"{path}: format {value['format']} is newer than this lmcli reads")
        try:
            model = fields.build(ModelConfig, value["model"], lambda k: f"model.{k}")
            training = fields.build(TrainingConfig, value["training"], lambda k: f"training.{k}")
            return cls(model, training, dict(value["data"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: not a run's config ({error!r})") from None
        except UsageError as error:
            raise MismatchError(f"{path}: {error}") from None

    def as_json(self) -> dict[str, Any]:
        return {
            "format": CONFIG_FORMAT,
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.training),
            "data": self.data,
        }


def plan(
    root: Path, data: str, preset_name: str | None, given: dict[str, Any]
) -> tuple[RunConfig, Dataset]:
    """A new run's config from what the user gave, everything automatic already resolved."""
    dataset = Dataset.open(layout.find(root, data, "dataset"))
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    shape = {f.name for f in dataclasses.fields(ModelConfig)}
    base = dataclasses.asdict(preset(preset_name or "nano"))
    own = {k: v for k, v in given.items() if k in shape}
    # A derived value follows the one it derives from, unless the user pinned both.
    for key, pinned in (("head_dim", "n_heads"), ("head_dim", "d_model"), ("d_ff", "d_model")):
        if pinned in own:
            base[key] = 0
    if "n_heads" in own:
        base["n_kv_heads"] = 0
    base["vocab_size"] = 0
    model = fields.build(ModelConfig, base | own)
    if model.arch != "decoder":
        raise UsageError("--arch encoder-decoder needs a dataset of pairs; this is plain text")
    if model.vocab_size not in (0, tokenizer.vocab_size):
        raise MismatchError(
            f"--vocab-size {model.vocab_size}, but the tokenizer of {data} has "
            f"{tokenizer.vocab_size} tokens"
        )
    model = model.resolved(tokenizer.vocab_size)
    training = fields.build(TrainingConfig, {k: v for k, v in given.items() if k not in shape})
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


def measure(root: Path, data: str, given: dict[str, Any], n_steps: int = 12) -> float:
    """Seconds per training step of a config here, by a few steps that are thrown away."""
    config, dataset = plan(root, data, None, given)
    machine = precision.resolve(
        config.training.device, config.training.dtype, config.training.threads
    )
    precision.prepare(machine)
    model = Transformer(config.model)
    model.init_weights(0)
    model.to(machine.device)
    batches = Windows(dataset.splits["train"], config.model.context_length, 0)
    optimizer = Optimizer(model, config.training)
    took = []
    for step in range(n_steps):
        began = time.perf_counter()
        update(model, optimizer, batches, config.training, machine, step + 1, 0.0)
        took.append(time.perf_counter() - began)
    return sorted(took[n_steps // 3 :])[n_steps // 3]  # the first ones warm up


def create(run: Path, config: RunConfig, dataset: Dataset) -> None:
    """Commits a run's folder: config, tokenizer, manifest."""
    with files.staged_directory(run) as folder:
        files.write_json(folder / layout.CONFIG, config.as_json())
        files.write_file(folder / layout.TOKENIZER, (dataset.path / layout.TOKENIZER).read_bytes())
        parents = {"dataset": dataset.manifest.id, **dataset.manifest.parents}
        manifest.write(folder, "run", run.name, parents)


def train(
    root: Path,
    name: str,
    data: str | None,
    preset_name: str | None,
    given: dict[str, Any],
    dry_run: bool = False,
    force: bool = False,
) -> dict[str, Any] | None:
    """Trains a new run or continues an existing one; returns its final status.

    Raises UsageError, MismatchError (config or data differ), Interrupted, DivergedError.
    """
    run = layout.new(root, "run", name)
    with ExitStack() as stack:
        stack.enter_context(creating(run, root, "run", force))
        if not run.exists():
            if data is None:
                raise UsageError(
                    "--data names the dataset of a new run; build one: lmcli data build"
                )
            config, dataset = plan(root, data, preset_name, given)
            # The split must hold a window before anything is written.
            Windows(dataset.splits["train"], config.model.context_length, config.training.seed)
            if dry_run:
                return config.as_json()
            create(run, config, dataset)
        elif dry_run:
            return RunConfig.read(run).as_json()
        manifest.read(run, "run", hashes=True)
        stack.enter_context(lock.hold(run / layout.LOCK, f"run {name}"))
        trainer = open_trainer(root, run, data, preset_name, given)
        if trainer is None:
            return files.read_json(run / layout.STATUS)
        trainer.fit()
    return files.read_json(run / layout.STATUS)


def open_trainer(
    root: Path, run: Path, data: str | None, preset_name: str | None, given: dict[str, Any]
) -> Trainer | None:
    """The Trainer of an existing run at its newest checkpoint; None when it is finished.

    The caller holds the run's lock.
    """
    stored = RunConfig.read(run)
    found = checkpoint.newest(run)
    state = found[1] if found else None
    step = state.step if state else 0
    events = files.read_log(run / layout.EVENTS)
    current = stored.training
    for event in events:
        current = dataclasses.replace(current, **event["change"])
    change = _changes(stored, current, preset_name, given)
    if step >= change.get("steps", current.steps):
        if "steps" in change:
            raise UsageError(f"--steps {change['steps']}: {run.name} is already at step {step}")
        console.say(f"run {run.name} is finished at step {step}; --steps N trains on")
        write_status(run, "finished", step, current.steps, 0)
        return None
    dataset = Dataset.open(layout.find(root, data or stored.data["name"], "dataset"))
    if dataset.manifest.id != stored.data["id"]:
        raise MismatchError(
            f"run {run.name} was started on dataset {stored.data['id'][:12]}, but "
            f"--data {data or stored.data['name']} is {dataset.manifest.id[:12]}; "
            "name the same data or start a run with another --name"
        )
    if change:
        current = dataclasses.replace(current, **change)
        files.Log(run / layout.EVENTS).append({"step": step, "change": change})
        events.append({"step": step, "change": change})
    machine = precision.resolve(current.device, current.dtype, current.threads)
    precision.prepare(machine)
    model = Transformer(stored.model)
    if found:
        checkpoint.load_weights(model, found[0])
        console.say(f"continuing {run.name} from step {step} of {current.steps}")
    else:
        model.init_weights(stored.training.seed)
        checkpoint.check_space(run, model)
        console.say(f"training {run.name}: {show_count(model.n_parameters())} parameters")
    model.to(machine.device)
    optimizer = Optimizer(model, stored.training)
    if found:
        optimizer.load_state_tensors(checkpoint.load_tensors(found[0] / layout.OPTIMIZER))
    batches = Windows(dataset.splits["train"], stored.model.context_length, stored.training.seed)
    return Trainer(
        run,
        model,
        optimizer,
        batches,
        stored.training,
        machine,
        validation(run, stored.model, dataset, current.eval_tokens, machine),
        state,
        [(e["step"], e["change"]) for e in events],
    )


def _changes(
    stored: RunConfig, current: TrainingConfig, preset_name: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """What the user asks to change; MismatchError for anything a run may not change."""
    asked = dict(given)
    if preset_name is not None:
        shape = dataclasses.asdict(preset(preset_name).resolved(stored.model.vocab_size))
        asked = {k: v for k, v in shape.items() if k not in given} | asked
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


def validation(
    run: Path, model: ModelConfig, dataset: Dataset, eval_tokens: int, machine: Machine
) -> Evaluate | None:
    """The one evaluation function, bound to the val split; None where there is none."""
    store = dataset.splits.get("val")
    if store is None or not store.n_tokens:
        return None
    tokenizer = Tokenizer.load(run / layout.TOKENIZER)
    config = EvaluationConfig(max_tokens=eval_tokens)
    scorer = SplitScorer(store, tokenizer, model.context_length, config)

    def evaluate(model: Transformer, step: int) -> dict[str, float]:
        model.eval()
        with machine.autocast():
            counts = scorer.score(Engine(model, tokenizer.eos_id, tokenizer.pad_id))
        by_name = {s.name: s.value for s in perplexity.scores(counts, scorer.context_length, 0)}
        return {"val_loss": by_name["loss"], "val_bits_per_byte": by_name["bits_per_byte"]}

    return evaluate


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to sample or score."""

    path: Path
    config: RunConfig
    engine: Engine
    tokenizer: Tokenizer
    machine: Machine
    step: int
    checkpoint_id: str


def load(
    root: Path, reference: str, which: str = "best", device: str = "auto", dtype: str = "auto"
) -> LoadedRun:
    """The run's best (default), last or numbered checkpoint behind an Engine."""
    run = layout.find(root, reference, "run")
    try:
        manifest.read(run, "run", hashes=True)
        config = RunConfig.read(run)
        folder, state = checkpoint.choose(run, which)
        checkpoint_manifest = manifest.read(folder, "checkpoint")
    except FileNotFoundError as error:
        raise LmcliError(f"{error.filename}: vanished while reading; try again") from None
    machine = precision.resolve(device, dtype, 0)
    precision.prepare(machine)
    model = Transformer(config.model)
    checkpoint.load_weights(model, folder)
    model.to(machine.device).eval()
    tokenizer = Tokenizer.load(run / layout.TOKENIZER)
    engine = Engine(model, tokenizer.eos_id, tokenizer.pad_id)
    return LoadedRun(run, config, engine, tokenizer, machine, state.step, checkpoint_manifest.id)


def evaluate(
    loaded: LoadedRun, root: Path, data: str, split: str, config: EvaluationConfig
) -> dict[str, Any]:
    """Scores a split, writes the result to the run's evals/ and returns it.

    Raises MismatchError when the dataset was made with another tokenizer.
    """
    dataset = Dataset.open(layout.find(root, data, "dataset"))
    run_manifest = manifest.read(loaded.path, "run")
    ours, theirs = run_manifest.parents["tokenizer"], dataset.manifest.parents["tokenizer"]
    if ours != theirs:
        raise MismatchError(
            f"dataset {data} was built with tokenizer {theirs[:12]}, but run "
            f"{loaded.path.name} has {ours[:12]}; rebuild the data with the run's tokenizer"
        )
    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {data} has {', '.join(dataset.splits)}")
    context = loaded.config.model.context_length
    scorer = SplitScorer(dataset.splits[split], loaded.tokenizer, context, config)
    with console.Progress("window", scorer.n_windows) as progress, loaded.machine.autocast():
        counts = scorer.score(loaded.engine, progress.update)
    scores = perplexity.scores(counts, context, scorer.stride)
    result = {
        "run": loaded.path.name,
        "run_id": run_manifest.id,
        "checkpoint": {"step": loaded.step, "id": loaded.checkpoint_id},
        "dataset": {"name": data, "id": dataset.manifest.id, "split": split},
        "counts": dataclasses.asdict(counts),
        "settings": dataclasses.asdict(config) | {"dtype": loaded.machine.dtype},
        "scores": [dataclasses.asdict(s) for s in scores],
    }
    name = f"{Path(data).name}-{split}-step-{loaded.step:06d}.json"
    files.write_json(loaded.path / layout.EVALS / name, result)
    return result
