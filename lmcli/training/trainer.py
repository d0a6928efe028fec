"""The one training loop. It knows token ids, not text; what validation means is given to it.

Every step is a function of (weights, optimizer state, step): data order, dropout and learning rate
are derived from counters, so a run that was interrupted anywhere and resumed ends with the bits of
one that never was (on CPU, with the recorded threads).
"""

import dataclasses
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmcli import console
from lmcli.artifacts import files, layout
from lmcli.config.training import TrainingConfig
from lmcli.config.units import show_count
from lmcli.dataset.batches import Batch, Windows
from lmcli.errors import Interrupted, LmcliError
from lmcli.model.loss import summed_nll
from lmcli.model.transformer import Transformer
from lmcli.randomness import mix
from lmcli.training import checkpoint
from lmcli.training.checkpoint import State
from lmcli.training.health import StopRequest, check_finite
from lmcli.training.optimizers import Optimizer
from lmcli.training.precision import Machine
from lmcli.training.schedules import lr_factor

Evaluate = Callable[[Transformer, int], dict[str, float]]


class Trainer:
    """A run that is being trained: `fit()` goes from its state to the last step.

    `changes` are (step, fields) events: from the step after, the config has those values.
    `evaluate(model, step)` returns the numbers to log, `val_loss` (nats per token) among them.
    """

    def __init__(
        self,
        run: Path,
        model: Transformer,
        optimizer: Optimizer,
        batches: Windows,
        config: TrainingConfig,
        machine: Machine,
        evaluate: Evaluate | None,
        state: State | None = None,
        changes: list[tuple[int, dict[str, Any]]] | None = None,
    ) -> None:
        self.run, self.model, self.optimizer, self.batches = run, model, optimizer, batches
        self.machine, self.evaluate = machine, evaluate
        self._configs = [(0, config)]
        for step, fields in changes or []:
            self._configs.append((step, dataclasses.replace(self._configs[-1][1], **fields)))
        self.state = state or State(0, 0, 0, "")
        self.metrics = files.Log(run / layout.METRICS, self.state.metrics_bytes)
        perf = files.read_log(run / layout.PERF)
        self._seconds = max((r["seconds"] for r in perf if r["step"] <= self.state.step), default=0)
        self.perf = files.Log(run / layout.PERF)

    @property
    def config(self) -> TrainingConfig:
        """The config of the last step."""
        return self._configs[-1][1]

    def config_at(self, step: int) -> TrainingConfig:
        return next(c for since, c in reversed(self._configs) if since < step)

    def fit(self) -> State:
        """Trains to the last step; raises Interrupted after a requested stop was saved."""
        self._status("running", None, "")
        checkpoint.sweep(self.run)
        try:
            with StopRequest() as stop:
                self._loop(stop)
        except LmcliError as error:
            kind = "interrupted" if isinstance(error, Interrupted) else "failed"
            self._status(kind, error.exit_code, str(error))
            raise
        except BaseException as error:
            self._status("failed", 1, f"{type(error).__name__}: {error}")
            raise
        self._status("finished", 0, "")
        return self.state

    def _loop(self, stop: StopRequest) -> None:
        total = self.config.steps
        started, saved = time.monotonic(), self.state.step
        before = self._seconds
        tokens_here = 0
        with console.Progress("step", total) as progress:
            for step in range(self.state.step + 1, total + 1):
                config = self.config_at(step)
                lr = config.lr * lr_factor(config, step)
                loss, grad_norm, tokens = update(
                    self.model, self.optimizer, self.batches, config, self.machine, step, lr
                )
                tokens_here += tokens
                self.state = dataclasses.replace(
                    self.state, step=step, tokens=self.state.tokens + tokens
                )
                now = time.monotonic() - started
                self._seconds = before + now
                rate = tokens_here / now
                progress.update(step, f"loss {loss:.4f}  {show_count(rate)} tok/s")
                last = step == total
                if step % config.log_every == 0 or last:
                    self.metrics.append(
                        {
                            "step": step,
                            "tokens": self.state.tokens,
                            "loss": loss,
                            "lr": lr,
                            "grad_norm": grad_norm,
                        }
                    )
                    self._log_time(step, rate)
                if self.evaluate and (
                    last or (config.eval_every and step % config.eval_every == 0)
                ):
                    self._validate(step, progress)
                    tokens_here, started, before = 0, time.monotonic(), self._seconds
                due = config.save_every and step % config.save_every == 0
                if due or last or stop.requested:
                    self._save(config)
                    saved = step
                if stop.requested and not last:
                    raise Interrupted(
                        f"{stop.requested}: saved at step {saved} of {total}; "
                        "the same command continues"
                    )

    def _validate(self, step: int, progress: console.Progress) -> None:
        assert self.evaluate is not None
        numbers = self.evaluate(self.model, step)
        self.metrics.append({"step": step, **numbers})
        self._log_time(step, 0.0, **numbers)
        best = self.state.best
        if best is None or numbers["val_loss"] < best["val_loss"]:
            self.state = dataclasses.replace(
                self.state, best={"step": step, "val_loss": numbers["val_loss"]}
            )
        shown = "  ".join(f"{k} {v:.4f}" for k, v in numbers.items())
        progress.say(f"step {step}  {shown}")

    def _save(self, config: TrainingConfig) -> None:
        self.metrics.sync()
        self.state = dataclasses.replace(
            self.state, metrics_bytes=self.metrics.length, metrics_sha256=self.metrics.sha256
        )
        checkpoint.save(self.run, self.model, self.optimizer, self.state)
        best = self.state.best["step"] if self.state.best else None
        checkpoint.prune(self.run, config.keep_last, best)
        self._status("running", None, "")

    def _log_time(self, step: int, rate: float, **numbers: float) -> None:
        record = {"step": step, "seconds": round(self._seconds, 3), **numbers}
        if rate:
            record["tokens_per_second"] = round(rate, 1)
        self.perf.append(record)

    def _status(self, state: str, code: int | None, reason: str) -> None:
        write_status(self.run, state, self.state.step, self.config.steps, code, reason)


def update(
    model: Transformer,
    optimizer: Optimizer,
    batches: Windows,
    config: TrainingConfig,
    machine: Machine,
    step: int,
    lr: float,
) -> tuple[float, float, int]:
    """One optimizer step; returns nats per token, gradient norm and tokens seen.

    The loss is summed over all micro-batches and divided once by the step's valid tokens, so
    accumulation changes nothing but memory.
    """
    n_micro = config.batch_size // (config.micro_batch_size or config.batch_size)
    parts = [
        batches.batch(step - 1, config.batch_size, micro=m, n_micro=n_micro) for m in range(n_micro)
    ]
    tokens = sum(int(batch.loss_mask.sum()) for batch in parts)
    model.train()
    nats = 0.0
    for micro, batch in enumerate(parts):
        torch.manual_seed(mix(config.seed, step, micro) >> 1)
        with machine.autocast():
            nll = forward_nll(model, batch, machine.device)
        torch.autograd.backward(nll / tokens)
        nats += nll.item()
    parameters = [p for p in model.parameters() if p.requires_grad]
    limit = config.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit).item()
    check_finite(step, nats, grad_norm)
    optimizer.step(lr)
    return nats / tokens, grad_norm, tokens


def write_status(
    run: Path, state: str, step: int, steps: int, code: int | None, reason: str = ""
) -> None:
    """Replaces status.json: running, finished, interrupted or failed."""
    value = {
        "state": state,
        "step": step,
        "steps": steps,
        "exit": code,
        "reason": reason,
        "resumable": state != "finished",
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    files.write_json(run / layout.STATUS, value)


def forward_nll(model: Transformer, batch: Batch, device: str) -> torch.Tensor:
    """Summed nats of a batch's valid targets."""

    fields = {
        name: torch.from_numpy(array).to(device)
        for name, array in vars(batch).items()
        if array is not None
    }
    targets, loss_mask = fields.pop("targets"), fields.pop("loss_mask")
    return summed_nll(model, model(**fields), targets, loss_mask)
