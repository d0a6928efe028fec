"""lmcli sample"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.generation import GenerationConfig, generation
from lmcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from lmcli.runs.load import LoadedRun

LONGEST_PROMPT = 2**22


@click.command(short_help="Generate text from prompts; a filter for pipes.")
@click.argument("run")
@click.argument("prompts", nargs=-1, type=options.Text())
@options.settings(GenerationConfig)
@click.option("--echo", is_flag=True, help="Print the prompt before each completion.")
@options.checkpoint_options
@options.common
def command(
    run: str,
    prompts: tuple[str, ...],
    echo: bool,
    given: dict[str, Any],
    at: dict[str, str],
    root: Path,
    as_json: bool,
) -> None:
    """Complete prompts given as arguments, or each line of standard input.

    From standard input it is a filter: one line out per line in, in order, a blank line for a
    blank line, and a completion ends at its first newline. Prompts given as arguments run on to
    the end of the text or the length asked for. Standard output has nothing but text.

    \b
    Examples:
      lmcli sample base "Once upon a time"
      echo 'The king said' | lmcli sample base --temperature 0
      lmcli sample base "The quick brown fox" --max-length 50 --num-return-sequences 3 --echo
      lmcli sample en-de --num-beams 5 --batch-size 64 < test.en > test.de
    """
    config = generation(given, {})
    for prompt in prompts:
        if not prompt.isprintable() and any("\ud800" <= c <= "\udfff" for c in prompt):
            raise UsageError(f"the prompt {prompt!r} is not UTF-8")
    if not prompts and sys.stdin.isatty():
        raise UsageError("no prompt: give one as an argument or lines on standard input")
    from lmcli.runs.load import load

    loaded = load(root, run, **at)
    record = 0
    for batch in [list(prompts)] if prompts else _arriving(config.batch_size):
        _write(loaded, config, batch, record, echo, as_json, lines=not prompts)
        record += len(batch)


def _arriving(limit: int) -> Iterator[list[str]]:
    """Lines of standard input in batches of what has arrived, so that a pipe never waits."""
    from lmcli.text.readers import decode

    stream: Any = sys.stdin.buffer
    number, rest, ended = 0, b"", False
    while not ended:
        data = stream.read1(2**16)  # waits for the first byte only
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > LONGEST_PROMPT:
            raise DataError(
                f"standard input, line {number + len(lines) + 1}: a prompt of more than "
                f"{LONGEST_PROMPT >> 20} MiB; shorten it"
            )
        if ended := not data:
            lines += [rest] if rest else []
        for start in range(0, len(lines), limit):
            batch = []
            for line in lines[start : start + limit]:
                number += 1
                batch.append(decode(line.removesuffix(b"\r"), f"standard input, line {number}"))
            yield batch


def _write(
    loaded: "LoadedRun",
    config: GenerationConfig,
    prompts: list[str],
    first: int,
    echo: bool,
    as_json: bool,
    lines: bool,
) -> None:
    """Generates for a batch of prompts and prints in input order, flushed per record."""
    tokenizer, engine = loaded.tokenizer, loaded.engine
    wanted = [i for i, prompt in enumerate(prompts) if prompt or not lines]
    ids = [loaded.encode(prompts[i]) for i in wanted]
    for tokens in ids:
        kept = len(engine.fit_prompt(tokens, config.max_new_tokens))
        if kept < len(tokens) + 1:
            console.warn_once(
                f"a prompt of {len(tokens)} tokens keeps its last {kept}, so that there is room "
                f"for new ones: the context is {engine.context_length}"
            )
        if config.max_length and config.max_length <= len(tokens):
            console.warn_once(
                f"a prompt of {len(tokens)} tokens leaves nothing of --max-length "
                f"{config.max_length}: its completion is empty"
            )
    if config.max_new_tokens >= engine.context_length:
        console.warn_once(
            f"--max-new-tokens {config.max_new_tokens} does not fit: completions end with the "
            f"context of {engine.context_length} tokens"
        )
    stop = tokenizer.newline_ids if lines else frozenset()
    with loaded.machine.autocast():
        done = engine.generate(ids, config, [first + i for i in wanted], stop_ids=stop)
    by_prompt = dict(zip(wanted, done, strict=True))
    for i, prompt in enumerate(prompts):
        for completion in by_prompt.get(i, [None] * config.num_return_sequences):
            text = tokenizer.decode(completion.ids) if completion else ""
            if lines:
                text = text.partition("\n")[0].replace("\r", "")
            text = prompt + text if echo else text
            record: dict[str, Any] = {"prompt": prompt, "completion": text}
            if completion is not None:
                record |= {
                    "tokens": len(completion.ids),
                    "logprob": completion.logprob,
                    "finish_reason": completion.finish_reason,
                }
            console.reply(as_json, record, text)
