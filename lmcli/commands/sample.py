"""lmcli sample"""

import json
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli.commands import options
from lmcli.config.fields import build, collect
from lmcli.config.generation import GenerationConfig
from lmcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from lmcli.runs.load import LoadedRun


@click.command(short_help="Generate text from prompts; a filter for pipes.")
@click.argument("run")
@click.argument("prompts", nargs=-1)
@options.config_flags(GenerationConfig)
@click.option("--echo", is_flag=True, help="Print the prompt before each completion.")
@options.checkpoint_options
@options.common
def command(
    run: str,
    prompts: tuple[str, ...],
    echo: bool,
    checkpoint: str,
    device: str,
    dtype: str,
    root: Path,
    as_json: bool,
    **flags: Any,
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
    """
    config = build(GenerationConfig, collect(options.config_fields(GenerationConfig), flags))
    if config.top_p <= 0:
        raise UsageError("--top-p must be above 0; --temperature 0 is greedy")
    if not prompts and sys.stdin.isatty():
        raise UsageError("no prompt: give one as an argument or lines on standard input")
    from lmcli.runs.load import load

    loaded = load(root, run, checkpoint, device, dtype)
    if prompts:
        _write(loaded, config, list(prompts), 0, echo, as_json, lines=False)
        return
    record = 0
    for batch in _arriving(config.batch_size):
        _write(loaded, config, batch, record, echo, as_json, lines=True)
        record += len(batch)


def _arriving(limit: int) -> Iterator[list[str]]:
    """Lines of standard input in batches of what has arrived, so that a pipe never waits."""
    arrived: queue.Queue[bytes | None] = queue.Queue(maxsize=4 * limit)

    def read() -> None:
        for line in sys.stdin.buffer:
            arrived.put(line)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    number, ended = 0, False
    while not ended:
        batch: list[str] = []
        while len(batch) < limit:
            try:
                line = arrived.get(block=not batch)
            except queue.Empty:
                break
            if line is None:
                ended = True
                break
            number += 1
            try:
                batch.append(line.decode().removesuffix("\n").removesuffix("\r"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"standard input, line {number}: not UTF-8 at byte {error.start}"
                ) from None
        if batch:
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
    from lmcli import console

    tokenizer, engine = loaded.tokenizer, loaded.engine
    wanted = [i for i, prompt in enumerate(prompts) if prompt or not lines]
    ids = [tokenizer.encode(prompts[i]) for i in wanted]
    for tokens in ids:
        if len(tokens) + 2 > engine.context_length:
            console.warn(
                f"a prompt of {len(tokens)} tokens keeps its last "
                f"{len(engine.fit_prompt(tokens))}: the context is {engine.context_length}"
            )
    stop = tokenizer.newline_ids if lines else frozenset()
    with loaded.machine.autocast():
        done = engine.generate(ids, config, [first + i for i in wanted], stop)
    by_prompt = dict(zip(wanted, done, strict=True))
    for i, prompt in enumerate(prompts):
        for completion in by_prompt.get(i, [None] * config.num_return_sequences):
            text = tokenizer.decode(completion.ids) if completion else ""
            if lines:
                text = text.partition("\n")[0].replace("\r", "")
            text = prompt + text if echo else text
            if not as_json:
                console.answer(text)
                continue
            record: dict[str, Any] = {"prompt": prompt, "completion": text}
            if completion is not None:
                record |= {
                    "tokens": len(completion.ids),
                    "logprob": completion.logprob,
                    "finish_reason": completion.finish_reason,
                }
            console.answer(json.dumps(record, ensure_ascii=False))
