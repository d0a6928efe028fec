"""How a model is scored on a split."""

from dataclasses import dataclass

from lmcli.config.fields import option


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Every token is scored exactly once, whatever the stride."""

    stride: int = option(0, "tokens scored per window, with the rest as context; 0: whole windows")
    max_tokens: int = option(0, "score the first N tokens only; 0: all")
    batch_tokens: int = option(16384, "tokens per forward pass", low=1)
