"""lmcli data"""

import dataclasses
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
from lmcli.errors import UsageError

if TYPE_CHECKING:
    from lmcli.dataset.store import Dataset
    from lmcli.text.readers import Reader
    from lmcli.text.tokenizer import Tokenizer

SIDES = {(s, i): f"{s}_{i}".removeprefix("train_") for s in layout.SPLITS for i in layout.SIDES}
TEXT_ONLY = ("document", "text_key")  # settings that mean nothing for pairs


@click.group()
def command() -> None:
    """Build, check and show memory-mapped datasets.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data show corpus --split val
    """


def _side_option(split: str, side: str, name: str) -> options.Decorator:
    text = f"Lines of {side}s of the {split} split, parallel to the others (repeatable)."
    return click.option(flag(name), multiple=True, metavar="FILE", help=text)


@command.command("build")
@click.argument("files", nargs=-1)
@click.option("--tokenizer", metavar="TOKENIZER", required=True, help="Tokenizer to encode with.")
@click.option("--name", metavar="DATASET", required=True, help="Name of the dataset.")
@click.option("--val", multiple=True, metavar="FILE", help="Files of the val split (repeatable).")
@click.option("--test", multiple=True, metavar="FILE", help="Files of the test split (repeatable).")
@options.family(*(_side_option(*key, name) for key, name in SIDES.items()))
@click.option("--dry-run", is_flag=True, help="Say what would be read and written, and stop.")
@creation_flags(PairConfig, SplitConfig, ReadConfig)
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
    """Encode text into a dataset with train, val and test splits; - is standard input.

    Documents are dealt by a hash of their text; fewer than 20 are each cut by position, at a line
    end. With --val or --test files, only those make up that split.

    Pairs of a source and a target come from parallel lines (--source, --target), from two fields of
    records (--source-key, --target-key), or from JSONL with prompt and completion or a chat in
    messages (--pairs). They are dealt by the source. What was dropped is counted.

    \b
    Examples:
      lmcli data build corpus.txt --tokenizer bpe8k --name corpus
      lmcli data build train/ --val valid.txt --test-fraction 0 --tokenizer bpe8k --name corpus
      lmcli data build 'c4/*.jsonl.gz' --tokenizer bpe32k --name c4 --on-error skip
      zcat dump.gz | lmcli data build - --document line --tokenizer bpe32k --name dump
      lmcli data build --source train.en --target train.de --tokenizer bpe --name pairs
      lmcli data build en-zh.tsv --source-key en --target-key zh --tokenizer bpe --name pairs
    """
    from lmcli.dataset import build as texts

    split, read = pick(SplitConfig, creation.given), pick(ReadConfig, creation.given)
    pair = pick(PairConfig, creation.given)
    of_pairs = _of_pairs(bool(files), bool(val or test), sides, creation.given)
    path = layout.new(creation.root, "dataset", name)
    tokenizer_path, made = manifest.find(creation.root, tokenizer, "tokenizer")
    parents = {"tokenizer": made.id}
    inputs = {"train": files, "val": val, "test": test}
    if any(sides.values()):
        inputs = {layout.side(*key): sides[name] for key, name in SIDES.items()}
    if dry_run:
        from lmcli.text.readers import Reader

        readers = {s: Reader(f, read, creation.exclude) for s, f in inputs.items() if f}
        found = {s: {"files": len(r.paths), "bytes": r.size} for s, r in readers.items()}
        lines = [(s, f"{v['files']:,} files, {show_bytes(v['bytes'])}") for s, v in found.items()]
        (shares, splits), rule = texts.deal(_by_split(readers), split), "hash"
        if not of_pairs:  # reads as much text as that takes
            rule, _ = texts.choose_rule(readers["train"].pieces(), split.split_by, shares)
        facts = {"name": name, "path": str(path), "exists": path.exists(), "read": found}
        facts |= {"split_rule": rule, "splits": splits}
        lines += [("to write", ", ".join(splits)), ("split by", rule)]
        console.reply(creation.as_json, facts, console.listing([("dataset", path), *lines]))
        return
    recorded = dataclasses.asdict(split) | dataclasses.asdict(read)

    def build_dataset(readers: dict[str, "Reader"], recorded: dict[str, Any]) -> manifest.Manifest:
        by_split = _by_split(readers)
        if not of_pairs:
            return texts.TextBuilder(by_split, split).build(path, tokenizer_path, recorded)
        from lmcli.dataset.pairs import PairBuilder

        builder = PairBuilder(by_split, split, pair, template)
        return builder.build(path, tokenizer_path, recorded)

    if of_pairs:
        from lmcli.text import chat

        template = made.config.get("chat_template") or chat.DEFAULT
        recorded |= dataclasses.asdict(pair) | {"form": "pairs", "chat_template": template}
        recorded = {k: v for k, v in recorded.items() if k not in (*TEXT_ONLY, "pairs")}
    creation.make("dataset", path, recorded, inputs, build_dataset, parents)


def _of_pairs(
    files: bool, held_out: bool, sides: dict[str, tuple[str, ...]], given: dict[str, Any]
) -> bool:
    """Whether pairs were asked for; UsageError for flags that do not go together."""
    parallel, keys = any(sides.values()), "source_key" in given or "target_key" in given
    if parallel and (files or held_out or keys):
        raise UsageError(
            "--source and --target name parallel lines, held out by --val-source and --val-target "
            "and so on; FILES, --val, --test and the keys are for records or text"
        )
    if not parallel and not files:
        raise UsageError("nothing to read: name FILES, or parallel lines by --source and --target")
    if parallel:
        for (split, _), name in SIDES.items():
            wanted = split == "train" or any(sides[n] for (s, _), n in SIDES.items() if s == split)
            if wanted and not sides[name]:
                raise UsageError(f"{flag(name)} is missing: sources and targets go together")
    of_pairs = parallel or keys or bool(given.get("pairs"))
    wrong = TEXT_ONLY if of_pairs else tuple(f.name for f in dataclasses.fields(PairConfig))
    for name in wrong:
        if given.get(name):
            form = "a dataset of text" if of_pairs else "pairs (--source, --source-key or --pairs)"
            raise UsageError(f"{flag(name)} is for {form}")
    if of_pairs and given.get("split_by") == "position":
        raise UsageError("--split-by position would cut pairs; they are dealt by hash")
    return of_pairs


def _by_split(readers: "dict[str, Reader]") -> "dict[str, list[Reader]]":
    """The readers of each split: one of records, or those of sources and targets in this order."""
    found: dict[str, list[Reader]] = {}
    for name, reader in readers.items():
        found.setdefault(name.partition(".")[0], []).append(reader)
    return found


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
    keys = ("documents", *(("source_tokens",) if found.sources else ()), "tokens", "bytes")
    for split in found.splits:
        c = config["splits"][split]
        counts = [f"{c[key]:,}" for key in keys]
        rows.append((split, *counts, f"{c['bytes'] / max(1, c['tokens']):.2f}"))
    titles = [key.replace("_", " ") for key in keys]
    console.answer(console.table(rows, ("split", *titles, "bytes/token")))
    console.answer(
        f"vocabulary {config['vocab_size']:,}, split by {config['split_rule']}, "
        f"tokenizer {made.parents['tokenizer'][:12]}, id {made.id[:12]}"
    )
    if found.sources:
        dropped = [f"{n:,} by {reason}" for reason, n in config["dropped"].items() if n]
        console.answer(
            "pairs: tokens and bytes are those of the targets; "
            f"dropped: {', '.join(dropped) or 'none'}"
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
    from lmcli.commands.verify import check

    check(layout.find(root, dataset, "dataset"), as_json)


@command.command("show")
@click.argument("dataset")
@click.option("--split", default="train", show_default=True, help="Split to show.")
@options.number("--limit", 3, "Documents to show.", low=0)
@click.option("--document", type=int, metavar="I", help="Only document I (from 0).")
@options.common
def show(
    dataset: str, split: str, limit: int, document: int | None, root: Path, as_json: bool
) -> None:
    """Print documents of a split as they were stored, decoded.

    Pairs are the source, then the target in colour: every token there counts in the loss, none of
    the source does. In a pipe, or with NO_COLOR, [source] and [target] say so.

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
        else:
            if not as_json:
                console.say(f"--- {split} document {i}: {len(ids)} tokens")
            facts = {"document": i, "tokens": len(ids), "text": tokenizer.decode(ids)}
            console.reply(as_json, facts, tokenizer.decode_bytes(ids))


def _show_pair(
    i: int, source: list[int], target: list[int], tokenizer: "Tokenizer", as_json: bool
) -> None:
    """One pair; special tokens are spelled, but under --json not the `<eos>` of either side."""
    if as_json:
        texts = [tokenizer.spell(ids[:-1]).decode("utf-8", "replace") for ids in (source, target)]
        lengths = {"source_tokens": len(source), "target_tokens": len(target)}
        console.answer_json({"document": i, "source": texts[0], "target": texts[1], **lengths})
        return
    console.say(
        f"--- pair {i}: {len(source)} source tokens, {len(target)} target tokens in the loss"
    )
    sides = (b"[source] ", b""), (b"[target] ", b"")
    if console.coloured():
        sides = (b"", b""), (b"\x1b[32m", b"\x1b[0m")
    for (before, after), ids in zip(sides, (source, target), strict=True):
        console.answer(before + tokenizer.spell(ids) + after)
