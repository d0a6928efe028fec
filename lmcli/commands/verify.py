"""lmcli verify"""

from pathlib import Path

import click

from lmcli import console
from lmcli.artifacts import inventory, layout, manifest
from lmcli.commands import options
from lmcli.config.units import show_bytes
from lmcli.errors import DataError


@click.command()
@click.argument("artifact")
@options.common
def command(artifact: str, root: Path, as_json: bool) -> None:
    """Check an artifact against its manifest; exit code 65 names every problem.

    For a run, its checkpoints too, and its metrics log against what each of them recorded; for a
    dataset, its offsets and token ids.

    \b
    Example:
      lmcli verify base
    """
    check(layout.find(root, artifact), as_json)


def check(path: Path, as_json: bool) -> None:
    """Answers with every problem of an artifact; DataError where there is one."""
    problems, n_files, n_bytes = inventory.verify(path)
    if not problems and manifest.claims(path)[0] == "dataset":
        from lmcli.dataset.store import format_problems

        problems = format_problems(path)
    good = f"ok: {n_files} files, {show_bytes(n_bytes)} match their hashes"
    facts = {"ok": not problems, "problems": problems, "files": n_files}
    console.reply(as_json, facts, "\n".join(problems) or good)
    if problems:
        raise DataError(f"{path}: {len(problems)} problem(s)")
