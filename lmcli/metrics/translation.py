"""BLEU, chrF, chrF++ and TER, by sacrebleu (Post 2018), under its own signatures."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmcli.errors import MissingInputError
from lmcli.metrics.metric import Metric, References

TOKENIZERS = ("13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab", "flores200")
NEEDS = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko", "flores200": "sentencepiece"}
NAMES = ("bleu", "chrf", "chrf++", "ter")


def translation(name: str, tokenize: str, lowercase: bool, n_refs: int = 1) -> Metric:
    """`n_refs` is -1 where segments have different numbers of references.

    Raises MissingInputError for a tokenizer that is not installed: nothing is downloaded.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    inner: Any
    if name == "bleu":
        module = NEEDS.get(tokenize)
        if module is not None and importlib.util.find_spec(module) is None:
            raise MissingInputError(
                f"--tokenize {tokenize} needs the package {module}; install it, or use 13a, intl, "
                "zh, char or none"
            )
        if tokenize == "flores200":
            _refuse_download()
        inner = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
    elif name == "ter":
        inner = TER(case_sensitive=not lowercase)
    else:
        inner = CHRF(word_order=2 if name == "chrf++" else 0, lowercase=lowercase)

    def statistics(hypotheses: Sequence[str], references: References) -> np.ndarray:
        most = max(map(len, references))
        streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
        return np.array(inner._extract_corpus_statistics(hypotheses, streams), dtype=np.float64)

    def value(summed: np.ndarray, n: int) -> float:
        whole = summed if name == "ter" else summed.astype(np.int64)
        return float(inner._compute_score_from_stats(whole.tolist()).score)

    inner.num_refs = n_refs
    return Metric(name, f"{inner.get_signature()}", statistics, value, name != "ter")


def _refuse_download() -> None:
    from pathlib import Path

    from sacrebleu.utils import SACREBLEU_DIR

    model = Path(SACREBLEU_DIR) / "models" / "flores200sacrebleuspm"
    if not model.exists():
        raise MissingInputError(f"--tokenize flores200 needs its model at {model}, which is absent")
