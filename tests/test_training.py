"""The loop: accumulation, resuming, stopping, schedules, checkpoints (laws 3, 5 and 6)."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import TINY
from durability.forks import Forks
from test_model import make

from lmcli.artifacts import layout
from lmcli.config.training import TrainingConfig
from lmcli.training import checkpoint, muon
from lmcli.training.optimizers import AdamW, Optimizer
from lmcli.training.schedules import lr_factor


def train(cli, *args):
    return cli("train", "--data", "corpus", *TINY, *args)


def digest(run: Path) -> dict[str, str]:
    """Hashes of what must not depend on interruptions: the last checkpoint and the metrics."""
    steps = sorted((run / layout.CHECKPOINTS).glob("step-*"))
    names = [steps[-1] / layout.MODEL, steps[-1] / layout.OPTIMIZER, steps[-1] / layout.STATE]
    paths = [*names, run / layout.METRICS]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_accumulating_equals_one_batch(cli, tiny_copy):
    """Law 3, with the bits of the data equal and sums in another order."""
    for name, micro in (("whole", 8), ("parts", 2)):
        args = ["--steps", 5, "--batch-size", 8, "--micro-batch-size", micro, "--dtype", "float32"]
        assert train(cli, "--name", name, *args).code == 0
    folders = [tiny_copy / "runs" / n for n in ("whole", "parts")]
    weights = [checkpoint.load_tensors(layout.checkpoint(f, 5) / layout.MODEL) for f in folders]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=2e-5, msg=name)
    logs = [json.loads((f / layout.METRICS).read_text().splitlines()[-2]) for f in folders]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    assert logs[0]["tokens"] == logs[1]["tokens"] == 5 * 8 * 32


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_never_interrupted(cli, tiny_copy, optimizer):
    """Law 5: killed processes are stood in for by runs cut to an earlier checkpoint."""
    args = ["--optimizer", optimizer, "--dropout", 0.1, "--steps", 12, "--eval-every", 4]
    args += ["--save-every", 3, "--log-every", 1, "--keep-last", 9]
    assert train(cli, "--name", "whole", *args).code == 0
    assert train(cli, "--name", "cut", *args).code == 0
    whole, cut = (tiny_copy / "runs" / n for n in ("whole", "cut"))
    assert digest(whole) == digest(cut)
    for step in checkpoint.list_steps(cut):
        if step > 3:
            (layout.checkpoint(cut, step) / layout.MODEL).write_bytes(b"torn")
    resumed = train(cli, "--name", "cut", *args)
    assert resumed.code == 0 and "step-000012" in resumed.err and "from step 3 of 12" in resumed.err
    assert digest(whole) == digest(cut)


def test_it_learns(cli, tiny_copy):
    args = ["--steps", 120, "--lr", 0.01, "--eval-every", 40]
    assert train(cli, "--name", "learner", *args).code == 0
    lines = (tiny_copy / "runs/learner" / layout.METRICS).read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    first = next(r["loss"] for r in losses if "loss" in r)
    assert losses[-1]["val_loss"] < first - 0.5


def test_finished_says_so_and_extends(cli, tiny_copy):
    again = cli("train", "--data", "corpus", "--name", "base", *TINY)
    assert again.code == 0 and "finished at step 20" in again.err
    longer = cli("train", "--name", "base", "--steps", 25)
    assert longer.code == 0 and "from step 20 of 25" in longer.err
    assert cli("status", "base", "--field", "step").out == "25\n"
    events = (tiny_copy / "runs/base" / layout.EVENTS).read_text()
    assert json.loads(events) == {"step": 20, "change": {"steps": 25}}
    less = cli("train", "--name", "base", "--steps", 9)
    assert less.code == 2 and "already at step 25" in less.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lr", "0.1"], "--lr 0.1: the run was started with 0.003"),
        (["--d-model", "64"], "--d-model 64: the run was started with 32"),
        (["--no-qk-norm"], "--qk-norm False: the run was started with True"),
        (["--preset", "gpt2"], "the run was started with"),
    ],
)
def test_another_config_is_78_and_names_the_field(cli, tiny_copy, flags, says):
    result = cli("train", "--name", "base", *flags)
    assert result.code == 78 and says in result.err


def test_another_dataset_is_78(cli, tiny_copy, prose):
    Path("other.txt").write_text(prose[:20000])
    assert cli("data", "build", "other.txt", "--tokenizer", "tok", "--name", "other").code == 0
    result = cli("train", "--name", "base", "--data", "other", "--steps", "30")
    assert result.code == 78 and "was started on dataset" in result.err


def test_old_checkpoints_go_best_and_last_stay(cli, tiny_copy):
    steps = checkpoint.list_steps(tiny_copy / "runs/base")
    index = json.loads((tiny_copy / "runs/base/checkpoints/index.json").read_text())
    assert steps[-2:] == [15, 20] and index["last"] == 20 and index["best"] in steps
    state = checkpoint.choose(tiny_copy / "runs/base", "best")[1]
    assert state.step == index["best"]


def test_val_loss_is_the_log_of_eval_perplexity(cli, tiny_copy):
    """Law 9."""
    best = checkpoint.choose(tiny_copy / "runs/base", "best")[1].best
    args = ["--data", "corpus", "--split", "val", "--max-tokens", 512, "--json"]
    scores = json.loads(cli("eval", "base", *args).out)["scores"]
    perplexity = {s["name"]: s["value"] for s in scores}["perplexity"]
    assert math.log(perplexity) == pytest.approx(best["val_loss"], abs=1e-5)


SCHEDULES = {
    "cosine": [0.5, 1, 1, 0.5, 0.0],
    "linear": [0.5, 1, 1, 0.5, 0.0],
    "constant": [0.5, 1, 1, 1, 1],
    "wsd": [0.5, 1, 1, 1, 0.0],
}


@pytest.mark.parametrize(("schedule", "factors"), SCHEDULES.items())
def test_schedules(schedule, factors):
    config = TrainingConfig(steps=110, warmup_steps=10, schedule=schedule)
    at = [lr_factor(config, step) for step in (5, 10, 11 if schedule == "wsd" else 10, 60, 110)]
    assert at == pytest.approx(factors, abs=1e-9)
    end = TrainingConfig(steps=110, warmup_steps=0, schedule=schedule, final_lr_fraction=0.1)
    assert lr_factor(end, 110) == pytest.approx(1 if schedule == "constant" else 0.1)


def test_wsd_decays_over_its_last_share():
    config = TrainingConfig(steps=100, warmup_steps=0, schedule="wsd", decay_fraction=0.4)
    assert [lr_factor(config, s) for s in (60, 80, 100)] == pytest.approx([1, 0.5, 0])


def test_a_run_that_diverges_ends_with_70(cli, tiny_copy, monkeypatch):
    from lmcli.training import step

    monkeypatch.setattr(step, "forward_nll", lambda w, *_: w.model.embed.weight.sum() * math.nan)
    result = train(cli, "--name", "nan", "--steps", 5)
    assert result.code == 70 and "step 1: loss nan" in result.err
    assert cli("status", "nan", "--field", "exit").out == "70\n"


def test_every_parameter_is_in_one_group_and_state_round_trips():
    model = make()
    for name in ("adamw", "muon"):
        optimizer = Optimizer(model, TrainingConfig(optimizer=name))
        listed = [p for group in optimizer.groups.values() for p in group]
        assert len(listed) == len(set(listed)) == len(list(model.parameters()))
        decayed = {
            optimizer.names[p]
            for (_, _, decay), group in optimizer.groups.items()
            for p in group
            if decay
        }
        assert all("norm" not in n and "bias" not in n for n in decayed)
        model(torch.tensor([[5, 6, 7]])).sum().backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0.01)
        saved = {k: v.clone() for k, v in optimizer.state_tensors().items()}
        other = Optimizer(model, TrainingConfig(optimizer=name))
        other.load_state_tensors(saved)
        loaded = other.state_tensors()
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[k], saved[k]) for k in saved)


@torch.no_grad()
def move(rule, parameters, states, lr, decay):
    """One update by a rule of ours."""
    for p in parameters:
        if not states[p]:
            states[p] = {key: torch.zeros(shape) for key, shape in rule.shapes(p).items()}
    rule.update({p: p.grad for p in parameters}, states, lr, decay)


def test_adamw_is_torchs_bit_for_bit():
    """Without its class: that imports torch._dynamo, a second of every start."""
    ends = []
    for ours in (True, False):
        draw = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(n, generator=draw)) for n in (300, 7, 1)]
        groups = [
            {"params": parameters[:2], "lr": 0.01, "weight_decay": 0.1},
            {"params": parameters[2:], "lr": 0.02, "weight_decay": 0.0},
        ]
        rule = AdamW(0.9, 0.95, 1e-8)
        torchs = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
        states = defaultdict(dict) if ours else torchs.state
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            if ours:
                for group in groups:
                    move(rule, group["params"], states, group["lr"], group["weight_decay"])
            else:
                torchs.step()
        ends.append(
            [
                *parameters,
                *(states[p][k] for p in parameters for k in ("step", "exp_avg", "exp_avg_sq")),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_training_does_not_import_what_compiles(tiny_copy):
    script = "import sys; from lmcli.cli import main; code = main(sys.argv[1:]);"
    script += "sys.exit(code or ('torch._dynamo' in sys.modules and 'imported'))"
    line = ["train", "--name", "base", "--steps", "21", "-q"]
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_muon_orthogonalises():
    matrix = torch.randn(2, 24, 60, generator=torch.Generator().manual_seed(0))
    for x in (matrix, matrix.mT):
        values = torch.linalg.svdvals(muon.orthogonalise(x, steps=8))
        assert values.min() > 0.6 and values.max() < 1.3


def test_muon_is_torchs_where_both_run_in_the_same_precision():
    """One step from the same gradient; torch's runs in bfloat16, hence the tolerance."""
    start = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    results = []
    for ours in (True, False):
        parameter = torch.nn.Parameter(start.clone())
        parameter.grad = grad.clone()
        if ours:
            move(muon.Muon(), [parameter], defaultdict(dict), 0.02, 0.1)
        else:
            torch.optim.Muon([parameter], lr=0.02, weight_decay=0.1, adjust_lr_fn="original").step()
        results.append(parameter.detach() - start)
    assert (results[0] - results[1]).norm() / results[1].norm() < 0.02


# ---- real processes ----


def start(root: Path, name: str, *args: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "lmcli", "train", "--data", "corpus", "--name", name, *TINY]
    environment = {**os.environ, "LMCLI_ARTIFACTS": str(root)}
    # A shell's background jobs, and what they start, ignore SIGINT.
    heeds = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        [*command, *map(str, args)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeds,
    )


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


LONG = [
    *("--steps", "150", "--save-every", "20", "--eval-every", "40"),
    *("--log-every", "1", "--dropout", "0.1"),
]
SHORT = ["--steps", "6", "--save-every", "2", "--eval-every", "3", "--log-every", "1"]


@pytest.fixture(scope="session")
def calm(tiny, tmp_path_factory):
    """Digests of the LONG and SHORT runs that nobody interrupted."""
    import shutil

    from lmcli.cli import main

    root = tmp_path_factory.mktemp("calm") / "artifacts"
    shutil.copytree(tiny, root)
    digests = {}
    for name, args in (("long", LONG), ("short", SHORT)):
        line = ["train", "--data", "corpus", "--name", name, *TINY, *args]
        assert main([*line, "--artifacts", str(root), "-q"]) == 0
        digests[name] = digest(root / "runs" / name)
    return digests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])  # durability: the others
def test_a_real_process_stopped_by_a_signal_goes_on(cli, tiny_copy, calm, number):
    with start(tiny_copy, "killed", *LONG) as process:
        wait_for(tiny_copy / "runs/killed/checkpoints/step-000040")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    status = json.loads(cli("status", "killed", "--json").out)
    assert status["state"] == "interrupted" and status["resumable"]
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 75 and "the same command continues" in said
        assert status["exit"] == 75
    assert train(cli, "--name", "killed", *LONG).code == 0
    assert digest(tiny_copy / "runs/killed") == calm["long"]
    assert not list(tiny_copy.rglob(".tmp-*"))
    assert cli("verify", "killed").code == 0


def test_two_writers_one_works_the_other_says_who(cli, tiny_copy):
    with start(tiny_copy, "shared", *LONG) as process:
        wait_for(tiny_copy / "runs/shared/checkpoints/step-000020")
        began = time.monotonic()
        second = train(cli, "--name", "shared", *LONG)
        assert second.code == 76 and f"process {process.pid} on " in second.err
        assert time.monotonic() - began < 2
        assert cli("sample", "shared", "The", "--max-new-tokens", 2).code == 0
        process.kill()
        process.communicate()


CRASHES = 8


@pytest.fixture(scope="module")
def forks(tiny, tmp_path_factory):
    """A warm process whose forks run command lines."""
    import shutil

    root = tmp_path_factory.mktemp("warm") / "artifacts"
    shutil.copytree(tiny, root)
    line = ["train", "--data", "corpus", "--name", "warm", *TINY, *SHORT, "--artifacts", str(root)]
    with Forks(warm=[line]) as running:
        yield running


@pytest.mark.parametrize("part", range(CRASHES))
def test_killed_at_a_file_operation_and_run_again(cli, tiny_copy, calm, forks, part):
    """A crash before, inside or after chosen operations of the writer; then the same command."""
    line, at = ["train", "--data", "corpus", "--name", "hit", *TINY, *SHORT], 1 + 29 * part
    if part:
        code, _, said = forks.run(*line, "--artifacts", tiny_copy, crash_at=at)
    else:
        environment = {**os.environ, "LMCLI_CRASH_AT": str(at)}
        command = [sys.executable, "-m", "lmcli", *line]
        crashed = subprocess.run(command, env=environment, capture_output=True, text=True)
        code, said = crashed.returncode, crashed.stderr
    assert code == -9, said
    assert train(cli, "--name", "hit", *SHORT).code == 0
    assert digest(tiny_copy / "runs/hit") == calm["short"]
    assert not list(tiny_copy.rglob(".tmp-*"))
    assert cli("verify", "hit").code == 0


def test_a_preset_with_changes_trains_and_goes_on(cli, tiny_copy):
    """What was given the first time is given again; derived values follow what was changed."""
    line = ["train", "--data", "corpus", "--name", "p", "--preset", "nano", "--context-length", 32]
    line += ["--d-model", 32, "--n-heads", 2, "--n-layers", 1, "--threads", 1, "--batch-size", 2]
    assert cli(*line, "--steps", 2).code == 0
    assert cli(*line, "--steps", 4).code == 0
    assert cli(*line, "--n-layers", 2).code == 78


def test_settings_and_data_may_come_from_a_file(cli, tiny_copy):
    Path("run.toml").write_text('data = "corpus"\npreset = "nano"\nsteps = 3\nd_model = 32\n')
    line = ["train", "--name", "f", "--config", "run.toml", "--context-length", 32]
    said = json.loads(cli(*line, "--preset", "micro", "--dry-run").out)
    assert said["model"]["d_model"] == 32 and said["training"]["steps"] == 3
    assert not (tiny_copy / "runs/f").exists()


def test_a_dry_run_moves_nothing(cli, tiny_copy):
    before = sorted(tiny_copy.rglob("*"))
    assert train(cli, "--name", "base", "--force", "--dry-run", "--steps", 7).code == 0
    assert sorted(tiny_copy.rglob("*")) == before


def test_a_dry_run_of_a_run_that_is_there_says_what_it_would_do(cli, tiny_copy):
    said = json.loads(cli("train", "--name", "base", "--steps", 33, "--dry-run").out)
    assert said["training"]["steps"] == 33 and said["training"]["lr"] == 0.003
    assert cli("train", "--name", "base", "--lr", 7, "--dry-run").code == 78
    assert cli("train", "--name", "base", "--data", "nosuch", "--dry-run").code == 66


def test_a_finished_run_takes_no_other_data(cli, tiny_copy, prose):
    Path("other.txt").write_text(prose[:20000])
    assert cli("data", "build", "other.txt", "--tokenizer", "tok", "--name", "other").code == 0
    assert cli("train", "--name", "base", "--data", "other").code == 78
    assert cli("train", "--name", "base", "--data", "nosuch").code == 66
    assert cli("train", "--name", "base", "--data", "corpus").code == 0


def test_a_dataset_under_another_name_is_the_same(cli, tiny_copy):
    """Its twin may be removed; every command finds it by its id."""
    shutil.copytree(tiny_copy / "datasets/corpus", tiny_copy / "datasets/twin")
    assert cli("rm", "datasets/corpus").code == 0
    scored = cli("eval", "base", "--split", "val", "--json")
    assert json.loads(scored.out)["dataset"]["name"] == "twin"
    assert cli("train", "--name", "base", "--steps", 22).code == 0
    assert cli("prove", "base", "--steps", 2).code == 0
    assert cli("rm", "datasets/twin").code == 77


def test_every_new_best_is_kept(cli, tiny_copy):
    args = ["--steps", 30, "--eval-every", 4, "--save-every", 20, "--keep-last", 1, "--lr", 0.02]
    assert train(cli, "--name", "best", *args).code == 0
    run = tiny_copy / "runs/best"
    log = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
    best = min((r for r in log if "val_loss" in r), key=lambda r: r["val_loss"])["step"]
    assert checkpoint.choose(run, "best")[1].step == best
    assert cli("sample", "best", "The", "--max-new-tokens", 2).code == 0


def test_a_try_that_never_saved_gives_up_its_name(cli, tiny_copy):
    huge = train(cli, "--name", "try", "--steps", 2, "--d-model", 1_000_000)
    assert huge.code in (71, 74)
    assert train(cli, "--name", "try", "--steps", 2).code == 0
    assert cli("status", "try", "--field", "step").out == "2\n"


def test_weights_that_changed_since_a_run_began_are_named(cli, tiny_copy):
    line = ["--from", "base", "--name", "child", "--steps", 2]
    assert train(cli, *line).code == 0
    assert "other weights" not in train(cli, *line).err
    assert train(cli, "--name", "base", "--steps", 3, "--force").code == 0
    again = train(cli, *line)
    assert again.code == 0 and "base has other weights now than those that child" in again.err


def test_a_stop_says_what_goes_on(cli, tiny_copy):
    line = ["--name", "stopped", "--steps", 100_000, "--max-time", "0.001s"]
    said = train(cli, *line)
    assert said.code == 75 and "no step since the start, at step 0" in said.err
    assert said.err.rstrip().endswith("; the same command continues")
    assert "; the same command, without --force, continues" in train(cli, *line, "--force").err


def test_eval_by_default_is_of_the_data_it_was_trained_on(cli, tiny_copy, prose):
    Path("other.txt").write_text(prose[:20000])
    build = ["data", "build", "other.txt", "--tokenizer", "tok", "--name", "corpus", "--force"]
    assert cli(*build).code == 0
    refused = cli("eval", "base", "--split", "val")
    assert refused.code == 78 and "is no longer the dataset" in refused.err
    assert cli("eval", "base", "--split", "val", "--data", "corpus").code == 0
    assert cli("eval", "base", "--split", "val", "--data", "corpus", "--stride", 8).code == 0
    assert len(list((tiny_copy / "runs/base/evals").glob("*.json"))) == 2
    assert cli("verify", "base").code == 0
