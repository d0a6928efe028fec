"""ROUGE-1, -2, -L and -Lsum (Lin 2004) by rouge-score, for texts in any script.

rouge-score drops everything but [a-z0-9], so that two equal Chinese texts score 0. It is given a
tokenizer of ours, which agrees with its own on ASCII.
"""

from types import SimpleNamespace

from lmcli.config.scoring import ScoringConfig
from lmcli.metrics import scripts
from lmcli.metrics.score import Measure, References, Texts, mean


def measure(name: str, hyps: Texts, refs: References, config: ScoringConfig) -> Measure:
    """The F-measure, in percent; rougeLsum takes the lines of a text for its sentences."""
    from importlib.metadata import version

    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer

    stem = PorterStemmer().stem if config.stem else str

    def tokenize(text: str) -> list[str]:
        """rouge-score, too, stems words of more than 3 letters only."""
        return [stem(w) if len(w) > 3 and w.isascii() else w for w in scripts.words(text)]

    ours = SimpleNamespace(tokenize=tokenize) if config.rouge_tokenizer == "script" else None
    scorer = RougeScorer([name], config.stem, tokenizer=ours)

    def fmeasure(hypothesis: str, reference: str) -> float:
        return float(scorer.score(reference, hypothesis)[name].fmeasure)

    recipe = {"stat": "f", "tok": config.rouge_tokenizer, "stem": "porter" if config.stem else "no"}
    return mean(name, fmeasure, hyps, refs, **recipe, rouge_score=version("rouge_score"))
