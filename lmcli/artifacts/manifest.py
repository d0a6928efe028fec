"""The manifest of an artifact: what it is, what it came from, and the hash of every file.

It is written last, so its existence says that the artifact is complete. `id` is a hash of content
alone (format, kind, parents, files): the same bytes made twice have the same id. The file is
sealed, so that no byte of it can change unseen. Hashes find corruption; they do not defend against
someone who rewrites the manifest too.
"""

import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import lmcli
from lmcli.artifacts import files, layout, schema
from lmcli.errors import DataError, LmcliError, MismatchError, MissingInputError

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

    def content_id(self) -> str:
        return files.digest({k: getattr(self, k) for k in ("format", "kind", "parents", "files")})


def write(
    directory: Path,
    kind: str,
    name: str,
    parents: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> Manifest:
    """Hashes the files in `directory` and writes its manifest.

    `environment` is recorded with when, where and by which command, apart from the id.
    """
    table = {
        path.relative_to(directory).as_posix(): files.facts(path)
        for path in files.inside(directory)
        if path.is_file() and path != directory / layout.MANIFEST
    }
    made = {
        "command": list(lmcli.invocation),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "lmcli": lmcli.__version__,
        "python": platform.python_version(),
        **(environment or {}),
    }
    manifest = Manifest(kind, name, "", parents or {}, table, config or {}, made)
    manifest = replace(manifest, id=manifest.content_id())
    files.write_sealed(directory / layout.MANIFEST, asdict(manifest))
    return manifest


def read(directory: Path, kind: str | None = None, hashes: bool = False) -> Manifest:
    """The manifest of a complete artifact whose files have the recorded sizes (and hashes)."""
    manifest = parse(directory)
    if kind is not None and manifest.kind != kind:
        raise MismatchError(f"{directory} is a {manifest.kind}, not a {kind}")
    for problem in _problems(directory, manifest, hashes):
        raise DataError(problem)
    return manifest


def find(
    root: Path, reference: str, kind: str | None = None, hashes: bool = False
) -> tuple[Path, Manifest]:
    """The artifact under `root` that `reference` means, and its manifest as `read` gives it."""
    path = layout.find(root, reference, kind)
    return path, read(path, kind, hashes)


def parse(directory: Path) -> Manifest:
    """The manifest alone, believed only as far as its own hashes; files are not looked at."""
    if not directory.is_dir():
        raise MissingInputError(f"{directory}: no such artifact")
    path = directory / layout.MANIFEST
    if not path.is_file():
        raise DataError(f"{directory}: no {layout.MANIFEST}; incomplete or not an artifact")
    value = files.read_sealed(path, schema.MANIFEST, FORMAT)
    schema.check(value, schema.KINDS.get(value["kind"], schema.ANY), path)
    for name in value["files"]:
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise DataError(f"{path}: {name!r} is no file of this folder; restore or rebuild it")
    manifest = Manifest(**{f.name: value[f.name] for f in fields(Manifest)})
    if manifest.content_id() != manifest.id:
        raise DataError(f"{path}: its id does not match its content; changed")
    return manifest


def claims(directory: Path) -> tuple[str, str]:
    """(kind, id) that the manifest names, whatever became of the files; empty without one."""
    try:
        value = files.read_json(directory / layout.MANIFEST)
    except LmcliError:
        return "", ""
    return str(value.get("kind", "")), str(value.get("id", ""))


def _problems(directory: Path, manifest: Manifest, hashes: bool) -> Iterator[str]:
    for name, entry in manifest.files.items():
        path = directory / name
        try:
            if path.is_symlink() or not path.is_file():
                raise FileNotFoundError
            size = path.stat().st_size
            if size != entry["bytes"]:
                yield f"{path}: {size} bytes, expected {entry['bytes']}; truncated or changed"
            elif hashes and files.sha256_file(path) != entry["sha256"]:
                yield f"{path}: content differs from its recorded sha256; corrupt"
        except FileNotFoundError:  # or a living run has just removed it
            yield f"{path}: missing, but listed in the manifest; restore or rebuild it"


def check_checkpoint(run: Path, checkpoint: Path, hashes: bool = False) -> None:
    """A checkpoint must stand where it belongs: in its run, at its step, on its base."""
    found = read(checkpoint, "checkpoint", hashes)
    if found.parents.get("run") != read(run, "run").id:
        raise DataError(f"{checkpoint}: a checkpoint of another run")
    if found.name.rpartition("/")[2] != checkpoint.name:
        raise DataError(f"{checkpoint}: this is {found.name}, put in another place")
    start = base(checkpoint)
    if start and read(start, "checkpoint", hashes).id != found.parents["base"]:
        raise DataError(f"{start}: not what {checkpoint.name} was trained from; restore it")


def base(checkpoint: Path) -> Path | None:
    """The checkpoint of step 0, where it holds the rest of the weights, which were frozen."""
    there = "base" in parse(checkpoint).parents
    return layout.checkpoint(checkpoint.parent.parent, 0) if there else None


def verify(directory: Path, foreign: bool = True) -> list[str]:
    """Every problem found by reading every byte; `foreign` also names files nobody listed."""
    try:
        manifest = parse(directory)
    except LmcliError as error:
        return [str(error)]
    problems = list(_problems(directory, manifest, True))
    if foreign:
        known = {*manifest.files, layout.MANIFEST}
        folders = {parent.as_posix() for name in known for parent in Path(name).parents}
        for path in files.inside(directory):
            name = path.relative_to(directory).as_posix()
            if name not in (folders if path.is_dir() and not path.is_symlink() else known):
                problems.append(f"{path}: not listed in the manifest; not written by lmcli")
    return problems
