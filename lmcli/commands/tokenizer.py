"""lmcli tokenizer"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.artifacts import layout, manifest
from lmcli.commands import options
from lmcli.commands.creation import Creation, creation_flags
from lmcli.config.data import ReadConfig, TokenizerConfig
from lmcli.config.fields import build, pick
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
@creation_flags(TokenizerConfig, ReadConfig)
def train(files: tuple[str, ...], name: str, creation: Creation) -> None:
    """Train a tokenizer on files, folders or globs.

    Byte-level BPE over GPT-2's pre-tokens: any text round-trips, nothing is unknown.

    \b
    Examples:
      lmcli tokenizer train corpus.txt --name bpe8k --vocab-size 8192
      lmcli tokenizer train books/ 'more/*.jsonl.gz' --name books --text-key body
    """
    from lmcli.text import tokenizer
    from lmcli.text.readers import Reader

    config, read = pick(TokenizerConfig, creation.given), pick(ReadConfig, creation.given)
    path = layout.new(creation.root, "tokenizer", name)
    reader = Reader(files, read, creation.exclude)
    made = creation.make(
        "tokenizer",
        path,
        {**dataclasses.asdict(config), **dataclasses.asdict(read), "pattern": "gpt2"},
        {"train": reader},
        lambda recorded: tokenizer.build(path, reader, config, recorded),
    )
    if not creation.as_json:
        size = made.config["reached_vocab_size"]
        console.say(f"tokenizer {path.name}: {size:,} tokens")


def _load(root: Path, reference: str) -> "tuple[Tokenizer, manifest.Manifest]":
    from lmcli.text.tokenizer import Tokenizer

    path = layout.find(root, reference, "tokenizer")
    made = manifest.read(path, "tokenizer", hashes=True)
    return Tokenizer.load(path / layout.TOKENIZER), made


@command.command("encode")
@click.argument("tokenizer")
@options.common
def encode(tokenizer: str, root: Path, as_json: bool) -> None:
    """Token ids of each line of standard input, one line each.

    \b
    Example:
      echo 'some text' | lmcli tokenizer encode bpe8k
    """
    from lmcli.text.readers import cut, decode, lines

    loaded, _ = _load(root, tokenizer)
    for number, line in lines(sys.stdin.buffer, "standard input"):
        where = f"standard input, line {number}"
        parts = cut(decode(line.removesuffix(b"\n"), where), where)
        ids = [i for part in parts for i in loaded.encode(part)]
        console.reply(as_json, ids, " ".join(map(str, ids)))


@command.command("decode")
@click.argument("tokenizer")
@options.common
def decode(tokenizer: str, root: Path, as_json: bool) -> None:
    """Text of each line of token ids on standard input.

    \b
    Example:
      echo 'some text' | lmcli tokenizer encode bpe8k | lmcli tokenizer decode bpe8k
    """
    from lmcli.text.readers import lines

    loaded, _ = _load(root, tokenizer)
    for number, line in lines(sys.stdin.buffer, "standard input"):
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
            console.answer_bytes(text)


@command.command("info")
@click.argument("tokenizer")
@click.argument("files", nargs=-1)
@options.settings(ReadConfig)
@options.common
def info(
    tokenizer: str, files: tuple[str, ...], given: dict[str, Any], root: Path, as_json: bool
) -> None:
    """What a tokenizer is and, given FILES, how well it compresses them.

    \b
    Examples:
      lmcli tokenizer info bpe8k
      lmcli tokenizer info bpe8k held-out.txt
    """
    from lmcli.text.readers import Reader

    loaded, made = _load(root, tokenizer)
    facts: dict[str, Any] = {
        "name": made.name,
        "id": made.id,
        "algorithm": made.config.get("algorithm"),
        "vocab_size": loaded.vocab_size,
        "pattern": made.config.get("pattern"),
    }
    if files:
        reader = Reader(files, build(ReadConfig, given))
        tokens = size = words = 0
        for piece in reader.pieces():
            tokens += len(loaded.encode(piece.text))
            size += piece.size
            words += len(piece.text.split())
        reader.warn_of_skipped()
        facts |= {
            "bytes": size,
            "tokens": tokens,
            "words": words,
            "bytes_per_token": size / max(1, tokens),
            "tokens_per_word": tokens / max(1, words),
            "skipped": reader.skipped,
        }
    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in facts.items()}
    console.reply(as_json, facts, console.listing(shown, 16))
