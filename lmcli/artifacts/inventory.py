"""What is there: every artifact under a root, its state and its relations. Read-only."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcli.artifacts import files, layout, lock, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.errors import LmcliError


@dataclass(frozen=True)
class Artifact:
    """A folder that claims to be an artifact; `manifest` is None where it is broken."""

    path: Path
    kind: str
    manifest: Manifest | None

    @property
    def name(self) -> str:
        return self.path.name

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
    for artifact in artifacts(root):
        if artifact.manifest and artifact.manifest.id == id_:
            return f"{artifact.path.parent.name}/{artifact.name}"
    return None


def children(root: Path, id_: str) -> list[str]:
    """Artifacts that were made from the one with this id."""
    return [
        f"{a.path.parent.name}/{a.name}"
        for a in artifacts(root)
        if a.manifest and id_ in a.manifest.parents.values()
    ]


def status(run: Path) -> dict[str, Any]:
    """A run's status.json with its last losses; a dead "running" process counts as interrupted."""
    value = files.read_json(run / layout.STATUS) if (run / layout.STATUS).exists() else {}
    value = {"state": "created", "step": 0, "exit": None, "reason": "", "resumable": True} | value
    if value["state"] == "running" and not lock.is_held(run / layout.LOCK):
        value |= {"state": "interrupted", "reason": "its process is gone", "resumable": True}
    for record in files.read_log(run / layout.METRICS):
        for key in ("loss", "val_loss", "val_bits_per_byte"):
            if key in record:
                value[key] = record[key]
    return value


def checkpoints(run: Path) -> dict[str, Any]:
    """The steps of a run's complete checkpoints, and the best of them as the newest one knows."""
    steps: list[int] = []
    best = None
    for folder in sorted((run / layout.CHECKPOINTS).glob("[!.]*"), key=lambda p: p.name.zfill(32)):
        step = layout.step_of(folder)
        with contextlib.suppress(LmcliError):
            if step is not None and manifest.read(folder, "checkpoint"):
                best = files.read_json(folder / layout.STATE).get("best")
                steps.append(step)
    return {"steps": steps, "best": best["step"] if best else None}


def verify(path: Path) -> tuple[list[str], int, int]:
    """(problems, files read, bytes read) of an artifact, a run's checkpoints and log included."""
    is_run = any((path / n).exists() for n in (layout.CONFIG, layout.STATUS, layout.CHECKPOINTS))
    folders = [path]
    problems = manifest.verify(path, foreign=not is_run)
    if is_run:
        for folder in sorted((path / layout.CHECKPOINTS).glob("[!.]*")):
            if layout.step_of(folder) is None or not folder.is_dir():
                continue
            found = _checkpoint_problems(path, folder)
            if folder.is_dir():  # a living run prunes old ones meanwhile
                folders.append(folder)
                problems += found
        problems += _unreadable(path) + _foreign(path)
    n_files = n_bytes = 0
    for folder in folders:
        try:
            listed = manifest.read(folder).files.values()
        except LmcliError:
            continue
        n_files, n_bytes = n_files + len(listed), n_bytes + sum(e["bytes"] for e in listed)
    return problems, n_files, n_bytes


def _checkpoint_problems(run: Path, checkpoint: Path) -> list[str]:
    """Its files must match its manifest, and metrics.jsonl still start with what it saw."""
    try:
        problems = manifest.verify(checkpoint)
        if problems:
            return problems
        state = files.read_json(checkpoint / layout.STATE)
        size, digest = state["metrics_bytes"], state["metrics_sha256"]
    except KeyError as error:
        return [f"{checkpoint / layout.STATE}: {error} is missing"]
    except LmcliError as error:
        return [str(error)]
    log = run / layout.METRICS
    data = b""
    if log.exists():
        with open(log, "rb") as file:
            data = file.read(size)
    if hashlib.sha256(data).hexdigest() != digest:
        return [f"{log}: its first {size} bytes are not what {checkpoint.name} recorded"]
    return []


def _unreadable(run: Path) -> list[str]:
    """Files that change while a run lives have no hash, but must at least parse."""
    problems = []
    documents = [run / layout.STATUS, run / layout.CHECKPOINTS / layout.INDEX]
    documents += sorted((run / layout.EVALS).glob("[!.]*.json"))
    for path in [p for p in documents if p.exists()]:
        try:
            files.read_json(path)
        except LmcliError as error:
            problems.append(str(error))
    for name in (layout.METRICS, layout.PERF, layout.EVENTS):
        try:
            files.read_log(run / name)
        except LmcliError as error:
            problems.append(str(error))
    return problems


def _foreign(run: Path) -> list[str]:
    known = {*layout.RUN_FILES, layout.MANIFEST, layout.CONFIG, layout.TOKENIZER}
    strangers = []
    for path in sorted(run.rglob("*")):
        parts = path.relative_to(run).parts
        if path.is_dir() or (len(parts) == 1 and parts[0] in known):
            continue
        if parts[0] == layout.EVALS and path.suffix == ".json":
            continue
        in_step = len(parts) > 2 and layout.step_of(run / layout.CHECKPOINTS / parts[1]) is not None
        if parts[0] == layout.CHECKPOINTS and (in_step or parts[1:] == (layout.INDEX,)):
            continue
        strangers.append(f"{path}: not written by lmcli")
    return strangers


def age(made: dict[str, Any]) -> str:
    """`2026-01-31 12:00` of a manifest's time."""
    try:
        stamp = time.strptime(made["time"], "%Y-%m-%dT%H:%M:%SZ")
    except (KeyError, ValueError, TypeError):
        return "?"
    return time.strftime("%Y-%m-%d %H:%M", stamp)
