"""What a run derives by itself: size, steps, end on the clock, precision, compile; and what it says
of its time."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY

from lmcli.artifacts import layout
from lmcli.config.model import ModelConfig
from lmcli.config.training import Asked, TrainingConfig
from lmcli.errors import DataError, UsageError
from lmcli.model.presets import N_BLOCK, sized
from lmcli.runs import config as runs_config
from lmcli.runs.config import RunConfig, parameters, pays_to_compile, plan
from lmcli.runs.load import load
from lmcli.runs.start import _sparing
from lmcli.training import checkpoint, contention, precision


def train(cli, *args):
    return cli("train", "--data", "corpus", *args)


def log(root, name, file=layout.PERF):
    return [json.loads(line) for line in (root / "runs" / name / file).read_text().splitlines()]


@pytest.mark.parametrize("size", [10**6, 10**7, 10**8, 10**9])
def test_the_dial_gives_the_size_asked_for(size):
    """Within the step from one k to the next, heads of 64, and steps of `ratio` tokens each."""
    config, training = sized(size, 20.0)
    skip = ("embed", "output")
    inside = {n: s for n, s in parameters(config.resolved(100)).items() if not n.startswith(skip)}
    n = sum(torch.Size(shape).numel() for shape in inside.values())
    assert n == pytest.approx(size, rel=0.35)
    assert config.d_model // config.n_heads == 64
    tokens = training["steps"] * training["batch_size"] * config.context_length
    k = config.n_layers
    assert tokens == pytest.approx(20 * N_BLOCK * k**3, rel=0.01)
    assert training["batch_size"] % training["micro_batch_size"] == 0


def test_the_dials_batch_is_of_tokens_whatever_the_context():
    for context in (128, 512, 2048):
        config, training = sized(10**7, 20.0, context_length=context)
        assert config.context_length == context
        assert training["batch_size"] * context == 2**15
        assert training["micro_batch_size"] * context == 8192


@pytest.mark.parametrize(
    "given", [{}, {"dropout": 0.1}, {"tie_embeddings": True}, {"context_length": 128}]
)
def test_a_budget_chooses_the_size_whatever_else_is_set(tiny_copy, monkeypatch, given):
    from lmcli.config.training import Asked
    from lmcli.runs import start

    monkeypatch.setattr(start, "measure", lambda *_: (0.05, 4096))
    fit = {
        n: start.fit_budget(tiny_copy, Asked(data="corpus", given={"budget": "10min"} | g), None)
        for n, g in (
            ("own", given),
            ("shape", given | {"n_layers": 2}),
            ("sized", given | {"size": 10**6}),
        )
    }
    assert fit["own"].given["size"] == 5**3 * N_BLOCK  # 47M tokens: 7.6 each, and 4.4 with k = 6
    assert "size" not in fit["shape"].given
    assert fit["sized"].given["size"] == 10**6 and "ratio" in fit["sized"].given


@pytest.mark.parametrize(("seconds", "k"), [(3, 2), (160, 3), (600, 3), (6000, 5)])
def test_a_budget_takes_the_largest_size_that_sees_enough_tokens(
    tiny_copy, monkeypatch, seconds, k
):
    """Where a token of twice the width takes five times as long, not eight, and batches follow."""
    from lmcli.config.training import Asked
    from lmcli.runs import start

    def measure(root, asked, stop):
        model, training = sized(asked.given["size"], asked.given["ratio"])
        tokens = training["batch_size"] * model.context_length
        return tokens * 2e-5 * (model.n_layers / 2) ** 2.3, tokens

    monkeypatch.setattr(start, "measure", measure)
    asked = Asked(data="corpus", given={"budget": f"{seconds}s"})
    fit = start.fit_budget(tiny_copy, asked, None).given
    seen = [0.95 * seconds / (2e-5 * (n / 2) ** 2.3) / (N_BLOCK * n**3) for n in (k, k + 1)]
    assert fit["size"] == N_BLOCK * k**3 and seen[1] < k and (seen[0] > k - 1 or k == 2)
    tokens = 0.95 * seconds / (2e-5 * (k / 2) ** 2.3)
    batch = sized(fit["size"], fit["ratio"])[1]["batch_size"] * 256
    assert 0.9 * tokens**0.5 < batch < 4.5 * tokens**0.5 and 0.9 * tokens < fit["steps"] * batch


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory"), DataError("few")])
def test_a_size_that_does_not_fit_is_no_reason_to_stop(tiny_copy, monkeypatch, error):
    from lmcli.config.training import Asked
    from lmcli.runs import start

    def measure(root, asked, stop):
        if asked.given["size"] > N_BLOCK * largest**3:
            raise error
        return 0.05, 4096

    monkeypatch.setattr(start, "measure", measure)
    asked, largest = Asked(data="corpus", given={"budget": "10min"}), 3
    assert start.fit_budget(tiny_copy, asked, None).given["size"] == N_BLOCK * 27
    largest = 1
    with pytest.raises(type(error)):
        start.fit_budget(tiny_copy, asked, None)


def test_a_stop_while_a_budget_is_planned_is_heard(cli, tiny_copy):
    line = ["--name", "x", "--budget", "10min", "--max-time", "0.001s", "--context-length", "32"]
    said = train(cli, *line)
    assert said.code == 75 and "before the first step" in said.err
    assert not (tiny_copy / "runs/x").exists()


def test_what_a_setting_raises_or_replaces_is_no_change(cli, tiny_copy):
    line = [*TINY, "--name", "r", "--steps", "3", "--keep-last", "2", "--average-last", "3"]
    line += ["--warmup-steps", "2", "--warmup-tokens", "320"]
    assert train(cli, *line).code == 0
    again = train(cli, *line)
    assert again.code == 0 and "finished" in again.err
    training = RunConfig.read(tiny_copy / "runs/r").training
    assert (training.keep_last, training.warmup_steps) == (3, 3)
    assert train(cli, *line, "--keep-last", "4").code == 78
    other = cli("train", "--name", "r", "--warmup-steps", "5")
    assert other.code == 78 and "--warmup-steps 5" in other.err


def test_time_since_the_last_line_of_the_log_counts(cli, tiny_copy):
    line = [*TINY, "--name", "late", "--steps", "1000000", "--eval-every", "0", "--save-every", "0"]
    assert train(cli, *line, "--log-every", "1000000", "--max-time", "2s").code == 75
    assert log(tiny_copy, "late")[-1]["seconds"] > 0


def test_size_on_the_command_line(cli, tiny_copy):
    line = ["--name", "dial", "--size", "60k", "--ratio", "0.1", "--context-length", "16"]
    line += ["--steps", "3"]
    assert train(cli, *line).code == 0
    config = RunConfig.read(tiny_copy / "runs/dial")
    assert (config.model.n_layers, config.model.d_model) == (1, 64)
    assert config.training.optimizer == "muon" and config.training.steps == 3
    assert "finished" in train(cli, *line).err  # the same command again
    assert train(cli, *line[:2], "--size", "5M").code == 78
    said = train(cli, "--name", "x", "--size", "1M", "--preset", "nano")
    assert said.code == 2 and "give one of them" in said.err
    said = train(cli, "--name", "x", "--ratio", "3")
    assert said.code == 2 and "--size" in said.err
    said = train(cli, "--name", "x", "--size", "1M", "--ratio", "1.7e308")
    assert said.code == 2 and "--ratio must be at most 1,000,000, not 1.7e+308" in said.err


def test_a_budget_ends_on_the_clock_and_the_rate_with_it(cli, tiny_copy, monkeypatch):
    """Steps of 20 ms where 5 were measured: the end moves, and is met; the last rate is near 0."""
    from lmcli.training import clock, trainer

    monkeypatch.setattr(clock, "SETTLED", 0.5)
    real = trainer.gradients

    def slow(*args):
        time.sleep(0.02)
        return real(*args)

    monkeypatch.setattr(trainer, "gradients", slow)
    args = [*TINY, "--name", "timed", "--budget", "6s", "--eval-every", "0", "--save-every", "0"]
    assert train(cli, *args, "--log-every", "1").code == 0
    events = log(tiny_copy, "timed", layout.EVENTS)
    planned = RunConfig.read(tiny_copy / "runs/timed").training.steps
    assert events and events[-1]["change"]["steps"] < planned
    assert 4.5 < log(tiny_copy, "timed")[-1]["seconds"] < 7.5
    numbers = [r for r in log(tiny_copy, "timed", layout.METRICS) if "lr" in r]
    assert numbers[-1]["lr"] < 0.1 * max(r["lr"] for r in numbers)
    assert cli("verify", "timed").code == 0


def test_a_budget_is_a_duration(cli, tiny_copy):
    result = train(cli, "--name", "x", "--budget", "10")
    assert result.code == 2 and "--budget: '10' is not a duration" in result.err


def test_a_running_mean_is_what_is_used(cli, tiny_copy):
    """It is resumed to the bit, is what sample and eval load, and lies off the last weights."""
    args = [*TINY, "--ema", "0.9", "--steps", "12", "--save-every", "6", "--eval-every", "6"]
    assert train(cli, "--name", "mean", *args).code == 0
    run = tiny_copy / "runs/mean"
    folder = layout.checkpoint(run, 12)
    raw = checkpoint.load_tensors(folder / layout.MODEL)
    state = checkpoint.load_tensors(folder / layout.OPTIMIZER)
    loaded = load(tiny_copy, "mean", "last", dtype="float32")
    for name, tensor in loaded.engine.model.state_dict().items():
        assert torch.equal(tensor, state[f"ema.{name}"]) and not torch.equal(tensor, raw[name])
    before = (folder / layout.OPTIMIZER).read_bytes(), (folder / layout.MODEL).read_bytes()
    import shutil

    shutil.rmtree(folder)
    assert train(cli, "--name", "mean", *args).code == 0
    assert before == (
        (folder / layout.OPTIMIZER).read_bytes(),
        (folder / layout.MODEL).read_bytes(),
    )


def test_warm_up_in_tokens_and_a_prompt_at_validation(cli, tiny_copy):
    args = [*TINY, "--steps", "4", "--warmup-tokens", "300", "--eval-every", "2"]
    result = train(cli, "--name", "warm", *args, "--eval-prompt", "The ")
    assert RunConfig.read(tiny_copy / "runs/warm").training.warmup_steps == 3  # of 4 x 32 tokens
    assert "step 2  The " in result.err and "step 4  The " in result.err


def test_a_profile_is_a_trace(cli, tiny_copy):
    result = train(cli, *TINY, "--name", "traced", "--steps", "8", "--profile", "2")
    assert result.code == 0 and "Self CPU" in result.err
    trace = json.loads((tiny_copy.parent / "traced.trace.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])
    assert cli("verify", "traced").code == 0
    short = train(cli, *TINY, "--name", "short", "--steps", "3", "--profile", "2")
    assert short.code == 0 and "leaves out 4 steps first, and 3 are left" in short.err


def test_shares_of_the_time_are_logged(tiny):
    last = [r for r in log(tiny, "base") if "tokens_per_second" in r][-1]
    names = ("data", "optimizer", "eval", "save", "forward_backward")
    parts = [last[f"{part}_share"] for part in names]
    assert all(0 < part < 1 for part in parts) and sum(parts) == pytest.approx(1, abs=0.001)


def test_shares_of_the_time_are_shown_and_the_peak_where_it_means_something(cli, tiny_copy):
    from lmcli.training.clock import Clock

    said = train(cli, *TINY, "--name", "shown", "--steps", "3").err
    assert " % forward and backward" in said
    assert ": it would not pay back here" in said
    model = load(tiny_copy, "base", "last").engine.model.float()
    machine = precision.resolve("cpu", "float32", 1)
    clock = Clock(model, machine)
    clock.first -= 100
    clock.parts |= {"optimizer": 20.0, "eval": 0.4}
    assert clock.summary() == "time: 80 % forward and backward, 20 % optimizer"
    assert clock.known and not Clock(model, machine, of_pairs=True).known
    model.embed.weight.requires_grad_(False)
    assert not Clock(model, machine).known


def test_precision_follows_the_machine(monkeypatch, tmp_path):
    unit = precision.bfloat16_unit("cpu")
    assert precision.resolve("cpu", "auto", 1).dtype == ("bfloat16" if unit else "float32")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = precision.resolve("cpu", "auto", 1)
    assert machine.dtype == "float32" and "nothing multiplies bfloat16 faster" in machine.why
    assert machine.matmul_peak() > 1e9


@pytest.mark.parametrize(
    ("own", "tune", "kept"), [("", True, "128"), ("", False, ""), ("7", True, "7")]
)
def test_code_is_kept_for_few_shapes_unless_told_otherwise(monkeypatch, own, tune, kept):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, own)
    if not own:
        monkeypatch.delenv(name)
    precision.prepare(precision.resolve("cpu", "float32", 1), tune)
    assert os.environ.get(name, "") == kept


def test_compile_is_chosen_where_it_pays_back(monkeypatch, tiny):
    machine = precision.resolve("cpu", "float32", 1)
    monkeypatch.setattr(runs_config.shutil, "which", lambda name: "/usr/bin/g++")
    model = sized(10**7, 20.0)[0].resolved(8192)
    short, long = TrainingConfig(steps=10), TrainingConfig(steps=10**5)
    assert not pays_to_compile(model, short, machine, 4096)
    assert not pays_to_compile(model, long, machine, 4096)  # a large step gains nothing
    model = sized(10**5, 20.0)[0].resolved(256)
    assert pays_to_compile(model, long, machine, 4096)
    assert not pays_to_compile(model, short, machine, 4096)
    assert pays_to_compile(model, TrainingConfig(steps=10, budget="1h"), machine, 4096)
    monkeypatch.setattr(runs_config.shutil, "which", lambda name: None)
    assert not pays_to_compile(model, long, machine, 4096)
    config, _, _ = plan(tiny, Asked("corpus", given={"steps": 5}))
    assert config.training.compile == "off"


def test_a_compiled_model_reads_nothing_from_disk(monkeypatch):
    """Caches of torch.compile are pickles, and libraries where anyone may put one."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/known-to-all")
    monkeypatch.setattr(precision.torch, "compile", lambda model: model)
    assert precision.compiled_forward("model") == "model"
    assert not inductor.fx_graph_cache and not functorch.enable_autograd_cache
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())


def test_without_a_compiler_the_run_goes_on(cli, tiny_copy, monkeypatch):
    """As torch.compile fails where there is none: when the graph is compiled, in the first step."""
    from torch._inductor.exc import InvalidCxxCompiler

    def compiled(model):
        def forward(*args, **kwargs):
            raise InvalidCxxCompiler

        return forward

    monkeypatch.setattr(precision.torch, "compile", compiled)
    args = [*TINY, "--steps", "4", "--dtype", "float32"]
    result = train(cli, "--name", "fallback", *args, "--compile", "on")
    assert result.code == 0 and "torch.compile failed, going on without it" in result.err
    assert log(tiny_copy, "fallback", layout.EVENTS) == [{"step": 0, "change": {"compile": "off"}}]
    longer = cli("train", "--name", "fallback", "--steps", "5")  # what failed is not tried again
    assert longer.code == 0 and "torch.compile failed" not in longer.err
    assert train(cli, "--name", "eager", *args).code == 0
    ends = [
        layout.checkpoint(tiny_copy / "runs" / n, 4) / layout.MODEL for n in ("fallback", "eager")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it deprecates
def test_a_run_of_a_compiled_model(cli, tiny_copy, monkeypatch):
    """What torch.compile returns is called and nothing else; here it traces, and compiles nothing,
    so that the numbers are those of the plain run."""
    real = torch.compile
    monkeypatch.setattr(precision.torch, "compile", lambda model: real(model, backend="eager"))
    for name, compiled in (("plain", "off"), ("traced", "on")):
        args = ["--name", name, "--steps", "4", "--dtype", "float32", "--compile", compiled]
        assert train(cli, *TINY, *args).code == 0
    ends = [
        layout.checkpoint(tiny_copy / "runs" / n, 4) / layout.MODEL for n in ("plain", "traced")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert not (tiny_copy / "runs/traced" / layout.EVENTS).exists()


def test_what_contradicts_itself_is_refused():
    with pytest.raises(UsageError, match="not a duration"):
        TrainingConfig(budget="soon")


def test_threads_give_way_to_other_processes_and_come_back(monkeypatch):
    """Seconds on the clock, of all work and of our own, as the kernel would tell them."""
    told = iter([(0, 0, 0), (3, 6, 6), (6, 12, 9), (9, 18, 12), (12, 21, 15), (15, 27.1, 21)])
    monkeypatch.setattr(contention.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(contention.Contention, "_sample", lambda self: next(told))
    monkeypatch.setattr(contention, "PATIENCE", -1e12)
    others = contention.Contention(2, 2)
    # alone; a hog takes one core; it still does; it is gone, we use one; and both
    assert [others.threads() for _ in range(5)] == [2, 1, 1, 2, 2]


def test_fewer_threads_are_a_decision_of_the_run(cli, tiny_copy, monkeypatch):
    from lmcli.training.contention import Contention

    asked = iter([2, 1, 1, 2])
    monkeypatch.setattr(Contention, "threads", lambda self: next(asked, 2))
    args = [*TINY, "--threads", "2", "--steps", "6"]
    result = train(cli, "--name", "shared", *args)
    assert "step 2: other processes need the cores; 1 of 2 threads" in result.err
    events = log(tiny_copy, "shared", layout.EVENTS)
    assert [(e["step"], e["change"]["threads"]) for e in events] == [(2, 1), (4, 2)]
    monkeypatch.setattr(Contention, "threads", lambda self: 1)
    assert train(cli, "--name", "alone", *args, "--no-tune").code == 0
    assert not (tiny_copy / "runs/alone" / layout.EVENTS).exists()


def test_batches_read_ahead_are_the_same(tiny):
    from lmcli.dataset.batches import Ahead, Windows
    from lmcli.dataset.store import Dataset

    windows = Windows(Dataset.open(tiny / "datasets/corpus").splits["train"], 32, 7)
    ahead = Ahead(windows)
    for index in (0, 1, 2, 7, 8, 3):  # a rewind jumps
        for ours, plain in zip(ahead.parts(index, 4, 2), windows.parts(index, 4, 2), strict=True):
            assert (ours.input_ids == plain.input_ids).all()


def test_the_best_checkpoint_by_tests_that_pass(cli, tiny_copy, monkeypatch):
    """Real programs in the sandbox; then verdicts of which those of step 4 are the best."""
    from lmcli.evaluation.sandbox import Verdict
    from lmcli.runs import start

    problem = {"prompt": "def f():\n    return 7\n#", "test": "assert f() == 7"}
    (tiny_copy.parent / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    args = [*TINY, "--best-by", "pass@1", "--problems", "problems.jsonl", "--steps", "6"]
    refused = train(cli, "--name", "code", *args)
    assert refused.code == 77 and "allow it by --allow-code-execution" in refused.err
    missing = train(cli, "--name", "code", *args[:-4], "--problems", "no", "--allow-code-execution")
    assert missing.code == 66 and not (tiny_copy / "runs/code").exists()
    assert train(cli, "--name", "x", *TINY, "--best-by", "pass@1").code == 2
    args += ["--eval-every", "2", "--save-every", "2", "--allow-code-execution"]
    real = train(cli, "--name", "code", *args)
    seen = [r["val_pass@1"] for r in log(tiny_copy, "code", layout.METRICS) if "val_loss" in r]
    assert real.code == 0 and len(seen) == 3 and set(seen) <= {0.0, 100.0}
    assert cli("prove", "code", "--steps", "2").code == 77
    assert cli("prove", "code", "--steps", "2", "--allow-code-execution").code == 0
    told = iter([False, True, False])
    monkeypatch.setattr(start, "verdicts_on", lambda *a: [Verdict(next(told), "", 0.0)])
    assert train(cli, "--name", "told", *args).code == 0
    assert load(tiny_copy, "told").step == 4


def test_the_dial_counts_tokens_whatever_batch_is_asked_for(cli, tiny_copy):
    for name, flags in (("a", ()), ("b", ("--batch-size", "3")), ("c", ("--context-length", "64"))):
        line = ["--name", name, "--size", "60k", "--ratio", "2", *flags, "--dry-run"]
        config = json.loads(train(cli, *line).out)
        training, length = config["training"], config["model"]["context_length"]
        tokens = training["steps"] * training["batch_size"] * length
        assert tokens == pytest.approx(2 * N_BLOCK, rel=0.05), flags
    both = ("--arch", "encoder-decoder", "--size", "3M", "--name", "e", "--dry-run")
    shape = ModelConfig(**json.loads(train(cli, *both).out)["model"])
    inside = {n: s for n, s in parameters(shape).items() if ".blocks." in n}
    assert sum(torch.Size(s).numel() for s in inside.values()) == pytest.approx(3e6, rel=0.1)
    said = train(cli, "--name", "d", "--from", "base", "--size", "1M")
    assert said.code == 2 and "--size is for new weights" in said.err


def test_steps_that_are_given_set_the_pace(cli, tiny_copy):
    args = ("--name", "d", "--size", "10M", "--steps", 60, "--context-length", 32, "--dry-run")
    training = json.loads(train(cli, *args).out)["training"]
    assert training["steps"] == 60 and training["warmup_steps"] == 3 == training["eval_every"]


@pytest.mark.parametrize("seconds", [20, 60, 600, 36000])
def test_validation_by_the_clock_takes_a_twentieth(seconds):
    """10,000 tokens a second in training, a third more in validation."""
    per_token, size = 1e-4, 2048
    steps = int(0.95 * seconds / (size * per_token))
    how = _sparing(steps, seconds, per_token)
    n_evals = steps / how["eval_every"]
    assert n_evals * how["eval_tokens"] * 0.75 * per_token < 0.06 * seconds or n_evals == 1
    assert 1 <= n_evals <= 21 and 2**14 <= how["eval_tokens"] <= 2**16


def test_what_a_run_decided_is_no_reason_to_refuse_its_own_command(cli, tiny_copy, monkeypatch):
    """It gave a thread away; and the clock is given up by asking for steps."""
    from lmcli.training.contention import Contention

    monkeypatch.setattr(Contention, "threads", lambda self: 1)
    args = [*TINY, "--name", "own", "--threads", "2", "--steps", "4", "--save-every", "2"]
    assert train(cli, *args).code == 0
    assert log(tiny_copy, "own", layout.EVENTS)[0]["change"] == {"threads": 1}
    again = train(cli, *args)
    assert again.code == 0 and "finished" in again.err and "may differ" not in again.err
    longer = cli("train", "--name", "own", "--steps", "6")
    assert longer.code == 0 and "may differ" not in longer.err
    both = train(cli, *TINY, "--name", "x", "--budget", "5s", "--steps", "3")
    assert both.code == 2 and "leave out --steps" in both.err
    assert train(cli, *TINY, "--name", "x", "--budget", "0s").code == 2
    assert train(cli, *TINY, "--name", "x", "--budget", "9" * 400 + "s").code == 2
    assert train(cli, *TINY, "--name", "timed", "--budget", "2s", "--eval-every", "0").code == 0
    end = json.loads(cli("status", "timed", "--json").out)["step"]
    monkeypatch.setattr("lmcli.training.clock.SETTLED", 0.0)
    assert cli("train", "--name", "timed", "--steps", str(end + 60)).code == 0
    assert json.loads(cli("status", "timed", "--json").out)["step"] == end + 60
    assert train(cli, *TINY, "--name", "timed", "--budget", "2s", "--eval-every", "0").code == 0
