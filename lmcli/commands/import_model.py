"""lmcli import"""

from pathlib import Path

import click

from lmcli import console
from lmcli.commands import options
from lmcli.commands.creation import summary


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", metavar="RUN", required=True, help="Name of the run and its tokenizer.")
@options.force_option
@options.common
def command(folder: Path, name: str, force: bool, root: Path, as_json: bool) -> None:
    """Read a GPT-2 folder (config.json, safetensors, tokenizer) into a run.

    It samples, scores and verifies as any run; `lmcli train --from` begins with its weights. Data
    for it is built with the tokenizer of the same name. Nothing in the folder is ever run, and
    pickles (.bin, .pt) are refused.

    \b
    Examples:
      lmcli import ./gpt2 --name gpt2
      lmcli data build corpus.txt --tokenizer gpt2 --name corpus
      lmcli train --from gpt2 --data corpus --name tuned --lr 1e-4
    """
    from lmcli.runs.exchange import import_model

    made = import_model(root, folder, name, force)
    if as_json:
        console.answer_json(summary(made.name, made))
    else:
        console.say(f'next: lmcli sample {name} "The quick brown fox"')
