"""Processes killed at random times: the run ends with the bits of one left in peace."""

import contextlib
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from durable import SHAPE, corpus, digest, scratch, spawn, warm
from forks import Forks

from lmcli.artifacts import files, inventory, layout
from lmcli.training import checkpoint

LINE = ["train", "--data", "corpus", "--name", "base", *SHAPE, "--save-every", "7"]
LINE += ["--eval-every", "10", "--log-every", "1"]
SOAK_MINUTES = float(os.environ.get("LMCLI_SOAK_MINUTES", "45"))


def prepare(folder: Path, steps: int) -> tuple[list[str], dict[str, str]]:
    """The line to train with, and what it ends with when nobody disturbs it."""
    text, calm = corpus(folder), folder / "calm"
    line = [*LINE, "--steps", str(steps)]
    for words in (
        ["tokenizer", "train", text, "--name", "tok", "--vocab-size", "300"],
        ["data", "build", text, "--tokenizer", "tok", "--name", "corpus"],
        line,
    ):
        code, _, said = warm()[0].run(*words, "--artifacts", calm)
        assert code == 0, said
    return line, digest(calm / "runs/base")


def copy_data(folder: Path, name: str) -> Path:
    root = folder / name
    subprocess.run(["cp", "-r", folder / "calm", root], check=True)
    files.remove(root / "runs/base")
    return root


def start(line: list[str], root: Path) -> subprocess.Popen:
    return spawn(*line, root=root, stdout=subprocess.DEVNULL)


def finish(line: list[str], root: Path, end: dict[str, str]) -> None:
    with start(line, root) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert digest(root / "runs/base") == end
    assert inventory.verify(root / "runs/base")[0] == []


@pytest.mark.durability
def test_twenty_kills_of_the_process_group():
    """Four of them of processes that may still be importing, the others of forks of a warm one."""

    def killed(line: list[str], root: Path, forks: Forks, delay: float | None) -> bool:
        """Whether it lived to be killed."""
        if delay is not None:
            pid = forks.start(*line, "--artifacts", root)
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return forks.end()[0] == -9
        with start(line, root) as process:
            time.sleep(random.Random(str(root)).uniform(0.3, 2.0))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return process.returncode == -9

    def kills(number: int) -> None:
        root, generator, n = copy_data(folder, f"root-{number}"), random.Random(number), 0
        while n < 10:
            delay = generator.uniform(0.02, 0.5) if n % 5 else None
            n += killed(line, root, warm()[number], delay)
            if inventory.status(root / "runs/base")["state"] == "finished":
                assert digest(root / "runs/base") == end
                files.remove(root / "runs/base")
        finish(line, root, end)

    with scratch() as folder:
        line, end = prepare(folder, steps=1_000)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(kills, range(2)))


def damage(run: Path, generator: random.Random) -> None:
    """One bit of one file of the newest checkpoint."""
    steps = checkpoint.list_steps(run)
    if not steps:
        return
    path = generator.choice(sorted(layout.checkpoint(run, steps[-1]).iterdir()))
    data = bytearray(path.read_bytes())
    if data:
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)


def memory(pid: int) -> tuple[int, int]:
    """Resident kilobytes and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]), len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.soak
def test_soak():
    """Faults of every kind for 45 minutes ($LMCLI_SOAK_MINUTES) beside a process left in peace."""
    deadline = time.monotonic() + 60 * SOAK_MINUTES
    faults: list[str] = []

    def disturbed(number: int) -> None:
        generator = random.Random(number)
        root = copy_data(folder, f"root-{number}")
        while time.monotonic() < deadline:
            with start(line, root) as process:
                time.sleep(generator.uniform(0.3, 4.0))
                fault = generator.choice(["kill", "term", "int", "usr1", "twice", "freeze", "bit"])
                faults.append(fault)
                if fault in ("term", "int", "usr1"):
                    process.send_signal(getattr(signal, f"SIG{fault.upper()}"))
                elif fault == "twice":
                    process.terminate()
                    process.terminate()
                elif fault == "freeze":
                    process.send_signal(signal.SIGSTOP)
                    inventory.status(root / "runs/base") if (root / "runs/base").exists() else None
                    process.send_signal(signal.SIGCONT)
                    time.sleep(0.5)
                    process.kill()
                else:
                    process.kill()
                said = process.communicate(timeout=60)[1]
                assert "Traceback" not in said, said
                assert process.returncode in (0, 75, 130, -9, -15, -2, -10, 128 + 15), said
            if process.returncode == 0:  # finished before the fault
                assert digest(root / "runs/base") == end
                files.remove(root / "runs/base")
            elif fault == "bit":
                damage(root / "runs/base", generator)
        finish(line, root, end)

    def calm() -> list[tuple[int, int]]:
        root, seen = copy_data(folder, "long"), []
        with start([*LINE, "--steps", "10000000"], root) as process:
            time.sleep(min(60.0, 20 * SOAK_MINUTES))  # what is loaded late is loaded by then
            while time.monotonic() < deadline:
                seen.append(memory(process.pid))
                time.sleep(1)
            process.terminate()
            process.communicate()
        assert process.returncode == 75
        return seen

    with scratch() as folder:
        line, end = prepare(folder, steps=4_000)
        with ThreadPoolExecutor(3) as pool:
            peace = pool.submit(calm)
            list(pool.map(disturbed, range(2)))
            seen = peace.result()
    first, last = seen[: len(seen) // 10 + 1], seen[-len(seen) // 10 :]
    growth = min(m for m, _ in last) / max(m for m, _ in first) - 1
    print(f"{len(faults)} faults; resident memory {growth:+.2%}; open files {last[-1][1]}")
    assert growth < 0.01 and max(n for _, n in last) <= max(n for _, n in first)
    assert len(faults) >= 300 * min(1.0, SOAK_MINUTES / 45)
