"""lmcli ls"""

from pathlib import Path
from typing import Any

import click

from lmcli import console
from lmcli.artifacts import inventory, layout
from lmcli.commands import options
from lmcli.config.units import show_bytes
from lmcli.errors import DataError


@click.command(short_help="List the artifacts.")
@click.argument("kind", required=False, type=click.Choice(list(layout.FOLDERS.values())))
@options.common
def command(kind: str | None, root: Path, as_json: bool) -> None:
    """List tokenizers, datasets and runs: id, size, date, state.

    \b
    Examples:
      lmcli ls
      lmcli ls runs --json
    """
    records: list[dict[str, Any]] = []
    for artifact in inventory.artifacts(root):
        if kind and artifact.path.parent.name != kind:
            continue
        made = artifact.manifest
        state = "" if made else "broken"
        if made and artifact.kind == "run":
            try:
                now = inventory.status(artifact.path)
                state = f"{now['state']} at step {now['step']}"
            except DataError:
                state = "broken"
        records.append(
            {
                "kind": artifact.kind,
                "name": artifact.name,
                "id": made.id if made else None,
                "bytes": artifact.size,
                "created": inventory.age(made.made) if made else None,
                "state": state,
            }
        )
    if not records and not as_json:
        console.say(f"nothing under {root} yet; start with: lmcli quickstart")
        return
    rows = []
    for r in records:
        short = (r["id"] or "")[:12]
        size = show_bytes(r["bytes"])
        rows.append((r["kind"], r["name"], short, size, r["created"] or "", r["state"]))
    table = console.table(rows, ("kind", "name", "id", "size", "created", "state"))
    console.reply(as_json, records, table)
