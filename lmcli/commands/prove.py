"""lmcli prove"""

from pathlib import Path

import click

from lmcli.commands import options
from lmcli.errors import DataError, MismatchError

STEPS = "Steps to train again, at least; it starts at a checkpoint, or at step 0."


@click.command()
@click.argument("run")
@options.number("--steps", 100, STEPS, "K")
@options.allow_code_execution
@options.common
def command(run: str, steps: int, allow_code_execution: bool, root: Path, as_json: bool) -> None:
    """Show that a run's newest checkpoint is what its config, data and seed give.

    The steps run in a copy. Weights, optimizer state and metrics must be equal bit for bit; exit
    code 65 names the first tensor that is not, and 78 what else is different here (lmcli, torch,
    threads, the CPU), if anything is.

    \b
    Examples:
      lmcli prove base
      lmcli prove base --steps 500 --json
    """
    from lmcli import console
    from lmcli.runs.prove import prove

    result = prove(root, run, steps, allow_code_execution)
    if as_json:
        console.answer_json(result)
    elif result["same"]:
        console.answer(f"the same bits: {run}, steps {result['first'] + 1} to {result['last']}")
    if not result["same"]:
        where = f"{run}, trained again from step {result['first']}: {result['difference']}"
        if result["environment"] != "the same":
            raise MismatchError(f"{where}; likely because of {result['environment']}")
        raise DataError(f"{where}, with the same lmcli, torch, threads and CPU: it is corrupt")
