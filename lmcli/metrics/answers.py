"""Exact match, and SQuAD's EM and F1 (Rajpurkar et al. 2016, 2018) with the official normalisation.

A text with characters of a script that writes no spaces (Chinese, Japanese, Thai) loses all
punctuation, not only ASCII, and each such character is a token, as in CMRC 2018 and MLQA; F1 is
that of the bags of tokens. Every other text gets the official numbers.
"""

import re
import string
from collections import Counter

from lmcli.config.scoring import ScoringConfig
from lmcli.metrics import scripts
from lmcli.metrics.score import Measure, References, Texts, mean

PUNCTUATION = str.maketrans("", "", string.punctuation)


def tokens(text: str) -> list[str]:
    """'The U.S. Navy!' -> ['us', 'navy']; '狐狸，25 岁' -> ['狐', '狸', '25', '岁']"""
    text = text.lower().translate(PUNCTUATION)
    if by_character := scripts.unspaced(text):
        text = scripts.PUNCTUATION.sub("", text)
    text = re.sub(r"\b(a|an|the)\b", " ", text)  # not the a of 'a股'
    return (" ".join(scripts.PIECE.findall(text)) if by_character else text).split()


def squad_em(hypothesis: str, reference: str) -> float:
    return float(tokens(hypothesis) == tokens(reference))


def squad_f1(hypothesis: str, reference: str) -> float:
    """Two empty answers agree, as in SQuAD 2.0."""
    found, wanted = tokens(hypothesis), tokens(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))


def measure(name: str, hyps: Texts, refs: References, config: ScoringConfig) -> Measure:
    """The mean over the segments, in percent."""
    if name == "exact_match":
        fold, case = (str.lower, "lc") if config.lowercase else (str, "mixed")
        return mean(name, lambda a, b: float(fold(a) == fold(b)), hyps, refs, case=case)
    compare = squad_em if name == "squad_em" else squad_f1
    return mean(name, compare, hyps, refs, norm="squad", unspaced="char")
