"""Programs measured side by side: each in a process of its own that waits while others run."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from lmcli.training.precision import usable_cores

_answers: Any = sys.stdout


def arguments(about: str | None, seconds: float, **own: str) -> argparse.Namespace:
    """Options of a comparison: its `own` ones with their defaults, and those of all.

    In a child what the program prints is no answer.
    """
    global _answers
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    for name, default in own.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=seconds, help="of each in a round")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _answers, sys.stdout = sys.stdout, sys.stderr
    return args


def compare(
    lines: dict[str, list[str]], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second of each child by round, interleaved, and its peak memory in GiB, of a GPU
    where it uses one."""
    rates: dict[str, list[float]] = {name: [] for name in lines}
    peaks: dict[str, float] = {}
    processes: dict[str, subprocess.Popen[str]] = {}
    for _ in range(rounds + 1):  # in the first one all get warm, one after the other:
        for name, line in lines.items():  # two at a time hold up each other's threads
            if name not in processes:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                pipes["stderr"] = subprocess.DEVNULL
                processes[name] = subprocess.Popen([sys.executable, *line], text=True, **pipes)
            process = processes[name]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{seconds if rates[name] else 0}\n")
            process.stdin.flush()
            if not (said := process.stdout.readline()):
                sys.exit(f"{name} ended; to see why: {' '.join(line)} <<< 1")
            found = json.loads(said)
            rates[name].append(found["rate"])
            peaks[name] = found["peak"]
    for process in processes.values():
        process.kill()
    return {name: values[1:] for name, values in rates.items()}, peaks


class Clock:
    """Takes steps while it is told to, and says how many tokens a second that was."""

    def __init__(self, tokens: int, warm: int = 3) -> None:
        self.tokens, self.wanted, self.done, self.n_warm = tokens, 0.0, 0, warm
        self.began = time.perf_counter()

    def stepped(self) -> None:
        self.done += 1
        if self.n_warm:
            self.n_warm -= 1
            if self.n_warm:
                return
        elif time.perf_counter() - self.began < self.wanted:
            return
        else:
            rate = self.tokens * self.done / (time.perf_counter() - self.began)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
                peak = torch.cuda.max_memory_allocated() / 2**30
            print(json.dumps({"rate": rate, "peak": peak}), file=_answers, flush=True)
        self.wanted = float(input())
        self.done, self.began = 0, time.perf_counter()


def serve(step: Callable[[], object], clock: Clock) -> NoReturn:
    """A child's life: steps for as long as it is told."""
    while True:
        step()
        clock.stepped()


def verdict(limits: Iterable[tuple[str, float, float]]) -> None:
    """Ends with 1 where a value is below the least that is asked for: (what, value, least)."""
    if missed := [f"{what}: {is_:.2f}, not {least}" for what, is_, least in limits if is_ < least]:
        sys.exit("missed: " + "; ".join(missed))


def spread(values: list[float], form: str = "{:.2f}") -> str:
    shown = [form.format(v) for v in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"
