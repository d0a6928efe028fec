"""lmcli rm"""

from contextlib import ExitStack
from pathlib import Path

import click

from lmcli import console
from lmcli.artifacts import files, inventory, layout, lock, manifest
from lmcli.commands import options
from lmcli.errors import RefusedError, UsageError


@click.command()
@click.argument("artifacts", nargs=-1)
@click.option("--empty-trash", is_flag=True, help="Delete what was moved to the trash before.")
@options.common
def command(artifacts: tuple[str, ...], empty_trash: bool, root: Path, as_json: bool) -> None:
    """Move artifacts to the trash under the artifact directory.

    A tokenizer or dataset that others were made from is kept, and so is a run that is being
    trained.

    \b
    Examples:
      lmcli rm old-run
      lmcli rm --empty-trash
    """
    if not artifacts and not empty_trash:
        raise UsageError("name an artifact to remove, or --empty-trash")
    moved = []
    for reference in dict.fromkeys(artifacts):
        path = layout.find(root, reference)
        if layout.is_path(reference):
            path = path.resolve()
            kind, _ = manifest.claims(path)
            if kind not in layout.FOLDERS:
                raise UsageError(f"{reference} is {kind or 'not an artifact'}; nothing was moved")
        users = inventory.users(root, path)
        if users:
            raise RefusedError(f"{reference} is a parent of {', '.join(users)}; remove those first")
        with ExitStack() as stack:
            stack.enter_context(lock.hold(layout.creation_lock(path), reference))
            if (path / layout.LOCK).exists():
                stack.enter_context(lock.hold(path / layout.LOCK, reference))
            moved.append(str(files.to_trash(path, root)))
        console.say(f"{reference} is in {moved[-1]}; lmcli rm --empty-trash frees the space")
    if empty_trash:
        n = sum(1 for _ in (root / files.TRASH).glob("*")) if (root / files.TRASH).is_dir() else 0
        files.sweep(root)  # what an earlier emptying left when it was killed
        files.remove(root / files.TRASH)
        console.say(f"deleted {n} artifacts from the trash" if n else "the trash was empty")
    if as_json:
        console.answer_json({"moved": moved, "emptied": empty_trash})
