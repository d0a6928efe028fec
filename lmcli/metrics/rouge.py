"""ROUGE-1, -2, -L and -Lsum (Lin 2004), by rouge-score, with words of any script.

rouge-score's own tokenizer drops all but a-z and 0-9, which makes every Chinese or Arabic text
score 0. F1, the best of several references by F1, mean over segments.
"""

from collections.abc import Sequence
from importlib import metadata

from lmcli.metrics.metric import Metric, mean
from lmcli.metrics.score import signature
from lmcli.metrics.words import words

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(name: str, stem: bool, tokenize: str = "script") -> Metric:
    """`tokenize` is `script`, or `rouge` for rouge-score's own."""
    from rouge_score import rouge_scorer

    own = _Words(stem) if tokenize == "script" else None
    scorer = rouge_scorer.RougeScorer([name], stem, tokenizer=own)
    recipe = signature(
        f="f1", refs="best", tok=tokenize, stem="porter" if stem else "no",
        rouge_score=metadata.version("rouge-score"),
    )  # fmt: skip

    def each(hypothesis: str, references: Sequence[str]) -> float:
        return float(scorer.score_multi(references, hypothesis)[name].fmeasure)

    return mean(name, recipe, each)


class _Words:
    """What rouge-score asks of a tokenizer; stems English words of four letters and more."""

    def __init__(self, stem: bool) -> None:
        from nltk.stem import porter

        self._stemmer = porter.PorterStemmer() if stem else None

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        if self._stemmer is None:
            return found
        return [self._stemmer.stem(w) if len(w) > 3 and w.isascii() else w for w in found]
