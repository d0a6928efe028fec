"""lmcli quickstart"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re
import shlex
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.artifacts import files, inventory, layout, schema
from lmcli.commands import options
from lmcli.config.fields import flag
from lmcli.config.units import show_bytes, show_duration
from lmcli.errors import DataError, Interrupted, UsageError

if TYPE_CHECKING:
    from lmcli.dataset.store import Dataset

NAME = "quickstart"
PANGRAM = "The quick brown fox jumps over the lazy dog"
# What the standard library has that is not prose or code to learn from.
EXCLUDE = ("test", "tests", "idle_test", "site-packages", "dist-packages", "encodings")
# Of the budget: until training ends, and of the second run; what comes after takes the rest.
TRAINING_SHARE, SUMMARIES_SHARE = 0.68, 0.1
SUMMARIES = {"task": "summarization", "batch_tokens": 2048}
SUMMARIES |= {"optimizer": "muon", "lr": 0.005, "schedule": "linear"}
FUNCTION = """def total(numbers):
    result = 0
    for n in numbers:
        result += n
    return result"""
PRIMING_BYTES = 16 * 2**20


@click.command()
@click.argument("text", nargs=-1)
@click.option(
    "--budget", default="5min", show_default=True, type=options.time, help="Time to take."
)
@click.option("--name", metavar="NAME", help="Name of what it makes.  [default: by the text]")
@options.force_option
@options.common
def command(
    text: tuple[str, ...], budget: float, name: str | None, force: bool, root: Path, as_json: bool
) -> None:
    """Tokenizer, dataset, model, samples, scores and a report, in one go, on real text.

    TEXT is your files or folders; without it, the Python standard library on this machine. Each
    step is a real command, printed before it runs. Stopped anywhere, the same command goes on.

    \b
    Examples:
      lmcli quickstart
      lmcli quickstart my-notes/ --budget 10min
    """
    if budget < 10:
        raise UsageError("--budget must be at least 10s")
    if name is None:
        stems = "+".join(Path(each).resolve().stem for each in text)
        name = f"{NAME}-{stems}" if text else NAME
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80].strip(".-_")
        if short != name:  # names that differ only in what was left out are still two
            name = f"{short}-{zlib.crc32(os.fsencode(name)):08x}"
    layout.new(root, "run", name)
    try:
        # Under --json, what the steps answer is conversation.
        with open(os.devnull, "w") as nowhere:
            aside = nowhere if console.quiet else sys.stderr
            with contextlib.redirect_stdout(aside if as_json else sys.stdout):
                result = _pipeline(name, text, budget, force, root)
    except (KeyboardInterrupt, Interrupted):
        same = "the same `lmcli quickstart`, without --force," if force else "the same command"
        console.say(f"stopped; {same} goes on from here")
        raise
    if as_json:
        console.answer_json(result)


@dataclass(frozen=True)
class _Shell:
    """Runs commands, each printed first; what fails or is interrupted ends the quickstart."""

    root: Path
    force: bool

    def run(self, *words: str, **settings: Any) -> None:
        """The words, then a flag for each setting: `vocab_size=4096`."""
        from lmcli.cli import invoke

        flags = [word for key, value in settings.items() for word in (flag(key), str(value))]
        where = ["--artifacts", str(self.root)] if self.root != layout.root(None) else []
        line = [*words, *flags, *where]
        console.say(f"\n$ lmcli {shlex.join(line)}")
        invoke(line)

    def make(self, *words: str, **settings: Any) -> None:
        """A command that makes an artifact."""
        self.run(*words, *["--force"] * self.force, **settings)

    def train(self, *words: str, name: str, seconds: float, **settings: Any) -> None:
        """A command that trains a run of the dataset of its name; one that is there goes on."""
        settings |= {"budget": f"{max(1, round(seconds))}s"}
        begun = not self.force and (self.root / layout.FOLDERS["run"] / name).exists()
        if begun:
            console.say(f"\n{name} was planned the first time; --force plans anew")
        self.make(*words, data=name, name=name, **({} if begun else settings))


def _pipeline(
    name: str, text: tuple[str, ...], seconds: float, force: bool, root: Path
) -> dict[str, Any]:
    from lmcli.dataset.store import Dataset
    from lmcli.text.sources import find_files

    began, shell = time.monotonic(), _Shell(root, force)
    inputs = list(text) or [sysconfig.get_paths()["stdlib"]]
    if not text:
        console.say(f"no TEXT given: using the Python standard library in {inputs[0]}")
        inputs += [part for pattern in EXCLUDE for part in ("--exclude", pattern)]
    size = sum(path.stat().st_size for path in find_files(text or inputs[:1], EXCLUDE))
    vocab = {"vocab_size": 4096 if size > 4 * 2**20 else 2048} if size > 2**20 else {}
    tokenizer, data, run = (root / folder / name for folder in layout.FOLDERS.values())
    new = [path for path in (tokenizer, data) if force or not path.exists()]
    try:
        shell.make("tokenizer", "train", *inputs, name=name, **vocab)
        shell.make("data", "build", *inputs, tokenizer=name, name=name)
        left = TRAINING_SHARE * seconds - (time.monotonic() - began)
        shell.train("train", name=name, seconds=max(0.2 * seconds, left))
    except DataError as error:  # its advice names flags that are not here
        if not new:
            raise
        for path in filter(Path.exists, new):  # the name is free for another try
            files.to_trash(path, root)
        advice = "give quickstart other text, or more"
        raise DataError(f"{str(error).partition(';')[0]}; {advice}") from None
    dataset = Dataset.open(data)
    prompts = [_beginning(dataset)] if text else ["The ", "def "]
    for prompt in prompts:
        shell.run("sample", name, prompt, max_new_tokens=60)
    shell.run("eval", name, data=name, split="test", stride=128)
    rouge = {} if text else _summarize(shell, dataset, SUMMARIES_SHARE * seconds)
    rows = _compare(run, dataset)
    page = root / f"{name}.html"
    asked = [word for prompt in prompts for word in ("--sample", prompt)]
    shell.run("report", name, *asked, out=page, look=PANGRAM)
    elapsed, steps = time.monotonic() - began, inventory.status(run)["step"]
    console.say("\nbits per byte on the held-out documents, one by one (lower is better):")
    console.answer(console.table([(row, f"{bits:.3f}") for row, bits in rows]))
    winner = min(rows, key=lambda row: row[1])[0]
    console.say(f"\n{winner} wins. This took {show_duration(elapsed)}. What next:")
    console.say(f"  {page}   # curves, samples, where it looked: open it in a browser")
    console.say(f"  lmcli sample {name} {shlex.quote(prompts[-1])} --num-return-sequences 3")
    console.say(f"  lmcli train --name {name} --steps {3 * steps}   # train on")
    done = {"bits_per_byte": dict(rows), "steps": steps, "seconds": elapsed, "page": str(page)}
    return done | ({"rouge": rouge} if rouge else {})


def _summarize(shell: _Shell, dataset: "Dataset", seconds: float) -> dict[str, float]:
    """Fine-tunes the model to say what a Python function does: its docstring's first line.

    The pairs come from the documents of each split, so that none of the test was seen before.
    """
    from lmcli.text.docstrings import functions

    name, inputs = dataset.path.name, []
    task = f"{name}-summaries"
    folder, run = shell.root / task, shell.root / layout.FOLDERS["run"] / task
    for split in dataset.splits:
        texts = (text.decode("utf-8", "replace") for text in _texts(dataset, split))
        lines = "".join(json.dumps(pair) + "\n" for pair in functions(texts))
        path = folder / f"{split}.jsonl"
        if not path.exists() or path.read_text() != lines:
            files.write_file(path, lines.encode())
        inputs += [str(path)] if split == "train" else [f"--{split}", str(path)]
    console.say(f"\nfunctions and the first line of their docstrings are in {folder}")
    keys = {"source_key": "source", "target_key": "target", "on_error": "skip"}
    fit = {"max_source_length": 200, "max_target_length": 40}
    shell.make("data", "build", *inputs, **keys, **fit, tokenizer=name, name=task)
    shell.train("finetune", "--from", name, name=task, seconds=seconds, **SUMMARIES)
    shell.run("sample", task, FUNCTION, temperature=0, max_new_tokens=30)
    rouge = ["--metric", "rouge1", "--metric", "rougeL"]
    shell.run("eval", task, *rouge, max_pairs=100, max_new_tokens=30)
    return {key: value for key, value in _scores(run).items() if key.startswith("rouge")}


def _beginning(dataset: "Dataset") -> str:
    """The first words of a held-out document, to prompt with."""
    words = next(_texts(dataset, "test")).decode("utf-8", "replace").split()
    return " ".join(words[:3])[:40]


def _compare(run: Path, dataset: "Dataset") -> list[tuple[str, float]]:
    """Bits per byte of the model and of general compressors on the test documents."""
    texts = list(_texts(dataset, "test"))
    rows = [("this model", _scores(run)["bits_per_byte"])]
    compressors = ("gzip -9", gzip.compress), ("bz2 -9", bz2.compress), ("xz -6", lzma.compress)
    for name, compress in compressors:  # whose defaults these are
        rows.append((name, 8 * sum(len(compress(t)) for t in texts) / sum(map(len, texts))))
    held = dataset.manifest.config["splits"]["train"]["bytes"]
    share = f"{show_bytes(PRIMING_BYTES)} of " if held > PRIMING_BYTES else ""
    rows.append((f"xz, primed with {share}the training text", _primed(dataset, b"".join(texts))))
    return rows


def _texts(dataset: "Dataset", split: str) -> Iterator[bytes]:
    from lmcli.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    store = dataset.splits[split]
    for i in range(store.n_documents):
        yield tokenizer.decode_bytes(store.document(i).tolist())


def _scores(run: Path) -> dict[str, float]:
    """The newest result of a run on its test split."""
    newest = max((run / layout.EVALS).glob("*-test-*.json"), key=lambda p: p.stat().st_mtime)
    return {s["name"]: float(s["value"]) for s in files.read_sealed(newest, schema.EVAL)["scores"]}


def _primed(dataset: "Dataset", text: bytes) -> float:
    """xz on the training text followed by the documents, less xz on the training text alone.

    Later documents profit from earlier ones too, which the model is not given.
    """
    train = bytearray()
    for part in _texts(dataset, "train"):
        if len(train) >= PRIMING_BYTES:
            break
        train += part
    del train[PRIMING_BYTES:]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 4, "dict_size": 64 * 2**20}]

    def packed(data: bytes | bytearray) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))

    return 8 * (packed(train + text) - packed(train)) / len(text)
