"""A number that travels with its recipe, so that two scores are comparable or visibly are not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import lmcli
from lmcli.config.scoring import METRICS, ScoringConfig

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # one or several texts for each segment
Compare = Callable[[str, str], float]  # hypothesis, reference


@dataclass(frozen=True)
class Score:
    name: str
    value: float
    signature: str


@dataclass(frozen=True, eq=False)
class Measure:
    """One metric of one system: a row of sufficient statistics (N segments, K counts).

    The corpus score is `total` of the rows' sum, and so is that of any resample of them. A
    segment's score is `single` of its row: not always the same, see BLEU.
    """

    name: str
    statistics: np.ndarray
    total: Callable[[np.ndarray], float]
    signature: str
    single: Callable[[np.ndarray], float]
    single_signature: str

    def score(self) -> Score:
        return Score(self.name, self.total(self.statistics.sum(0)), self.signature)

    def segments(self) -> list[float]:
        return [self.single(row) for row in self.statistics]


def measure(name: str, hyps: Any, refs: Any, config: ScoringConfig) -> Measure:
    """One metric of one system, by the module that computes it."""
    module = import_module(f"lmcli.metrics.{METRICS.get(name, 'passk')}")
    return module.measure(name, hyps, refs, config)  # type: ignore[no-any-return]


def mean(name: str, compare: Compare, hyps: Texts, refs: References, **recipe: str) -> Measure:
    """The mean over segments of `compare` in [0, 1], in percent; of several references the best."""
    pairs = zip(hyps, refs, strict=True)
    counts = {len(some) for some in refs}
    known = signature(nrefs=counts.pop() if len(counts) == 1 else "var", **recipe)
    return average(name, [max(compare(hyp, ref) for ref in some) for hyp, some in pairs], known)


def average(name: str, values: Sequence[float], recipe: str) -> Measure:
    """The mean of one value in [0, 1] for each segment, in percent."""

    def percent(row: np.ndarray) -> float:
        return float(100 * row[0] / row[1])

    rows = np.array([(value, 1.0) for value in values])
    return Measure(name, rows, percent, recipe, percent, recipe)


def signature(**parts: object) -> str:
    """`ctx:256|stride:256|version:0.1.0`"""
    return "|".join(f"{k}:{v}" for k, v in {**parts, "version": lmcli.__version__}.items())
