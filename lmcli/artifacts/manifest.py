"""The manifest of an artifact: what it is, what it came from, and the hash of every file.

It is written last, so its existence says that the artifact is complete. `id` is a hash of content
alone (format, kind, parents, files): the same bytes made twice have the same id. `check` is a hash
of everything else in the manifest, so that no byte of it can change unseen. Hashes find corruption;
they do not defend against someone who rewrites the manifest too.
"""

import hashlib
import json
import platform
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
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
    check: str = ""

    def content_id(self) -> str:
        return _digest({k: getattr(self, k) for k in ("format", "kind", "parents", "files")})

    def own_check(self) -> str:
        return _digest({k: v for k, v in asdict(self).items() if k != "check"})


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    manifest = Manifest(kind, name, "", parents or {}, table, config or {}, describe_machine())
    manifest = replace(manifest, id=manifest.content_id())
    manifest = replace(manifest, check=manifest.own_check())
    files.write_json(directory / layout.MANIFEST, asdict(manifest))
    return manifest


def read(directory: Path, kind: str | None = None, hashes: bool = False) -> Manifest:
    """The manifest of a complete artifact whose files have the recorded sizes (and hashes)."""
    manifest = _parse(directory)
    if kind is not None and manifest.kind != kind:
        raise MismatchError(f"{directory} is a {manifest.kind}, not a {kind}")
    for problem in _problems(directory, manifest, hashes):
        raise DataError(problem)
    return manifest


def _parse(directory: Path) -> Manifest:
    """The manifest alone, believed only as far as its own hashes; files are not looked at."""
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
        inside = all(
            {"bytes", "sha256"} <= set(entry) and not {"", ".", ".."} & set(name.split("/"))
            for name, entry in manifest.files.items()
        )
    except (TypeError, AttributeError):
        inside = False
    if not inside or not isinstance(manifest.parents, dict):
        raise DataError(f"{path}: not a manifest; restore or rebuild {directory}")
    if manifest.content_id() != manifest.id:
        raise DataError(f"{path}: its id does not match its content; changed")
    if manifest.check and manifest.own_check() != manifest.check:
        raise DataError(f"{path}: its check does not match its content; changed")
    return manifest


def _problems(directory: Path, manifest: Manifest, hashes: bool) -> Iterator[str]:
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file() or path.is_symlink():
            yield f"{path}: missing, but listed in the manifest; restore or rebuild it"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield f"{path}: {size} bytes, expected {entry['bytes']}; truncated or changed"
        elif hashes and files.sha256_file(path) != entry["sha256"]:
            yield f"{path}: content differs from its recorded sha256; corrupt"


def verify(directory: Path, foreign: bool = True) -> list[str]:
    """Every problem found by reading every byte; `foreign` also names files nobody listed."""
    try:
        manifest = _parse(directory)
    except (DataError, MismatchError) as error:
        return [str(error)]
    problems = list(_problems(directory, manifest, True))
    if foreign:
        known = {*manifest.files, layout.MANIFEST}
        for path in sorted(directory.rglob("*")):
            if path.is_file() and path.relative_to(directory).as_posix() not in known:
                problems.append(f"{path}: not listed in the manifest; not written by lmcli")
    return problems
