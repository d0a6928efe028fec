"""Start-up: `lmcli --help` against `python -c "import click"`, interleaved. Exit 1 above 1.5.

python benchmarks/startup.py
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS, LIMIT = 21, 1.5


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> int:
    script = shutil.which("lmcli", path=str(Path(sys.executable).parent)) or shutil.which("lmcli")
    if script is None:
        sys.exit("lmcli is not installed here: pip install -e .")
    ours, base = [script, "--help"], [sys.executable, "-c", "import click"]
    for command in (ours, base):
        seconds(command)  # warm the file cache
    ratios, times = [], []
    for _ in range(ROUNDS):
        a, b = seconds(ours), seconds(base)
        ratios.append(a / b)
        times.append((a, b))
    a, b = (statistics.median(t) for t in zip(*times, strict=True))
    median = statistics.median(ratios)
    print(f"lmcli --help {a * 1e3:.1f} ms, import click {b * 1e3:.1f} ms, {ROUNDS} rounds")
    print(f"ratio {median:.2f} (range {min(ratios):.2f} to {max(ratios):.2f}), limit {LIMIT}")
    return int(median > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
