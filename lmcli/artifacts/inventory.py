"""What is there: every artifact under a root, its state and its relations. Read-only."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli.artifacts import files, layout, lock, manifest, schema
from lmcli.artifacts.manifest import Manifest
from lmcli.errors import DataError, LmcliError

LOSSES = ("loss", "val_loss", "val_bits_per_byte")  # that a run's status shows
ENDED = ("finished", "interrupted")  # states of a run after which nothing is written


@dataclass(frozen=True)
class Artifact:
    """A folder that claims to be an artifact; `manifest` is None where it is broken."""

    path: Path
    kind: str
    manifest: Manifest | None

    @property
    def reference(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def size(self) -> int:
        """Bytes on disk; files that a living run prunes meanwhile count as gone."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total


def artifacts(root: Path) -> Iterator[Artifact]:
    """All artifacts under `root`, by kind and name."""
    for kind, folder in layout.FOLDERS.items():
        for path in sorted((root / folder).glob("[!.]*")):
            if path.is_dir():
                try:
                    yield Artifact(path, kind, manifest.read(path))
                except LmcliError:
                    yield Artifact(path, kind, None)


def name_of(root: Path, id_: str) -> str | None:
    """`datasets/corpus` for an id that an artifact under `root` has."""
    found = (a.reference for a in artifacts(root) if a.manifest and a.manifest.id == id_)
    return next(found, None)


def dataset_of(root: Path, run: dict[str, str]) -> Path:
    """The dataset whose name and id a run's config has; under another name, where that is gone."""
    with contextlib.suppress(LmcliError):
        path = layout.find(root, run["name"], "dataset")
        if manifest.claims(path)[1] == run["id"]:
            return path
    return layout.find(root, name_of(root, run["id"]) or run["name"], "dataset")


def users(root: Path, path: Path) -> list[str]:
    """Artifacts that were made from the one at `path`, unless a twin of it is there too."""
    _, id_ = manifest.claims(path)
    there = [(a, a.manifest) for a in artifacts(root) if a.manifest]
    if not id_ or any(m.id == id_ and a.path.resolve() != path.resolve() for a, m in there):
        return []
    return [a.reference for a, m in there if id_ in m.parents.values()]


def recorded(run: Path) -> dict[str, Any]:
    """What a run's status.json says; nothing where there is none."""
    path = run / layout.STATUS
    return files.read_sealed(path, schema.STATUS) if path.exists() else {}


def believed(run: Path) -> dict[str, Any]:
    """The same; nothing where it is damaged."""
    try:
        return recorded(run)
    except DataError:
        return {}


def read_log(run: Path, name: str) -> list[dict[str, Any]]:
    """The records of one of a run's logs."""
    return files.read_log(run / name, schema.LOGS[name])


def state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors."""
    path = checkpoint / layout.STATE
    value = files.read_json(path, schema.STATE)
    if value["step"] != layout.step_of(checkpoint):
        raise DataError(f"{path}: it is of step {value['step']}; restore it")
    return value


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, by name, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DataError(f"{path}: not readable as safetensors ({error})") from None


def evals(run: Path) -> list[dict[str, Any]]:
    """A run's results, by name."""
    paths = sorted((run / layout.EVALS).glob("[!.]*.json"))
    return [files.read_sealed(path, schema.EVAL) for path in paths]


def status(run: Path) -> dict[str, Any]:
    """A run's status.json with its last losses; a dead "running" process counts as interrupted."""
    value = recorded(run)
    value.pop("run_id", None)  # for `verify`
    value = {"state": "created", "step": 0, "exit": None, "reason": "", "resumable": True} | value
    if value["state"] == "running" and not lock.is_held(run / layout.LOCK):
        value |= {"state": "interrupted", "reason": "its process is gone", "resumable": True}
    for record in read_log(run, layout.METRICS):
        value |= {key: record[key] for key in LOSSES if key in record}
        value["logged_step"] = record["step"]
    return value


def checkpoints(run: Path) -> dict[str, Any]:
    """The steps of a run's complete checkpoints, and the best of them as the newest one knows."""
    steps: list[int] = []
    best = None
    for step in layout.list_steps(run):
        folder = layout.checkpoint(run, step)
        with contextlib.suppress(LmcliError):
            manifest.read(folder, "checkpoint")
            best = state(folder)["best"]
            steps.append(step)
    return {"steps": steps, "best": best["step"] if best else None}


def verify(path: Path) -> tuple[list[str], int, int]:
    """(problems, files read, bytes read) of an artifact, a run's checkpoints and logs included.

    A living run may change between the reading of two files that belong together, so a problem is
    one that a second look sees too.
    """
    problems, n_files, n_bytes = _look(path)
    if problems and (path / layout.LOCK).exists():
        again = _look(path)[0]
        problems = [problem for problem in problems if problem in again]
    return problems, n_files, n_bytes


def _look(path: Path) -> tuple[list[str], int, int]:
    is_run = _is_run(path)
    folders = [path]
    problems = manifest.verify(path, foreign=not is_run)
    if is_run:
        for step in layout.list_steps(path):
            folder = layout.checkpoint(path, step)
            found = list(_found(_checkpoint_problems(path, folder)))
            if folder.is_dir():  # a living run prunes old ones meanwhile
                folders.append(folder)
                problems += found
        problems += _found(_status_problems(path))
        for name in schema.LOGS:
            problems += _found(_log_problems(path, name))
        problems += _found(_index_problems(path))
        for result in sorted((path / layout.EVALS).glob("[!.]*.json")):
            problems += _found(_eval_problems(path, result))
        problems += _foreign(path)
    listed: list[dict[str, Any]] = []
    for folder in folders:
        with contextlib.suppress(LmcliError):
            listed += manifest.read(folder).files.values()
    return problems, len(listed), sum(entry["bytes"] for entry in listed)


def _found(problems: Iterator[str]) -> Iterator[str]:
    """All of them; the last is the error that kept us from looking further, if there was one."""
    try:
        yield from problems
    except LmcliError as error:
        yield str(error)


def _is_run(path: Path) -> bool:
    """What the manifest says; where that is damaged, whether it looks like one."""
    with contextlib.suppress(LmcliError):
        return manifest.parse(path).kind == "run"
    return any((path / n).exists() for n in (layout.CONFIG, layout.STATUS, layout.CHECKPOINTS))


def _checkpoint_problems(run: Path, checkpoint: Path) -> Iterator[str]:
    """Its files must match its manifest, and metrics.jsonl still start with what it saw."""
    if problems := manifest.verify(checkpoint):
        yield from problems
        return
    manifest.check_checkpoint(run, checkpoint)
    saw = state(checkpoint)
    size, sha256, ended = saw["metrics_bytes"], saw["metrics_sha256"], _ended(run, saw["step"])
    yield from _start_problems(run / layout.METRICS, checkpoint.name, size, sha256, ended)


def _ended(run: Path, step: int) -> bool:
    """Whether the run ended at this step by its own will, so that nothing was logged after it."""
    status = believed(run)
    return status.get("state") in ENDED and status["step"] == step


def _start_problems(log: Path, who: str, size: int, sha256: str, whole: bool = False) -> list[str]:
    """Whether a log still starts with (or, `whole`, still is) what `who` recorded of it."""
    if not log.is_file():
        return [f"{log}: missing, but {who} recorded {size} bytes of it"] if size else []
    with open(log, "rb") as file:
        data = file.read(size)
    if len(data) < size or hashlib.sha256(data).hexdigest() != sha256:
        return [f"{log}: its first {size} bytes are not what {who} recorded"]
    if whole and log.stat().st_size > size:
        return [f"{log}: {log.stat().st_size - size} bytes more than {who} recorded"]
    return []


def log_problems(run: Path, name: str, ended: bool = False) -> list[str]:
    """Whether a log still starts with what a run's status recorded; where the run has `ended`,
    whether it still is that."""
    entry = believed(run).get("logs", {}).get(name, {"bytes": 0, "sha256": files.EMPTY})
    return _start_problems(run / name, layout.STATUS, entry["bytes"], entry["sha256"], ended)


def _log_problems(run: Path, name: str) -> Iterator[str]:
    if name != layout.METRICS:  # of which the checkpoints know
        yield from log_problems(run, name, believed(run).get("state") in ENDED)
    read_log(run, name)


def _status_problems(run: Path) -> Iterator[str]:
    """The status is sealed, belongs to this run, and is there once something was logged."""
    path = run / layout.STATUS
    if not path.exists() and (run / layout.PERF).exists():
        yield f"{path}: missing"
    status = recorded(run)
    with contextlib.suppress(LmcliError):
        if status and status["run_id"] != manifest.parse(run).id:
            yield f"{path}: it is of another run"


def _index_problems(run: Path) -> Iterator[str]:
    """The index names checkpoints that are there, and once a run has ended what the newest says."""
    path = run / layout.CHECKPOINTS / layout.INDEX
    steps = layout.list_steps(run)
    ended = bool(steps) and _ended(run, steps[-1])
    if not path.exists():
        if ended:
            yield f"{path}: missing"
        return
    index = files.read_sealed(path, schema.INDEX)
    lost = {index["last"], index["best"] or index["last"]} - {*steps}
    for step in sorted(lost):
        yield f"{layout.checkpoint(run, step)}: missing, but in {path}"
    if ended and not lost:
        best = state(layout.checkpoint(run, steps[-1]))["best"]
        if index != {"last": steps[-1], "best": best and best["step"]}:
            yield f"{path}: not what the newest checkpoint says"


def _eval_problems(run: Path, path: Path) -> Iterator[str]:
    """An eval is sealed, bears the name its content gives, and belongs to this run."""
    value = files.read_sealed(path, schema.EVAL)
    data, step = value["dataset"], value["checkpoint"]["step"]
    if layout.eval_name(data["name"], data["split"], step, value["settings"]) != path.name:
        yield f"{path}: its content belongs under another name"
    elif value["run_id"] != manifest.read(run).id:
        yield f"{path}: it is of another run"


def _foreign(run: Path) -> list[str]:
    """What nobody of lmcli put there; what a killed process left is swept by the next one."""
    strangers = []
    for path in files.inside(run):
        name = path.relative_to(run).as_posix()
        if any(part.startswith(files.TEMPORARY) for part in name.split("/")):
            continue
        known = layout.RUN_FOLDERS if path.is_dir() else layout.RUN_FILES
        if path.is_symlink() or not re.fullmatch(known, name):
            strangers.append(f"{path}: not written by lmcli")
    return strangers


def age(made: dict[str, Any]) -> str:
    """`2026-01-31 12:00` of a manifest's time, `2026-01-31T12:00:00Z`."""
    return str(made["time"][:16].replace("T", " "))
