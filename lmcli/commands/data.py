"""lmcli data"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmcli import console
from lmcli.artifacts import layout, manifest
from lmcli.commands import options
from lmcli.commands.creation import Creation, creation_flags, summary
from lmcli.config.data import ReadConfig, SplitConfig
from lmcli.config.fields import pick
from lmcli.config.units import show_bytes
from lmcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from lmcli.dataset.store import Dataset


@click.group(short_help="Build, check and show memory-mapped datasets.")
def command() -> None:
    """Build, check and show memory-mapped datasets.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data show corpus --split val
    """


@command.command("build")
@click.argument("files", nargs=-1, required=True)
@click.option("--tokenizer", metavar="TOKENIZER", required=True, help="Tokenizer to encode with.")
@click.option("--name", metavar="DATASET", required=True, help="Name of the dataset.")
@click.option("--val", multiple=True, metavar="FILE", help="Files of the val split (repeatable).")
@click.option("--test", multiple=True, metavar="FILE", help="Files of the test split (repeatable).")
@click.option("--dry-run", is_flag=True, help="Say what would be read and written, and stop.")
@creation_flags(SplitConfig, ReadConfig)
def build(
    files: tuple[str, ...],
    tokenizer: str,
    name: str,
    val: tuple[str, ...],
    test: tuple[str, ...],
    dry_run: bool,
    creation: Creation,
) -> None:
    """Encode text into a dataset with train, val and test splits; - is standard input.

    Documents are dealt by a hash of their text; fewer than 20 are each cut by position, at a line
    end. With --val or --test files, only those make up that split.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data build train/ --val valid.txt --test-fraction 0 --tokenizer bpe8k --name corpus
      lmcli data build 'c4/*.jsonl.gz' --tokenizer bpe32k --name c4 --on-error skip
      zcat dump.gz | lmcli data build - --document line --tokenizer bpe32k --name dump
    """
    from lmcli.dataset.build import build as build_dataset
    from lmcli.dataset.build import preview

    split, read = pick(SplitConfig, creation.given), pick(ReadConfig, creation.given)
    path = layout.new(creation.root, "dataset", name)
    tokenizer_path = layout.find(creation.root, tokenizer, "tokenizer")
    parents = {"tokenizer": manifest.read(tokenizer_path, "tokenizer").id}
    inputs = {"train": files, "val": val, "test": test}
    if dry_run:
        from lmcli.text.readers import Reader

        readers = {s: Reader(f, read, creation.exclude) for s, f in inputs.items() if f}
        found = {s: {"files": len(r.paths), "bytes": r.size} for s, r in readers.items()}
        lines = [(s, f"{v['files']:,} files, {show_bytes(v['bytes'])}") for s, v in found.items()]
        plan = preview(readers, split)
        facts = {"name": name, "path": str(path), "exists": path.exists(), "read": found, **plan}
        lines += [("to write", ", ".join(plan["splits"])), ("split by", plan["split_rule"])]
        console.reply(creation.as_json, facts, console.listing([("dataset", path), *lines]))
        return
    creation.make(
        "dataset",
        path,
        dataclasses.asdict(split) | dataclasses.asdict(read),
        inputs,
        lambda readers, recorded: build_dataset(path, readers, tokenizer_path, split, recorded),
        parents,
    )


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
    for split in found.splits:
        c = config["splits"][split]
        counts = [f"{c[key]:,}" for key in ("documents", "tokens", "bytes")]
        rows.append((split, *counts, f"{c['bytes'] / max(1, c['tokens']):.2f}"))
    console.answer(console.table(rows, ("split", "documents", "tokens", "bytes", "bytes/token")))
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
        if as_json:
            console.answer_json({"document": i, "tokens": len(ids), "text": tokenizer.decode(ids)})
        else:
            console.say(f"--- {split} document {i}: {len(ids)} tokens")
            console.answer_bytes(tokenizer.decode_bytes(ids))
