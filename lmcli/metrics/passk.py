"""pass@k: the chance that one of k programs passes its tests, by the unbiased estimator of Chen et
al. 2021 from n programs for each problem, of which c pass: 1 - C(n - c, k) / C(n, k)."""

import math
import platform
from collections.abc import Sequence

from lmcli.config.scoring import ScoringConfig
from lmcli.metrics.score import Measure, References, average, signature


def estimate(n: int, c: int, k: int) -> float:
    """As a product of ratios, because the binomials do not fit in floats; needs k <= n."""
    if n - c < k:
        return 1.0
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def measure(
    name: str, passed: Sequence[Sequence[bool]], refs: References, config: ScoringConfig
) -> Measure:
    """The mean over the problems, in percent; `passed` has n verdicts for each."""
    n, k = len(passed[0]), int(name.removeprefix("pass@"))
    sandbox, python = "weak" if config.weak_sandbox else "namespaces", platform.python_version()
    recipe = signature(k=k, n=n, timeout=config.timeout, sandbox=sandbox, python=python)
    return average(name, [estimate(n, sum(each), k) for each in passed], recipe)
