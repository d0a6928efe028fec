"""Whether a step's numbers may reach the weights, and what is done where they may not."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lmcli.config.training import TrainingConfig

WINDOW = 128  # steps that a spike is measured against (OLMo 2, section 3.2), and the fewest of them
FEWEST = 32


@dataclass(frozen=True)
class Verdict:
    """`action` is apply, abort, skip or rewind."""

    action: str
    why: str = ""


def judge(
    config: TrainingConfig,
    loss: float,
    grad_norm: float,
    recent: Sequence[Sequence[float]],
) -> Verdict:
    """NaN or infinity never passes; a spike only where the config ignores spikes.

    A spike is a loss or gradient norm `spike_sigma` standard deviations above the mean of `recent`.
    """
    numbers = (("loss", loss), ("gradient norm", grad_norm))
    for what, value in numbers:
        if not math.isfinite(value):
            return Verdict(config.on_nonfinite, f"{what} {value}")
    if config.on_spike == "ignore" or len(recent) < FEWEST:
        return Verdict("apply")
    for (what, value), past in zip(numbers, zip(*recent, strict=True), strict=True):
        mean, deviation = statistics.fmean(past), statistics.pstdev(past)
        if value > mean + config.spike_sigma * deviation:
            return Verdict(
                config.on_spike, f"{what} {value:.4g} after {mean:.4g} in the last {len(past)}"
            )
    return Verdict("apply")
