"""lmcli tokenizer"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
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


@click.group()
def command() -> None:
    """Train a tokenizer; encode, decode and inspect with it.

    \b
    Examples:
      lmcli tokenizer train corpus.txt --name bpe8k --vocab-size 8192
      echo 'some text' | lmcli tokenizer encode bpe8k
    """


template_option = click.option(
    "--chat-template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON or TOML of role = text around {content}, for datasets built of chats.",
)


def _template(path: Path | None) -> dict[str, str] | None:
    from lmcli.text.chat import read_template

    return read_template(path) if path else None


@command.command("train")
@click.argument("files", nargs=-1, required=True)
@click.option("--name", metavar="TOKENIZER", required=True, help="Name of the tokenizer.")
@template_option
@creation_flags(TokenizerConfig, ReadConfig)
def train(
    files: tuple[str, ...], name: str, chat_template: Path | None, creation: Creation
) -> None:
    """Train a tokenizer on files, folders or globs; - is standard input.

    bpe, unigram and wordpiece learn pieces of GPT-2's pre-tokens, char the commonest characters.
    All spell in bytes what they did not learn: any text round-trips, nothing is unknown. Unigram
    takes long where text has no spaces: cap it with --sample-bytes.

    \b
    Examples:
      lmcli tokenizer train corpus.txt --name bpe8k --vocab-size 8192
      lmcli tokenizer train books/ 'more/*.jsonl.gz' --name books --text-key body
      zcat dump.gz | lmcli tokenizer train - --algorithm unigram --sample-bytes 10MB --name uni
    """
    from lmcli.text import tokenizer

    config, read = pick(TokenizerConfig, creation.given), pick(ReadConfig, creation.given)
    pattern = None if config.algorithm in ("char", "byte") else "gpt2"
    path = layout.new(creation.root, "tokenizer", name)
    recorded = dataclasses.asdict(config) | dataclasses.asdict(read)
    recorded |= {"pattern": pattern, "chat_template": _template(chat_template)}
    made = creation.make(
        "tokenizer",
        path,
        recorded,
        {"train": files},
        lambda readers, recorded: tokenizer.build(path, readers["train"], config, recorded),
    )
    if not creation.as_json:
        size = made.config["reached_vocab_size"]
        console.say(f"tokenizer {path.name}: {size:,} tokens")


@command.command("import")
@click.argument("paths", nargs=-1, required=True)
@click.option("--name", metavar="TOKENIZER", required=True, help="Name of the tokenizer.")
@click.option("--eos", metavar="TOKEN", help="The token that ends a text, where none is known.")
@template_option
@options.force_option
@options.common
def import_(
    paths: tuple[str, ...],
    name: str,
    eos: str | None,
    chat_template: Path | None,
    force: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Import a Hugging Face tokenizer.json, or GPT-2's vocabulary and merges.

    PATHS is the file, its folder, or the pair vocab.json merges.txt (encoder.json vocab.bpe). The
    ids are those of the original; text that spells a special token is text all the same.

    \b
    Examples:
      lmcli tokenizer import gpt2/ --name gpt2
      lmcli tokenizer import vocab.json merges.txt --name roberta --eos '</s>'
    """
    from lmcli.text import imported, tokenizer

    path, sources = layout.new(root, "tokenizer", name), imported.find(paths)
    made = Creation({}, (), force, root, as_json).make(
        "tokenizer",
        path,
        {"algorithm": "imported", "eos": eos, "chat_template": _template(chat_template)},
        {"train": list(map(str, sources))},
        lambda _, recorded: tokenizer.write(path, imported.load(sources, eos), recorded),
    )
    if not as_json:
        lossy = "" if made.config.get("exact") else "; it may change text: see lmcli tokenizer info"
        console.say(f"tokenizer {path.name}: {made.config['reached_vocab_size']:,} tokens{lossy}")


def _load(root: Path, reference: str) -> "tuple[Tokenizer, manifest.Manifest]":
    from lmcli.text.tokenizer import Tokenizer

    path, made = manifest.find(root, reference, "tokenizer", hashes=True)
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
        bad = next((w for w in words if not (w.isascii() and w.isdigit() and len(w) < 20)), None)
        if bad is not None:
            raise DataError(f"standard input, line {number}: {bad[:40]!r} is not a token id")
        try:
            text = loaded.decode_bytes(map(int, words))
        except DataError as error:
            raise DataError(f"standard input, line {number}: {error}") from None
        console.reply(as_json, text.decode("utf-8", "replace"), text)


@command.command("info")
@click.argument("tokenizers", nargs=-1, required=True, metavar="TOKENIZER... [FILES]...")
@options.settings(ReadConfig)
@options.common
def info(tokenizers: tuple[str, ...], given: dict[str, Any], root: Path, as_json: bool) -> None:
    """What tokenizers are and, given FILES, how well they compress them and what they lose.

    Bytes per token are counted overall and by script: a token counts for the script of its first
    letter, in files of source code for `code`. `dropped` and `added` are the characters that differ
    after decoding, `unknown` those that the vocabulary does not have.

    \b
    Examples:
      lmcli tokenizer info bpe8k
      lmcli tokenizer info bpe8k gpt2 held-out.txt
    """
    from lmcli.text.compression import Compression
    from lmcli.text.readers import Reader

    first, *rest = tokenizers
    also = itertools.takewhile(lambda name: _is_tokenizer(root, name), rest)
    loaded = [_load(root, name) for name in (first, *also)]
    columns: list[dict[str, Any]] = [
        {
            "name": made.name,
            "id": made.id,
            "algorithm": made.config.get("algorithm"),
            "vocab_size": tokenizer.vocab_size,
            "pattern": made.config.get("pattern"),
            "exact": tokenizer.exact,
        }
        for tokenizer, made in loaded
    ]
    if inputs := tokenizers[len(loaded) :]:
        reader = Reader(inputs, build(ReadConfig, given))
        counts = [Compression(tokenizer) for tokenizer, _ in loaded]
        for piece in reader.pieces():
            for count in counts:
                count.add(piece)
        reader.warn_of_skipped()
        for facts, count in zip(columns, counts, strict=True):
            facts |= count.facts() | {"skipped": reader.skipped}
    if as_json:
        for facts in columns:
            console.answer_json(facts)
    else:
        console.answer(console.table(_rows(columns)))


def _is_tokenizer(root: Path, name: str) -> bool:
    """A file of the same name wins; `tokenizers/NAME` says what is meant."""
    bare = name.removeprefix("tokenizers/")
    return (root / "tokenizers" / bare).is_dir() and not Path(name).exists()


def _rows(columns: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A fact or a script in each row, a tokenizer in each column."""
    for key in columns[0]:
        if key == "scripts":
            for name in dict.fromkeys(name for facts in columns for name in facts[key]):
                found = [facts[key].get(name) for facts in columns]
                yield [f"  {name}", *(f"{s['bytes_per_token']:.3f}" if s else "-" for s in found)]
        else:
            yield [key, *(_show(facts[key]) for facts in columns)]


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps("".join(value), ensure_ascii=False)
    return f"{value:.3f}" if isinstance(value, float) else console.plain(value)[:24]
