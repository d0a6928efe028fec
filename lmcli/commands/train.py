"""lmcli train"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lmcli import console
from lmcli.artifacts import files, layout, lock, schema
from lmcli.commands import options
from lmcli.config.model import ModelConfig
from lmcli.config.training import Asked, StartConfig, TrainingConfig
from lmcli.config.tuning import TaskConfig
from lmcli.errors import Interrupted, LockedError
from lmcli.signals import StopRequest

# The options of `run_training`: the last ones of a command that trains.
how = options.family(
    click.option(
        "--max-time",
        type=options.time,
        envvar="LMCLI_MAX_TIME",
        help="Save and stop (exit code 75) before 3h55m, say, are over.",
    ),
    options.allow_code_execution,
    click.option(
        "--profile",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        help="Trace N steps to RUN.trace.json, for chrome://tracing, and show where time goes.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the resolved config and stop."),
    options.force_option,
    options.common,
)


@click.command()
@click.option("--name", metavar="RUN", required=True, help="Name of the run.")
@click.option("--from", "origin", metavar="RUN", help="Run whose best weights to begin with.")
@options.settings(
    *(StartConfig, TrainingConfig, TaskConfig, ModelConfig), leave_out=("vocab_size",), file=True
)
@how
def command(name: str, origin: str | None, given: dict[str, Any], **how: Any) -> None:
    """Train a model on a dataset of text or pairs, or continue a run that was interrupted.

    Everything automatic is resolved before the first step and stored in the run's config.json,
    which is law when the run continues: only --steps, the --*-every intervals and --device may
    change. Stopped by Ctrl-C, SIGTERM or worse, the same command goes on and ends with the same
    bits.

    \b
    Examples:
      lmcli train --data corpus --name base
      lmcli train --data corpus --name base --preset small --steps 5000 --lr 1e-3
      lmcli train --data corpus --name base --config run.toml
      lmcli train --data pairs --name en-de --preset transformer-tiny
      lmcli train --from gpt2 --data corpus --name tuned --lr 1e-4
      lmcli train --name base --steps 8000          # train on
      lmcli train --name base --max-time 3h55m      # in a job of four hours
    """
    options.read_template(given)
    data, preset = given.pop("data", None), given.pop("preset", None)
    run_training(name, Asked(data, preset, origin, given), **how)


def run_training(
    name: str,
    asked: Asked,
    max_time: float | None,
    profile: int,
    allow_code_execution: bool,
    dry_run: bool,
    force: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Trains the run `name` as `asked`."""
    run = layout.new(root, "run", name)
    for path in (layout.creation_lock(run), run / layout.LOCK):
        if lock.is_held(path):
            raise LockedError(f"run {name} is being written by {lock.holder(path)}")
    # A stop that is asked for while torch is loading counts too.
    with StopRequest(max_time) as stop:
        from lmcli.runs.start import train

        asked = replace(asked, profile=profile, allow_code_execution=allow_code_execution)
        try:
            status = train(root, name, asked, stop, dry_run, force)
        except Interrupted as error:
            how = "the same command, without --force," if force else "the same command"
            raise Interrupted(f"{error}; {how} continues") from None
    if dry_run or as_json:
        console.answer(json.dumps(status, indent=2 if dry_run else None))
    else:
        console.say(f"{name}: {status['state']} at step {status['step']}")
        config = files.read_json(run / layout.CONFIG, schema.CONFIG)
        pairs = config.get("tuning", {}).get("template") is not None
        sample = f'sample {name} "Once upon a time"'
        console.say(f"next: lmcli {f'eval {name} --split val' if pairs else sample}")
