"""lmcli status"""

import json
from pathlib import Path

import click

from lmcli.commands import options
from lmcli.errors import UsageError


@click.command(short_help="The state of a run: step, loss, resumable or not.")
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
    from lmcli import console
    from lmcli.artifacts import inventory, layout, manifest
    from lmcli.config.fields import suggest

    path = layout.find(root, run, "run")
    manifest.read(path, "run")
    status = inventory.status(path)
    if field is not None:
        if field not in status:
            raise UsageError(
                f"--field {field}: there are {', '.join(status)}" + suggest(field, status)
            )
        value = status[field]
        console.answer(value if isinstance(value, str) else json.dumps(value))
    elif as_json:
        console.answer_json(status)
    else:
        shown = {k: v for k, v in status.items() if v not in (None, "")}
        for key, value in shown.items():
            text = value if isinstance(value, str) else json.dumps(value)
            console.answer(f"{key:<18} {text}")
