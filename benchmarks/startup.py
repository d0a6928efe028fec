"""Start-up against the least there is, interleaved. Exit 1 where a ratio is above its limit.

    python benchmarks/startup.py [--rounds 21] [--what help,sample]

`lmcli --help` against `python -c "import click"`: at most 1.5. `lmcli sample` of one token by a
small model, from the start of its process, against importing torch and reading the same weights:
at most 1.3.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def small_run(script: str, folder: Path) -> Path:
    """A run of the smallest preset, after one step on the texts in data/; returns its weights."""
    for line in (
        f"tokenizer train {DATA}/en.txt --name en --vocab-size 800",
        f"data build {DATA}/en.txt --tokenizer en --name en",
        "train --data en --name small --preset nano --steps 1",
    ):
        subprocess.run([script, *line.split(), "--artifacts", str(folder), "-q"], check=True)
    return next(folder.glob("runs/small/checkpoints/*/model.safetensors"))


def compare(what: str, ours: list[str], base: list[str], rounds: int, limit: float) -> bool:
    """Prints both times and their ratio; whether it is within the limit."""
    for command in (ours, base):
        seconds(command)  # warm the file cache
    pairs = [(seconds(ours), seconds(base)) for _ in range(rounds)]
    a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = [ours / base for ours, base in pairs]
    median = statistics.median(ratios)
    print(
        f"{what}: {a * 1e3:.0f} ms against {b * 1e3:.0f}, {rounds} rounds; ratio {median:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), limit {limit}",
        flush=True,
    )
    return median <= limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--what", default="help,sample")
    args = parser.parse_args()
    rounds, what = args.rounds, args.what.split(",")
    script = shutil.which("lmcli", path=str(Path(sys.executable).parent)) or shutil.which("lmcli")
    if script is None:
        sys.exit("lmcli is not installed here: pip install -e .")
    python = [sys.executable, "-c"]
    good = True
    if "help" in what:
        base = [*python, "import click"]
        good &= compare("lmcli --help", [script, "--help"], base, rounds, 1.5)
    if "sample" in what:
        with tempfile.TemporaryDirectory() as folder:
            weights = small_run(script, Path(folder))
            sample = [script, "sample", "small", "The king", "--max-new-tokens", "1", "-q"]
            sample += ["--artifacts", folder]
            least = [*python, f"import torch; open({str(weights)!r}, 'rb').read()"]
            good &= compare("first token", sample, least, rounds, 1.3)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
