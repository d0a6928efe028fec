"""lmcli show"""

from pathlib import Path
from typing import Any

import click

from lmcli import console
from lmcli.artifacts import files, inventory, layout, manifest, schema
from lmcli.commands import options


@click.command()
@click.argument("artifact")
@options.common
def command(artifact: str, root: Path, as_json: bool) -> None:
    """Show an artifact: identity, lineage, how it was made, and for a run its config and losses.

    \b
    Examples:
      lmcli show base
      lmcli show datasets/corpus --json
    """
    path, made = manifest.find(root, artifact)
    facts: dict[str, Any] = {
        "kind": made.kind,
        "name": path.resolve().name,
        "id": made.id,
        "path": str(path),
        "parents": {
            kind: {"id": id_, "name": inventory.name_of(root, id_)}
            for kind, id_ in made.parents.items()
        },
        "files": made.files,
        "made": made.made,
        "config": made.config,
    }
    if made.kind == "run":
        facts["config"] = files.read_json(path / layout.CONFIG, schema.CONFIG)
        facts["status"] = inventory.status(path)
        facts["events"] = inventory.read_log(path, layout.EVENTS)
        facts["checkpoints"] = inventory.checkpoints(path)
        facts["evals"] = sorted(p.stem for p in (path / layout.EVALS).glob("[!.]*.json"))
    console.reply(as_json, facts, console.listing(_lines(facts)))


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts for people: one short line each."""
    made = facts["made"]
    lines = [
        (facts["kind"], facts["name"]),
        ("id", facts["id"]),
        ("path", facts["path"]),
        ("created", f"{inventory.age(made)} by: {' '.join(made['command'])}"),
    ]
    for kind, parent in facts["parents"].items():
        lines.append((kind, f"{parent['name'] or 'not under this root'} ({parent['id'][:12]})"))
    status = facts.get("status", {})
    if status:
        reason = f": {status['reason']}" if status["reason"] else ""
        of = status.get("steps", facts["config"]["training"].get("steps"))
        lines.append(("state", f"{status['state']} at step {status['step']} of {of}{reason}"))
        lines += [(key, f"{status[key]:.4f}") for key in inventory.LOSSES if key in status]
        found = facts["checkpoints"]
        steps = ", ".join(map(str, found["steps"])) or "none yet"
        best = f" (best {found['best']})" if found["best"] is not None else ""
        lines.append(("checkpoints", steps + best))
    lines += [("eval", name) for name in facts.get("evals", [])]
    events = facts.get("events", [])
    moved = [e for e in events if e.get("change", {}).keys() == {"steps"}]
    if len(moved) > 3:  # by the clock, again and again
        events = [e for e in events if e not in moved[:-1]]
        lines.append(("event", f"the last step was moved {len(moved)} times, at last:"))
    lines += [("event", console.plain(value)) for value in events]
    config = {k: v for k, v in facts["config"].items() if k != "format"}
    for split, listed in config.pop("sources", {}).items():
        size = sum(source["bytes"] for source in listed)
        lines.append((f"{split} text", f"{len(listed)} file(s), {size:,} bytes"))
    for key, value in config.items():
        if isinstance(value, dict):
            lines.append((key, "  ".join(f"{k}={console.plain(v)}" for k, v in value.items())))
        else:
            lines.append((key, console.plain(value)))
    return lines
