"""`feistel-v1`: a pseudo-random permutation computed element by element, with no stored shuffle.

Six Feistel rounds over the smallest even number of bits that hold n, walking the cycle until the
value falls below n. Part of the data format: it never changes under this name.
"""

import numpy as np

from lmcli.randomness import mix

NAME = "feistel-v1"
ROUNDS = 6


def _round(values: np.ndarray, key: int) -> np.ndarray:
    """SplitMix64's finaliser, vectorised; wraps modulo 2^64."""
    with np.errstate(over="ignore"):
        v = values + np.uint64(key)
        v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return v ^ (v >> np.uint64(31))


def permute(key: int, n: int, index: np.ndarray) -> np.ndarray:
    """The images of `index` (int64 in [0, n)) under the permutation of [0, n) chosen by `key`."""
    if n <= 0:
        raise ValueError("nothing to permute")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [mix(key, r) for r in range(ROUNDS)]
    values = np.asarray(index).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        walking = values[outside]
        left, right = walking >> shift, walking & mask
        for k in keys:
            left, right = right, left ^ (_round(right, k) & mask)
        values[outside] = (left << shift) | right
        outside = values >= np.uint64(n)
    return values.astype(np.int64)
