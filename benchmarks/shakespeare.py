"""Time to a validation loss on tinyshakespeare, by characters, beside nanoGPT's README.

    LMCLI_TEST_DATA=... python benchmarks/shakespeare.py --nanogpt CHECKOUT [--rounds 5]
    LMCLI_TEST_DATA=... python benchmarks/shakespeare.py --runs minutes,best [--seeds 0,1,2]

`seconds` is nanoGPT's README run for a CPU (4 layers, 2,000 steps, ends at 1.88) and a run of lmcli
that reaches 1.88, interleaved, each timed from the start of its process to its end. `minutes` is to
reach what the README's GPU run ends at (1.4697), `best` at most 1.45 over three seeds. Loss is in
nats per character over the whole last tenth of the text in windows of 256 that do not overlap,
every character scored once; nanoGPT's own estimate, of 20 random batches, is shown beside its time.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMON = "--optimizer muon --schedule wsd --decay-fraction 0.6 --eval-tokens 0"
RECIPES = {
    "seconds": "--n-layers 2 --d-model 128 --n-heads 2 --batch-size 8 --steps 170 --lr 0.04 "
    "--warmup-steps 10 --eval-every 0 --save-every 0",
    "minutes": "--n-layers 6 --d-model 384 --n-heads 6 --batch-size 32 --steps 360 --lr 0.02 "
    "--warmup-steps 20 --dropout 0.1 --eval-every 100 --save-every 100",
    "best": "--n-layers 6 --d-model 384 --n-heads 6 --batch-size 32 --steps 620 --lr 0.02 "
    "--warmup-steps 20 --dropout 0.1 --eval-every 100 --save-every 100",
}
NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


def lmcli(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "lmcli", *words, "-q"], check=True)


def train(name: str, seed: str) -> tuple[float, float]:
    """Wall-clock seconds of the process, and the validation loss that it ends with (its best)."""
    run = Path(os.environ["LMCLI_ARTIFACTS"]) / "runs" / f"{name}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    began = time.perf_counter()
    flags = (COMMON + " " + RECIPES[name]).split()
    lmcli("train", "--data", "shakespeare", "--name", run.name, "--seed", seed, *flags)
    took = time.perf_counter() - began
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return took, min(record["val_loss"] for record in log if "val_loss" in record)


def nanogpt(checkout: Path) -> tuple[float, float]:
    began = time.perf_counter()
    line = [sys.executable, "train.py", *NANOGPT.split()]
    said = subprocess.run(line, cwd=checkout, capture_output=True, text=True, check=True).stdout
    took = time.perf_counter() - began
    return took, float(re.findall(r"val loss ([\d.]+)", said)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", default="seconds")
    parser.add_argument("--seeds", default="0")
    args = parser.parse_args()
    text = Path(os.environ["LMCLI_TEST_DATA"]) / "tinyshakespeare/input.txt"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMCLI_ARTIFACTS"] = f"{folder}/artifacts"
        whole = text.read_text(encoding="utf-8")
        cut = int(0.9 * len(whole))
        files = [Path(folder) / name for name in ("train.txt", "val.txt")]
        for file, part in zip(files, (whole[:cut], whole[cut:]), strict=True):
            file.write_text(part, encoding="utf-8")
        lmcli("tokenizer", "train", str(files[0]), "--name", "chars", "--algorithm", "char")
        build = [str(files[0]), "--val", str(files[1]), "--test-fraction", "0"]
        lmcli("data", "build", *build, "--tokenizer", "chars", "--name", "shakespeare")
        for name in args.runs.split(","):
            if name == "seconds" and args.nanogpt:
                checkout = Path(folder) / "nanogpt"
                shutil.copytree(args.nanogpt, checkout)
                shutil.copy(text, checkout / "data/shakespeare_char/input.txt")
                prepare = [sys.executable, "data/shakespeare_char/prepare.py"]
                subprocess.run(prepare, cwd=checkout, check=True, capture_output=True)
                pairs = [(train(name, str(i)), nanogpt(checkout)) for i in range(args.rounds)]
                for who, found in zip(("lmcli", "nanoGPT"), zip(*pairs, strict=True), strict=True):
                    times, losses = zip(*found, strict=True)
                    print(f"{who}: {spread(times)} s; validation loss {spread(losses, '.4f')}")
                ratios = [theirs[0] / ours[0] for ours, theirs in pairs]
                print(f"nanoGPT takes {spread(ratios)} times as long")
                continue
            losses = []
            for seed in args.seeds.split(","):
                took, loss = train(name, seed)
                losses.append(loss)
                print(f"{name}, seed {seed}: {loss:.4f} in {took / 60:.1f} min", flush=True)
            print(f"{name}: mean {statistics.mean(losses):.4f}")


def spread(values: object, form: str = ".2f") -> str:
    ordered = sorted(values)  # type: ignore[call-overload]
    return f"{statistics.median(ordered):{form}} ({ordered[0]:{form}} to {ordered[-1]:{form}})"


if __name__ == "__main__":
    main()
