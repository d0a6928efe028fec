"""Whether two systems differ: paired bootstrap and approximate randomization over the segments.

Our own over each metric's sufficient statistics, with counter-based draws, so that all metrics see
the same resamples. Bootstrap (Koehn 2004), two-sided and centred on the difference found;
randomization (Riezler & Maxwell 2005) swaps segments between the systems. p is (1 + hits) /
(1 + trials): 1 for a system against itself, and never 0. Intervals are 95% bootstrap percentiles.
"""

import numpy as np

from lmcli.metrics.score import Measure, signature
from lmcli.randomness import mix, splitmix64

INTERVALS = ("low", "high", "difference_low", "difference_high")


def compare(system: Measure, baseline: Measure, trials: int, seed: int) -> dict[str, float | str]:
    """`system` minus `baseline`, which have the same segments: intervals, p-values, the recipe."""
    a, b, n = system.statistics, baseline.statistics, len(system.statistics)
    sum_a, sum_b, gap = a.sum(0), b.sum(0), b - a
    base = baseline.total(sum_b)
    difference = system.total(sum_a) - base
    resampled, differences, swapped = np.empty((3, trials))
    for t in range(trials):
        times = np.bincount(_draws(seed, 0, t, n) % n, minlength=n)
        resampled[t] = system.total(times @ a)
        differences[t] = resampled[t] - system.total(times @ b)
        moved = (_draws(seed, 1, t, n) % 2) @ gap
        swapped[t] = system.total(sum_a + moved) - system.total(sum_b - moved)

    def p(extremes: np.ndarray) -> float:
        hits = np.abs(extremes) >= abs(difference) - 1e-9  # sums of floats in another order
        return float(1 + hits.sum()) / (1 + trials)

    ends = np.percentile([resampled, differences], [2.5, 97.5], axis=1).T.ravel().tolist()
    recipe = signature(paired="lmcli", trials=trials, seed=seed, rng="splitmix64", ci=95)
    found = {"baseline": base, "difference": difference, **dict(zip(INTERVALS, ends, strict=True))}
    found |= {"p_bootstrap": p(differences - difference), "p_randomization": p(swapped)}
    return {**found, "test": recipe}


def _draws(seed: int, stream: int, trial: int, n: int) -> np.ndarray:
    """A draw of 63 bits for each segment: a function of (seed, stream, trial, segment)."""
    counters = np.arange(n, dtype=np.uint64)
    draws = splitmix64(splitmix64(counters) ^ np.uint64(mix(seed, stream, trial)))
    return (draws >> np.uint64(1)).astype(np.int64)
