"""One writer at a time, and readers who never wait and never see half of anything."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from durable import DATA, SHAPE, call, corpus, prepared, scratch, sentence, spawn, warm
from forks import Forks

from lmcli.artifacts import files, inventory, layout, lock
from lmcli.runs.load import load

pytestmark = pytest.mark.durability

TRAIN = ["train", "--data", "corpus", "--name", "base", *SHAPE, "--save-every", "1"]
TRAIN += ["--eval-every", "3", "--log-every", "1", "--keep-last", "1"]
FOREVER = [*TRAIN, "--steps", "1000000"]
STARTERS = 4


@pytest.fixture(scope="module")
def stage():
    with scratch() as folder:
        yield prepared(folder, [*TRAIN, "--steps", "2"])


@pytest.fixture
def root(stage):
    with scratch() as folder:
        yield Path(shutil.copytree(stage, folder / "root"))


def trainer(root: Path, line: list[str] = FOREVER) -> subprocess.Popen:
    """A real process that trains, and has saved something."""
    process = spawn(*line, root=root, stdout=subprocess.DEVNULL)
    run = root / "runs/base"
    until(
        lambda: (
            inventory.status(run).get("pid") == process.pid
            and len(files.read_log(run / layout.METRICS)) > 20
        )
    )
    return process


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


RACES = {
    "run": ("runs/race", [*TRAIN, "--name", "race", "--steps", "100"], 3),
    "tokenizer": ("tokenizers/race", [*DATA[0], "--name", "race"], 4),
    "dataset": ("datasets/race", [*DATA[1], "--name", "race"], 4),
}


@pytest.mark.parametrize("kind", RACES)
def test_of_many_starters_one_works(root, kind):
    """The others exit 76 within two seconds, naming it, or come so late that it is done."""
    place, line, n_races = RACES[kind]
    text = corpus(root.parent, 4_000_000)
    words = [word.format(text=text) for word in line]
    start, losers = Barrier(STARTERS), 0

    def race(forks: Forks) -> tuple[int, str, float]:
        start.wait()
        began = time.monotonic()
        code, _, said = forks.run(*words, "--artifacts", root)
        return code, said, time.monotonic() - began

    with ThreadPoolExecutor(STARTERS) as pool:
        for _ in range(n_races):
            shutil.rmtree(root / place, ignore_errors=True)
            results = list(pool.map(race, warm(STARTERS)))
            worked = [r for r in results if r[0] == 0 and "already" not in r[1]]
            refused = [r for r in results if r[0] == 76]
            assert len(worked) == 1, results
            assert all(r[0] in (0, 76) for r in results), results
            for _, said, seconds in refused:
                assert "is being written by process " in sentence(said) and seconds < 2
                assert socket.gethostname() in said
            losers += len(refused)
            assert not inventory.verify(root / place)[0]
    assert losers >= n_races // 2, "they hardly met"


def test_the_second_of_two_real_processes_names_the_first(root):
    first = trainer(root)
    try:
        for line in (FOREVER, ["prove", "base", "--steps", "1"]):
            began = time.monotonic()
            code, _, said = call(*line, root=root)
            assert code == 76 and f"process {first.pid} on {socket.gethostname()}" in said
            assert "Traceback" not in said
            assert time.monotonic() - began < 2 or "prove" in line
    finally:
        first.send_signal(signal.SIGTERM)
        assert "saved at step" in first.communicate()[1]
    assert first.returncode == 75


def test_the_lock_of_a_process_killed_is_free(root):
    for _ in range(2):
        process = trainer(root)
        assert lock.is_held(root / "runs/base/LOCK")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not lock.is_held(root / "runs/base/LOCK")
        assert inventory.status(root / "runs/base")["state"] == "interrupted"
    process = trainer(root)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75


@pytest.mark.parametrize("kind", ["tokenizer", "dataset"])
def test_a_creator_killed_leaves_its_lock_free(root, kind):
    place, line, _ = RACES[kind]
    words = [word.format(text=corpus(root.parent)) for word in line]
    hold = (
        "import sys, time, pathlib; from lmcli.artifacts import lock\n"
        "with lock.hold(pathlib.Path(sys.argv[1]), 'it'): print('held', flush=True); time.sleep(60)"
    )
    path = layout.creation_lock(root / place)
    with subprocess.Popen(
        [sys.executable, "-c", hold, path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        code, _, said = call(*words, root=root)
        assert code == 76 and f"process {holder.pid} on " in sentence(said)
        assert time.monotonic() - began < 2
        holder.kill()
    assert call(*words, root=root)[0] == 0


READERS = (
    ["status", "base"],
    ["show", "base"],
    ["verify", "base"],
    ["ls"],
    ["sample", "base", "a", "--max-new-tokens", "2"],
    ["sample", "base", "a", "--max-new-tokens", "2", "--checkpoint", "last"],
    ["eval", "base", "--split", "test"],
)


def test_readers_of_a_run_that_trains_saves_and_prunes(root):
    """Every reading is of a complete checkpoint: one step never has two contents."""
    run, seen = root / "runs/base", {}
    wrong: list[tuple[list[str], str]] = []

    def command(number: int) -> None:
        words = list(READERS[number % len(READERS)])
        code, _, said = warm()[number % 2].run(*words, "--artifacts", root)
        if code or "warning" in said:
            wrong.append((words, said))

    def library(number: int) -> None:
        loaded = load(root, "base", ("best", "last")[number % 2])
        weights = b"".join(p.detach().numpy().tobytes() for p in loaded.engine.model.parameters())
        content = hashlib.sha256(weights).hexdigest()
        assert seen.setdefault(loaded.step, (loaded.checkpoint_id, content))[1] == content
        assert inventory.status(run)["state"] == "running"
        assert inventory.verify(run)[0] == []
        inventory.checkpoints(run)

    process = trainer(root)
    try:
        with ThreadPoolExecutor(1) as pool:
            readings = pool.submit(lambda: [library(number) for number in range(140)])
            for number in range(70):
                command(number)
            readings.result()
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 75, said
    assert not wrong
    assert len(seen) > 20, "it hardly trained meanwhile"
    assert inventory.verify(run)[0] == []


def test_two_evals_at_once(root):
    line = ["eval", "base", "--split", "test", "--artifacts", root]
    run = root / "runs/base"
    with ThreadPoolExecutor(STARTERS) as pool:
        for _ in range(5):
            results = list(pool.map(lambda forks: forks.run(*line), warm(STARTERS)))
            assert [code for code, *_ in results] == [0] * STARTERS, results
            assert inventory.verify(run)[0] == []
            assert len(list((run / layout.EVALS).glob("[!.]*"))) == 1
            files.remove(run / layout.EVALS)
