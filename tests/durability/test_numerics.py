"""NaN, infinity, spikes and a full memory: what reaches the weights, and that it is replayed."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from durable import digest

from lmcli.artifacts import files, layout, manifest
from lmcli.config.training import TrainingConfig
from lmcli.training import checkpoint, health, trainer
from lmcli.training import step as one_step

pytestmark = pytest.mark.durability
LINE = ["train", "--data", "corpus", "--name", "r", *TINY, "--steps", "12", "--log-every", "1"]
LINE += ["--save-every", "4", "--eval-every", "0", "--keep-last", "9", "--dropout", "0.1"]
LINE += ["--dtype", "float32"]


@pytest.fixture
def poison(monkeypatch):
    """poison({7: nan}): step 7's loss is that, every time; returns the steps that were taken."""

    def use(losses: dict[int, float], where: str = "loss") -> list[int]:
        whole, taken = trainer.Trainer._gradients, []

        def gradients(self, step):
            taken.append(self.batch_index(step))
            loss, norm, tokens = whole(self, step)
            bad = losses.get(taken[-1] + 1)
            if bad is not None and where == "gradient":
                next(self.model.parameters()).grad.fill_(bad)
                return loss, bad, tokens
            return (loss if bad is None else bad), norm, tokens

        monkeypatch.setattr(trainer.Trainer, "_gradients", gradients)
        return taken

    return use


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(layout.checkpoint(run, step) / layout.MODEL)


def metrics(run: Path) -> list[dict]:
    return [r for r in files.read_log(run / layout.METRICS) if "val_loss" not in r]


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_stops_before_the_update(cli, tiny_copy, poison, bad, where):
    poison({7: bad}, where)
    result = cli(*LINE)
    run = tiny_copy / "runs/r"
    assert result.code == 70 and f"step 7: {'gradient norm' if where != 'loss' else 'loss'}" in (
        result.err
    )
    assert "no update was made and the checkpoint of step 4 is good" in result.err
    assert checkpoint.list_steps(run) == [4] and [r["step"] for r in metrics(run)] == [*range(1, 7)]
    status = json.loads(cli("status", "r", "--json").out)
    assert (status["state"], status["exit"], status["resumable"]) == ("failed", 70, True)


def test_skip_leaves_the_weights_and_is_an_event(cli, tiny_copy, poison):
    poison({7: math.nan})
    assert cli(*LINE, "--on-nonfinite", "skip", "--save-every", 1).code == 0
    run = tiny_copy / "runs/r"
    for name, value in weights(run, 6).items():
        assert torch.equal(value, weights(run, 7)[name])
    assert files.read_log(run / layout.EVENTS) == [{"step": 7, "skip": "loss nan"}]
    skipped = metrics(run)[6]
    assert skipped["step"] == 7 and skipped["skipped"] == "loss nan" and "loss" not in skipped


def test_a_skip_is_replayed_although_the_number_is_fine_the_second_time(cli, tiny_copy, poison):
    """A flipped bit happens once; the run that goes on must still do what was done."""
    poison({7: math.nan})
    line = [*LINE, "--on-nonfinite", "skip"]
    assert cli(*line).code == 0
    run = tiny_copy / "runs/r"
    end = digest(run)
    for step in (8, 12):
        files.remove(layout.checkpoint(run, step))
    poison({})
    assert cli(*line).code == 0
    assert digest(run) == end


def test_after_a_rewind_a_skipped_step_has_another_batch(cli, tiny_copy, poison):
    poison({6: math.nan})
    assert cli(*LINE, "--on-nonfinite", "skip").code == 0
    run = tiny_copy / "runs/r"
    assert "skipped" in metrics(run)[5]
    for step in (8, 12):
        files.remove(layout.checkpoint(run, step))
    poison({7: math.nan})
    result = cli("train", "--name", "r", "--on-nonfinite", "rewind")
    assert result.code == 0 and "back to step 4, leaving out 3 batches" in result.err
    assert not any("skipped" in record for record in metrics(run))


def test_rewind_goes_back_and_leaves_out_the_data(cli, tiny_copy, poison):
    taken = poison({7: math.nan})
    line = [*LINE, "--on-nonfinite", "rewind"]
    result = cli(*line)
    assert result.code == 0 and "back to step 4, leaving out 3 batches" in result.err
    run = tiny_copy / "runs/r"
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert files.read_log(run / layout.EVENTS) == [
        {"step": 4, "rewind": 3, "why": "step 7: loss nan"}
    ]
    assert [r["step"] for r in metrics(run)] == [*range(1, 13)]
    seconds = [r["seconds"] for r in files.read_log(run / layout.PERF)]
    assert seconds == sorted(seconds)  # the time that was lost counts too
    end = digest(run)
    for step in (8, 12):  # as if killed after the rewind, before anything was saved
        files.remove(layout.checkpoint(run, step))
    taken = poison({})
    assert cli(*line).code == 0 and taken == [*range(7, 15)]
    assert digest(run) == end and cli("verify", "r").code == 0


def test_rewind_before_the_first_checkpoint_starts_again(cli, tiny_copy, poison):
    taken = poison({2: math.nan})
    assert cli(*LINE, "--on-nonfinite", "rewind").code == 0
    assert taken == [0, 1, *range(2, 14)]


@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_decisions_are_bounded(cli, tiny_copy, poison, action):
    poison({n: math.nan for n in range(5, 60)})
    result = cli(*LINE, "--on-nonfinite", action, "--max-skips", 3)
    assert result.code == 70 and "--max-skips 3 is used up" in result.err
    assert len(files.read_log(tiny_copy / "runs/r" / layout.EVENTS)) == 3


def test_an_aborted_run_goes_on_with_another_decision(cli, tiny_copy, poison):
    poison({7: math.nan})
    assert cli(*LINE).code == 70
    assert cli("train", "--name", "r", "--on-nonfinite", "skip").code == 0
    events = files.read_log(tiny_copy / "runs/r" / layout.EVENTS)
    assert [e["step"] for e in events] == [4, 7]


def test_a_spike_is_what_stands_far_above_the_last_steps():
    config = TrainingConfig(on_spike="skip", spike_sigma=6)
    past = [(3.0 + 0.01 * (i % 5), 1.0) for i in range(health.FEWEST)]
    assert health.judge(config, 3.05, 1.0, past).action == "apply"
    assert health.judge(config, 4.0, 1.0, past).action == "skip"
    assert health.judge(config, 3.0, 2.0, past).why.startswith("gradient norm 2 after 1")
    assert health.judge(config, 4.0, 1.0, past[1:]).action == "apply"  # too few to tell
    assert health.judge(TrainingConfig(), 400.0, 1.0, past).action == "apply"


@pytest.mark.parametrize("action", ["skip", "rewind", "abort"])
def test_spikes_likewise_and_what_they_are_measured_by_is_saved(cli, tiny_copy, poison, action):
    line = [*LINE, "--dropout", "0", "--steps", "48", "--on-spike", action]
    poison({40: 50.0})
    result = cli(*line)
    run = tiny_copy / "runs/r"
    if action == "abort":
        assert result.code == 70 and "step 40: loss 50 after" in result.err
        return
    assert result.code == 0
    events = files.read_log(run / layout.EVENTS)
    assert [e["step"] for e in events] == [40 if action == "skip" else 36]
    end = digest(run)
    for step in checkpoint.list_steps(run):
        if step > 36:
            files.remove(layout.checkpoint(run, step))
    assert cli(*line).code == 0 and digest(run) == end


def test_no_checkpoint_of_weights_that_are_not_finite(cli, tiny_copy, monkeypatch):
    step = trainer.Optimizer.step

    def break_weights(self, *args):
        step(self, *args)
        with torch.no_grad():
            next(iter(self.names)).view(-1)[0] = math.nan

    monkeypatch.setattr(trainer.Optimizer, "step", break_weights)
    monkeypatch.setattr(health, "judge", lambda *_: health.Verdict("apply"))
    result = cli(*LINE)
    assert result.code == 70 and "embed.weight is not finite" in result.err
    assert checkpoint.list_steps(tiny_copy / "runs/r") == []


@pytest.fixture
def memory(monkeypatch):
    """memory(2): a forward pass of more than 2 rows finds no memory."""

    def use(rows: int) -> None:
        forward = one_step.forward_nll

        def limited(working, batch, config):
            if len(batch.input_ids) > rows:
                torch.empty(2**60, dtype=torch.uint8)  # the allocator's own refusal
            return forward(working, batch, config)

        monkeypatch.setattr(one_step, "forward_nll", limited)

    return use


def test_out_of_memory_halves_the_micro_batch_and_sums_the_same(cli, tiny_copy, memory):
    whole = [*LINE[:4], "whole", *LINE[5:], "--batch-size", "12", "--dropout", "0"]
    line = [*LINE, "--batch-size", "12", "--dropout", "0"]
    assert cli(*whole).code == 0
    memory(3)
    result = cli(*line)
    assert result.code == 0
    assert result.err.count("from here on 6 sequences") == 1
    assert result.err.count("from here on 3 sequences") == 1
    run = tiny_copy / "runs/r"
    assert [e["change"] for e in files.read_log(run / layout.EVENTS)] == [
        {"micro_batch_size": 6},
        {"micro_batch_size": 3},
    ]
    for name, value in weights(tiny_copy / "runs/whole", 12).items():
        torch.testing.assert_close(value, weights(run, 12)[name], rtol=1e-4, atol=2e-5)
    end = digest(run)
    for step in (8, 12):
        files.remove(layout.checkpoint(run, step))
    assert cli(*line).code == 0 and digest(run) == end


def test_out_of_memory_with_one_row_is_71(cli, tiny_copy, memory):
    memory(0)
    result = cli(*LINE)
    assert result.code == 71 and "out of memory with one sequence at a time" in result.err
    assert cli("status", "r", "--field", "exit").out == "71\n"


def test_prove_gives_the_same_bits_and_leaves_no_trace(cli, tiny_copy, poison):
    poison({7: math.nan})
    assert cli(*LINE, "--on-nonfinite", "skip").code == 0
    assert cli("train", "--name", "r", "--steps", "14").code == 0
    before = digest(tiny_copy)
    for steps, first in ((1, 12), (2, 12), (6, 8), (14, 0)):
        result = cli("prove", "r", "--steps", steps, "--json")
        said = json.loads(result.out)
        assert result.code == 0 and said["same"], said
        assert (said["first"], said["last"]) == (first, 14)
    assert digest(tiny_copy) == before
    few = cli("prove", "r", "--steps", 12)
    assert few.code == 2 and "possible: 2, 6, 10, 14" in few.err


def test_prove_names_the_first_tensor_that_differs_and_why(cli, tiny_copy):
    assert cli(*LINE).code == 0
    folder = layout.checkpoint(tiny_copy / "runs/r", 12)
    tensors = checkpoint.load_tensors(folder / layout.MODEL)
    name = "decoder.blocks.0.attn.q_proj.weight"
    tensors[name][0, 0] += 1e-3
    made = manifest.read(folder)
    checkpoint.save_file(tensors, folder / layout.MODEL, metadata={"format": "pt"})
    manifest.write(folder, "checkpoint", made.name, made.parents, environment=made.made)
    result = cli("prove", "r", "--steps", 4)
    assert result.code == 65 and f"{name} differs in 1 of" in result.err
    unsaid = {key: value for key, value in made.made.items() if key != "cpu"}
    for then, words in (
        (made.made | {"threads": 64}, "threads 64 then, 1 now"),
        (made.made | {"cpu": "Intel 8086"}, "cpu Intel 8086 then, "),
        (made.made | {"lmcli": "0.0.1"}, "lmcli 0.0.1 then, "),
        (unsaid, "cpu unknown then, "),
    ):
        manifest.write(folder, "checkpoint", made.name, made.parents, environment=then)
        result = cli("prove", "r", "--steps", 4)
        assert result.code == 78 and f"likely because of {words}" in result.err
    assert not list(tiny_copy.rglob(".tmp-*"))


def test_prove_finds_metrics_that_were_rewritten(cli, tiny_copy):
    assert cli(*LINE).code == 0
    run = tiny_copy / "runs/r"
    folder = layout.checkpoint(run, 12)
    state = files.read_json(folder / layout.STATE)
    made = manifest.read(folder)
    files.write_json(folder / layout.STATE, {**state, "tokens": state["tokens"] + 1})
    manifest.write(folder, "checkpoint", made.name, made.parents, environment=made.made)
    result = cli("prove", "r", "--steps", 4)
    assert result.code == 65 and "state.json: tokens" in result.err


def test_prove_waits_for_nobody(cli, tiny_copy):
    line = [sys.executable, "-m", "lmcli", *LINE[:-8], "--steps", "5000", "--save-every", "10"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        while not (tiny_copy / "runs/r/checkpoints/step-000010").exists():
            time.sleep(0.05)
        busy = cli("prove", "r")
        assert busy.code == 76 and f"process {process.pid}" in busy.err
        process.send_signal(signal.SIGKILL)
