"""lmcli eval"""

from pathlib import Path
from typing import Any

import click

from lmcli import console
from lmcli.artifacts import layout
from lmcli.commands import options
from lmcli.config.fields import pick
from lmcli.config.generation import GenerationConfig, generation
from lmcli.config.scoring import METRICS, EvaluationConfig, ScoringConfig

NOT_HERE = ("num_return_sequences", "hyp_key", "ref_key", "trials")
USUAL = {"temperature": 0, "batch_size": 64}


@click.command()
@click.argument("run")
@click.option("--data", metavar="DATASET", help="Dataset  [default: the one it was trained on]")
@options.choice("--split", "Split to score.", layout.SPLITS, "test")
@click.option(
    "--metric",
    "-m",
    "metrics",
    multiple=True,
    type=click.Choice(list(METRICS)),
    help="Pairs: score the run's outputs too (repeatable).  [default: the task's own]",
)
@options.number("--max-pairs", 0, "Pairs: decode the first N only; 0: all.", low=0)
@options.settings(
    EvaluationConfig, ScoringConfig, GenerationConfig, leave_out=NOT_HERE, usual=USUAL
)
@options.checkpoint_options
@options.common
def command(
    run: str,
    data: str | None,
    split: str,
    metrics: tuple[str, ...],
    max_pairs: int,
    given: dict[str, Any],
    at: dict[str, Any],
    root: Path,
    as_json: bool,
) -> None:
    """Score a run on a split: perplexity per token, word and byte, and bits per byte.

    Every document is scored after one end-of-document token, every token exactly once. On pairs,
    each target is scored after its source, and what the run makes of the sources is judged by
    --metric; decoding is greedy unless --num-beams or --temperature says otherwise. The result is
    also kept in the run's evals/ folder.

    \b
    Examples:
      lmcli eval base --data corpus --split test
      lmcli eval en-de --metric bleu --metric chrf --num-beams 5
      lmcli eval base --split val --stride 128 --json
    """
    config = pick(EvaluationConfig, given)
    scoring = pick(ScoringConfig, given)
    decoding = generation(given, USUAL)
    from lmcli.runs.load import evaluate, keep, load

    loaded = load(root, run, **at)
    result = evaluate(loaded, root, data, split, config, metrics, max_pairs, decoding, scoring)
    if as_json:
        console.answer_json(result)
    else:
        counts = result["counts"]
        console.say(
            f"{run} at step {loaded.step} on {result['dataset']['name']}/{split}: "
            f"{counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes']:,} bytes"
        )
        if "pairs" in (how := result["settings"]):
            beams = f"{how['num_beams']} beams" if how["num_beams"] > 1 else "greedy"
            way = f"temperature {how['temperature']:g}" if how["temperature"] else beams
            console.say(f"outputs of {how['pairs']:,} of {counts['documents']:,} pairs, {way}")
        console.answer(console.table([(s["name"], f"{s['value']:.8g}") for s in result["scores"]]))
        for signature in dict.fromkeys(s["signature"] for s in result["scores"]):
            console.say(signature)
    keep(loaded, result)  # last, so that a disk that refuses costs no answer
