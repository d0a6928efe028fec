"""lmcli show"""

import json
from pathlib import Path
from typing import Any

import click

from lmcli.commands import options


@click.command(short_help="One artifact: what it is, what it came from.")
@click.argument("artifact")
@options.common
def command(artifact: str, root: Path, as_json: bool) -> None:
    """Show an artifact: identity, lineage, how it was made, and for a run its config and losses.

    \b
    Examples:
      lmcli show base
      lmcli show datasets/corpus --json
    """
    from lmcli import console
    from lmcli.artifacts import files, inventory, layout, manifest

    path = layout.find(root, artifact)
    made = manifest.read(path)
    facts: dict[str, Any] = {
        "kind": made.kind,
        "name": path.name,
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
        facts["config"] = files.read_json(path / layout.CONFIG)
        facts["status"] = inventory.status(path)
        facts["events"] = files.read_log(path / layout.EVENTS)
        steps = [layout.step_of(p) for p in (path / layout.CHECKPOINTS).glob("step-*")]
        facts["checkpoints"] = sorted(s for s in steps if s is not None)
        facts["evals"] = sorted(p.name for p in (path / layout.EVALS).glob("*.json"))
    if as_json:
        console.answer_json(facts)
        return
    console.answer(f"{made.kind} {path.name}")
    console.answer(f"  id        {made.id}")
    console.answer(f"  path      {path}")
    console.answer(f"  created   {inventory.age(made.made)} by: {' '.join(made.made['command'])}")
    for kind, id_ in made.parents.items():
        name = inventory.name_of(root, id_) or "not under this root"
        console.answer(f"  {kind:<9} {name} ({id_[:12]})")
    for key in ("status", "checkpoints", "evals", "events"):
        if facts.get(key):
            console.answer(f"  {key:<11} {json.dumps(facts[key], ensure_ascii=False)}")
    config = dict(facts["config"])
    sources = config.pop("sources", {})
    for split, listed in sources.items():
        total = sum(s["bytes"] for s in listed)
        console.answer(f"  {split} text  {len(listed)} file(s), {total:,} bytes")
    for key, value in config.items():
        console.answer(f"  {key:<11} {json.dumps(value, ensure_ascii=False)}")
