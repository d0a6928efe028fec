"""lmcli status"""

from pathlib import Path

import click

from lmcli import console
from lmcli.artifacts import inventory, manifest
from lmcli.commands import options
from lmcli.config.fields import suggest
from lmcli.errors import UsageError


@click.command()
@click.argument("run")
@click.option("--field", metavar="NAME", help="Print one field only, for scripts.")
@options.common
def command(run: str, field: str | None, root: Path, as_json: bool) -> None:
    """The state of a run. A run whose process died counts as interrupted.

    \b
    Examples:
      lmcli status base
      lmcli status base --field state
    """
    path, _ = manifest.find(root, run, "run")
    status = inventory.status(path)
    if field is not None:
        if field not in status:
            raise UsageError(
                f"--field {field}: there are {', '.join(status)}" + suggest(field, status)
            )
        console.answer(console.plain(status[field]))
    else:
        shown = {k: console.plain(v) for k, v in status.items() if v not in (None, "")}
        console.reply(as_json, status, console.listing(shown.items()))
