"""How a model is scored on a split, and hypotheses against references."""

from dataclasses import dataclass

from lmcli.config.fields import choice, option

METRICS = {  # name -> module under lmcli.metrics
    **dict.fromkeys(("bleu", "chrf", "chrf++", "ter"), "translation"),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "rouge"),
    **dict.fromkeys(("exact_match", "squad_em", "squad_f1"), "answers"),
}
TOKENIZERS = ("13a", "intl", "zh", "char", "none")
INSTALLED = ("ja-mecab", "ko-mecab", "flores101", "flores200")  # where their packages or models are
TOKENIZE = "tokenizer of BLEU; zh or char for Chinese, none for text already tokenized"
ROUGE = "words of any script, or rouge-score's [a-z0-9] alone"
HYP, REF = "[hypothesis; pass@k: completion]", "[reference; pass@k: test]"
ALLOW = "run programs that a model wrote, for pass@k, in a sandbox"
WEAK = "where there are no namespaces: run them with your own rights, under limits alone"


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """What a metric is made with; each setting stands in the signature of what it touches."""

    tokenize: str = choice(TOKENIZERS + INSTALLED, TOKENIZE)
    lowercase: bool = option(False, "lower-case for BLEU, chrF, exact match; the rest always do")
    rouge_tokenizer: str = choice(("script", "rouge"), ROUGE)
    stem: bool = option(False, "Porter stemming of English words for ROUGE")
    hyp_key: str = option("", f"field or column of hypotheses, in JSONL or TSV {HYP}")
    ref_key: str = option("", f"field or column of references, text or a list {REF}")
    trials: int = option(1000, "resamples of a significance test", low=1)
    seed: int = option(0, "seed of the resamples")
    allow_code_execution: bool = option(False, ALLOW)
    weak_sandbox: bool = option(False, WEAK)
    timeout: str = option("5s", "time for each program and its tests, for pass@k", unit="duration")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Every token is scored exactly once, whatever the stride."""

    stride: int = option(0, "tokens scored per window, with the rest as context; 0: whole windows")
    max_tokens: int = option(0, "score the first N tokens only; 0: all")
    batch_tokens: int = option(16384, "tokens per forward pass", low=1)
