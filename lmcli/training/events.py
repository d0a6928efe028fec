"""The decisions of a run, which resuming replays: a changed setting, a skipped step, a rewind.

{"step", "change": {setting: value}}   in force from the step after
{"step", "skip": why}                  the step made no update
{"step", "rewind": n, "why"}           back to this step, the next n batches left out
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmcli.artifacts import inventory, layout
from lmcli.config import fields
from lmcli.config.training import TrainingConfig
from lmcli.errors import DataError, UsageError


def read(run: Path) -> list[dict[str, Any]]:
    """Every decision, and none that changed since status.json saw it."""
    for problem in inventory.log_problems(run, layout.EVENTS):
        raise DataError(f"{problem}; restore it, the run depends on what it says")
    return inventory.read_log(run, layout.EVENTS)


def stopped_early(run: Path, steps: int) -> int | None:
    """How many steps there were to be, at first `steps`, when `patience` ended the run; else None.

    It sets the steps to those that were done.
    """
    ends = [(e["step"], e["change"]["steps"]) for e in read(run) if "steps" in e.get("change", {})]
    if not ends or ends[-1][0] != ends[-1][1]:
        return None
    return ends[-2][1] if len(ends) > 1 else steps


def changed(config: TrainingConfig, event: dict[str, Any]) -> TrainingConfig:
    """The settings after a decision."""
    try:
        return fields.build(TrainingConfig, asdict(config) | event.get("change", {}))
    except UsageError as error:
        where = f"{layout.EVENTS}, step {event['step']}"
        raise DataError(f"{where}: {error}; restore the file") from None
