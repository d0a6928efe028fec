"""Where the time of a run goes, and how near that is to what the machine could do."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.config.units import show_count
from lmcli.model.transformer import Transformer
from lmcli.training.precision import Machine

SETTLED = 10.0  # seconds after which a rate is believed
WARM = 3  # steps that a profile leaves out


class Clock:
    """Times this session of a run."""

    def __init__(self, model: Transformer, machine: Machine, of_pairs: bool = False) -> None:
        self.model, self.machine = model, machine
        # Where all that is computed are tokens that count, with gradients of all weights.
        self.known = not of_pairs and all(p.requires_grad for p in model.parameters())
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.first = time.monotonic()
        self.steps = self.tokens = 0
        self.flops, self.peak = 0.0, 0.0
        self._profiler: Any = None

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts what is done inside as `part`."""
        began = time.monotonic()
        yield
        self.parts[part] += time.monotonic() - began

    def stepped(self, tokens: int) -> None:
        """After each step; the first one, in which much is done once, does not count."""
        if self.steps == 0:
            self.first = time.monotonic()
            self.parts.clear()
        else:
            self.tokens += tokens
        self.steps += 1
        if self._profiler is not None:
            self._profiler.step()

    @property
    def rate(self) -> float:
        """Tokens a second of training, without validation and saving."""
        spent = time.monotonic() - self.first - self.parts["eval"] - self.parts["save"]
        return self.tokens / max(spent, 1e-9)

    @property
    def settled(self) -> bool:
        return self.steps > 3 and time.monotonic() - self.first > SETTLED

    def pace(self, now: float) -> float:
        """Seconds a step takes, validation and saving included."""
        return (now - self.first) / max(1, self.steps - 1)

    def shares(self) -> dict[str, float]:
        """The share of this session that went to data, optimizer, validation and saving, and the
        rest, which is the forward and backward pass."""
        total = max(time.monotonic() - self.first, 1e-9)
        parts = self.parts | {"forward_backward": max(0.0, total - sum(self.parts.values()))}
        found = {f"{part}_share": round(spent / total, 4) for part, spent in parts.items()}
        return found | ({"mfu": round(self.mfu, 4)} if self.peak else {})

    @property
    def mfu(self) -> float:
        """Share of the measured peak that the model's own arithmetic takes (Chowdhery et al. 2022,
        appendix B): 6 operations per parameter and token, 12 per layer, width and position."""
        if not self.peak:
            config = self.model.config
            output = config.vocab_size * config.d_model
            weights = self.model.n_parameters(embeddings=False) + output
            layers = config.n_layers + config.n_encoder_layers
            self.flops = 6 * weights + 12 * layers * config.d_model * config.context_length
            self.peak = self.machine.matmul_peak()
        return self.rate * self.flops / self.peak

    def summary(self) -> str:
        """`time: 88 % forward and backward, 7 % optimizer, ..`, the largest share first."""
        names = {"forward_backward": "forward and backward", "eval": "validation", "save": "saving"}
        shares = {k.removesuffix("_share"): v for k, v in self.shares().items() if k != "mfu"}
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        return "time: " + ", ".join(
            f"{100 * v:.0f} % {names.get(k, k)}" for k, v in ordered if v >= 0.005
        )

    def shown(self) -> str:
        """For the progress line."""
        used = f"  {self.mfu:.0%} of peak" if self.settled and self.known else ""
        return f"{show_count(self.rate)} tok/s{used}"

    @contextlib.contextmanager
    def profiling(self, steps: int, path: Path, left: int) -> Iterator[None]:
        """Writes a Chrome trace of some of the steps that are `left` to `path` and says where their
        time went."""
        if not steps:
            yield
            return
        if left < WARM + 1 + steps:
            console.warn(
                f"--profile {steps} leaves out {WARM + 1} steps first, and {left} are left"
            )
        from torch import profiler

        def ready(done: Any) -> None:
            console.say(done.key_averages().table("self_cpu_time_total", row_limit=15))
            done.export_chrome_trace(str(path))
            console.say(f"trace of {steps} steps: {path} (chrome://tracing or ui.perfetto.dev)")

        plan = profiler.schedule(wait=WARM, warmup=1, active=steps, repeat=1)
        with profiler.profile(
            schedule=plan, on_trace_ready=ready, record_shapes=True
        ) as self._profiler:
            yield
        self._profiler = None
