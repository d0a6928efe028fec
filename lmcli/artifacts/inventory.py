"""What is there: every artifact under a root, its state and its relations. Read-only."""

import hashlib
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
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())


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


def verify(path: Path) -> tuple[list[str], int, int]:
    """(problems, files read, bytes read) of an artifact, a run's checkpoints and log included."""
    is_run = (path / layout.CONFIG).exists()
    folders = [path]
    problems = manifest.verify(path, foreign=not is_run)
    if is_run:
        steps = sorted((path / layout.CHECKPOINTS).glob("[!.]*"))
        folders += [p for p in steps if p.is_dir()]
        for folder in folders[1:]:
            problems += manifest.verify(folder) or _log_problems(path, folder)
        problems += _foreign(path)
    n_files = n_bytes = 0
    for folder in folders:
        try:
            listed = manifest.read(folder).files.values()
        except LmcliError:
            continue
        n_files, n_bytes = n_files + len(listed), n_bytes + sum(e["bytes"] for e in listed)
    return problems, n_files, n_bytes


def _log_problems(run: Path, checkpoint: Path) -> list[str]:
    """metrics.jsonl must still start with what the checkpoint saw."""
    state = files.read_json(checkpoint / layout.STATE)
    log = run / layout.METRICS
    size, digest = state["metrics_bytes"], state["metrics_sha256"]
    data = log.read_bytes()[:size] if log.exists() else b""
    if hashlib.sha256(data).hexdigest() != digest or len(data) != size:
        return [f"{log}: its first {size} bytes are not what {checkpoint.name} recorded"]
    return []


def _foreign(run: Path) -> list[str]:
    known = {*layout.RUN_FILES, layout.MANIFEST, layout.CONFIG, layout.TOKENIZER}
    strangers = []
    for path in sorted(run.rglob("*")):
        parts = path.relative_to(run).parts
        if path.is_dir() or len(parts) == 1 and parts[0] in known:
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
