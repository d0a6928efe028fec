"""The same command again: finished says so, another config or changed sources is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, inventory, layout, lock, manifest
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
        finally:
            if old is not None and not path.exists():
                files.move(old, path)
            elif old is not None:
                users = inventory.users(root, old)
                of = f", which {', '.join(users)} came from," if users else ""
                (console.warn if users else console.say)(f"the old {path.name}{of} is in {old}")


def finished(
    path: Path, kind: str, recorded: dict[str, Any], parents: dict[str, str]
) -> Manifest | None:
    """The manifest of `path` if it was made from the same config, parents and sources.

    None when there is nothing yet; MismatchError naming the first field that differs.
    """
    if not path.exists():
        return None
    old = manifest.read(path, kind, hashes=kind == "tokenizer")
    compared = [(k.replace("_", " "), old.config.get(k), v) for k, v in recorded.items()]
    compared += [(k, str(old.parents.get(k))[:12], v[:12]) for k, v in parents.items()]
    for what, before, now in compared:
        if what == "sources":
            what, before, now = _sources(before or {}, now)
        if before != now:
            raise MismatchError(
                f"{kind} {path.name} exists with {what} {before}, not {now}; choose another "
                "--name, or --force moves the old one to the trash"
            )
    return old


def _sources(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str, str]:
    """Where they differ first: they are equal by content, in this order, wherever they lie."""
    for split in before | now:
        old, new = before.get(split, []), now.get(split, [])
        if len(old) != len(new):
            return f"{split} files", f"{len(old)} of them", f"{len(new)}"
        for was, source in zip(old, new, strict=True):
            if was["sha256"] != source["sha256"]:
                if was["path"] != source["path"]:
                    return f"{split} file", was["path"], source["path"]
                return f"other content of {source['path']}", was["sha256"][:12], "this"
    return "", "", ""
