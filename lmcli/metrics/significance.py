"""Is one system better than another on the same segments? Both tests resample the segments.

Paired bootstrap (Koehn 2004; p-values as in sacrebleu, from differences shifted to mean 0), or
approximate randomisation (Riezler and Maxwell 2005), which swaps the systems' outputs at random.
"""

from dataclasses import dataclass

import numpy as np

from lmcli.metrics.metric import Metric
from lmcli.randomness import mix

TESTS = ("bootstrap", "randomisation")


@dataclass(frozen=True)
class Comparison:
    """`low` to `high` is the 95% interval of the system's score by bootstrap."""

    baseline: float
    difference: float
    p: float
    low: float
    high: float
    test: str


def compare(
    metric: Metric,
    ours: np.ndarray,
    theirs: np.ndarray,
    test: str = "bootstrap",
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Two systems' statistics [N, K] of the same segments."""
    n = len(ours)
    value, baseline = metric.value(ours.sum(0), n), metric.value(theirs.sum(0), n)
    # Philox is counter-based: the same seed gives the same samples for every metric and system.
    generator = np.random.Generator(np.random.Philox(key=mix(seed, n)))
    drawn, differences = np.empty(samples), np.empty(samples)
    for i in range(samples):
        rows = generator.integers(0, n, n)
        drawn[i] = metric.value(ours[rows].sum(0), n)
        if test == "bootstrap":
            differences[i] = drawn[i] - metric.value(theirs[rows].sum(0), n)
        else:
            swap = generator.integers(0, 2, n, dtype=bool)[:, None]
            a, b = np.where(swap, theirs, ours), np.where(swap, ours, theirs)
            differences[i] = metric.value(a.sum(0), n) - metric.value(b.sum(0), n)
    actual = value - baseline
    centred = differences - differences.mean() if test == "bootstrap" else differences
    extreme = int((np.abs(centred) >= abs(actual) - 1e-12).sum())
    low, high = np.percentile(drawn, [2.5, 97.5])
    p = (1 + extreme) / (samples + 1)
    recipe = f"{test}|n:{samples}|seed:{seed}"
    return Comparison(baseline, actual, p, float(low), float(high), recipe)
