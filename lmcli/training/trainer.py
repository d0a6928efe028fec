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
from lmcli.config.units import show_count
from lmcli.dataset.batches import Batch, Batches
from lmcli.errors import (
    DataError,
    DivergedError,
    Interrupted,
    LmcliError,
    OutOfMemoryError,
    exit_code,
    out_of_memory,
)
from lmcli.model.loss import summed_nll
from lmcli.model.transformer import Transformer
from lmcli.randomness import mix
from lmcli.signals import StopRequest
from lmcli.training import checkpoint, events, health
from lmcli.training.checkpoint import State
from lmcli.training.health import Verdict
from lmcli.training.optimizers import Optimizer
from lmcli.training.precision import Machine, Working
from lmcli.training.schedules import lr_factor

Evaluate = Callable[[Transformer, int], dict[str, float]]


class Trainer:
    """A run that is being trained: `fit()` goes from its state to the last step.

    `events` of the run are replayed: from the step after one, the config has its changes, the
    batches it left out are left out, and a step that was skipped is skipped again.
    `evaluate(model, step)` returns the numbers to log, `val_loss` (nats per token) among them.
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
    ) -> None:
        self.run, self.model, self.optimizer, self.batches = run, model, optimizer, batches
        self.machine, self.evaluate = machine, evaluate
        self.working = Working(model, machine)
        self._configs = [(0, config)]
        self._skips: dict[int, str] = {}
        self._rewinds: list[tuple[int, int]] = []  # step, batches left out after it
        self.events = files.Log(run / layout.EVENTS)
        for event in events.read(run):
            self._replay(event)
        self.perf = files.Log(run / layout.PERF)
        self.state = checkpoint.START

    @property
    def config(self) -> TrainingConfig:
        """The config of the last step."""
        return self._configs[-1][1]

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
            self._skips[step] = event["skip"]

    def decide(self, event: dict[str, Any]) -> None:
        """Puts a decision into the run, durably, before anything follows from it."""
        self.events.append(event)
        self.events.sync()
        self._replay(event)

    def restore(self, found: tuple[Path, State] | None) -> None:
        """Weights, optimizer and metrics as of a checkpoint, or as of the start."""
        self.optimizer.reset()
        self.state = found[1] if found else checkpoint.START
        if found:
            checkpoint.load_weights(self.model, found[0])
            if self.state.step:
                tensors = checkpoint.load_tensors(found[0] / layout.OPTIMIZER)
                self.optimizer.load_state_tensors(tensors)
        elif "run" in manifest.read(self.run).parents:
            raise DataError(
                f"{self.run}: no checkpoint is left, nor the weights it began with; start it again"
            )
        else:
            self.model.init_weights(self._configs[0][1].seed)
        self.working.refresh()
        state = self.state
        self.metrics = files.Log(
            self.run / layout.METRICS, state.metrics_bytes, state.metrics_sha256
        )
        self._began = time.monotonic() - _seconds(self.run, state.step)
        checkpoint.settle(self.run, state, self.config.keep_last)

    def fit(self, stop: StopRequest, until: int | None = None) -> State:
        """Trains to step `until` (default: the last); `restore` comes first.

        Raises Interrupted after a requested stop was saved, DivergedError, OutOfMemoryError.
        """
        self._status("running", None, "")
        try:
            self._loop(stop, until or self.config.steps)
        except BaseException as error:
            kind = "interrupted" if isinstance(error, Interrupted) else "failed"
            code = exit_code(error)
            reason = str(error) if code != 1 else f"{type(error).__name__}: {error}"
            with contextlib.suppress(LmcliError):  # the disk may be what failed
                self._status(kind, code, reason)
            raise
        self._status("finished", 0, "")
        return self.state

    def _loop(self, stop: StopRequest, until: int) -> None:
        total = self.config.steps
        saved = self.state.step
        tokens_here, seconds_here = 0, 0.0
        with console.Progress("step", total, done=saved) as progress:
            while self.state.step < until:
                if stop.requested:
                    if self.state.step > saved:
                        self._save()
                    raise Interrupted(
                        f"{stop.requested}: saved at step {self.state.step} of {total}; "
                        "the same command continues"
                    )
                files.crash_point()
                began = time.monotonic()
                step, tokens = self.state.step + 1, self.state.tokens
                numbers = self._step(step, progress)
                if numbers is None:  # rewound
                    saved = self.state.step
                    continue
                config = self.config_at(step)
                last = step == config.steps
                tokens_here += self.state.tokens - tokens
                seconds_here += time.monotonic() - began
                rate = tokens_here / seconds_here
                loss = numbers.get("loss", math.nan)
                progress.update(step, f"loss {loss:.4f}  {show_count(rate)} tok/s")
                if step % config.log_every == 0 or last or "skipped" in numbers:
                    self.metrics.append({"step": step, "tokens": self.state.tokens, **numbers})
                    self._log_time(step, rate)
                due = step == until or (config.save_every and step % config.save_every == 0)
                if self.evaluate and (
                    last or (config.eval_every and step % config.eval_every == 0)
                ):
                    due = self._validate(step, progress) or due
                    until = min(until, self.config.steps)
                    due = due or step == until
                stop.margin = max(stop.margin, 2 * (time.monotonic() - began))
                if due:
                    self._save()
                    saved = step
                    stop.margin = max(stop.margin, 2 * (time.monotonic() - began))

    def _step(self, step: int, progress: console.Progress) -> dict[str, Any] | None:
        """Takes one step, skips its update, or goes back to a checkpoint and returns None."""
        loss, grad_norm, tokens = self._gradients(step)
        config = self.config_at(step)
        lr = config.lr * lr_factor(config, step)
        numbers: dict[str, Any] = {"loss": loss, "lr": lr, "grad_norm": grad_norm}
        recent = self.state.recent
        verdict = health.judge(config, loss, grad_norm, recent)
        if step in self._skips:
            verdict = Verdict("skip", self._skips[step])
        if verdict.action == "apply":
            self.optimizer.step(lr)
            self.working.refresh()
            if config.on_spike != "ignore":
                recent = (*recent, (loss, grad_norm))[-health.WINDOW :]
        else:
            self.optimizer.zero_grad()
            why = f"step {step}: {verdict.why}; no update was made"
            n_before = len(self._skips) + len(self._rewinds)
            if verdict.action == "abort":
                steps = checkpoint.list_steps(self.run)
                good = f"the checkpoint of step {steps[-1]} is good" if steps else "none is saved"
                raise DivergedError(
                    f"{why} and {good}; go on with --on-nonfinite rewind (or skip), or start a "
                    "new run with a lower --lr"
                )
            if step not in self._skips and n_before >= config.max_skips:
                raise DivergedError(f"{why}, and --max-skips {config.max_skips} is used up")
            if verdict.action == "rewind":
                self._rewind(step, verdict.why, progress)
                return None
            if step not in self._skips:
                self.decide({"step": step, "skip": verdict.why})
                progress.say(f"{why}; skipped")
            numbers = {"lr": lr, "skipped": verdict.why}
        self.state = dataclasses.replace(
            self.state, step=step, tokens=self.state.tokens + tokens, recent=recent
        )
        return numbers

    def _rewind(self, step: int, why: str, progress: console.Progress) -> None:
        found = checkpoint.newest(self.run)
        back = found[1].step if found else 0
        left_out = self.batch_index(step) + 1 - self.batch_index(back + 1)
        self.decide({"step": back, "rewind": left_out, "why": f"step {step}: {why}"})
        self.restore(found)
        progress.say(f"step {step}: {why}; back to step {back}, leaving out {left_out} batches")

    def _gradients(self, step: int) -> tuple[float, float, int]:
        """`gradients`, in smaller parts where memory runs out; the sums stay the same."""
        index = self.batch_index(step)
        while True:
            config = self.config_at(step)
            try:
                return gradients(self.working, self.batches, config, step, index)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            # Outside the handler, which holds on to the tensors of the failed pass.
            self.optimizer.zero_grad()
            if self.machine.device == "cuda":
                torch.cuda.empty_cache()
            micro = config.micro_batch_size or self.batches.rows(index, config.batch_size)
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
        numbers = self.evaluate(self.working.model, step)
        self.metrics.append({"step": step, **numbers})
        self._log_time(step, 0.0, **numbers)
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
        self.perf.sync()
        self.state = dataclasses.replace(
            self.state, metrics_bytes=self.metrics.length, metrics_sha256=self.metrics.sha256
        )
        environment = self.machine.environment()
        checkpoint.save(self.run, self.model.state_dict(), self.optimizer, self.state, environment)
        checkpoint.settle(self.run, self.state, self.config.keep_last)
        self._status("running", None, "")

    def _log_time(self, step: int, rate: float, **numbers: float) -> None:
        """Wall-clock seconds of training, validation and saving, over all sessions of the run."""
        record = {"step": step, "seconds": round(time.monotonic() - self._began, 3), **numbers}
        if rate:
            record["tokens_per_second"] = round(rate, 1)
        self.perf.append(record)

    def _status(self, state: str, code: int | None, reason: str) -> None:
        logs = [self.perf, self.events]
        write_status(self.run, state, self.state.step, self.config.steps, code, logs, reason)


def _seconds(run: Path, step: int) -> float:
    """How long the run had taken up to a step; a log of timings that cannot be read is no reason
    to stop."""
    try:
        log = inventory.read_log(run, layout.PERF)
        return max((r["seconds"] for r in log if r["step"] <= step), default=0.0)
    except DataError as error:
        console.warn(f"times start from 0: {error}")
        return 0.0


def gradients(
    working: Working,
    batches: Batches,
    config: TrainingConfig,
    step: int,
    index: int,
) -> tuple[float, float, int]:
    """Fills the gradients of global batch `index`; returns nats per token, gradient norm, tokens.

    The loss is summed over all micro-batches and divided once by the step's valid tokens, so
    accumulation changes nothing but memory.
    """
    parts = batches.parts(index, config.batch_size, config.micro_batch_size)
    tokens = sum(int(batch.loss_mask.sum()) for batch in parts)
    model, device = working.model, working.master.embed.weight.device.type
    model.train()
    nats = torch.zeros((), device=device)
    for micro, batch in enumerate(parts):
        # Dropout's; torch.manual_seed asks every other kind of device too, a millisecond a time.
        seeded = torch.default_generator if device == "cpu" else torch
        seeded.manual_seed(mix(config.seed, step, micro) >> 1)
        nll = forward_nll(model, batch, device, config.label_smoothing)
        torch.autograd.backward(nll / tokens)
        working.collect()
        nats += nll.detach()
    parameters = [master for master, _ in working.learn]
    limit = config.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    loss, norm = torch.stack([nats / tokens, grad_norm]).tolist()  # the one wait for the device
    return loss, norm, tokens


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


def forward_nll(
    model: Transformer, batch: Batch, device: str, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Summed nats of a batch's valid targets."""

    fields = {
        name: torch.from_numpy(array).to(device)
        for name, array in vars(batch).items()
        if array is not None and not (name.endswith("_mask") and array.all())
    }
    targets, loss_mask = fields.pop("targets"), fields.pop("loss_mask", None)
    return summed_nll(model, model(**fields), targets, loss_mask, label_smoothing)
