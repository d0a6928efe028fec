"""The one training loop. It knows token ids, not text; what validation means is given to it.

Every step is a function of (weights, optimizer state, step): data order, dropout and learning rate
are derived from counters, so a run that was interrupted anywhere and resumed ends with the bits of
one that never was (on CPU, with the recorded threads).
"""

import contextlib
import dataclasses
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lmcli import console
from lmcli.artifacts import files, inventory, layout, manifest
from lmcli.config.training import TrainingConfig
from lmcli.config.units import parse_duration
from lmcli.dataset.batches import Batches
from lmcli.errors import (
    DataError,
    DivergedError,
    Interrupted,
    LmcliError,
    OutOfMemoryError,
    exit_code,
    out_of_memory,
)
from lmcli.model.transformer import Transformer
from lmcli.signals import StopRequest
from lmcli.training import checkpoint, events, health
from lmcli.training.checkpoint import State
from lmcli.training.clock import Clock
from lmcli.training.contention import Contention
from lmcli.training.health import Verdict
from lmcli.training.optimizers import Optimizer
from lmcli.training.precision import Machine, Working, compiler_failed
from lmcli.training.schedules import lr_factor
from lmcli.training.step import gradients

# What the model at a step scores; what it has to say goes to the last argument.
Evaluate = Callable[[Transformer, int, Callable[[str], None]], dict[str, float]]


class Trainer:
    """A run that is being trained: `fit()` goes from its state to the last step.

    `events` of the run are replayed: from the step after one, the config has its changes, the
    batches it left out are left out, and a batch that was skipped is skipped again.
    `evaluate` returns the numbers to log, `val_loss` (nats per token) among them. `profile`
    is the number of steps to trace.
    """

    def __init__(
        self,
        run: Path,
        model: Transformer,
        optimizer: Optimizer,
        batches: Batches,
        config: TrainingConfig,
        machine: Machine,
        evaluate: Evaluate | None,
        profile: int = 0,
    ) -> None:
        self.run, self.model, self.optimizer, self.batches = run, model, optimizer, batches
        self.machine, self.evaluate = machine, evaluate
        self._configs = [(0, config)]
        self._skips: dict[int, str] = {}  # by the batch, which a rewind gives to another step
        self._rewinds: list[tuple[int, int]] = []  # step, batches left out after it
        self.events = files.Log(run / layout.EVENTS)
        for event in events.read(run):
            self._replay(event)
        compiled = self.config.compile == "on"  # unless that failed before
        self.working = Working(model, machine, compiled, config.recompute)
        self.perf = files.Log(run / layout.PERF)
        self.state = checkpoint.START
        self.clock, self.profile = Clock(model, machine, batches.of_pairs), profile
        self._until: int | None = None
        self.contention = Contention(config.threads, self.config.threads)

    @property
    def config(self) -> TrainingConfig:
        """The config of the last step."""
        return self._configs[-1][1]

    @property
    def end(self) -> int:
        """The last step of this session; of the run, where a budget or patience may move it."""
        return self.config.steps if self._until is None else self._until

    def config_at(self, step: int) -> TrainingConfig:
        return next(c for since, c in reversed(self._configs) if since < step)

    def batch_index(self, step: int) -> int:
        """Which global batch a step takes: the next one that no rewind left out."""
        return step - 1 + sum(n for at, n in self._rewinds if at < step)

    def _replay(self, event: dict[str, Any]) -> None:
        step = event["step"]
        if "change" in event:
            self._configs.append((step, events.changed(self._configs[-1][1], event)))
        elif "rewind" in event:
            self._rewinds.append((step, event["rewind"]))
        else:
            self._skips[self.batch_index(step)] = event["skip"]

    def decide(self, event: dict[str, Any]) -> None:
        """Puts a decision into the run, durably, before anything follows from it."""
        self.events.append(event)
        self.events.sync()
        self._replay(event)

    def restore(self, found: tuple[Path, State] | None) -> None:
        """Weights, optimizer and metrics as of a checkpoint, or as of the start."""
        self.optimizer.reset()
        folder, state = found or (None, checkpoint.START)
        if folder:
            checkpoint.load_weights(self.model, folder)
            if state.step:
                self.optimizer.load_state_tensors(checkpoint.load_optimizer(folder))
        elif "run" in manifest.read(self.run).parents:
            raise DataError(
                f"{self.run}: no checkpoint is left, nor the weights it began with; start it again"
            )
        else:
            self.model.init_weights(self._configs[0][1].seed)
        self.working.refresh(frozen=True)
        self.state, log = state, self.run / layout.METRICS
        self.metrics = files.Log(log, state.metrics_bytes, state.metrics_sha256)
        checkpoint.settle(self.run, state, self.config.keep_last)

    def fit(self, stop: StopRequest, until: int | None = None) -> None:
        """Trains to step `until` (default: the last); `restore` comes first.

        Raises Interrupted after a requested stop was saved, DivergedError, OutOfMemoryError.
        """
        self._until = until
        # Once: a rewind gives no time back.
        self._began = time.monotonic() - _seconds(self.run)
        self._status("running", None, "")
        try:
            trace, left = Path(f"{self.run.name}.trace.json"), self.config.steps - self.state.step
            with self.clock.profiling(self.profile, trace, left):
                self._loop(stop)
        except BaseException as error:
            kind = "interrupted" if isinstance(error, Interrupted) else "failed"
            code = exit_code(error)
            reason = str(error) if code != 1 else f"{type(error).__name__}: {error}"
            with contextlib.suppress(LmcliError):  # the disk may be what failed
                self._status(kind, code, reason)
            raise
        self._status("finished", 0, "")
        if until is None and self.clock.steps > 1:
            console.say(self.clock.summary())

    def _loop(self, stop: StopRequest) -> None:
        saved, clock = self.state.step, self.clock
        with console.Progress("step", self.config.steps, done=saved) as progress:
            while self.state.step < self.end:
                if stop.requested:
                    if self.state.step > saved:
                        self._save()
                    at = f"saved at step {self.state.step} of {self.config.steps}"
                    if not clock.steps:
                        at = f"no step since the start, at step {self.state.step}"
                    raise Interrupted(f"{stop.requested}: {at}")
                files.crash_point()
                began = time.monotonic()
                step, tokens = self.state.step + 1, self.state.tokens
                numbers = self._step(step, progress)
                if numbers is None:  # rewound
                    saved = self.state.step
                    continue
                clock.stepped(self.state.tokens - tokens)
                if self._until is None:
                    self._keep_to_budget(step)
                    self._give_way(step, progress)
                config = self.config_at(step)
                last = step == config.steps
                loss = numbers.get("loss", math.nan)
                progress.total = self.config.steps
                progress.update(step, f"loss {loss:.4f}  {clock.shown()}")
                if step % config.log_every == 0 or last or "skipped" in numbers:
                    self.metrics.append({"step": step, "tokens": self.state.tokens, **numbers})
                    self._log_time(step, tokens_per_second=round(clock.rate, 1), **clock.shares())
                better = False
                if self.evaluate and (last or _every(config.eval_every, step)):
                    with clock.measure("eval"):
                        better = self._validate(step, progress)
                stop.margin = max(stop.margin, 2 * (time.monotonic() - began))
                if better or step == self.end or _every(config.save_every, step):
                    with clock.measure("save"):
                        self._save()
                    saved = step
                    stop.margin = max(stop.margin, 2 * (time.monotonic() - began))

    def _keep_to_budget(self, step: int) -> None:
        """Moves the last step to where the budget ends, at the pace since the start or resume."""
        config = self.config
        if config.budget is None or not self.clock.settled or step >= config.steps:
            return
        now = time.monotonic()
        left = parse_duration(config.budget) - (now - self._began)
        more = max(1, int(left / self.clock.pace(now)))
        # Seldom, and little at the end: a moved end moves the rates of the decay.
        if step % max(1, config.steps // 50) == 0 and abs(step + more - config.steps) > more // 50:
            self.decide({"step": step, "change": {"steps": step + more}})

    def _give_way(self, step: int, progress: console.Progress) -> None:
        """Fewer threads while other processes need the cores; decided, since bits depend on it."""
        if self.machine.device != "cpu" or not self.config.tune:
            return
        threads, now = self.contention.threads(), self.config.threads
        if threads != now and step < self.config.steps:
            self.decide({"step": step, "change": {"threads": threads}})
            why = "other processes need the cores" if threads < now else "the cores are free again"
            progress.say(f"step {step}: {why}; {threads} of {self.contention.wanted} threads")

    def _step(self, step: int, progress: console.Progress) -> dict[str, Any] | None:
        """Takes one step, skips its update, or goes back to a checkpoint and returns None."""
        loss, grad_norm, tokens = self._gradients(step)
        config, recent = self.config_at(step), self.state.recent
        lr = config.lr * lr_factor(config, step)
        known = self._skips.get(self.batch_index(step))
        if known is not None:
            verdict = Verdict("skip", known)
        else:
            verdict = health.judge(config, loss, grad_norm, recent)
        if verdict.action == "apply":
            numbers: dict[str, Any] = {"loss": loss, "lr": lr, "grad_norm": grad_norm}
            with self.clock.measure("optimizer"):
                self.optimizer.step(lr, step)
                self.working.refresh()
            if config.on_spike != "ignore":
                recent = (*recent, (loss, grad_norm))[-health.WINDOW :]
        else:
            numbers = {"lr": lr, "skipped": verdict.why}
            self.optimizer.zero_grad()
            if known is None:
                self._leave_out(step, verdict, progress)
            if verdict.action == "rewind":
                return None
        self.state = dataclasses.replace(
            self.state, step=step, tokens=self.state.tokens + tokens, recent=recent
        )
        return numbers

    def _leave_out(self, step: int, verdict: Verdict, progress: console.Progress) -> None:
        """Decides to skip a step or to go back; DivergedError where it is to abort, or enough."""
        config, why = self.config_at(step), f"step {step}: {verdict.why}"
        if verdict.action == "abort":
            steps = checkpoint.list_steps(self.run)
            good = f"the checkpoint of step {steps[-1]} is good" if steps else "none is saved"
            raise DivergedError(
                f"{why}; no update was made and {good}; go on with --on-nonfinite rewind (or "
                "skip), or start a new run with a lower --lr"
            )
        if len(self._skips) + len(self._rewinds) >= config.max_skips:
            raise DivergedError(
                f"{why}; no update was made, and --max-skips {config.max_skips} is used up"
            )
        if verdict.action == "skip":
            self.decide({"step": step, "skip": verdict.why})
            progress.say(f"{why}; no update was made; skipped")
            return
        found = checkpoint.newest(self.run)
        back = found[1].step if found else 0
        left_out = self.batch_index(step) + 1 - self.batch_index(back + 1)
        self.decide({"step": back, "rewind": left_out, "why": why})
        self.restore(found)
        progress.say(f"{why}; back to step {back}, leaving out {left_out} batches")

    def _gradients(self, step: int) -> tuple[float, float, int]:
        """`gradients`, in smaller parts where memory runs out; the sums stay the same."""
        index = self.batch_index(step)
        while True:
            config = self.config_at(step)
            if config.threads and config.threads != torch.get_num_threads():
                torch.set_num_threads(config.threads)
            try:
                with self.clock.measure("data"):
                    parts = self.batches.parts(index, config.batch_size, config.micro_batch_size)
                return gradients(self.working, parts, config, step)
            except (MemoryError, RuntimeError) as error:
                no_memory, said = out_of_memory(error), str(error).split("\n")[0]
                if not no_memory and not (self.working.compiled and compiler_failed(error)):
                    raise
            # Outside the handler, which holds on to the tensors of the failed pass.
            self.optimizer.zero_grad()
            if not no_memory:
                self.decide({"step": step - 1, "change": {"compile": "off"}})
                console.warn(f"torch.compile failed, going on without it: {said}")
                self.working = Working(self.model, self.machine, False, config.recompute)
                self.working.refresh(frozen=True)
                continue
            if self.machine.device == "cuda":
                torch.cuda.empty_cache()
            micro = config.micro_batch_size or len(self.batches.members(index, config.batch_size))
            smaller = micro // 2
            if not smaller:
                raise OutOfMemoryError(
                    f"step {step}: out of memory with one sequence at a time; use a smaller model "
                    "or --context-length; the last checkpoint is good"
                )
            self.decide({"step": step - 1, "change": {"micro_batch_size": smaller}})
            console.warn(
                f"step {step}: out of memory; from here on {smaller} sequences per forward pass "
                f"instead of {micro}, accumulated to the same sums"
            )

    def _validate(self, step: int, progress: console.Progress) -> bool:
        """Whether this is the best so far, whose weights are to be kept."""
        assert self.evaluate is not None
        # In the precision of `lmcli eval`, so that both say the same.
        judged = self.model if self.machine.device == "cpu" else self.working.model
        with self.working.averaged(self.optimizer.mean):
            numbers = self.evaluate(judged, step, progress.say)
        self.metrics.append({"step": step, **numbers})
        self._log_time(step, **numbers)
        config, best = self.config_at(step), self.state.best
        key = f"val_{config.best_by}"
        sign = -1 if config.best_by == "loss" else 1
        if best is None or sign * numbers[key] > sign * best.get(key, -sign * math.inf):
            self.state = dataclasses.replace(self.state, best={"step": step, key: numbers[key]})
        elif config.patience and step - best["step"] >= config.patience * config.eval_every > 0:
            if self.config.steps > step:
                self.decide({"step": step, "change": {"steps": step}})
            progress.say(f"step {step}: no better for {config.patience} validations; stopped")
        shown = "  ".join(f"{k} {v:.4f}" for k, v in numbers.items())
        progress.say(f"step {step}  {shown}")
        return self.state.best is not best

    def _save(self) -> None:
        self.metrics.sync()
        self._log_time(self.state.step)
        self.perf.sync()
        self.state = dataclasses.replace(
            self.state, metrics_bytes=self.metrics.length, metrics_sha256=self.metrics.sha256
        )
        environment = self.machine.environment()
        checkpoint.save(self.run, self.model.state_dict(), self.optimizer, self.state, environment)
        checkpoint.settle(self.run, self.state, self.config.keep_last)
        self._status("running", None, "")

    def _log_time(self, step: int, **numbers: float) -> None:
        """Wall-clock seconds of training, validation and saving, over all sessions of the run."""
        seconds = round(time.monotonic() - self._began, 3)
        self.perf.append({"step": step, "seconds": seconds, **numbers})

    def _status(self, state: str, code: int | None, reason: str) -> None:
        logs = [self.perf, self.events]
        write_status(self.run, state, self.state.step, self.config.steps, code, logs, reason)


def _every(n: int, step: int) -> bool:
    """Whether it is time for what is done every n steps; 0: never."""
    return n > 0 and step % n == 0


def _seconds(run: Path) -> float:
    """How long the run has taken, lost steps included; a log of timings that cannot be read is no
    reason to stop."""
    try:
        log = inventory.read_log(run, layout.PERF)
        return max((r["seconds"] for r in log), default=0.0)
    except DataError as error:
        console.warn(f"times start from 0: {error}")
        return 0.0


def write_status(
    run: Path,
    state: str,
    step: int,
    steps: int,
    code: int | None,
    logs: Sequence[files.Log],
    reason: str = "",
) -> None:
    """Replaces status.json: running, finished, interrupted or failed, and how long its logs are."""
    value = {
        "run_id": manifest.read(run, "run").id,
        "state": state,
        "step": step,
        "steps": steps,
        "exit": code,
        "reason": reason,
        "resumable": state != "finished",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "logs": {
            log.path.name: {"bytes": log.length, "sha256": log.sha256} for log in logs if log.length
        },
    }
    files.write_sealed(run / layout.STATUS, value)
