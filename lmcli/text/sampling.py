"""A seeded part of a corpus of any size, for training a tokenizer."""

import heapq
import re
from collections.abc import Iterable, Iterator

from lmcli import randomness

_PART = re.compile(r"[\s\S]{1,8192}\Z|[\s\S]{1,8191}\S(?!\S)|[\s\S]{1,8192}")


def sample(texts: Iterable[str], limit: int | None, seed: int) -> Iterator[str]:
    """At most `limit` bytes of the texts, in their order; everything without a limit.

    Texts are cut before white space into parts of at most 8192 characters. Part i gets the number
    uniform(seed, i), and those with the smallest numbers stay, as many as fit: the same sample for
    the same seed and text, held in memory, from one reading.
    """
    if limit is None:
        yield from texts
        return
    kept: list[tuple[float, int, str]] = []
    size = 0
    parts = (match[0] for text in texts for match in _PART.finditer(text))
    for i, part in enumerate(parts):
        heapq.heappush(kept, (-randomness.uniform(seed, i), i, part))
        size += len(part.encode())
        while size > limit:
            size -= len(heapq.heappop(kept)[2].encode())
    for _, _, part in sorted(kept, key=lambda item: item[1]):
        yield part
