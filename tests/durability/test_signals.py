"""Signals to real processes: what is worth saving is saved, and nothing and nobody stays behind."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from durable import DATA, SHAPE, corpus, digest, prepared, scratch, spawn, warm

from lmcli.artifacts import files, inventory

pytestmark = pytest.mark.durability

TRAIN = [
    *("train", "--data", "corpus", "--name", "base", *SHAPE, "--steps", "60"),
    *("--save-every", "10", "--eval-every", "10", "--log-every", "1", "--eval-tokens", "20000"),
]
SLOW = [
    *("train", "--data", "corpus", "--name", "base", "--n-layers", "4", "--d-model", "256"),
    *("--n-heads", "4", "--context-length", "256", "--batch-size", "24", "--threads", "1"),
    *("--steps", "100"),
]
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
PROCESSES = 2


@pytest.fixture(scope="module")
def stage():
    """(root with a dataset, digest of the run that TRAIN makes of it, warm forks, long text)."""
    with scratch() as folder:
        root = prepared(folder, [*DATA[1], "--val-fraction", "0.45", "--force"])
        shutil.rmtree(root / ".trash")
        end = folder / "end"
        shutil.copytree(root, end)
        text = corpus(folder, 1_500_000)
        servers = warm(PROCESSES)
        assert servers[0].run(*TRAIN, "--artifacts", end)[0] == 0
        yield root, digest(end / "runs/base"), servers, text


def records(run: Path) -> list[dict]:
    return files.read_log(run / "metrics.jsonl")


def mapped(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


# When to send the signal; after the first, to a fork of a process that has imported everything.
PHASES: dict[str, Callable[[int, Path], bool]] = {
    "import": lambda pid, run: mapped(pid, "libtorch"),
    "first step": lambda pid, run: (run / "status.json").exists(),
    "training": lambda pid, run: len(records(run)) >= 25 and records(run)[-1]["step"] % 10 < 8,
    "saving": lambda pid, run: any((run / "checkpoints").glob(".tmp-step-*")),
    "validation": lambda pid, run: (
        (last := records(run)[-1:]) != [] and "loss" in last[0] and last[0]["step"] % 10 == 0
    ),
}


def wait(condition: Callable[[], bool], pid: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert alive(pid) and time.monotonic() < deadline
        time.sleep(0.001)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group_is_gone(pgid: int, seconds: float = 2.0) -> bool:
    """Whether no process of a group is alive; a zombie is dead."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            alive += [path] if int(group) == pgid and state != "Z" else []
        if not alive:
            return True
        time.sleep(0.02)
    return False


def together(work: Callable[..., None], cases: list) -> None:
    def one(number: int) -> None:
        for case in cases[number::PROCESSES]:
            work(number, *case)

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(one, range(PROCESSES)))


@pytest.mark.parametrize("name", SIGNALS)
def test_training_finishes_the_step_saves_and_goes_on(stage, tmp_path, name):
    base, end, servers, _ = stage

    def stop(number: int, phase: str) -> None:
        root = tmp_path / phase
        run = Path(shutil.copytree(base, root)) / "runs/base"
        if phase == "import":
            process = spawn(*TRAIN, root=root)
            pid = process.pid
        else:
            pid = servers[number].start(*TRAIN, "--artifacts", root)
        wait(lambda: PHASES[phase](pid, run), pid)
        os.kill(pid, getattr(signal, name))
        if phase == "import":
            said = process.communicate(timeout=60)[1]
            code = process.returncode
        else:
            code, _, said = servers[number].end()
        assert code == 75, (phase, said)
        assert group_is_gone(pid)
        assert "Traceback" not in said and f"lmcli: {name}: " in said, (phase, said)
        step = int(re.search(r"at step (\d+)", said)[1])
        status = inventory.status(run)
        assert (status["state"], status["exit"], status["resumable"]) == ("interrupted", 75, True)
        assert status["step"] == step and (step > 0 or phase in ("import", "first step"))
        assert inventory.verify(run)[0] == []
        code, _, said = servers[number].run(*TRAIN, "--artifacts", root)
        assert code == 0 and digest(run) == end, (phase, said)

    together(stop, [(phase,) for phase in PHASES])


def test_a_second_signal_leaves_at_once(stage, tmp_path):
    """What was saved before is good."""

    def leave(number: int, first: str, second: str) -> None:
        root = tmp_path / first
        run = Path(shutil.copytree(stage[0], root)) / "runs/base"
        process = spawn(*SLOW, root=root)
        wait(lambda: (run / "status.json").exists(), process.pid)
        time.sleep(0.3)
        process.send_signal(getattr(signal, first))
        time.sleep(0.2)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(getattr(signal, second))
        process.communicate()
        assert time.monotonic() - began < 1
        assert process.returncode == 128 + getattr(signal, second) and group_is_gone(process.pid)
        status = inventory.status(run)
        assert (status["state"], status["resumable"]) == ("interrupted", True)
        short = ["--max-time", "0.01s"]
        code, _, said = stage[2][number].run(*SLOW, *short, "--artifacts", root)
        assert code == 75, said

    together(leave, [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT")])


BACKWARD = """
import torch
from lmcli.signals import StopRequest
torch.set_num_threads(1)
w = torch.randn(1500, 1500, requires_grad=True)
with StopRequest():
    y = w
    for _ in range(20):
        y = y @ w
    print("backward", flush=True)
    y.sum().backward()
"""


def test_a_second_signal_does_not_wait_for_a_backward_pass():
    process = subprocess.Popen([sys.executable, "-c", BACKWARD], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "backward\n"
    time.sleep(0.2)
    process.terminate()
    time.sleep(0.2)
    began = time.monotonic()
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 1


OTHERS = {
    "tokenizer": (
        ["tokenizer", "train", "{text}", "--name", "new", "--vocab-size", "1700"],
        "tokenizers",
        0.1,
    ),
    "data": (["data", "build", "{text}", "--tokenizer", "tok", "--name", "new"], "tokenizers", 0.1),
    "sample": (
        ["sample", "base", "a", "--num-return-sequences", "500", "--max-length", "15"],
        "libtorch",
        0,
    ),
    "eval": (["eval", "base", "--split", "val", "--stride", "1"], "libtorch", 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_nothing_to_save_ends_promptly(stage, tmp_path, name):
    """By default SIGTERM, SIGHUP and SIGUSR1 end a process without a word; Ctrl-C is answered."""
    base, _, servers, text = stage
    made = tmp_path / "made"
    shutil.copytree(base, made)
    line, library, delay = OTHERS[name]
    words = [word.format(text=text) for word in line]
    assert servers[0].run(*TRAIN, "--artifacts", made)[0] == 0

    def stop(number: int, which: str) -> None:
        root = tmp_path / which
        shutil.copytree(made, root)
        before = digest(root)
        process = spawn(*words, root=root)
        # Not by the clock: Python ends by a signal that came while an import ran text by exec,
        # although it was caught.
        wait(lambda: mapped(process.pid, library), process.pid)
        time.sleep(delay)
        began = time.monotonic()
        process.send_signal(getattr(signal, which))
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - began < 2
        if which == "SIGINT":
            assert process.returncode == 130 and said.endswith("lmcli: stopped\n"), said
        else:
            assert process.returncode == -getattr(signal, which)
        assert "Traceback" not in said and group_is_gone(process.pid)
        left = {k: v for k, v in digest(root).items() if "/.tmp-" not in k}
        assert left == before

    together(stop, [(which,) for which in SIGNALS])
    ends = []
    for which in ("SIGTERM", "SIGINT"):
        code, _, said = servers[0].run(*words, "--artifacts", tmp_path / which)
        assert code == 0, said
        ends.append(digest(tmp_path / which))
    assert ends[0] == ends[1] and not [k for k in ends[0] if ".tmp-" in k]


@pytest.mark.parametrize("seconds", [0.6, 1, 1.4, 3])
def test_ctrl_c_does_not_wait_for_a_library_that_looks_for_no_signal(tmp_path, seconds):
    """While it reads 18 MB, in Python, and while it learns from 3 MB, which would take a minute."""
    text, draw = tmp_path / "novel.txt", random.Random(0)
    if seconds < 3:
        words = ["".join(draw.choices("abcdefghijklmnop", k=2 + i % 8)) for i in range(20_000)]
        text.write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(250_000)))
    else:
        text.write_text("".join(chr(draw.randrange(0x4E00, 0x5000)) for _ in range(1_000_000)))
    line = ["tokenizer", "train", text, "--name", "new", "--algorithm", "unigram"]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}  # as users have it
    process = spawn(*line, root=tmp_path / "root", env=environment)
    wait(lambda: mapped(process.pid, "tokenizers"), process.pid)
    time.sleep(seconds)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5 and process.returncode == 130
    assert said.endswith("lmcli: stopped\n") and "FATAL" not in said
    assert group_is_gone(process.pid) and not list(tmp_path.glob("root/tokenizers/[!.]*"))


def test_max_time_stops_in_time(stage, tmp_path):
    line = [*TRAIN, "--batch-size", "24", "--micro-batch-size", "1", "--eval-every", "0"]
    line += ["--steps", "30"]
    for name in ("whole", "parts"):
        shutil.copytree(stage[0], tmp_path / name)
    began = time.monotonic()
    code, _, said = stage[2][0].run(*line, "--max-time", "0.6s", "--artifacts", tmp_path / "parts")
    assert time.monotonic() - began < 0.8
    assert code == 75 and re.search(r"lmcli: --max-time: saved at step [1-9]", said), said
    for name in ("whole", "parts"):
        code, _, said = stage[2][0].run(*line, "--artifacts", tmp_path / name)
        assert code == 0, said
    assert digest(tmp_path / "parts/runs/base") == digest(tmp_path / "whole/runs/base")


def test_nohup_stays_in_force(stage, tmp_path):
    root = Path(shutil.copytree(stage[0], tmp_path / "root"))
    process = spawn(*TRAIN, "--steps", "100000", root=root, prefix=["nohup"])
    wait(lambda: (root / "runs/base/status.json").exists(), process.pid)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "lmcli: SIGTERM: " in process.communicate()[1] and process.returncode == 75


@pytest.mark.parametrize(("when", "name", "code"), [("runs", "SIGTERM", 75), ("", "SIGINT", 130)])
def test_a_quickstart_that_is_stopped_says_that_it_goes_on(stage, tmp_path, when, name, code):
    root = tmp_path / "root"
    text = corpus(tmp_path, 60_000 if when else 3_000_000)
    process = spawn("quickstart", text, "--budget", "20s", root=root)
    wait(lambda: any(root.glob(f"{when}/*/status.json" if when else "tokenizers/*")), process.pid)
    time.sleep(0.2)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "goes on from here" in said and "Traceback" not in said
    assert group_is_gone(process.pid)
