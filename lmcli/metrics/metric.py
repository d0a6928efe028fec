"""A metric: statistics of each segment, and a score from their sum, so that resampling is cheap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmcli.metrics.score import Score

# References of a segment; a segment may have fewer than others.
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Metric:
    """`statistics(hypotheses, references)` -> [N, K]; `value(summed [K], N)` -> the score."""

    name: str
    signature: str
    statistics: Callable[[Sequence[str], References], np.ndarray]
    value: Callable[[np.ndarray, int], float]
    higher_is_better: bool = True

    def score(self, statistics: np.ndarray) -> Score:
        return Score(self.name, self.value(statistics.sum(0), len(statistics)), self.signature)

    def segments(self, statistics: np.ndarray) -> list[float]:
        return [self.value(row, 1) for row in statistics]


def mean(name: str, signature: str, each: Callable[[str, Sequence[str]], float]) -> Metric:
    """100 times the mean of a number per segment."""

    def statistics(hypotheses: Sequence[str], references: References) -> np.ndarray:
        pairs = zip(hypotheses, references, strict=True)
        return np.array([[each(hypothesis, refs)] for hypothesis, refs in pairs])

    return Metric(name, signature, statistics, lambda summed, n: 100 * float(summed[0]) / n)
