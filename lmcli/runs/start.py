"""The three starts of the one training loop: a new run, one that begins with the weights of
another, and a run that goes on.

The Trainer cannot tell them apart: given weights are a checkpoint of step 0.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmcli import console
from lmcli.artifacts import files, inventory, layout, lock, manifest
from lmcli.artifacts.again import creating
from lmcli.config.generation import GenerationConfig
from lmcli.config.scoring import EvaluationConfig, ScoringConfig
from lmcli.config.training import Asked, TrainingConfig
from lmcli.config.units import parse_duration, show_count
from lmcli.dataset.batches import Ahead
from lmcli.dataset.buckets import Pairs
from lmcli.dataset.store import Dataset
from lmcli.errors import (
    DataError,
    Interrupted,
    LmcliError,
    MismatchError,
    RefusedError,
    UsageError,
    out_of_memory,
)
from lmcli.evaluation.evaluate import SplitScorer, decode_pairs
from lmcli.evaluation.programs import verdicts_on
from lmcli.inference.engine import Engine
from lmcli.metrics import perplexity, score
from lmcli.model import lora
from lmcli.model.presets import N_BLOCK, paced
from lmcli.model.transformer import Transformer
from lmcli.runs.config import RATIO, SIZES, RunConfig, changes, parameters, plan
from lmcli.signals import StopRequest
from lmcli.text.segments import Source, read
from lmcli.text.tokenizer import Tokenizer
from lmcli.training import checkpoint, events, precision
from lmcli.training.optimizers import Optimizer
from lmcli.training.precision import Working
from lmcli.training.step import gradients
from lmcli.training.trainer import Evaluate, Trainer, write_status


def measure(root: Path, asked: Asked, stop: StopRequest) -> tuple[float, int]:
    """Seconds and tokens of a training step here, by a few steps that are thrown away: twelve, or
    four and more until a fortieth of the budget is over."""
    config, dataset, _ = plan(root, asked, say=False)
    training = config.training
    machine = precision.resolve(training.device, training.dtype, training.threads)
    precision.prepare(machine, training.tune)
    model = config.build()
    model.init_weights(0)
    model.to(machine.device)
    batches = config.batches(dataset, Tokenizer.load(dataset.path / layout.TOKENIZER))
    optimizer = Optimizer(model, training)
    working = Working(model, machine, recompute=training.recompute)
    patience = min(10.0, parse_duration(asked.given["budget"]) / 40)
    took, tokens = [], 0
    for step in range(12):
        began = time.perf_counter()
        parts = batches.parts(step, training.batch_size, training.micro_batch_size)
        tokens = gradients(working, parts, training, step + 1)[2]
        optimizer.step(0.0)
        working.refresh()
        took.append(time.perf_counter() - began)
        if stop.requested:
            raise Interrupted(f"{stop.requested}: before the first step")
        if sum(took) > patience and step >= 3:
            break
    return sorted(took[len(took) // 3 :])[len(took) // 3], tokens  # the first ones warm up


def fit_budget(root: Path, asked: Asked, stop: StopRequest) -> Asked:
    """With steps, and a size where no shape is given, that a new run's `budget` allows here.

    Of the sizes that can see `ratio` tokens per parameter in time (or k - 1, at most 20), the
    largest is taken (docs/recipes.md), each measured by a few steps; batch and warm-up are those
    of the tokens that will be seen.
    """
    given = asked.given
    if given.get("budget") is None or asked.data is None:
        return asked
    if "steps" in given:
        raise UsageError("--budget derives the steps; leave out --steps (and LMCLI_STEPS)")
    TrainingConfig(budget=given["budget"])  # whether it is one
    seconds = parse_duration(given["budget"])
    own = asked.preset or asked.origin or given.keys() & SIZES
    by_size = "size" in given or not own
    free = by_size and "size" not in given
    k, size, ratio, found = 2, given.get("size") or 8 * N_BLOCK, RATIO, None
    for _ in range(99):
        sized = given | {"size": size, "ratio": ratio} if by_size else given
        try:
            rate, tokens = measure(root, dataclasses.replace(asked, given=sized), stop)
        except (MemoryError, RuntimeError, DataError) as error:
            if not (free and found and (out_of_memory(error) or isinstance(error, DataError))):
                raise
            break  # a smaller one fits into the memory or the dataset
        steps = max(1, int(0.95 * seconds / rate))
        before, ratio = ratio, steps * tokens / size
        wanted = given.get("ratio") or min(RATIO, k - 1)
        if free and found and found[3]["size"] < size and ratio < wanted:
            break  # the size before is the largest
        found = rate, tokens, steps, sized
        if by_size and not 0.5 < ratio / before < 2:
            continue  # with the batch of as many tokens
        if not free or ratio < wanted:
            break
        k += 1  # the parameters go with k^3, the time of a token at most
        size, ratio = N_BLOCK * k**3, max(wanted, ratio * (1 - 1 / k) ** 6)
    assert found is not None
    rate, tokens, steps, sized = found
    console.say(f"a step takes {rate:.2f} s here: about {steps:,} steps in {given['budget']}")
    chosen = paced(steps) | _sparing(steps, seconds, rate / tokens) | sized | {"steps": steps}
    return dataclasses.replace(asked, given=chosen)


def _sparing(steps: int, seconds: float, per_token: float) -> dict[str, int]:
    """Validation of a run of so many seconds that takes a twentieth of them, a token costing three
    quarters of what it costs to train: a CPU that trains in bfloat16 validates in float32."""
    room = max(1.0, 0.05 * seconds / (0.75 * per_token))
    tokens = int(min(2**16, max(2**14, room / 20)))
    every = min(steps, max(paced(steps)["eval_every"], math.ceil(steps * tokens / room)))
    return {"eval_tokens": tokens, "eval_every": every, "save_every": every}


Planned = tuple[RunConfig, bytes, dict[str, str], dict[str, Tensor] | None]


def new(root: Path, asked: Asked, stop: StopRequest) -> Planned:
    """What `create` needs of a new run whose dataset holds at least one batch."""
    config, dataset, begin = plan(root, fit_budget(root, asked, stop))
    _problems(config.training, asked)  # refused before there is a run
    config.batches(dataset, Tokenizer.load(dataset.path / layout.TOKENIZER))
    parents = {"dataset": dataset.manifest.id, **dataset.manifest.parents}
    weights = None
    if begin is not None:
        source, folders = begin
        with torch.device("meta"):
            empty = config.build()
        parents["run"] = manifest.read(folders[-1], "checkpoint").parents["run"]
        weights = source.weights(folders) | lora.start(empty, config.training.seed)
    return config, (dataset.path / layout.TOKENIZER).read_bytes(), parents, weights


def _fits(root: Path, run: Path, asked: Asked) -> bool:
    """Whether the run could go on with what was asked for."""
    stored = RunConfig.trained(run)
    try:
        changes(stored, stored.training, asked)
    except MismatchError:
        return False
    if asked.data is None:
        return True
    return Dataset.open(layout.find(root, asked.data, "dataset")).manifest.id == stored.data["id"]


def create(
    run: Path,
    config: RunConfig,
    tokenizer: bytes,
    parents: dict[str, str],
    weights: dict[str, Tensor] | None,
    recorded: dict[str, Any] | None = None,
) -> None:
    """Commits a run's folder: config, tokenizer, manifest, and given weights as checkpoint 0."""
    with files.staged_directory(run) as folder:
        files.write_json(folder / layout.CONFIG, config.as_json())
        files.write_file(folder / layout.TOKENIZER, tokenizer)
        manifest.write(folder, "run", run.name, parents, recorded)
        if weights is not None:
            checkpoint.save(folder, weights, None, checkpoint.START, {})
        if not config.data:  # nothing is left to do
            checkpoint.settle(folder, checkpoint.START, 1)
            write_status(folder, "finished", 0, 0, 0, [], f"imported from {config.origin['name']}")


def train(
    root: Path,
    name: str,
    asked: Asked,
    stop: StopRequest,
    dry_run: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Trains a new run or continues an existing one; returns its final status.

    Raises UsageError, MismatchError (config or data differ), Interrupted, DivergedError.
    """
    run = layout.new(root, "run", name)
    if dry_run:
        begun = run.exists() and (any(checkpoint.list_steps(run)) or _fits(root, run, asked))
        if force or not begun:
            return new(root, asked, stop)[0].as_json()
        stored = RunConfig.trained(run)
        _dataset(root, run, stored, asked)
        current = stored.now(run)
        now = dataclasses.replace(current, **changes(stored, current, asked))
        return dataclasses.replace(stored, training=now).as_json()
    with creating(run, root, "run", force):
        if not run.exists():
            create(run, *new(root, asked, stop))
        elif not any(checkpoint.list_steps(run)) and not _fits(root, run, asked):
            # Nothing is lost when a first try that never saved gives its name to a better one.
            with lock.hold(run / layout.LOCK, f"run {name}"):
                planned = new(root, asked, stop)
                where = files.to_trash(run, root)
            console.say(f"the {name} of before, which had no checkpoint yet, is in {where}")
            create(run, *planned)
        manifest.read(run, "run", hashes=True)
        with lock.hold(run / layout.LOCK, f"run {name}"):
            trainer = open_trainer(root, run, asked)
            if trainer is not None:
                trainer.fit(stop)
            return files.read_sealed(run / layout.STATUS)


def _dataset(root: Path, run: Path, stored: RunConfig, asked: Asked) -> Dataset:
    """What a run was started on; MismatchError where that is not what was asked for."""
    given = asked.data and layout.find(root, asked.data, "dataset")
    dataset = Dataset.open(given or inventory.dataset_of(root, stored.data), hashes=True)
    if dataset.manifest.id != stored.data["id"]:
        raise MismatchError(
            f"run {run.name} was started on dataset {stored.data['id'][:12]}, but "
            f"--data {asked.data or stored.data['name']} is {dataset.manifest.id[:12]}; "
            "name the same data or start a run with another --name"
        )
    return dataset


def open_trainer(root: Path, run: Path, asked: Asked) -> Trainer | None:
    """The Trainer of an existing run at its newest checkpoint; None when it is finished.

    The caller holds the run's lock.
    """
    stored = RunConfig.trained(run)
    original = stored.training  # as it was started
    found = checkpoint.newest(run)
    if found is None and checkpoint.list_steps(run):
        console.warn(f"no checkpoint is good; {run.name} starts again from step 0")
    state = found[1] if found else checkpoint.START
    step = state.step
    current = stored.now(run)
    change = changes(stored, current, asked)
    if asked.origin is not None:
        with contextlib.suppress(LmcliError, OSError):  # it may be gone, or not done yet
            origin = layout.find(root, asked.origin, "run")
            if RunConfig.read(origin).chosen(origin, None)[2] != stored.origin["id"]:
                console.warn(
                    f"{asked.origin} has other weights now than those that {run.name} began with; "
                    "--force begins anew"
                )
    planned = events.stopped_early(run, original.steps)
    if planned is not None and change.get("steps") == planned:
        del change["steps"]  # the same command again
    for problem in inventory.log_problems(run, layout.PERF):
        console.warn(f"{problem}; it holds timings only, the run goes on")
    if (run / layout.STATUS).exists() and not inventory.believed(run):
        console.warn(f"{run / layout.STATUS}: damaged; it is written anew")
    logs = [files.Log(run / name) for name in (layout.PERF, layout.EVENTS)]
    if step >= change.get("steps", current.steps):
        if "steps" in change:
            raise UsageError(f"--steps {change['steps']}: {run.name} is already at step {step}")
        if asked.data is not None:
            _dataset(root, run, stored, asked)
        console.say(f"run {run.name} is finished at step {step}; --steps N trains on")
        checkpoint.settle(run, state, current.keep_last)
        write_status(run, "finished", step, current.steps, 0, logs)
        return None
    dataset = _dataset(root, run, stored, asked)
    if "steps" in change and current.budget is not None:
        change["budget"] = None  # whoever asks for steps does not ask for the clock any more
    current = dataclasses.replace(current, **change)
    # With the threads it was started with, which it may have given up for a while.
    machine = precision.resolve(current.device, current.dtype, original.threads)
    precision.prepare(machine, current.tune)
    if found:
        checkpoint.check_shapes(found[0], parameters(stored.model))
    model = stored.build()
    model.to(machine.device)
    checkpoint.check_space(run, model, bool(original.ema))
    tokenizer = Tokenizer.load(run / layout.TOKENIZER)
    batches = stored.batches(dataset, tokenizer)
    optimizer = Optimizer(model, original)
    source = batches if machine.device == "cpu" else Ahead(batches)
    evaluate = validation(stored, dataset, tokenizer, current, _problems(current, asked))
    trainer = Trainer(run, model, optimizer, source, original, machine, evaluate, asked.profile)
    trainer.restore(found)
    if change:
        # First, because a status that says finished promises that nothing comes after it.
        write_status(run, "running", step, current.steps, None, logs)
        trainer.decide({"step": step, "change": change})
    if found and step:
        console.say(f"continuing {run.name} from step {step} of {current.steps}")
        other = machine.differences(manifest.read(found[0]).made)
        if other:
            console.warn(f"the bits may differ from an uninterrupted run's: {other}")
    else:
        began = f", beginning with those of {stored.origin['name']}" if stored.origin else ""
        learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
        part = f", {show_count(learn)} of them learn" if learn < model.n_parameters() else ""
        size = show_count(model.n_parameters())
        console.say(f"training {run.name}: {size} parameters{part}{began}")
        if isinstance(batches, Pairs) and batches.reader.n_cut:
            console.warn(
                f"{batches.reader.n_cut:,} pairs are longer than the context of "
                f"{stored.model.context_length} tokens and lose their end"
            )
    return trainer


def _problems(training: TrainingConfig, asked: Asked) -> Source | None:
    """What `best_by` pass@1 tests with; RefusedError unless the user allows it this time."""
    if training.problems is None:
        return None
    if not asked.allow_code_execution:
        raise RefusedError("pass@1 runs what a model wrote; allow it by --allow-code-execution")
    return read(training.problems, "test")


def validation(
    stored: RunConfig,
    dataset: Dataset,
    tokenizer: Tokenizer,
    training: TrainingConfig,
    problems: Source | None,
) -> Evaluate | None:
    """The one evaluation function, bound to the val split; None where there is none."""
    store = dataset.splits.get("val")
    if store is None or not store.n_tokens:
        return None
    config = EvaluationConfig(max_tokens=training.eval_tokens)
    reader = stored.reader(dataset, "val", tokenizer) if dataset.sources else None
    scorer = SplitScorer(store, tokenizer, stored.model, config, reader)
    metric, prompt, template = training.best_by, training.eval_prompt, stored.template(tokenizer)

    def write(engine: Engine, prompts: list[str], how: GenerationConfig) -> list[str]:
        room = engine.room(how.max_new_tokens) if template.before or template.after else None
        ids = [template.prompt(tokenizer.encode(text), room) for text in prompts]
        done = engine.generate(ids, how)
        return [tokenizer.decode(completions[0].ids) for completions in done]

    def evaluate(model: Transformer, step: int, say: Callable[[str], None]) -> dict[str, float]:
        model.eval()
        engine = Engine(model, tokenizer.eos_id, tokenizer.pad_id)
        counts = scorer.score(engine)
        numbers = {s.name: s.value for s in perplexity.scores(counts, scorer.context_length, 0)}
        found = {"val_loss": numbers["loss"], "val_bits_per_byte": numbers["bits_per_byte"]}
        greedy = GenerationConfig(temperature=0, batch_size=64)
        if problems is not None:
            prompts = [text for [text] in problems.segments("prompt", single=True)]
            verdicts = verdicts_on(problems, write(engine, prompts, greedy), ScoringConfig())
            found["val_pass@1"] = 100 * sum(v.passed for v in verdicts) / len(prompts)
        elif metric != "loss" and reader is not None:
            outputs = decode_pairs(engine, reader, tokenizer, greedy, training.eval_pairs)
            found[f"val_{metric}"] = score.measure(metric, *outputs, ScoringConfig()).score().value
        if prompt is not None:
            [text] = write(engine, [prompt], GenerationConfig(seed=step))
            say(f"step {step}  {prompt}{text}")
        return found

    return evaluate
