"""Exact match, and SQuAD's EM and F1 (Rajpurkar et al. 2016), the best of several answers.

SQuAD's normalisation: lower case, no punctuation (here of any script), no English articles. Words
are split at white space; scripts without it count character by character, as in CMRC 2018.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from lmcli.metrics.metric import Metric, mean
from lmcli.metrics.score import signature
from lmcli.metrics.words import words

NAMES = ("exact", "em", "f1")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def normalise(text: str) -> str:
    kept = "".join(
        c for c in text.lower() if c not in _ASCII_PUNCTUATION and unicodedata.category(c)[0] != "P"
    )
    return " ".join(_ARTICLES.sub(" ", kept).split())


def tokens(text: str) -> list[str]:
    """Normalised words; those in a script without spaces by character."""
    found = []
    for word in normalise(text).split():
        found += [word] if word.isascii() else words(word) or [word]
    return found


def f1(hypothesis: str, reference: str) -> float:
    ours, theirs = tokens(hypothesis), tokens(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def answers(name: str) -> Metric:
    """`exact` compares texts as they are, but for white space around them."""

    def each(hypothesis: str, references: Sequence[str]) -> float:
        if name == "exact":
            return float(any(hypothesis.strip() == r.strip() for r in references))
        if name == "em":
            return float(any(normalise(hypothesis) == normalise(r) for r in references))
        return max(f1(hypothesis, reference) for reference in references)

    recipe = {"refs": "best", "norm": "none" if name == "exact" else "squad"}
    if name == "f1":
        recipe["tok"] = "script"
    return mean(name, signature(**recipe), each)
