"""Stops that keep a run whole: signals wait for the step's end, NaN never reaches the weights."""

import math
import os
import signal
from types import FrameType
from typing import Any

from lmcli.errors import DivergedError


class StopRequest:
    """SIGINT, SIGTERM or SIGUSR1 ask for a stop after the current step; a second one leaves now.

    with StopRequest() as stop:
        ... if stop.requested: save and leave
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[Any, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            os._exit(128 + number)
        self.requested = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def check_finite(step: int, loss: float, grad_norm: float) -> None:
    """Raises DivergedError before the update that a NaN or infinity would poison."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {grad_norm}"
    raise DivergedError(
        f"step {step}: {what}; no update was made and the last checkpoint is good; "
        "start a new run with a lower --lr or more --warmup-steps"
    )
