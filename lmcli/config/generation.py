"""How text is generated from a prompt."""

from dataclasses import dataclass

from lmcli.config.fields import option


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Decoding settings; temperature 0 is greedy. Lengths are in tokens."""

    max_new_tokens: int = option(128, "tokens to generate at most", low=1, unit="count")
    max_length: int = option(0, "prompt and completion together at most; 0: no limit", low=0)
    temperature: float = option(0.8, "0 is greedy; higher is more varied", low=0)
    top_k: int = option(0, "keep the k most likely tokens; 0: all", low=0)
    top_p: float = option(1.0, "keep the most likely tokens up to this mass", low=0, high=1)
    seed: int = option(0, "seed of the draws", low=0)
    num_return_sequences: int = option(1, "completions per prompt", low=1, high=2**16)
    batch_size: int = option(16, "sequences decoded together", low=1)
