"""lmcli export"""

from pathlib import Path

import click

from lmcli import console
from lmcli.commands import options


@click.command()
@click.argument("run")
@click.option(
    "--format", type=click.Choice(["hf"]), required=True, expose_value=False, help="Layout."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder to write; it must not exist.",
)
@options.checkpoint_option
@options.common
def command(run: str, out: Path, which: str, root: Path, as_json: bool) -> None:
    """Write a run of GPT-2's shape as a folder that `transformers` loads without remote code.

    Weights in float32, tokenizer, generation settings and a model card with recipe and scores. Its
    license line is left to you. Exit code 78 names the first setting that GPT-2 does not have.

    \b
    Example:
      lmcli export base --format hf --out ./base-hf
    """
    from lmcli.runs.exchange import export_model

    done = export_model(root, run, which, out)
    console.reply(as_json, done, str(out))
