"""lmcli show"""

from collections.abc import Iterator
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


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts for people: one short line each."""
    made = facts["made"]
    yield facts["kind"], facts["name"]
    yield "id", facts["id"]
    yield "path", facts["path"]
    yield "created", f"{inventory.age(made)} by: {' '.join(made['command'])}"
    for kind, parent in facts["parents"].items():
        yield kind, f"{parent['name'] or 'not under this root'} ({parent['id'][:12]})"
    if facts["kind"] == "run":
        yield from _of_run(facts)
    config = {k: v for k, v in facts["config"].items() if k != "format"}
    for split, listed in config.pop("sources", {}).items():
        size = sum(source["bytes"] for source in listed)
        yield f"{split} text", f"{len(listed)} file(s), {size:,} bytes"
    for key, value in config.items():
        if isinstance(value, dict):
            yield key, "  ".join(f"{k}={console.plain(v)}" for k, v in value.items())
        else:
            yield key, console.plain(value)


def _of_run(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How far a run came, and what it decided on its way."""
    status, found, events = facts["status"], facts["checkpoints"], facts["events"]
    reason = f": {status['reason']}" if status["reason"] else ""
    of = status.get("steps", facts["config"]["training"].get("steps"))
    yield "state", f"{status['state']} at step {status['step']} of {of}{reason}"
    for key in inventory.LOSSES:
        if key in status:
            yield key, f"{status[key]:.4f}"
    steps = ", ".join(map(str, found["steps"])) or "none yet"
    yield "checkpoints", steps + (f" (best {found['best']})" if found["best"] is not None else "")
    for name in facts["evals"]:
        yield "eval", name
    moved = [e for e in events if e.get("change", {}).keys() == {"steps"}]
    if len(moved) > 3:  # by the clock, again and again
        events = [e for e in events if e not in moved[:-1]]
        yield "event", f"the last step was moved {len(moved)} times, at last:"
    for event in events:
        yield "event", console.plain(event)
