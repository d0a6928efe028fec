"""The `lmcli` command: a static table of subcommands, loaded one at a time, and the error boundary.

Nothing here, and nothing a `--help` needs, imports torch, numpy or rich.
"""

import atexit
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

import lmcli
from lmcli import console
from lmcli.errors import LmcliError, exit_code, out_of_memory

# name -> (module under lmcli.commands, help line); the order is the order of a first project.
COMMANDS = {
    "quickstart": ("quickstart", "The whole pipeline on your text, in a few CPU minutes."),
    "tokenizer": ("tokenizer", "Train a tokenizer; encode, decode and inspect with it."),
    "data": ("data", "Build, check and show memory-mapped datasets."),
    "train": ("train", "Train a model; the same command again resumes it."),
    "finetune": ("finetune", "Train a run on, on pairs or text: all of it, a part, or LoRA."),
    "sample": ("sample", "Generate text from prompts; a filter for pipes."),
    "eval": ("eval", "Perplexity of a run on a dataset; on pairs BLEU, ROUGE and more."),
    "score": ("score", "BLEU, ROUGE, F1 .. of texts; pass@k; log-probabilities under a model."),
    "report": ("report", "Compare runs: table, Markdown, CSV, JSON or one HTML page."),
    "inspect": ("inspect", "Look inside: next words, attention, parameters."),
    "import": ("import_model", "A model folder of Hugging Face, as a run."),
    "export": ("export_model", "A run, as a model folder for Hugging Face transformers."),
    "ls": ("ls", "List the artifacts."),
    "show": ("show", "One artifact: what it is, what it came from."),
    "status": ("status", "The state of a run: step, loss, resumable or not."),
    "verify": ("verify", "Read every byte of an artifact and check its hashes."),
    "prove": ("prove", "Train the last steps of a run again and compare the bits."),
    "rm": ("rm", "Move an artifact to the trash; never a parent in use."),
    "doctor": ("doctor", "This machine, the versions, and what lmcli would choose."),
}


class LazyGroup(click.Group):
    """Subcommands by name from COMMANDS; a module is imported when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            command: click.Command = import_module(f"lmcli.commands.{COMMANDS[name][0]}").command
            return command
        # What looks like an option click refuses as one; what completes a line refuses nothing.
        if not name.startswith("-") and not ctx.resilient_parsing:
            from lmcli.config.fields import suggest

            ctx.fail(f"no command {name!r}{suggest(name, COMMANDS)}")
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: lmcli quickstart",
)
@click.version_option(lmcli.__version__, prog_name="lmcli")
def cli() -> None:
    """From raw text to a trained, sampled and measured language model."""


def invoke(args: Sequence[str]) -> None:
    """Runs one command line as `cli.main` does, which however exits 1 where a pipe is closed."""
    lmcli.invocation = ["lmcli", *args]
    with cli.make_context("lmcli", list(args)) as context:  # prints --help and --version
        cli.invoke(context)


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; the one place where errors end."""
    _open_streams()
    console.quiet = console.verbose = False
    try:
        invoke(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click before 8.2 has no such class
            print(error.format_message(), file=sys.stderr)
            return 2
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see `{context.command_path} --help`)" if context else ""
        return _fail(" ".join(error.format_message().split()).rstrip(".") + hint, 2)
    except LmcliError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        # The reader left (`| head -1`): keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = str(error.filename or "")
        where = f"{name if len(name) < 200 else name[:80] + '...'}: " if name else ""
        return _fail(f"{where}{error.strerror or error}", exit_code(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _fail("out of memory; lower --micro-batch-size or the model's size", 71)


def _open_streams() -> None:
    """Streams that were closed (`2>&-`) lead to /dev/null; answers are UTF-8 in any locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def _fail(message: str, code: int) -> int:
    if console.verbose:
        traceback.print_exc()
    print(f"lmcli: {message}", file=sys.stderr, flush=True)
    return code


def run() -> None:
    """The console script."""
    if "_LMCLI_COMPLETE" in os.environ:
        cli.main(prog_name="lmcli")  # click's completion for shells, which ends here
    code = main()
    if code == 130:  # a library's thread that runs Python would abort the process at a usual exit
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):  # nobody may read any more
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
