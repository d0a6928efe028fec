"""lmcli ls"""

from pathlib import Path

import click

from lmcli import console
from lmcli.artifacts import inventory, layout
from lmcli.commands import options
from lmcli.config.units import show_bytes
from lmcli.errors import DataError


@click.command()
@click.argument("kind", required=False, type=click.Choice(list(layout.FOLDERS.values())))
@options.common
def command(kind: str | None, root: Path, as_json: bool) -> None:
    """List tokenizers, datasets and runs: id, size, date, state.

    \b
    Examples:
      lmcli ls
      lmcli ls runs --json
    """
    found = [a for a in inventory.artifacts(root) if kind in (None, a.path.parent.name)]
    if not found and not as_json:
        console.say(f"nothing under {root} yet; start with: lmcli quickstart")
        return
    records, rows = [], []
    for a in found:
        id_, created = (a.manifest.id, inventory.age(a.manifest.made)) if a.manifest else ("", "")
        size, state = a.size, _state(a)
        record = {"kind": a.kind, "name": a.path.name, "id": id_ or None, "bytes": size}
        records.append(record | {"created": created or None, "state": state})
        rows.append((a.kind, a.path.name, id_[:12], show_bytes(size), created, state))
    table = console.table(rows, ("kind", "name", "id", "size", "created", "state"))
    console.reply(as_json, records, table)


def _state(artifact: inventory.Artifact) -> str:
    """What a run is at; of anything else whether it is broken."""
    try:
        if artifact.manifest and artifact.kind == "run":
            now = inventory.status(artifact.path)
            step = now.get("logged_step", 0) if now["state"] == "running" else 0
            return f"{now['state']} at step {max(step, now['step'])}"
    except DataError:
        return "broken"
    return "" if artifact.manifest else "broken"
