"""Perplexity per token, word and byte, and bits per byte, from summed nats.

A document's closing `<eos>` counts in nats and in tokens, not in words or bytes. Bits per byte
does not depend on the tokenizer, so it alone compares models with different vocabularies.
"""

import math
from dataclasses import dataclass

from lmcli.metrics.score import Score, signature


@dataclass(frozen=True)
class Counts:
    """What was scored: nats over tokens, and the size of their text."""

    nats: float
    tokens: int
    words: int
    bytes: int
    documents: int


def scores(counts: Counts, context_length: int, stride: int) -> list[Score]:
    """`perplexity` (per token), `word_perplexity`, `byte_perplexity`, `bits_per_byte`, `loss`."""
    recipe = signature(ctx=context_length, stride=stride, start="eos", words="whitespace")

    def exp(nats: float, n: int) -> float:
        return math.exp(min(700.0, nats / max(1, n)))

    values = {
        "loss": counts.nats / max(1, counts.tokens),
        "perplexity": exp(counts.nats, counts.tokens),
        "word_perplexity": exp(counts.nats, counts.words),
        "byte_perplexity": exp(counts.nats, counts.bytes),
        "bits_per_byte": counts.nats / math.log(2) / max(1, counts.bytes),
    }
    return [Score(name, value, recipe) for name, value in values.items()]
