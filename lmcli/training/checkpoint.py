"""Checkpoints: what a step needs to go on, committed as one folder.

step-000500/ model.safetensors (float32 weights)  optimizer.safetensors (by parameter name)
             state.json (step, log length and hash, best)  manifest.json (written last)

The newest folder whose manifest validates is the truth; index.json is only a hint for people.
Step 0 is there where a run starts from weights that were not drawn: without an optimizer. Later
checkpoints leave out those of them that are frozen, and name it as their parent `base`.
"""

import contextlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmcli import console
from lmcli.artifacts import files, inventory, layout, manifest
from lmcli.artifacts.layout import list_steps as list_steps
from lmcli.errors import (
    DataError,
    DivergedError,
    LmcliError,
    MismatchError,
    StorageError,
    out_of_memory,
)
from lmcli.training.optimizers import Optimizer


@dataclass(frozen=True)
class State:
    """The part of a checkpoint that is not tensors."""

    step: int
    tokens: int
    metrics_bytes: int
    metrics_sha256: str
    best: dict[str, Any] | None = None
    recent: Sequence[Sequence[float]] = ()  # loss and gradient norm, to know a spike by


START = State(0, 0, 0, files.EMPTY)


def save(
    run: Path,
    weights: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    state: State,
    environment: dict[str, Any],
) -> None:
    """Commits a checkpoint; a good one that is there already stays.

    What is frozen is not written again where the checkpoint of step 0 has it.
    Raises DivergedError for a tensor that is not finite, StorageError with the disk's reason.
    """
    final = layout.checkpoint(run, state.step)
    if final.exists():
        try:
            read_state(run, final)
            return
        except DataError:
            files.remove(final)
    made = manifest.read(run, "run")
    parents = {"run": made.id}
    learnt = weights.keys() if optimizer is None else set(optimizer.names.values())
    if learnt < weights.keys():
        with contextlib.suppress(LmcliError):
            parents["base"] = manifest.read(layout.checkpoint(run, 0), "checkpoint").id
            weights = {name: tensor for name, tensor in weights.items() if name in learnt}
    with files.staged_directory(final) as folder:
        _save_tensors(weights, folder / layout.MODEL, state.step)
        if optimizer is not None:
            _save_tensors(optimizer.state_tensors(), folder / layout.OPTIMIZER, state.step)
        files.write_json(folder / layout.STATE, asdict(state))
        name = f"{made.name}/{final.name}"
        manifest.write(folder, "checkpoint", name, parents, environment=environment)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path, step: int) -> None:
    plain = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    for name, tensor in plain.items():
        if not torch.isfinite(tensor).all():
            raise DivergedError(f"step {step}: {name} is not finite, so no checkpoint was written")
    try:
        files.write_with(path, lambda to: save_file(plain, to, metadata={"format": "pt"}))
    except SafetensorError as error:
        raise StorageError(f"{path}: {error}; the earlier checkpoint is intact") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, which are float32: what others are, lmcli did not write."""
    try:
        tensors = dict(load_file(path))
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32:
                raise DataError(f"{path}: {name} is {tensor.dtype}, not float32; restore it")
        return tensors
    except SafetensorError as error:
        raise DataError(f"{path}: not readable as safetensors ({error})") from None
    except (OSError, RuntimeError) as error:  # for safetensors whatever cannot be opened is missing
        if out_of_memory(error):
            raise
        path.stat()  # FileNotFoundError for what a living run has pruned
        raise StorageError(f"{path}: cannot be opened ({error})") from None


def load_model(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, the frozen ones out of its base."""
    base = manifest.base(folder)
    frozen = load_tensors(base / layout.MODEL) if base else {}
    return frozen | load_tensors(folder / layout.MODEL)


def load_optimizer(folder: Path) -> dict[str, Tensor]:
    """The optimizer's state in a checkpoint, as `state_tensors` gave it."""
    return load_tensors(folder / layout.OPTIMIZER)


def newest(run: Path, at_most: float = math.inf) -> tuple[Path, State] | None:
    """The newest checkpoint that validates by hash; damaged ones are passed over, and named.

    The caller holds the run's lock, so that none is pruned meanwhile.
    """
    for step in reversed([step for step in list_steps(run) if step <= at_most]):
        folder = layout.checkpoint(run, step)
        try:
            return folder, read_state(run, folder)
        except (MismatchError, StorageError):  # a disk that refuses is not a damaged file
            raise
        except LmcliError as error:
            console.warn(f"{error}; going back to the checkpoint before it")
    return None


def choose(run: Path, which: str) -> tuple[Path, State]:
    """The checkpoint to use for `last`, `best` or a step number, and never another one: a
    damaged one is a DataError that says what else there is."""
    steps = list_steps(run)
    if not steps:
        raise DataError(f"{run}: no checkpoint yet; train it first")
    listing = ", ".join(map(str, steps))
    try:
        step = steps[-1]
        if which == "best":
            best = read_state(run, layout.checkpoint(run, step)).best
            step = best["step"] if best else step
        elif which != "last":
            step = int(which)
        folder = layout.checkpoint(run, step)
        if folder.is_dir():
            return folder, read_state(run, folder)
    except DataError as error:
        again = f"; `lmcli train --name {run.name}` makes the last one again"
        raise DataError(
            f"{error}; use another checkpoint of {listing}{again if step == steps[-1] else ''}"
        ) from None
    raise DataError(f"{run}: no checkpoint at step {step}; there are {listing}")


def read_state(run: Path, folder: Path) -> State:
    """The state of a checkpoint after its place and every file's hash were checked."""
    manifest.check_checkpoint(run, folder, hashes=True)
    value = inventory.state(folder)
    return State(**{f.name: value[f.name] for f in fields(State) if f.name in value})


def check_shapes(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises MismatchError, before any memory is taken, where weights are not of these shapes."""
    path = folder / layout.MODEL
    try:
        found = inventory.shapes(path)
    except DataError:
        return  # loading says it
    for name in sorted(shapes):
        if found.get(name, shapes[name]) != shapes[name]:
            raise MismatchError(
                f"{path}: {name} is {found[name]}, but the run's config wants {shapes[name]}"
            )


def load_weights(
    model: nn.Module, folder: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Copies a checkpoint's weights, or `tensors` made of them, into `model`; names and shapes
    must match exactly."""
    path = folder / layout.MODEL
    tensors = load_model(folder) if tensors is None else tensors
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MismatchError(f"{path}: does not fit the run's config: {first}") from None


def first_difference(a: Path, b: Path) -> str | None:
    """Where two checkpoints of one step differ first, in words; None where no bit does."""
    for name, load in ((layout.MODEL, load_model), (layout.OPTIMIZER, load_optimizer)):
        ours, theirs = load(a), load(b)
        for key in sorted({*ours, *theirs}):
            if key not in ours or key not in theirs:
                return f"{name}: {key} is in one of them only"
            one, other = ours[key], theirs[key]
            if one.shape != other.shape:
                return f"{name}: {key} has another shape"
            if not torch.equal(one.view(torch.int32), other.view(torch.int32)):
                n = int((one != other).sum())
                most = float((one.double() - other.double()).abs().max())
                return f"{name}: {key} differs in {n} of {one.numel()} numbers, at most by {most:g}"
    state, again = (files.read_json(folder / layout.STATE) for folder in (a, b))
    for key in state:
        if state[key] != again.get(key):
            return f"{layout.STATE}: {key} {state[key]}, again {again.get(key)}"
    return None


def settle(run: Path, state: State, keep_last: int) -> None:
    """Leaves what a run at `state`, whose checkpoint is durable, has: the index, the last
    checkpoints and the best, and nothing that a killed process left. The caller holds its lock.

    Checkpoints of later steps are damaged (the run went back before them); they are replaced when
    it gets there.
    """
    best = state.best["step"] if state.best else None
    steps = [s for s in list_steps(run) if s <= state.step]
    if steps:
        files.write_sealed(
            run / layout.CHECKPOINTS / layout.INDEX, {"last": state.step, "best": best}
        )
    based = steps and manifest.base(layout.checkpoint(run, steps[-1]))
    for step in steps[:-keep_last]:
        if step != best and (step or not based):
            files.remove(layout.checkpoint(run, step))
    files.sweep(run)
    files.sweep(run / layout.CHECKPOINTS)


def check_space(run: Path, model: nn.Module, ema: bool = False) -> None:
    """Refuses before the first step when two checkpoints would not fit on the disk.

    Those that are there count: a continued run needs room for one more.
    """
    frozen = 0 if layout.checkpoint(run, 0).is_dir() else 1  # times that they are written
    sizes = (
        p.numel() * p.element_size() * (3 + ema if p.requires_grad else frozen)
        for p in model.parameters()
    )
    need = (1 if any(list_steps(run)) else 2) * sum(sizes)
    free = shutil.disk_usage(run).free
    if free < need:
        raise StorageError(
            f"{run}: {free / 2**20:.0f} MiB free, but its checkpoints need "
            f"{need / 2**20:.0f} MiB; free some space or choose another --artifacts"
        )
