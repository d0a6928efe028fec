"""Proof that a run is what its config, data and seed give: train its last steps again."""

from pathlib import Path
from typing import Any

from lmcli.artifacts import files, layout, lock, manifest
from lmcli.config.training import Asked
from lmcli.errors import UsageError
from lmcli.runs.start import open_trainer
from lmcli.signals import StopRequest
from lmcli.training import checkpoint, events

COPIED = (layout.CONFIG, layout.TOKENIZER, layout.MANIFEST, layout.METRICS, layout.EVENTS)


def prove(
    root: Path, reference: str, steps: int, allow_code_execution: bool = False
) -> dict[str, Any]:
    """Trains the last steps of a run again, in a copy, and compares what came out, bit for bit.

    Starts at the newest checkpoint at least `steps` before the last one, or at the start of the
    run. Raises UsageError where that would take more steps than asked for, LockedError while the
    run is being trained.
    """
    run, _ = manifest.find(root, reference, "run", hashes=True)
    copy = run.with_name(f"{files.TEMPORARY}prove-{run.name}") / run.name
    with lock.hold(run / layout.LOCK, f"run {run.name}"):
        folder, state = checkpoint.choose(run, "last")
        if not state.step:
            raise UsageError(f"{run.name} has taken no step yet that could be taken again")
        events.read(run)
        found = checkpoint.newest(run, at_most=max(0, state.step - steps))
        first = found[1].step if found else 0
        if not found and steps < state.step:
            can = sorted({state.step - s for s in checkpoint.list_steps(run)} - {0} | {state.step})
            raise UsageError(
                f"--steps {steps}: no checkpoint is that far back; possible: "
                f"{', '.join(map(str, can))}"
            )
        files.remove(copy.parent)
        try:
            for name in COPIED:
                if (run / name).exists():
                    files.copy(run / name, copy / name)
            for kept in {found[0], layout.checkpoint(run, 0)} if found else ():
                for path in kept.glob("*"):
                    files.copy(path, copy / layout.CHECKPOINTS / kept.name / path.name)
            trainer = open_trainer(root, copy, Asked(allow_code_execution=allow_code_execution))
            assert trainer is not None
            trainer.fit(StopRequest(), until=state.step)
            again = layout.checkpoint(copy, state.step)
            difference = checkpoint.first_difference(folder, again)
            cause = trainer.machine.differences(manifest.read(folder).made)
        finally:
            files.remove(copy.parent)
    return {
        "run": run.name,
        "first": first,
        "last": state.step,
        "same": difference is None,
        "difference": difference,
        "environment": cause or "the same",
    }
