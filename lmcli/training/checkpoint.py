"""Checkpoints: what a step needs to go on, committed as one folder.

step-000500/ model.safetensors (float32 weights)  optimizer.safetensors (by parameter name)
             state.json (step, log length and hash, best)  manifest.json (written last)

The newest folder whose manifest validates is the truth; index.json is only a hint for people.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmcli import console
from lmcli.artifacts import files, layout, manifest
from lmcli.errors import DataError, LmcliError, MismatchError, StorageError
from lmcli.training.optimizers import Optimizer


@dataclass(frozen=True)
class State:
    """The part of a checkpoint that is not tensors."""

    step: int
    tokens: int
    metrics_bytes: int
    metrics_sha256: str
    best: dict[str, Any] | None = None
    skipped: tuple[tuple[int, int], ...] = ()


def save(run: Path, model: nn.Module, optimizer: Optimizer, state: State) -> Path:
    """Commits a checkpoint and returns its folder; one that is already there is left alone."""
    final = layout.checkpoint(run, state.step)
    if final.exists():
        if not manifest.verify(final):
            return final
        files.remove(final)
    with files.staged_directory(final) as folder:
        _save_tensors(model.state_dict(), folder / layout.MODEL)
        _save_tensors(optimizer.state_tensors(), folder / layout.OPTIMIZER)
        files.write_json(folder / layout.STATE, asdict(state))
        manifest.write(folder, "checkpoint", f"{run.name}/{final.name}", {"run": _run_id(run)})
    files.write_json(
        run / layout.CHECKPOINTS / layout.INDEX,
        {"last": state.step, "best": state.best["step"] if state.best else None},
    )
    return final


def _run_id(run: Path) -> str:
    return manifest.read(run, "run").id


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    plain = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path}: {error}; the earlier checkpoint is intact") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable as safetensors ({error})") from None


def list_steps(run: Path) -> list[int]:
    """Steps that have a checkpoint folder, oldest first, valid or not."""
    folder = run / layout.CHECKPOINTS
    steps = [layout.step_of(p) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(s for s in steps if s is not None)


def newest(run: Path, at_most: int | None = None) -> tuple[Path, State] | None:
    """The newest checkpoint that validates by hash; damaged ones are passed over, and named."""
    for step in reversed(list_steps(run)):
        if at_most is not None and step > at_most:
            continue
        folder = layout.checkpoint(run, step)
        try:
            return folder, read_state(folder)
        except MismatchError:
            raise
        except LmcliError as error:
            console.warn(f"{error}; going back to the checkpoint before it")
    return None


def choose(run: Path, which: str) -> tuple[Path, State]:
    """The checkpoint to use for `last`, `best` or a step number."""
    found = newest(run)
    if found is None:
        raise DataError(f"{run}: no checkpoint yet; train it first")
    if which == "last":
        return found
    if which == "best":
        step = found[1].best["step"] if found[1].best else found[1].step
    else:
        step = int(which)
    folder = layout.checkpoint(run, step)
    if not folder.is_dir():
        steps = ", ".join(str(s) for s in list_steps(run))
        raise DataError(f"{run}: no checkpoint at step {step}; there are {steps}")
    return folder, read_state(folder)


def read_state(folder: Path) -> State:
    """The state of a checkpoint after every file's hash was checked."""
    manifest.read(folder, "checkpoint", hashes=True)
    value = files.read_json(folder / layout.STATE)
    try:
        value["skipped"] = tuple(tuple(pair) for pair in value.get("skipped", ()))
        return State(**value)
    except TypeError as error:
        raise DataError(f"{folder / layout.STATE}: {error}") from None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copies a checkpoint's weights into `model`; names and shapes must match exactly."""
    path = folder / layout.MODEL
    try:
        model.load_state_dict(load_tensors(path), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MismatchError(f"{path}: does not fit the run's config: {first}") from None


def prune(run: Path, keep_last: int, best: int | None) -> None:
    """Removes old checkpoints, after a newer one is durable; only valid ones count as kept."""
    steps = list_steps(run)
    kept = set(steps[-keep_last:]) | ({best} if best is not None else set())
    for step in steps:
        if step not in kept:
            files.remove(layout.checkpoint(run, step))


def check_space(run: Path, model: nn.Module) -> None:
    """Refuses before the first step when two checkpoints would not fit on the disk."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    need = 2 * 3 * weights
    free = shutil.disk_usage(run).free
    if free < need:
        raise StorageError(
            f"{run}: {free / 2**20:.0f} MiB free, but two checkpoints need "
            f"{need / 2**20:.0f} MiB; free some space or choose another --artifacts"
        )


def sweep(run: Path) -> None:
    """Removes what a killed process left in a run; the caller holds its lock."""
    for folder in (run, run / layout.CHECKPOINTS, run / layout.EVALS):
        files.sweep(folder)
