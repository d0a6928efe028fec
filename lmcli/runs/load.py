"""A trained run behind an Engine, to sample from or to score."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmcli import console
from lmcli.artifacts import files, inventory, layout, lock, manifest
from lmcli.config.generation import GenerationConfig
from lmcli.config.scoring import EvaluationConfig, ScoringConfig
from lmcli.dataset.store import Dataset
from lmcli.errors import LmcliError, MismatchError, UsageError
from lmcli.evaluation.attention import WordAttention, cross_attention, word_attention
from lmcli.evaluation.evaluate import SplitScorer, decode_pairs, likelihoods
from lmcli.inference.engine import Engine
from lmcli.metrics import perplexity, score
from lmcli.model.packing import pack
from lmcli.model.transformer import Transformer
from lmcli.runs.config import RunConfig, check_tokenizer, parameters
from lmcli.text import tasks
from lmcli.text.tokenizer import Tokenizer
from lmcli.training import checkpoint, precision
from lmcli.training.precision import Machine


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

    def encode(self, prompt: str, n_new: int = 1) -> list[int]:
        """The ids of a prompt, which is a source within its template for a run on pairs. As in
        training, one that leaves no room for its template and `n_new` ids more loses its end."""
        template, ids = self.config.template(self.tokenizer), self.tokenizer.encode(prompt)
        if not template.before and not template.after:
            return ids
        room = self.engine.room(n_new)
        if (lost := len(template.prompt(ids)) - room) > 0:
            console.warn_once(
                f"a source of {len(ids)} tokens loses its last {lost}, so that there is room for "
                f"the rest: the context is {self.engine.context_length}"
            )
        return template.prompt(ids, room)

    def complete(self, prompts: Sequence[str], config: GenerationConfig) -> list[list[str]]:
        """`num_return_sequences` completions of each prompt."""
        ids = [self.encode(p, config.max_new_tokens) for p in prompts]
        done = self.engine.generate(ids, config)
        return [[self.tokenizer.decode(c.ids) for c in completions] for completions in done]

    def likelihoods(self, texts: Sequence[tuple[str | None, str, bool]]) -> list[list[float]]:
        """The log-probability of each token of (prompt or source, text, whether `<eos>` ends it).

        As for `sample` the prompt is read within the run's template. A text alone is a document.
        """
        items = []
        for prompt, text, ended in texts:
            ids = self.tokenizer.encode(text) + [self.tokenizer.eos_id] * ended
            items.append((None if prompt is None else self.encode(prompt, len(ids)), ids))
        found = likelihoods(self.engine, items, batch_tokens=8192)
        return [values.tolist() for values in found]

    def next_tokens(self, prompt: str, top: int) -> list[dict[str, Any]]:
        """The `top` most likely tokens after a prompt, with P(w_t | w_1 .. w_t-1)."""
        logprobs = self.engine.next_logprobs(self.encode(prompt))
        return [
            {
                "id": i,
                "token": self.tokenizer.decode([i]) if i != self.tokenizer.eos_id else "<eos>",
                "probability": math.exp(logprobs[i]),
                "logprob": float(logprobs[i]),
            }
            for i in (-logprobs).argsort(kind="stable")[:top].tolist()
        ]

    def attention(self, text: str, target: str | None = None) -> WordAttention:
        """What each word of a text looked at; of an encoder-decoder each word of a target, by
        default of the likeliest one, in its source."""
        if not self.engine.has_encoder:
            if target is not None:
                raise UsageError("--target is for models with an encoder")
            return word_attention(self.engine, self.tokenizer, text)
        if target is None:
            [[target]] = self.complete([text], GenerationConfig(temperature=0))
        template = self.config.template(self.tokenizer)
        return cross_attention(self.engine, self.tokenizer, text, target, template)


def load(
    root: Path,
    reference: str,
    which: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    compile: bool = False,
) -> LoadedRun:
    """The run's best, last, mean or numbered checkpoint behind an Engine; by default the best, or
    the mean where the run was told to average. With 8 or 4 bits the rest is bfloat16. What cannot
    be compiled is left as it is."""
    if quantize != "none":
        if dtype == "float32":
            raise UsageError(f"--quantize {quantize} computes in bfloat16, not --dtype float32")
        dtype = "bfloat16"
    run, _ = manifest.find(root, reference, "run", hashes=True)
    config = RunConfig.read(run)
    machine = precision.resolve(device, dtype, 0, exact=True)
    if quantize == "int4" and machine.device != "cpu":
        raise UsageError("--quantize int4 is for CPUs so far; int8 is for all devices")
    precision.prepare(machine)
    shapes = parameters(config.model)
    while True:
        steps = checkpoint.list_steps(run)
        try:
            folders, state, checkpoint_id = config.chosen(run, which)
            checkpoint.check_shapes(folders[0], shapes)
            model = Transformer(config.model)
            checkpoint.load_weights(model, folders[0], config.weights(folders))
            break
        except (LmcliError, FileNotFoundError):
            if checkpoint.list_steps(run) == steps:  # a living run may have pruned it meanwhile
                raise
    model.to(machine.device, getattr(torch, machine.dtype)).eval()
    if machine.dtype == "bfloat16":
        pack(model, quantize)
        machine = dataclasses.replace(machine, dtype=quantize if quantize != "none" else "bfloat16")
    if compile:
        model.decoder.forward = precision.compiled_forward(model.decoder.forward, fall_back=True)  # type: ignore[method-assign]
    tokenizer = Tokenizer.load(run / layout.TOKENIZER)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise MismatchError(f"{run}: its tokenizer has more tokens than its model; restore it")
    engine = Engine(model, tokenizer.eos_id, tokenizer.pad_id)
    return LoadedRun(run, config, engine, tokenizer, machine, state.step, checkpoint_id)


def evaluate(
    loaded: LoadedRun,
    root: Path,
    data: str | None,
    split: str,
    config: EvaluationConfig,
    metrics: Sequence[str],
    max_pairs: int,
    decoding: GenerationConfig,
    scoring: ScoringConfig,
) -> dict[str, Any]:
    """Scores a split of a dataset, by default of the one that the run was trained on.

    Of pairs also what the run makes of the first `max_pairs` sources (0: all), by `metrics` or else
    the task's own.

    Raises MismatchError when that is not what bears its name now, or when the dataset was made
    with another tokenizer.
    """
    trained_on = loaded.config.data
    if data is None and not trained_on:
        raise UsageError(f"--data names the dataset to score on: {loaded.path.name} was imported")
    path = layout.find(root, data, "dataset") if data else inventory.dataset_of(root, trained_on)
    dataset = Dataset.open(path, hashes=True)
    if data is None and dataset.manifest.id != trained_on["id"]:
        raise MismatchError(
            f"{trained_on['name']} is no longer the dataset that {loaded.path.name} was trained "
            f"on; score it all the same with --data {trained_on['name']}"
        )
    data = data or path.name
    check_tokenizer(loaded.path, data, dataset)
    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {data} has {', '.join(dataset.splits)}")
    if (metrics or max_pairs) and not dataset.sources:
        what = f"--metric {metrics[0]}" if metrics else f"--max-pairs {max_pairs}"
        raise UsageError(f"{what} is for pairs, but {data} is plain text")
    if config.stride and (dataset.sources or loaded.engine.has_encoder):
        raise UsageError("--stride is for plain text and a decoder: nothing else has windows")
    model, task, tokenizer = loaded.config.model, loaded.config.tuning.task, loaded.tokenizer
    reader = loaded.config.reader(dataset, split, tokenizer) if dataset.sources else None
    scorer = SplitScorer(dataset.splits[split], tokenizer, model, config, reader)
    with console.Progress("window", scorer.n_windows) as progress:
        counts = scorer.score(loaded.engine, progress.update)
    scores = perplexity.scores(counts, model.context_length, scorer.stride)
    settings = dataclasses.asdict(config) | {"dtype": loaded.machine.dtype}
    metrics = metrics or ([tasks.TASKS[task].metric] if task else [])
    if metrics and reader is not None:
        outputs = decode_pairs(loaded.engine, reader, tokenizer, decoding, max_pairs)
        scores += [score.measure(metric, *outputs, scoring).score() for metric in metrics]
        made = {k: v for k, v in vars(scoring).items() if v != getattr(ScoringConfig(), k)}
        how = dataclasses.asdict(decoding) | made | {"pairs": len(outputs[0])}
        settings |= {"metrics": "+".join(metrics), "outputs": files.digest(how)[:8], **how}
    return {
        "run": loaded.path.name,
        "run_id": manifest.read(loaded.path, "run").id,
        "checkpoint": {"step": loaded.step, "id": loaded.checkpoint_id},
        "dataset": {"name": data, "id": dataset.manifest.id, "split": split},
        "counts": dataclasses.asdict(counts),
        "settings": settings,
        "scores": [dataclasses.asdict(s) for s in scores],
    }


def keep(loaded: LoadedRun, result: dict[str, Any]) -> None:
    """Writes a result to the run's evals/."""
    data = result["dataset"]
    name = layout.eval_name(data["name"], data["split"], loaded.step, result["settings"])
    folder = loaded.path / layout.EVALS
    with lock.hold(folder / layout.EVALS_LOCK, f"an eval of {loaded.path.name}", patience=30):
        files.sweep(folder)
        files.write_sealed(folder / name, result)
