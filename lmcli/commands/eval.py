"""lmcli eval"""

from pathlib import Path
from typing import Any

import click

from lmcli import console
from lmcli.artifacts import layout
from lmcli.commands import options
from lmcli.config.evaluation import EvaluationConfig
from lmcli.config.fields import build


@click.command(short_help="Perplexity and bits per byte of a run on a dataset.")
@click.argument("run")
@click.option("--data", metavar="DATASET", help="Dataset  [default: the one it was trained on]")
@click.option(
    "--split",
    type=click.Choice(layout.SPLITS),
    default="test",
    show_default=True,
    help="Split to score.",
)
@options.settings(EvaluationConfig)
@options.checkpoint_options
@options.common
def command(
    run: str,
    data: str | None,
    split: str,
    given: dict[str, Any],
    at: dict[str, str],
    root: Path,
    as_json: bool,
) -> None:
    """Score a run on a split: perplexity per token, word and byte, and bits per byte.

    Every document is scored after one end-of-document token, every token exactly once. The result
    is also kept in the run's evals/ folder.

    \b
    Examples:
      lmcli eval base --data corpus --split test
      lmcli eval base --split val --stride 128 --json
    """
    from lmcli.runs.load import evaluate, keep, load

    config = build(EvaluationConfig, given)
    loaded = load(root, run, **at)
    result = evaluate(loaded, root, data, split, config)
    if as_json:
        console.answer_json(result)
    else:
        counts = result["counts"]
        console.say(
            f"{run} at step {loaded.step} on {result['dataset']['name']}/{split}: "
            f"{counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes']:,} bytes"
        )
        console.answer(console.table([(s["name"], f"{s['value']:.8g}") for s in result["scores"]]))
        console.say(result["scores"][0]["signature"])
    keep(loaded, result)  # last, so that a disk that refuses costs no answer
