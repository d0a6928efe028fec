"""A number that travels with its recipe, so that two scores are comparable or visibly are not."""

from dataclasses import dataclass

import lmcli


@dataclass(frozen=True)
class Score:
    name: str
    value: float
    signature: str


def signature(**parts: object) -> str:
    """`ctx:256|stride:256|version:0.1.0`"""
    return "|".join(f"{k}:{v}" for k, v in {**parts, "version": lmcli.__version__}.items())
