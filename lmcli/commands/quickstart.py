"""lmcli quickstart"""

import bz2
import gzip
import lzma
import shlex
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcli import console
from lmcli.commands import options
from lmcli.config.units import parse_duration, show_bytes, show_duration
from lmcli.errors import LmcliError, UsageError

if TYPE_CHECKING:
    from lmcli.dataset.store import Dataset

NAME = "quickstart"
# What the standard library has that is not prose or code to learn from.
EXCLUDE = ("test", "tests", "idle_test", "site-packages", "dist-packages", "encodings")
# The shape that reached the fewest bits per byte in minutes on two CPU cores (docs/benchmarks.md).
MODEL = (
    "--n-layers 4 --d-model 192 --n-heads 3 --context-length 256 --batch-size 8 "
    "--optimizer muon --lr 0.02 --schedule wsd --decay-fraction 0.6"
)
TRAINING_SHARE = 0.7  # of the budget; scoring, compressors and samples take the rest
PRIMING_BYTES = 16 * 2**20


@click.command(short_help="The whole pipeline on your text, in a few CPU minutes.")
@click.argument("text", nargs=-1)
@click.option("--budget", default="5min", show_default=True, metavar="TIME", help="Time to take.")
@options.common
def command(text: tuple[str, ...], budget: str, root: Path, as_json: bool) -> None:
    """Tokenizer, dataset, model, samples and scores, in one go, on real text.

    TEXT is your files or folders; without it, the Python standard library on this machine. Each
    step is a real command, printed before it runs. Stopped anywhere, the same command goes on.

    \b
    Examples:
      lmcli quickstart
      lmcli quickstart my-notes/ --budget 10min
    """
    began = time.monotonic()
    seconds = parse_duration(budget)
    if seconds < 20:
        raise UsageError("--budget must be at least 20s")
    from lmcli.artifacts import layout

    inputs = list(text) or [sysconfig.get_paths()["stdlib"]]
    if not text:
        console.say(f"no TEXT given: using the Python standard library in {inputs[0]}")
        inputs += [part for name in EXCLUDE for part in ("--exclude", name)]
    size = _size(text or (inputs[0],))
    vocab = 4096 if size > 4 * 2**20 else 2048 if size > 2**20 else None
    vocab_flag = ["--vocab-size", str(vocab)] if vocab else []
    tail = ["--artifacts", str(root)] if root != layout.root(None) else []
    _run("tokenizer", "train", *inputs, "--name", NAME, *vocab_flag, *tail)
    _run("data", "build", *inputs, "--tokenizer", NAME, "--name", NAME, *tail)
    run = root / layout.FOLDERS["run"] / NAME
    if run.exists():
        steps = _stored_steps(run)
    else:
        left = TRAINING_SHARE * seconds - (time.monotonic() - began)
        steps = _plan_steps(root, max(5.0, left))
    every = ["--eval-every", str(max(50, steps // 5)), "--eval-tokens", "16384"]
    every += ["--save-every", str(max(50, steps // 10))]
    shape = MODEL.split()
    _run("train", "--data", NAME, "--name", NAME, *shape, "--steps", str(steps), *every, *tail)
    prompts = ["The ", "def "] if not text else [""]
    for prompt in prompts:
        _run("sample", NAME, prompt, "--max-new-tokens", "60", *tail)
    _run("eval", NAME, "--data", NAME, "--split", "test", "--stride", "128", *tail)
    rows = _compare(root, run)
    elapsed = time.monotonic() - began
    if as_json:
        console.answer_json({"bits_per_byte": dict(rows), "steps": steps, "seconds": elapsed})
        return
    console.say("\nbits per byte on the held-out documents, one by one (lower is better):")
    console.answer(console.table([(name, f"{bits:.3f}") for name, bits in rows]))
    winner = min(rows, key=lambda row: row[1])[0]
    console.say(f"\n{winner} wins. This took {show_duration(elapsed)}. What next:")
    console.say(f'  lmcli sample {NAME} "import " --num-return-sequences 3')
    console.say(f"  lmcli train --name {NAME} --steps {3 * steps}   # train on")
    console.say("  lmcli ls")


def _run(*words: str) -> None:
    """Prints a command line and runs it; what fails or is interrupted ends the quickstart."""
    from lmcli.cli import cli

    console.say(f"\n$ lmcli {shlex.join(words)}")
    try:
        cli.main(args=list(words), prog_name="lmcli", standalone_mode=False)
    except KeyboardInterrupt:
        console.say("stopped; `lmcli quickstart` goes on from here")
        raise
    except LmcliError as error:
        if error.exit_code == 75:
            console.say("stopped; `lmcli quickstart` goes on from here")
        raise


def _size(text: tuple[str, ...]) -> int:
    from lmcli.text.readers import find_files

    return sum(p.stat().st_size for p in find_files(text, EXCLUDE))


def _stored_steps(run: Path) -> int:
    """The step count an earlier quickstart chose; it is law for the run."""
    from lmcli.artifacts import inventory

    return int(inventory.status(run).get("steps") or _run_config(run)["training"]["steps"])


def _run_config(run: Path) -> dict[str, Any]:
    from lmcli.artifacts import files, layout

    return files.read_json(run / layout.CONFIG)


def _plan_steps(root: Path, seconds: float) -> int:
    """How many steps fit into the time, by running a few in memory."""
    from lmcli.runs.start import measure

    rate = measure(root, NAME, _flags(MODEL))
    steps = max(20, int(seconds / rate) // 10 * 10)
    console.say(f"\na step takes {rate:.2f} s here: {steps} steps fit")
    return steps


def _flags(words: str) -> dict[str, Any]:
    """`--n-layers 4` -> {"n_layers": 4}"""
    from lmcli.config.fields import convert
    from lmcli.config.model import ModelConfig
    from lmcli.config.training import TrainingConfig

    known = options.config_fields(ModelConfig, TrainingConfig)
    parts = words.split()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    named = {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs}
    return {name: convert(known[name], value, name) for name, value in named.items()}


def _compare(root: Path, run: Path) -> list[tuple[str, float]]:
    """Bits per byte of the model and of general compressors on the test documents."""
    from lmcli.artifacts import layout
    from lmcli.dataset.store import Dataset
    from lmcli.text.tokenizer import Tokenizer

    dataset = Dataset.open(root / layout.FOLDERS["dataset"] / NAME)
    tokenizer = Tokenizer.load(dataset.path / layout.TOKENIZER)
    store = dataset.splits["test"]
    texts = [tokenizer.decode_bytes(store.document(i).tolist()) for i in range(store.n_documents)]
    total = sum(map(len, texts))
    rows = [("this model", _model_bits(run))]
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda text: gzip.compress(text, 9),
        "bz2 -9": lambda text: bz2.compress(text, 9),
        "xz -6": lambda text: lzma.compress(text, preset=6),
    }
    for name, compress in compressors.items():
        rows.append((name, 8 * sum(len(compress(t)) for t in texts) / total))
    rows.append((f"xz, primed with {_primed_label(dataset)}", _primed(dataset, tokenizer, texts)))
    return rows


def _model_bits(run: Path) -> float:
    from lmcli.artifacts import files, layout

    newest = max((run / layout.EVALS).glob("*-test-*.json"), key=lambda p: p.stat().st_mtime)
    scores = files.read_json(newest)["scores"]
    return float(next(s["value"] for s in scores if s["name"] == "bits_per_byte"))


def _primed_label(dataset: "Dataset") -> str:
    held = dataset.manifest.config["splits"]["train"]["bytes"]
    if held <= PRIMING_BYTES:
        return "the training text"
    return f"{show_bytes(PRIMING_BYTES)} of the training text"


def _primed(dataset: "Dataset", tokenizer: Any, texts: list[bytes]) -> float:
    """xz on the training text followed by the documents, less xz on the training text alone.

    Later documents profit from earlier ones too, which the model is not given.
    """
    store = dataset.splits["train"]
    parts: list[bytes] = []
    size = 0
    for i in range(store.n_documents):
        parts.append(tokenizer.decode_bytes(store.document(i).tolist()))
        size += len(parts[-1])
        if size >= PRIMING_BYTES:
            break
    train = b"".join(parts)[:PRIMING_BYTES]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 4, "dict_size": 64 * 2**20}]

    def packed(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))

    joined = b"".join(texts)
    return 8 * (packed(train + joined) - packed(train)) / len(joined)
