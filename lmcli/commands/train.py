"""lmcli train"""

import json
from pathlib import Path
from typing import Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.model import ModelConfig
from lmcli.config.training import TrainingConfig


@click.command(short_help="Train a model; the same command again resumes it.")
@click.option("--name", metavar="RUN", required=True, help="Name of the run.")
@click.option("--data", metavar="DATASET", help="Dataset to train on (needed for a new run).")
@click.option("--preset", "preset_name", metavar="NAME", help="Model shape: nano to gpt2-xl.")
@options.settings(TrainingConfig, ModelConfig, leave_out=("vocab_size",), file=True)
@click.option("--dry-run", is_flag=True, help="Print the resolved config and stop.")
@options.force_option
@options.common
def command(
    name: str,
    data: str | None,
    preset_name: str | None,
    given: dict[str, Any],
    dry_run: bool,
    force: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Train a model on a dataset, or continue a run that was interrupted.

    Everything automatic is resolved before the first step and stored in the run's config.json,
    which is law when the run continues: only --steps, the --*-every intervals and --device may
    change. Stopped by Ctrl-C, SIGTERM or worse, the same command goes on and ends with the same
    bits.

    \b
    Examples:
      lmcli train --data corpus --name base
      lmcli train --data corpus --name base --preset small --steps 5000 --lr 1e-3
      lmcli train --data corpus --name base --config run.toml
      lmcli train --name base --steps 8000          # train on
    """
    from lmcli import runs

    status = runs.train(root, name, data, preset_name, given, dry_run, force)
    if dry_run or as_json:
        console.answer(json.dumps(status, indent=2 if dry_run else None))
    elif status is not None:
        console.say(f"{name}: {status['state']} at step {status['step']}")
        console.say(f'next: lmcli sample {name} "Once upon a time"')
