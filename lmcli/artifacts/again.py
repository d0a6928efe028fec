"""The same command again: finished says so, another config or changed sources is an error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, layout, lock, manifest
from lmcli.artifacts.manifest import Manifest
from lmcli.errors import MismatchError


@contextmanager
def creating(path: Path, root: Path, kind: str, force: bool) -> Iterator[None]:
    """Holds the lock under which `path` is created.

    `--force` puts an old one in the trash, and back in its place if the new one fails.
    """
    with lock.hold(layout.creation_lock(path), f"{kind} {path.name}"):
        old = files.to_trash(path, root) if force and path.exists() else None
        try:
            yield
        except BaseException:
            if old is not None and not path.exists():
                files.move(old, path)
            raise
        if old is not None:
            console.say(f"the old {path.name} is in {old}")


def finished(
    path: Path, kind: str, recorded: dict[str, Any], parents: dict[str, str]
) -> Manifest | None:
    """The manifest of `path` if it was made from the same config, parents and sources.

    None when there is nothing yet; MismatchError naming the first field that differs.
    """
    if not path.exists():
        return None
    old = manifest.read(path, kind, hashes=kind == "tokenizer")
    differs = _differs(path.name, kind)
    for key, value in recorded.items():
        if key == "sources":
            _same_sources(old.config.get(key, {}), value, differs)
        elif old.config.get(key) != value:
            raise differs(key.replace("_", " "), old.config.get(key), value)
    for key, value in parents.items():
        if old.parents.get(key) != value:
            raise differs(key, str(old.parents.get(key))[:12], value[:12])
    return old


def _differs(name: str, kind: str) -> Callable[[str, Any, Any], MismatchError]:
    return lambda what, before, now: MismatchError(
        f"{kind} {name} exists with {what} {before}, not {now}; choose another --name, or --force "
        "moves the old one to the trash"
    )


def _same_sources(
    before: dict[str, Any], now: dict[str, Any], differs: Callable[[str, Any, Any], MismatchError]
) -> None:
    """Sources are equal by content: the same hashes in the same order, wherever they lie."""
    for split in {*before, *now}:
        old = [(s["bytes"], s["sha256"]) for s in before.get(split, [])]
        new = [(s["bytes"], s["sha256"]) for s in now.get(split, [])]
        if old == new:
            continue
        if len(old) != len(new):
            raise differs(f"{split} files", f"{len(old)} of them", f"{len(new)}")
        which = next(i for i in range(len(new)) if old[i] != new[i])
        raise differs(f"other content of {now[split][which]['path']}", old[which][1][:12], "this")
