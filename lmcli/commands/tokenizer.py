"""lmcli tokenizer"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli.commands import options
from lmcli.config.data import ReadConfig, TokenizerConfig
from lmcli.config.fields import build, collect
from lmcli.errors import DataError

if TYPE_CHECKING:
    from lmcli.text.tokenizer import Tokenizer


@click.group(short_help="Train a tokenizer; encode, decode and inspect with it.")
def command() -> None:
    """Train a tokenizer; encode, decode and inspect with it.

    \b
    Examples:
      lmcli tokenizer train corpus.txt --name bpe8k --vocab-size 8192
      echo 'some text' | lmcli tokenizer encode bpe8k
    """


@command.command("train")
@click.argument("files", nargs=-1, required=True)
@click.option("--name", metavar="TOKENIZER", required=True, help="Name of the tokenizer.")
@options.config_file_option
@options.config_flags(TokenizerConfig, ReadConfig)
@options.exclude_option
@options.force_option
@options.common
def train(
    files: tuple[str, ...],
    name: str,
    config_file: Path | None,
    exclude: tuple[str, ...],
    force: bool,
    root: Path,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a tokenizer on files, folders or globs.

    Byte-level BPE over GPT-2's pre-tokens: any text round-trips, nothing is unknown.

    \b
    Examples:
      lmcli tokenizer train corpus.txt --name bpe8k --vocab-size 8192
      lmcli tokenizer train books/ 'more/*.jsonl.gz' --name books --text-key body
    """
    from lmcli import console
    from lmcli.artifacts import files as writer
    from lmcli.artifacts import layout, manifest
    from lmcli.artifacts.again import creating, finished
    from lmcli.text.readers import Reader, fingerprint
    from lmcli.text.tokenizer import Tokenizer

    given = collect(options.config_fields(TokenizerConfig, ReadConfig), flags, config_file)
    config = build(TokenizerConfig, options.pop_fields(given, TokenizerConfig))
    read = build(ReadConfig, given)
    path = layout.new(root, "tokenizer", name)
    reader = Reader(files, read, exclude)
    with creating(path, root, "tokenizer", force):
        recorded = {
            **dataclasses.asdict(config),
            **dataclasses.asdict(read),
            "pattern": "gpt2",
            "sources": {"train": fingerprint(reader.paths)},
        }
        made = finished(path, "tokenizer", recorded, {})
        if made:
            console.say(f"tokenizer {name} is there already, made from the same text")
        else:
            with console.Progress("reading", reader.size, "bytes") as progress:

                def texts() -> Iterator[str]:
                    done = 0
                    for piece in reader.pieces():
                        done += len(piece.text.encode())
                        progress.update(done)
                        yield piece.text

                tokenizer = Tokenizer.train(texts(), config.vocab_size)
            if reader.skipped:
                console.warn(f"{reader.skipped} documents could not be read and were left out")
            recorded |= {"reached_vocab_size": tokenizer.vocab_size, "skipped": reader.skipped}
            with writer.staged_directory(path) as folder:
                writer.write_file(folder / layout.TOKENIZER, tokenizer.to_bytes())
                made = manifest.write(folder, "tokenizer", path.name, config=recorded)
    if as_json:
        console.answer_json({"name": path.name, "id": made.id, **_without_sources(made.config)})
    else:
        size = made.config["reached_vocab_size"]
        console.say(f"tokenizer {path.name}: {size:,} tokens")


def _without_sources(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != "sources"}


def _load(root: Path, reference: str) -> "Tokenizer":
    from lmcli.artifacts import layout, manifest
    from lmcli.text.tokenizer import Tokenizer

    path = layout.find(root, reference, "tokenizer")
    manifest.read(path, "tokenizer", hashes=True)
    return Tokenizer.load(path / layout.TOKENIZER)


@command.command("encode")
@click.argument("tokenizer")
@options.common
def encode(tokenizer: str, root: Path, as_json: bool) -> None:
    """Token ids of each line of standard input, one line each.

    \b
    Example:
      echo 'some text' | lmcli tokenizer encode bpe8k
    """
    from lmcli import console

    loaded = _load(root, tokenizer)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            ids = loaded.encode(line.decode().removesuffix("\n"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input, line {number}: not UTF-8 at byte {error.start}"
            ) from None
        if as_json:
            console.answer_json(ids)
        else:
            console.answer(" ".join(map(str, ids)))


@command.command("decode")
@click.argument("tokenizer")
@options.common
def decode(tokenizer: str, root: Path, as_json: bool) -> None:
    """Text of each line of token ids on standard input.

    \b
    Example:
      echo 'some text' | lmcli tokenizer encode bpe8k | lmcli tokenizer decode bpe8k
    """
    from lmcli import console

    loaded = _load(root, tokenizer)
    for number, line in enumerate(sys.stdin.buffer, 1):
        words = line.decode("utf-8", "replace").strip().strip("[]").replace(",", " ").split()
        bad = next((w for w in words if not (w.isascii() and w.isdigit())), None)
        if bad is not None:
            raise DataError(f"standard input, line {number}: {bad!r} is not a token id")
        try:
            text = loaded.decode_bytes(map(int, words))
        except (DataError, ValueError) as error:  # int() refuses thousands of digits
            raise DataError(f"standard input, line {number}: {error}") from None
        if as_json:
            console.answer_json(text.decode("utf-8", "replace"))
        else:
            sys.stdout.buffer.write(text + b"\n")
            sys.stdout.buffer.flush()


@command.command("info")
@click.argument("tokenizer")
@click.argument("files", nargs=-1)
@options.config_flags(ReadConfig)
@options.common
def info(tokenizer: str, files: tuple[str, ...], root: Path, as_json: bool, **flags: Any) -> None:
    """What a tokenizer is and, given FILES, how well it compresses them.

    \b
    Examples:
      lmcli tokenizer info bpe8k
      lmcli tokenizer info bpe8k held-out.txt
    """
    from lmcli import console
    from lmcli.artifacts import layout, manifest
    from lmcli.text.readers import Reader

    path = layout.find(root, tokenizer, "tokenizer")
    made = manifest.read(path, "tokenizer")
    loaded = _load(root, tokenizer)
    facts: dict[str, Any] = {
        "name": made.name,
        "id": made.id,
        "algorithm": made.config.get("algorithm"),
        "vocab_size": loaded.vocab_size,
        "pattern": made.config.get("pattern"),
    }
    if files:
        reader = Reader(files, build(ReadConfig, collect(options.config_fields(ReadConfig), flags)))
        tokens = size = words = 0
        for piece in reader.pieces():
            tokens += len(loaded.encode(piece.text))
            size += len(piece.text.encode())
            words += len(piece.text.split())
        if reader.skipped:
            console.warn(f"{reader.skipped} documents could not be read and were left out")
        facts |= {
            "bytes": size,
            "tokens": tokens,
            "words": words,
            "bytes_per_token": size / max(1, tokens),
            "tokens_per_word": tokens / max(1, words),
            "skipped": reader.skipped,
        }
    if as_json:
        console.answer_json(facts)
    else:
        rows = [(k, f"{v:.3f}" if isinstance(v, float) else v) for k, v in facts.items()]
        console.answer("\n".join(f"{k:<16} {v}" for k, v in rows))
