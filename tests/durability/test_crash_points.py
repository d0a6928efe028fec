"""Killed at any file operation or step, the same command ends with the same bytes.

Every crash point of the writer is visited: before, in the middle of and after each operation, and
at each training step, in tokenizer train, data build, train, eval and import.
"""

import dataclasses
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest
from durable import SHAPE, corpus, digest, scratch, warm
from forks import Forks

from lmcli.interop import huggingface
from lmcli.model.presets import preset
from lmcli.model.transformer import Transformer
from lmcli.text.tokenizer import Tokenizer

SCENARIOS = {
    "tokenizer": ["tokenizer", "train", "{text}", "--name", "tok", "--vocab-size", "300"],
    "data": ["data", "build", "{text}", "--tokenizer", "tok", "--name", "corpus"],
    "pairs": ["data", "build", "--source", "{text}", "--target", "{text}", "--tokenizer", "tok"]
    + ["--name", "pairs"],
    "train": [
        *("train", "--data", "corpus", "--name", "base", *SHAPE, "--steps", "4"),
        *("--micro-batch-size", "2", "--save-every", "2", "--eval-every", "3", "--log-every", "1"),
        *("--keep-last", "1"),
    ],
    "eval": ["eval", "base", "--split", "test"],
    "extend": ["train", "--name", "base", "--steps", "6", "--save-every", "1"],
    "muon": ["train", "--data", "corpus", "--name", "muon", *SHAPE, "--optimizer", "muon"]
    + ["--steps", "3", "--save-every", "1", "--schedule", "wsd", "--keep-last", "2"],
    "import": ["import", "{folder}", "--name", "gpt2"],
    "begin": ["train", "--from", "base", "--data", "corpus", "--name", "tuned", "--steps", "2"]
    + ["--save-every", "1", "--keep-last", "1"],
    "lora": ["finetune", "--from", "base", "--data", "corpus", "--name", "lora", "--steps", "3"]
    + ["--save-every", "1", "--keep-last", "1", "--lora-rank", "2"],
}
PROCESSES = 2


def model_folder(folder: Path, text: str) -> Path:
    """A tiny GPT-2 as Hugging Face lays it out."""
    tokenizer = Tokenizer.train([text], 300)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_length": 16}
    config = dataclasses.replace(preset("gpt2"), vocab_size=300, **shape).resolved()
    model = Transformer(config)
    model.init_weights(0)
    folder.mkdir()
    huggingface.write(folder, config, model.state_dict(), tokenizer, "")
    return folder


@pytest.fixture(scope="module")
def stage():
    """(folder of roots before each scenario, what each must end with, its number of points)."""
    with scratch() as folder:
        text = corpus(folder)
        root = folder / "root"
        model = model_folder(folder / "gpt2", text.read_text())
        lines = {
            name: [word.format(text=text, folder=model) for word in line]
            for name, line in SCENARIOS.items()
        }
        ends: dict[str, dict[str, str]] = {}
        points: dict[str, int] = {}
        root.mkdir()
        for name, line in lines.items():
            shutil.copytree(root, folder / f"before-{name}")
            code, points[name], said = warm()[0].run(*line, "--artifacts", root)
            assert code == 0, said
            ends[name] = digest(root)
        yield folder, lines, ends, points


def visit(stage, trials: list[tuple[str, list[int]]]) -> None:
    """Each trial: (scenario, crash points one after the other); then once more, to the end."""
    folder, lines, ends, _ = stage
    idle: SimpleQueue[Forks] = SimpleQueue()

    def trial(number: int) -> None:
        name, crashes = trials[number]
        root = folder / f"trial-{number}"
        shutil.copytree(folder / f"before-{name}", root)
        forks = idle.get()
        try:
            for at in crashes:
                code, _, said = forks.run(*lines[name], "--artifacts", root, crash_at=at)
                assert code in (0, -9), (name, crashes, said)  # a later crash may come too late
            code, _, said = forks.run(*lines[name], "--artifacts", root)
            assert code == 0, (name, crashes, said)
            assert digest(root) == ends[name], (name, crashes)
        finally:
            idle.put(forks)
        shutil.rmtree(root)

    for forks in warm(PROCESSES):
        idle.put(forks)
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(trial, range(len(trials))))


@pytest.mark.durability
def test_crash_points(stage):
    """Every one of the four commands that a run needs, one in nine of their variations."""
    *_, points = stage
    trials = [
        (name, [at])
        for name, n in points.items()
        for at in range(1, n + 1, 1 if name in ("tokenizer", "data", "train", "eval") else 9)
    ]
    assert len(trials) >= 500
    visit(stage, trials)


@pytest.mark.soak
def test_every_crash_point(stage):
    visit(stage, [(name, [at]) for name, n in stage[3].items() for at in range(1, n + 1)])


def random_trials(points: dict[str, int], n: int, seed: int) -> list[tuple[str, list[int]]]:
    generator, names, trials = random.Random(seed), list(points), []
    for _ in range(n):
        name = generator.choice(names)
        crashes = [generator.randint(1, points[name]) for _ in range(generator.randint(2, 4))]
        trials.append((name, crashes))
    return trials


@pytest.mark.durability
def test_crashes_while_recovering_from_a_crash(stage):
    """Two to four crashes one after the other, each in the command that was to recover."""
    visit(stage, random_trials(stage[3], 50, seed=0))


@pytest.mark.soak
def test_five_thousand_crashes(stage):
    visit(stage, random_trials(stage[3], 5_000, seed=1))
