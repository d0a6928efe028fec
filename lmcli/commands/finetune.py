"""lmcli finetune"""

from typing import Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.commands.train import how, run_training
from lmcli.config.training import Asked, TrainingConfig
from lmcli.config.tuning import TuningConfig
from lmcli.errors import UsageError

# What differs from training anew: small rates, short runs.
USUAL = {"lr": 3e-4, "schedule": "linear", "steps": 500, "weight_decay": 0.01}
USUAL_LORA = {"lr": 1e-3}


@click.command()
@click.option("--from", "origin", metavar="RUN", required=True, help="Run to begin with.")
@click.option("--data", metavar="DATASET", help="Pairs or text to learn; a new run needs one.")
@click.option("--name", metavar="RUN", required=True, help="Name of the new run.")
@options.settings(TuningConfig, TrainingConfig, file=True, usual=USUAL)
@click.option("--dropout", type=float, metavar="X", help="Dropout instead of the run's own.")
@click.option("--merge", is_flag=True, help="Write RUN with its LoRA updates merged, as it is.")
@how
def command(
    origin: str,
    data: str | None,
    name: str,
    given: dict[str, Any],
    dropout: float | None,
    merge: bool,
    **how: Any,
) -> None:
    """Begin with the weights of a run, trained here or imported, and learn pairs or text.

    Of a pair only the target counts, read through a template: the source for an encoder, for a
    decoder `{source}<sep>` or words that fit the --task, or a file of your own. The same command
    again resumes. The template is kept in the run, so that sample and eval take plain sources.

    \b
    Examples:
      lmcli finetune --from base --data pairs --name out --task summarization
      lmcli finetune --from gpt2 --data qa --name qa --task qa --lora-rank 8 --best-by squad_f1
      lmcli finetune --from base --data pairs --name out --freeze 'embed*' --patience 3
      lmcli finetune --from qa --name qa-merged --merge
    """
    options.read_template(given)
    if merge:
        if data or given or dropout is not None or how["dry_run"]:
            raise UsageError("--merge trains nothing; leave out the other settings")
        from lmcli.runs.exchange import merge_run

        made = merge_run(how["root"], origin, name, how["force"])
        console.reply(how["as_json"], {"name": made.name, "id": made.id}, made.name)
        return
    if dropout is not None:
        given["dropout"] = dropout
    usual = USUAL | (USUAL_LORA if given.get("lora_rank") else {})
    run_training(name, Asked(data, origin=origin, given=given, usual=usual), **how)
