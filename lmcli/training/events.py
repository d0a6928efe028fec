"""The decisions of a run, which resuming replays: a changed setting, a skipped step, a rewind.

{"step", "change": {setting: value}}   in force from the step after
{"step", "skip": why}                  the step made no update
{"step", "rewind": n, "why"}           back to this step, the next n batches left out
"""

from pathlib import Path
from typing import Any

from lmcli.artifacts import files, inventory, layout
from lmcli.config import fields
from lmcli.config.training import TrainingConfig
from lmcli.errors import DataError, UsageError

_KINDS = {"change": dict, "skip": str, "rewind": int}


def read(run: Path) -> list[dict[str, Any]]:
    """Every decision, each of a known shape, and none that changed since status.json saw it."""
    path = run / layout.EVENTS
    for problem in inventory.log_problems(run, layout.EVENTS, _status(run)):
        raise DataError(f"{problem}; restore it, the run depends on what it says")
    found = files.read_log(path)
    for number, event in enumerate(found, 1):
        kinds = [kind for kind in _KINDS if isinstance(event.get(kind), _KINDS[kind])]
        if type(event.get("step")) is not int or len(kinds) != 1:
            raise DataError(f"{path}:{number}: not a decision of a run; restore the file")
        try:
            fields.build(TrainingConfig, event.get("change", {}))
        except UsageError as error:
            raise DataError(f"{path}:{number}: {error}; restore the file") from None
    return found


def _status(run: Path) -> dict[str, Any]:
    """What the last status.json says; nothing where there is none or it is damaged."""
    try:
        return files.read_sealed(run / layout.STATUS) if (run / layout.STATUS).exists() else {}
    except DataError:
        return {}


def harmless_problems(run: Path) -> list[str]:
    """Damage to the status and the timings, which a run goes on without."""
    found = []
    if (run / layout.STATUS).exists() and not _status(run):
        found.append(f"{run / layout.STATUS}: damaged; it is written anew")
    for problem in inventory.log_problems(run, layout.PERF, _status(run)):
        found.append(f"{problem}; it holds timings only, the run goes on")
    return found
