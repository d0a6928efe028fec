"""lmcli data"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from lmcli.commands import options
from lmcli.config.data import ReadConfig, SplitConfig
from lmcli.config.fields import build, collect
from lmcli.errors import DataError, UsageError


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
@options.config_file_option
@options.config_flags(SplitConfig, ReadConfig)
@options.exclude_option
@options.force_option
@options.common
def build_(
    files: tuple[str, ...],
    tokenizer: str,
    name: str,
    val: tuple[str, ...],
    test: tuple[str, ...],
    config_file: Path | None,
    exclude: tuple[str, ...],
    force: bool,
    root: Path,
    as_json: bool,
    **flags: Any,
) -> None:
    """Encode text into a dataset with train, val and test splits.

    Documents are dealt by a hash of their text; fewer than 20 are each cut by position, at a line
    end. With --val or --test files, only those make up that split.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data build train/ --val valid.txt --test-fraction 0 --tokenizer bpe8k --name corpus
      lmcli data build 'c4/*.jsonl.gz' --tokenizer bpe32k --name c4 --on-error skip
    """
    from lmcli import console
    from lmcli.artifacts import layout, manifest
    from lmcli.artifacts.again import creating, finished
    from lmcli.dataset.build import Corpus
    from lmcli.dataset.build import build as build_dataset
    from lmcli.text.readers import Reader, fingerprint

    given = collect(options.config_fields(SplitConfig, ReadConfig), flags, config_file)
    split = build(SplitConfig, options.pop_fields(given, SplitConfig))
    read = build(ReadConfig, given)
    path = layout.new(root, "dataset", name)
    tokenizer_path = layout.find(root, tokenizer, "tokenizer")
    parents = {"tokenizer": manifest.read(tokenizer_path, "tokenizer").id}
    corpus = Corpus(
        Reader(files, read, exclude),
        Reader(val, read, exclude) if val else None,
        Reader(test, read, exclude) if test else None,
    )
    with creating(path, root, "dataset", force):
        by_name = {"train": corpus.train, "val": corpus.val, "test": corpus.test}
        recorded = {
            **dataclasses.asdict(split),
            **dataclasses.asdict(read),
            "sources": {s: fingerprint(r.paths) for s, r in by_name.items() if r is not None},
        }
        made = finished(path, "dataset", recorded, parents)
        if made:
            console.say(f"dataset {path.name} is there already, made from the same text")
        else:
            made = build_dataset(path, corpus, tokenizer_path, split, recorded)
    if as_json:
        shown = {k: v for k, v in made.config.items() if k != "sources"}
        console.answer_json({"name": path.name, "id": made.id, **shown})


@command.command("info")
@click.argument("dataset")
@options.common
def info(dataset: str, root: Path, as_json: bool) -> None:
    """Documents, tokens and bytes of each split.

    \b
    Example:
      lmcli data info corpus
    """
    from lmcli import console
    from lmcli.artifacts import layout
    from lmcli.dataset.store import Dataset

    found = Dataset.open(layout.find(root, dataset, "dataset"))
    config = found.manifest.config
    if as_json:
        shown = {k: v for k, v in config.items() if k != "sources"}
        console.answer_json(
            {"name": found.manifest.name, "id": found.manifest.id, **shown}
            | {"parents": found.manifest.parents}
        )
        return
    rows = []
    for split in found.splits:
        c = config["splits"][split]
        ratio = c["bytes"] / max(1, c["tokens"])
        rows.append(
            (split, f"{c['documents']:,}", f"{c['tokens']:,}", f"{c['bytes']:,}", f"{ratio:.2f}")
        )
    console.answer(console.table(rows, ("split", "documents", "tokens", "bytes", "bytes/token")))
    console.answer(
        f"vocabulary {config['vocab_size']:,}, split by {config['split_rule']}, "
        f"tokenizer {found.manifest.parents['tokenizer'][:12]}, id {found.manifest.id[:12]}"
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
    from lmcli import console
    from lmcli.artifacts import layout, manifest
    from lmcli.dataset.store import Dataset

    path = layout.find(root, dataset, "dataset")
    problems = manifest.verify(path)
    if not problems:
        try:
            found = Dataset.open(path)
        except DataError as error:
            problems.append(str(error))
        else:
            for store in found.splits.values():
                try:
                    store.check_ids(found.manifest.config.get("eos_id"))
                except DataError as error:
                    problems.append(str(error))
    if as_json:
        console.answer_json({"ok": not problems, "problems": problems})
    else:
        console.answer("\n".join(problems) or "ok")
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
    from lmcli import console
    from lmcli.artifacts import layout
    from lmcli.dataset.store import Dataset
    from lmcli.text.tokenizer import Tokenizer

    found = Dataset.open(layout.find(root, dataset, "dataset"))
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
            continue
        console.say(f"--- {split} document {i}: {len(ids)} tokens")
        sys.stdout.buffer.write(tokenizer.decode_bytes(ids) + b"\n")
        sys.stdout.buffer.flush()
