"""lmcli sample"""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.fields import suggest
from lmcli.config.generation import GenerationConfig, generation
from lmcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from lmcli.runs.sample import Completion, Prompt, Sampler

GRID = "Try each of some values: --grid temperature=0,0.7 (repeatable); prints a table."


@dataclass(frozen=True)
class Form:
    """How prompts come and completions go."""

    echo: bool
    escape: bool
    whole: bool
    jsonl: bool
    prompt_key: str
    stream: bool
    logprobs: bool
    as_json: bool

    @property
    def records(self) -> bool:
        """Whether completions go as JSON."""
        return self.as_json or self.jsonl


@click.command()
@click.argument("run")
@click.argument("prompts", nargs=-1, type=options.text)
@options.settings(GenerationConfig)
@click.option("--stop", multiple=True, type=options.text, help="End before TEXT (repeatable).")
@click.option(
    "--choice",
    "choices",
    multiple=True,
    type=options.text,
    help="Complete with one of some texts and nothing else (repeatable).",
)
@click.option(
    "--choices", "choices_file", metavar="FILE", help="The same with each line of a file."
)
@click.option("--echo", is_flag=True, help="Print the prompt before each completion.")
@click.option(
    "--escape", is_flag=True, help=r"Write line feeds as \n and go on; else they end a line's text."
)
@click.option("--whole", is_flag=True, help="All of standard input is one prompt.")
@click.option("--jsonl", is_flag=True, help="Records in and out; their other fields pass through.")
@click.option(
    "--prompt-key", default="prompt", show_default=True, help="The field of --jsonl to complete."
)
@click.option("--stream", is_flag=True, help="Print text as it comes, one completion at a time.")
@click.option("--logprobs", is_flag=True, help="With --json or --jsonl: those of each token.")
@click.option("--grid", "grid", multiple=True, metavar="NAME=A,B", help=GRID)
@options.checkpoint_options
@options.common
def command(
    run: str,
    prompts: tuple[str, ...],
    stop: tuple[str, ...],
    choices: tuple[str, ...],
    choices_file: str | None,
    grid: tuple[str, ...],
    given: dict[str, Any],
    at: dict[str, Any],
    root: Path,
    **form: Any,
) -> None:
    """Complete prompts given as arguments, or each line of standard input.

    From standard input it is a filter: one line out per line in, in order, a blank line for a
    blank line, and a completion ends at its first newline. Prompts given as arguments run on to
    the end of the text or the length asked for. Standard output has nothing but text. On a terminal
    without prompts it asks for them.

    \b
    Examples:
      lmcli sample base "Once upon a time"
      echo 'The king said' | lmcli sample base --temperature 0
      lmcli sample base "The quick brown fox" --max-length 50 --num-return-sequences 3 --echo
      lmcli sample en-de --num-beams 5 --batch-size 64 < test.en > test.de
      lmcli sample base --jsonl --stop '###' < prompts.jsonl > completions.jsonl
      lmcli sample base "It was a" --choice ' good day' --choice ' bad day' --temperature 0
      lmcli sample base "The king" --grid temperature=0,0.7,1 --grid top_p=0.9,1
    """
    how = Form(**form)
    config = generation(given, {})
    settings = _grid(grid, given)
    _check(how, config, bool(prompts), bool(grid), bool(choices or choices_file))
    if choices_file:
        from lmcli.text.segments import lines as lines_of

        choices += tuple(filter(None, lines_of(choices_file, "--choices")))
    if "" in (*stop, *choices):
        raise UsageError("an empty text is no --stop and no --choice")
    from lmcli.runs.load import load
    from lmcli.runs.sample import Sampler

    lines = not (prompts or how.whole or how.jsonl or how.escape)
    take = _source(prompts, how)
    if how.stream or take is None:
        config = replace(config, batch_size=1)
    loaded = load(root, run, **at)
    if grid:
        found = iter(lambda: take(2**20, True), None) if take else ()
        every = list(itertools.chain.from_iterable(found))
        points = [(row, Sampler(loaded, c, lines, stop, choices)) for row, c in settings]
        _answer_grid(points, every, how)
        return
    sampler = Sampler(loaded, config, lines, stop, choices)
    if take is None:
        _talk(sampler, how, streams=config.num_beams == 1)
    else:
        _answer_all(sampler, take, how, how.stream)


def _check(how: Form, config: GenerationConfig, prompts: bool, grid: bool, choices: bool) -> None:
    """Refuses what does not go together."""
    for flags, wrong in {
        "--whole reads standard input": how.whole and prompts,
        "--jsonl reads standard input": how.jsonl and prompts,
        "--whole is one prompt, --jsonl one a line": how.whole and how.jsonl,
        "--logprobs is for --json or --jsonl": how.logprobs and not how.records,
        "--stream prints text, not JSON": how.stream and how.records,
        "--stream shows draws; --num-beams knows its text at the end": how.stream
        and config.num_beams > 1,
        "--grid prints a table at the end; leave --stream out": how.stream and grid,
        "--grid compares prompts: give some": grid
        and not (prompts or how.whole or how.jsonl)
        and sys.stdin.isatty(),
        "a choice is written whole; leave --max-length out": choices and config.max_length,
    }.items():
        if wrong:
            raise UsageError(flags)


def _source(prompts: Sequence[str], how: Form) -> Callable[[int, bool], Any] | None:
    """Where prompts are taken from; None: they are asked for, on a terminal."""
    from lmcli.runs.sample import Prompt, at_once
    from lmcli.text.arrivals import LONGEST, Arrivals
    from lmcli.text.readers import decode, field_of, record_of

    def parse(where: str, line: str) -> "Prompt":
        if not line or not how.jsonl:
            return Prompt(line, {"prompt": line}, blank=not line)
        record = record_of(line.encode(), where)
        return Prompt(field_of(record, how.prompt_key, "--prompt-key", where), record)

    if how.whole:
        data = sys.stdin.buffer.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise DataError(f"standard input: more than {LONGEST >> 20} MiB; shorten it")
        prompts = [decode(data, "standard input").removeprefix("\ufeff")]
    if prompts:
        return at_once([Prompt(text, {"prompt": text}) for text in prompts])
    if sys.stdin.isatty() and not how.jsonl:
        if how.as_json or how.logprobs:
            raise UsageError("no prompt: give one as an argument or lines on standard input")
        return None
    return Arrivals(sys.stdin.buffer, parse).take


def _plain(text: str, escape: bool) -> str:
    if escape:
        return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return text


def _echoed(prompt: "Prompt", text: str, how: Form) -> str:
    return prompt.text + text if how.echo else text


def _answer(sampler: "Sampler", prompt: "Prompt", done: "Completion", how: Form) -> None:
    """One completion: a line, or a record with the fields of its prompt."""
    text = _echoed(prompt, sampler.readable(done.ids), how)
    if how.jsonl and prompt.blank or not how.records:
        console.answer(_plain(text, how.escape))
        return
    record = prompt.fields | {"completion": text}
    if not prompt.blank:
        record |= {
            "tokens": len(done.ids),
            "logprob": done.logprob,
            "finish_reason": done.finish_reason,
        }
        if how.logprobs:
            record["logprobs"] = sampler.logprobs(done)
    console.answer(json.dumps(record, ensure_ascii=False))


def _answer_all(
    sampler: "Sampler", take: Callable[[int, bool], Any], how: Form, streams: bool
) -> None:
    """Every completion, as it grows where it `streams`."""
    shown = _Shown(how) if streams else None
    for prompt, completions in sampler.stream(take, shown):
        for done in completions:
            if shown is None or not done.logprobs:
                _answer(sampler, prompt, done, how)


class _Shown:
    """Prints a text as it grows; called with all of it that can be shown."""

    def __init__(self, how: Form) -> None:
        self.how, self.shown = how, ""

    def __call__(self, prompt: "Prompt", text: str, final: bool) -> None:
        text = _plain(_echoed(prompt, text, self.how), self.how.escape)
        if text.startswith(self.shown):  # not where a tokenizer changes its mind about a space
            console.answer(text[len(self.shown) :], end="")
        self.shown = "" if final else text
        if final:
            console.answer("")


def _talk(sampler: "Sampler", how: Form, streams: bool) -> None:
    """Asks for prompts on a terminal until its input ends; Ctrl-C ends a completion."""
    from lmcli.runs.sample import Prompt, at_once

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - history and editing of what `input` reads
    while True:
        mark = "> "
        if not sys.stdout.isatty():  # where `input` would write it into the answer
            print(mark, end="", file=sys.stderr, flush=True)
            mark = ""
        try:
            prompt = Prompt(input(mark), {})
        except EOFError:
            print(file=sys.stderr)
            return
        try:
            _answer_all(sampler, at_once([prompt]), how, streams)
        except KeyboardInterrupt:
            console.answer("")


def _grid(
    grid: Sequence[str], given: dict[str, Any]
) -> list[tuple[dict[str, str], GenerationConfig]]:
    """Every combination of the values, as they were given and as settings."""
    known = options.config_fields(GenerationConfig)
    axes: dict[str, list[str]] = {}
    for axis in grid:
        name, equals, values = axis.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in known:
            raise UsageError(f"--grid {axis}: not NAME=A,B of a setting{suggest(name, known)}")
        axes.setdefault(name, []).extend(values.split(","))
    chosen = [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    return [(row, generation({**given, **row}, {})) for row in chosen]


def _answer_grid(
    points: Sequence[tuple[dict[str, str], "Sampler"]], prompts: list["Prompt"], how: Form
) -> None:
    """A row for each completion under each combination of settings."""
    from lmcli.runs.sample import at_once

    rows = []
    for setting, sampler in points:
        for prompt, completions in sampler.stream(at_once(prompts)):
            for done in completions:
                if how.records:
                    prompt_of = replace(prompt, fields=prompt.fields | {"settings": setting})
                    _answer(sampler, prompt_of, done, how)
                    continue
                text = _plain(_echoed(prompt, sampler.readable(done.ids), how), True)
                per_token = done.logprob / max(1, len(done.logprobs))
                which = [_plain(prompt.text, True)] if len(prompts) > 1 else []
                rows.append([*setting.values(), *which, len(done.ids), f"{per_token:.3f}", text])
    if rows:
        which = ["prompt"] if len(prompts) > 1 else []
        header = [*points[0][0], *which, "tokens", "logprob/token", "text"]
        console.answer(console.table(rows, header))
