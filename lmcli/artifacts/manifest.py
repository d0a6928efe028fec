"""The manifest of an artifact: what it is, what it came from, and the hash of every file.

It is written last, so its existence says that the artifact is complete. `id` is a hash of content
alone (format, kind, parents, files): the same bytes made twice have the same id. Hashes find
corruption; they do not defend against someone who rewrites the manifest too.
"""

import hashlib
import json
import platform
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lmcli
from lmcli.artifacts import files, layout
from lmcli.errors import DataError, MismatchError, MissingInputError

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    kind: str
    name: str
    id: str
    parents: dict[str, str]
    files: dict[str, dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def describe_machine() -> dict[str, Any]:
    """When, where and by which command: recorded beside the id, never part of it."""
    return {
        "command": ["lmcli", *sys.argv[1:]],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "lmcli": lmcli.__version__,
        "python": platform.python_version(),
    }


def write(
    directory: Path,
    kind: str,
    name: str,
    parents: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    only: tuple[str, ...] = (),
) -> Manifest:
    """Hashes the files in `directory` (or those in `only`) and writes its manifest."""
    names = sorted(only) or sorted(
        p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()
    )
    table = {
        n: {"bytes": (directory / n).stat().st_size, "sha256": files.sha256_file(directory / n)}
        for n in names
    }
    parents = parents or {}
    content = {"format": FORMAT, "kind": kind, "parents": parents, "files": table}
    id_ = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest = Manifest(kind, name, id_, parents, table, config or {}, describe_machine())
    files.write_json(directory / layout.MANIFEST, asdict(manifest))
    return manifest


def read(directory: Path, kind: str | None = None, hashes: bool = False) -> Manifest:
    """The manifest of a complete artifact whose files have the recorded sizes (and hashes)."""
    if not directory.is_dir():
        raise MissingInputError(f"{directory}: no such artifact")
    path = directory / layout.MANIFEST
    if not path.exists():
        raise DataError(f"{directory}: no {layout.MANIFEST}; incomplete or not an artifact")
    value = files.read_json(path)
    if isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise MismatchError(
            f"{path}: format {value['format']} is newer than this lmcli reads ({FORMAT}); upgrade"
        )
    try:
        manifest = Manifest(**value)
        listed = [(n, e["bytes"], e["sha256"]) for n, e in manifest.files.items()]
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: not a manifest; restore or rebuild {directory}") from None
    if kind is not None and manifest.kind != kind:
        raise MismatchError(f"{directory} is a {manifest.kind}, not a {kind}")
    problem = _first_problem(directory, listed, hashes)
    if problem:
        raise DataError(problem)
    return manifest


def _first_problem(directory: Path, listed: list[tuple[str, int, str]], hashes: bool) -> str:
    for name, size, digest in listed:
        path = directory / name
        if not path.is_file() or path.is_symlink():
            return f"{path}: missing, but listed in the manifest; restore or rebuild it"
        if path.stat().st_size != size:
            return f"{path}: {path.stat().st_size} bytes, expected {size}; truncated or changed"
        if hashes and files.sha256_file(path) != digest:
            return f"{path}: content differs from its recorded sha256; corrupt"
    return ""


def verify(directory: Path, foreign: bool = True) -> list[str]:
    """Every problem found by reading every byte; `foreign` also names files nobody listed."""
    try:
        manifest = read(directory)
    except (DataError, MismatchError) as error:
        return [str(error)]
    problems = []
    for name, entry in manifest.files.items():
        problem = _first_problem(directory, [(name, entry["bytes"], entry["sha256"])], True)
        if problem:
            problems.append(problem)
    content = {k: getattr(manifest, k) for k in ("format", "kind", "parents", "files")}
    if hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() != manifest.id:
        problems.append(
            f"{directory / layout.MANIFEST}: its id does not match its content; changed"
        )
    if foreign:
        known = {*manifest.files, layout.MANIFEST}
        for path in sorted(directory.rglob("*")):
            if path.is_file() and path.relative_to(directory).as_posix() not in known:
                problems.append(f"{path}: not listed in the manifest; not written by lmcli")
    return problems
