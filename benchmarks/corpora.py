"""Ten minutes on a real corpus: tokenizer, data, training, scores, samples, a plot of the curve.

    LMCLI_TEST_DATA=... python benchmarks/corpora.py wikitext-2 [--minutes 10] [--plot docs/x.svg]

Prints what goes into docs/benchmarks.md. The plot needs the `plot` extra.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

CORPORA = {
    "wikitext-2": {
        "files": ["wikitext-2/train.txt", "--val", "wikitext-2/valid.txt", "--test-fraction", "0"],
        "vocab": 8192,
        "split": "val",
        "prompts": ["The history of the city", "In 1998 , the band"],
    },
    "chinese-novels": {
        "files": ["chinese-novels/*.txt"],
        "vocab": 8192,
        "split": "test",
        "prompts": ["宝玉听了", "却说曹操"],
    },
}


def lmcli(*words: object) -> str:
    line = [str(w) for w in words]
    print("$ lmcli", " ".join(line), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "lmcli", *line]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def plot(run: Path, title: str, out: Path) -> None:
    """Validation loss against training seconds."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (run / "perf.jsonl").read_text().splitlines()]
    points = [(r["seconds"] / 60, r["val_bits_per_byte"]) for r in rows if "val_loss" in r]
    figure, axes = plt.subplots(figsize=(7, 3.5))
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
    axes.set(xlabel="minutes of training", ylabel="validation bits per byte", title=title)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts/benchmarks"))
    options = parser.parse_args()
    repository = Path(__file__).resolve().parent.parent
    data = Path(os.environ.get("LMCLI_TEST_DATA", repository.parent / "shared" / "data"))
    if not data.is_dir():
        sys.exit(f"no corpora at {data}; set LMCLI_TEST_DATA")
    os.environ["LMCLI_ARTIFACTS"] = str(options.artifacts)
    recipe, name = CORPORA[options.corpus], options.corpus
    files = [str(data / w) if w.endswith(".txt") else w for w in recipe["files"]]
    text = files[:1]
    lmcli("tokenizer", "train", *text, "--name", name, "--vocab-size", recipe["vocab"])
    lmcli("data", "build", *files, "--tokenizer", name, "--name", name)
    budget = f"{round(60 * options.minutes)}s"
    lmcli("train", "--data", name, "--name", name, "--budget", budget, "--eval-tokens", 16384)
    run = options.artifacts / "runs" / name
    perf = [json.loads(line) for line in (run / "perf.jsonl").read_text().splitlines()]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    shape = json.loads((run / "config.json").read_text())["model"]
    print(
        f"\n{name}: {shape['n_layers']} layers of {shape['d_model']}, {last['step']:,} steps, "
        f"{last['tokens']:,} tokens, {perf[-1]['seconds']:.0f} s"
    )
    print(lmcli("eval", name, "--split", recipe["split"]))
    for prompt in recipe["prompts"]:
        flags = ["--max-new-tokens", 80, "--temperature", 0.8, "--echo"]
        print(f"> {lmcli('sample', name, prompt, *flags)}")
    if options.plot:
        plot(run, f"{name} on CPU", options.plot)


if __name__ == "__main__":
    main()
