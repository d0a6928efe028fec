"""lmcli data"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.artifacts import layout, manifest
from lmcli.commands import options
from lmcli.commands.creation import Creation, creation_flags, summary
from lmcli.config.data import PairConfig, ReadConfig, SplitConfig
from lmcli.config.fields import flag, pick
from lmcli.config.units import show_bytes
from lmcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from lmcli.dataset.store import Dataset
    from lmcli.text.tokenizer import Tokenizer


@click.group(short_help="Build, check and show memory-mapped datasets.")
def command() -> None:
    """Build, check and show memory-mapped datasets.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data show corpus --split val
    """


def _sides(function: Callable[..., Any]) -> Callable[..., Any]:
    """--source, --target and those of the held-out splits."""
    for split in ("test_", "val_", ""):
        for side in ("target", "source"):
            text = f"{side.capitalize()}s{f' of the {split[:-1]} split' if split else ''}, by line."
            name = split + side
            function = click.option(flag(name), name, multiple=True, metavar="FILE", help=text)(
                function
            )
    return function


@command.command("build")
@click.argument("files", nargs=-1)
@_sides
@click.option("--tokenizer", metavar="TOKENIZER", required=True, help="Tokenizer to encode with.")
@click.option("--name", metavar="DATASET", required=True, help="Name of the dataset.")
@click.option("--val", multiple=True, metavar="FILE", help="Files of the val split (repeatable).")
@click.option("--test", multiple=True, metavar="FILE", help="Files of the test split (repeatable).")
@click.option("--dry-run", is_flag=True, help="Say what would be read and written, and stop.")
@creation_flags(SplitConfig, ReadConfig, PairConfig)
def build(
    files: tuple[str, ...],
    tokenizer: str,
    name: str,
    val: tuple[str, ...],
    test: tuple[str, ...],
    dry_run: bool,
    creation: Creation,
    **sides: tuple[str, ...],
) -> None:
    """Encode text, or pairs of texts, into a dataset of three splits; - is standard input.

    Documents are dealt by a hash of their text; fewer than 20 are each cut by position, at a line
    end. With --val or --test files, only those make up that split.

    Pairs come from --source and --target line by line, from columns or fields that --source-key and
    --target-key name, or with --pairs from JSONL of prompt and completion or of chat messages.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data build train/ --val valid.txt --test-fraction 0 --tokenizer bpe8k --name corpus
      lmcli data build 'c4/*.jsonl.gz' --tokenizer bpe32k --name c4 --on-error skip
      zcat dump.gz | lmcli data build - --document line --tokenizer bpe32k --name dump
      lmcli data build --source train.en --target train.de --tokenizer bpe --name en-de
      lmcli data build qa.jsonl --source-key context,question --target-key answer \\
          --tokenizer bpe --name qa --max-source-length 200
    """
    from lmcli.dataset.build import build as build_dataset
    from lmcli.dataset.build import preview
    from lmcli.dataset.build_pairs import build_pairs, plan_pairs

    given = creation.given
    split, read, pair = pick(SplitConfig, given), pick(ReadConfig, given), pick(PairConfig, given)
    inputs, are_pairs = _inputs(files, val, test, sides, pair)
    path = layout.new(creation.root, "dataset", name)
    tokenizer_path = layout.find(creation.root, tokenizer, "tokenizer")
    parents = {"tokenizer": manifest.read(tokenizer_path, "tokenizer").id}
    if dry_run:
        from lmcli.text.readers import Reader

        readers = {s: Reader(f, read, creation.exclude) for s, f in inputs.items() if f}
        found = {s: {"files": len(r.paths), "bytes": r.size} for s, r in readers.items()}
        lines = [(s, f"{v['files']:,} files, {show_bytes(v['bytes'])}") for s, v in found.items()]
        plan = plan_pairs(readers, split) if are_pairs else preview(readers, split)
        facts = {"name": name, "path": str(path), "exists": path.exists(), "read": found, **plan}
        lines += [("to write", ", ".join(plan["splits"])), ("split by", plan["split_rule"])]
        console.reply(creation.as_json, facts, console.listing([("dataset", path), *lines]))
        return
    recipe = dataclasses.asdict(split) | dataclasses.asdict(read)
    if are_pairs:
        recipe |= dataclasses.asdict(pair)
    creation.make(
        "dataset",
        path,
        recipe,
        inputs,
        lambda readers, recorded: (
            build_pairs(path, readers, tokenizer_path, split, pair, recorded)
            if are_pairs
            else build_dataset(path, readers, tokenizer_path, split, recorded)
        ),
        parents,
    )


def _inputs(
    files: tuple[str, ...],
    val: tuple[str, ...],
    test: tuple[str, ...],
    sides: dict[str, tuple[str, ...]],
    pair: PairConfig,
) -> tuple[dict[str, tuple[str, ...]], bool]:
    """The files of each split, and whether they hold pairs."""
    parallel = {name: value for name, value in sides.items() if value}
    if not parallel:
        if not files:
            raise UsageError("no FILES: name text, or pairs with --source and --target")
        are_pairs = pair.pairs or pair.source_key is not None
        if not are_pairs and (given := dataclasses.asdict(pair)) != dataclasses.asdict(
            PairConfig()
        ):
            name = next(k for k, v in given.items() if v != getattr(PairConfig(), k))
            raise UsageError(f"{flag(name)} is for pairs; say where they are, by --source-key say")
        return {"train": files, "val": val, "test": test}, are_pairs
    if files or val or test or pair.source_key or pair.pairs:
        raise UsageError("--source and --target are files of lines; leave out the other inputs")
    found: dict[str, tuple[str, ...]] = {}
    for split, prefix in (("train", ""), ("val", "val_"), ("test", "test_")):
        source, target = sides[f"{prefix}source"], sides[f"{prefix}target"]
        if bool(source) != bool(target) or (split == "train" and not source):
            raise UsageError(f"{flag(prefix + 'source')} and {flag(prefix + 'target')} go together")
        found |= {split: source, f"{split}.target": target}
    return found, True


def _open(root: Path, reference: str) -> "Dataset":
    from lmcli.dataset.store import Dataset

    return Dataset.open(layout.find(root, reference, "dataset"))


@command.command("info")
@click.argument("dataset")
@options.common
def info(dataset: str, root: Path, as_json: bool) -> None:
    """Documents, tokens and bytes of each split.

    \b
    Example:
      lmcli data info corpus
    """
    found = _open(root, dataset)
    made, config = found.manifest, found.manifest.config
    if as_json:
        console.answer_json(summary(made.name, made) | {"parents": made.parents})
        return
    rows = []
    columns = {"documents": "documents", "tokens": "tokens", "bytes": "bytes"}
    if found.sources:
        columns = {"pairs": "documents", "source tokens": "source_tokens"}
        columns |= {"target tokens": "tokens", "target bytes": "bytes"}
    for split in found.splits:
        c = config["splits"][split]
        counts = [f"{c.get(key, 0):,}" for key in columns.values()]
        rows.append((split, *counts, f"{c['bytes'] / max(1, c['tokens']):.2f}"))
    console.answer(console.table(rows, ("split", *columns, "bytes/token")))
    for reason, n in config.get("dropped", {}).items():
        console.answer(f"left out: {n:,} pairs, {reason}")
    console.answer(
        f"vocabulary {config['vocab_size']:,}, split by {config['split_rule']}, "
        f"tokenizer {made.parents['tokenizer'][:12]}, id {made.id[:12]}"
    )


@command.command("verify")
@click.argument("dataset")
@options.common
def verify(dataset: str, root: Path, as_json: bool) -> None:
    """Read every byte: hashes, offsets and token ids. Exit code 65 if anything is wrong.

    \b
    Example:
      lmcli data verify corpus
    """
    path = layout.find(root, dataset, "dataset")
    problems = manifest.verify(path)
    if not problems:
        from lmcli.dataset.store import format_problems

        problems = format_problems(path)
    console.reply(as_json, {"ok": not problems, "problems": problems}, "\n".join(problems) or "ok")
    if problems:
        raise DataError(f"dataset {path.name}: {len(problems)} problem(s); rebuild it")


@command.command("show")
@click.argument("dataset")
@click.option("--split", default="train", show_default=True, help="Split to show.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="Documents to show.",
)
@click.option("--document", type=int, metavar="I", help="Only document I (from 0).")
@options.common
def show(
    dataset: str, split: str, limit: int, document: int | None, root: Path, as_json: bool
) -> None:
    """Print documents of a split as they were stored, decoded.

    \b
    Examples:
      lmcli data show corpus --split val
      lmcli data show corpus --document 17 --json
    """
    from lmcli.text.tokenizer import Tokenizer

    found = _open(root, dataset)
    if split not in found.splits:
        raise UsageError(f"--split {split}: {dataset} has {', '.join(found.splits)}")
    store = found.splits[split]
    tokenizer = Tokenizer.load(found.path / layout.TOKENIZER)
    if document is not None and not 0 <= document < store.n_documents:
        raise UsageError(f"--document {document}: {split} has {store.n_documents} documents")
    chosen = [document] if document is not None else range(min(limit, store.n_documents))
    for i in chosen:
        ids = store.document(i).tolist()
        if found.sources:
            _show_pair(i, found.sources[split].document(i).tolist(), ids, tokenizer, as_json)
        elif as_json:
            console.answer_json({"document": i, "tokens": len(ids), "text": tokenizer.decode(ids)})
        else:
            console.say(f"--- {split} document {i}: {len(ids)} tokens")
            console.answer_bytes(tokenizer.decode_bytes(ids))


def _show_pair(
    i: int, source: list[int], target: list[int], tokenizer: "Tokenizer", as_json: bool
) -> None:
    """A row as a model sees it: the source in grey, and in green what the loss counts."""
    texts = {"source": tokenizer.decode(source), "target": tokenizer.decode(target)}
    if as_json:
        counts = {"source_tokens": len(source), "target_tokens": len(target)}
        console.answer_json({"document": i, **texts, **counts})
        return
    console.say(f"--- pair {i}: {len(source)} source tokens; loss on {len(target)} target tokens")
    end = tokenizer.token(tokenizer.eos_id)
    console.answer(
        console.colour(texts["source"], "bright_black", "[source] ")
        + "\n"
        + console.colour(texts["target"] + end, "green", "[target] ")
    )
