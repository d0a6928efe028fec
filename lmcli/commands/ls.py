"""lmcli ls"""

from pathlib import Path
from typing import Any

import click

from lmcli.commands import options


@click.command(short_help="List the artifacts.")
@click.argument("kind", required=False, type=click.Choice(["tokenizers", "datasets", "runs"]))
@options.common
def command(kind: str | None, root: Path, as_json: bool) -> None:
    """List tokenizers, datasets and runs: id, size, date, state.

    \b
    Examples:
      lmcli ls
      lmcli ls runs --json
    """
    from lmcli import console
    from lmcli.artifacts import inventory
    from lmcli.config.units import show_bytes
    from lmcli.errors import DataError

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
    if as_json:
        console.answer_json(records)
        return
    if not records:
        console.say(f"nothing under {root} yet; start with: lmcli quickstart")
        return
    rows = [
        (
            *(r["kind"], r["name"], (r["id"] or "")[:12], show_bytes(r["bytes"])),
            *(r["created"] or "", r["state"]),
        )
        for r in records
    ]
    console.answer(console.table(rows, ("kind", "name", "id", "size", "created", "state")))
