"""Counter-based randomness: a draw is a pure function of integers, so no generator is ever saved.

SplitMix64 (Steele et al. 2014) over the counters; part of the data format, never to change.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

_MASK = 2**64 - 1
INCREMENT = 0x9E3779B97F4A7C15
Bits = TypeVar("Bits", int, "np.ndarray")


def splitmix64(value: Bits) -> Bits:
    """One round: 64 bits in, 64 well-mixed bits out; for each number in an array of uint64 too."""
    value = (value + INCREMENT) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix(*counters: int) -> int:
    """64 bits from a tuple of integers; the order of the counters matters."""
    value = len(counters)
    for counter in counters:
        value = splitmix64(value ^ splitmix64(counter & _MASK))
    return value


def uniform(*counters: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    return (mix(*counters) >> 11) * 2.0**-53
