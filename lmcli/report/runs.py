"""What there is to say about a run, read from its folder."""

import math
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli.artifacts import files, inventory, layout, manifest, schema


@dataclass(frozen=True)
class RunRecord:
    """One run: its facts for a table, its logs for curves, its evals, and how it was made."""

    name: str
    facts: dict[str, Any]
    metrics: list[dict[str, Any]]
    perf: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    commands: list[str]


def read(root: Path, reference: str) -> RunRecord:
    """Raises MissingInputError, or DataError for a file that changed."""
    run, made = manifest.find(root, reference, "run")
    config = files.read_json(run / layout.CONFIG, schema.CONFIG)
    status = inventory.status(run)
    metrics = inventory.read_log(run, layout.METRICS)
    perf = [row | {"minutes": row["seconds"] / 60} for row in inventory.read_log(run, layout.PERF)]
    evals = inventory.evals(run)
    rates = [r["tokens_per_second"] for r in perf if "tokens_per_second" in r]
    losses = [r for r in metrics if "val_loss" in r]
    best = min(losses, key=lambda r: r["val_loss"]) if losses else {}
    facts: dict[str, Any] = {
        "run": run.name,
        "state": status["state"],
        "step": status["step"],
        "parameters": _n_parameters(run),
        "tokens": max((r["tokens"] for r in metrics if "tokens" in r), default=0),
        "loss": status.get("loss"),
        "val_loss": best.get("val_loss"),
        "val_bits_per_byte": best.get("val_bits_per_byte"),
        "best_step": best.get("step"),
        "tokens_per_second": round(statistics.median(rates)) if rates else None,
        "minutes": round(perf[-1]["minutes"], 2) if perf else None,
        "data": (config["data"] or config.get("origin") or {}).get("name"),
    }
    for result in evals:
        place = f"{result['dataset']['name']}_{result['dataset']['split']}"
        for score in result["scores"]:
            if score["name"] not in ("loss", "word_perplexity", "byte_perplexity"):
                facts[f"{place}_{score['name']}{_recipe(result)}"] = score["value"]
    return RunRecord(run.name, facts, metrics, perf, evals, _commands(root, made))


def _recipe(result: dict[str, Any]) -> str:
    """What sets a score apart from the one of the whole split by default."""
    settings, parts = result["settings"], []
    for key, usual in {"stride": 0, "max_tokens": 0, "num_beams": 1, "temperature": 0}.items():
        if settings.get(key, usual) not in (usual, None):
            parts.append(f"_{key}_{settings[key]:g}")
    made = ("tokenize", "rouge_tokenizer", "stem", "lowercase")  # there where not the default
    parts += [f"_{key}_{settings[key]}" for key in made if key in settings]
    if settings.get("pairs", result["counts"]["documents"]) < result["counts"]["documents"]:
        parts.append(f"_pairs_{settings['pairs']}")
    return "".join(parts)


def _n_parameters(run: Path) -> int | None:
    """From the header of the newest weights, or of all that the run began with."""
    steps = inventory.checkpoints(run)["steps"]
    if not steps:
        return None
    path = layout.checkpoint(run, 0 if 0 in steps else steps[-1]) / layout.MODEL
    return sum(map(math.prod, inventory.shapes(path).values()))


def _commands(root: Path, made: manifest.Manifest) -> list[str]:
    """The command lines that made a run's parents, and then the run."""
    lines = []
    for kind in ("tokenizer", "dataset"):
        parent = inventory.name_of(root, made.parents.get(kind, ""))
        if parent is not None:
            lines.append(manifest.find(root, parent)[1].made["command"])
    return [shlex.join(line) for line in [*lines, made.made["command"]]]
