"""BLEU, chrF, chrF++ and TER: sacrebleu's numbers under sacrebleu's signatures.

BLEU: Papineni et al. 2002; chrF: Popovic 2015, 2017; TER: Snover et al. 2006; sacrebleu: Post 2018.
Nothing is ever downloaded: a tokenizer whose packages or model are not there is an error.
"""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lmcli.config.scoring import ScoringConfig
from lmcli.errors import MissingInputError, UsageError
from lmcli.metrics.score import Measure, References, Texts


def measure(name: str, hyps: Texts, refs: References, config: ScoringConfig) -> Measure:
    """One metric of one system, from the statistics that sacrebleu's own tests resample."""
    corpus, segment = _metric(name, config), _metric(name, config, segment=True)
    columns = list(map(list, zip_longest(*refs)))  # None where a segment has fewer
    rows = np.array(corpus._extract_corpus_statistics(hyps, columns), dtype=np.float64)
    segment.num_refs = corpus.num_refs

    def scored(metric: Any) -> tuple[Any, str]:
        total = lambda row: float(metric._compute_score_from_stats(row.tolist()).score)  # noqa: E731
        return total, str(metric.get_signature())

    return Measure(name, rows, *scored(corpus), *scored(segment))


def _metric(name: str, config: ScoringConfig, segment: bool = False) -> Any:
    """sacrebleu's object; BLEU of one segment stops at the longest n-gram it has (`eff:yes`)."""
    from sacrebleu import BLEU, CHRF, SACREBLEU_DIR, TER
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

    if name == "ter":
        return TER()
    if name != "bleu":
        return CHRF(lowercase=config.lowercase, word_order=2 if name == "chrf++" else 0)
    flag = f"--tokenize {config.tokenize}"
    url = SPM_MODELS.get(config.tokenize, {}).get("url", "")
    if url and not (model := Path(SACREBLEU_DIR, "models", Path(url).name)).exists():
        raise MissingInputError(f"{flag}: lmcli downloads nothing; put {url} at {model}")
    try:
        return BLEU(config.lowercase, tokenize=config.tokenize, force=True, effective_order=segment)
    except (ImportError, RuntimeError) as error:  # says what to install
        raise UsageError(f"{flag}: {' '.join(str(error).split())}") from None
