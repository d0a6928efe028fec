"""`feistel-v1`: a pseudo-random permutation computed element by element, with no stored shuffle.

Six Feistel rounds over the smallest even number of bits that hold n, walking the cycle until the
value falls below n. Part of the data format: it never changes under this name.
Datasets of pairs say `buckets-v2` beside it, for the rows of `dataset/buckets.py`; those that do
not are cut as they were.
"""

import numpy as np

from lmcli.randomness import INCREMENT, mix, splitmix64

NAME = "feistel-v1"
OF_PAIRS = "feistel-v1, buckets-v2"
ROUNDS = 6


def permute(key: int, n: int, index: np.ndarray) -> np.ndarray:
    """The images of `index` (int64 in [0, n)) under the permutation of [0, n) chosen by `key`."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [np.uint64((mix(key, r) - INCREMENT) % 2**64) for r in range(ROUNDS)]  # added by itself
    values = np.asarray(index).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        walking = values[outside]
        left, right = walking >> shift, walking & mask
        for k in keys:
            left, right = right, left ^ (splitmix64(right + k) & mask)
        values[outside] = (left << shift) | right
        outside = values >= np.uint64(n)
    return values.astype(np.int64)
