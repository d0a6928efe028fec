"""How text is generated from a prompt."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmcli.config.fields import flag, option, pick
from lmcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Decoding settings; temperature 0 is greedy. Lengths are in tokens."""

    max_new_tokens: int = option(128, "tokens to generate at most", low=1)
    max_length: int = option(0, "prompt and completion together at most; 0: no limit")
    temperature: float = option(0.8, "0 is greedy; higher is more varied")
    top_k: int = option(0, "keep the k most likely tokens; 0: all")
    top_p: float = option(1.0, "keep the most likely tokens up to this mass", high=1)
    min_p: float = option(
        0.0, "keep tokens at least so many times as likely as the likeliest", high=1
    )
    repetition_penalty: float = option(
        1.0, "above 1: tokens of the prompt and the text so far are less likely"
    )
    no_repeat_ngram: int = option(0, "never repeat so many tokens in a row; 0: may")
    min_new_tokens: int = option(0, "no end of text before so many tokens")
    seed: int = option(0, "seed of the draws")
    num_return_sequences: int = option(1, "completions per prompt", low=1, high=2**16)
    num_beams: int = option(1, "beam search over so many hypotheses; 1: none", low=1, high=256)
    length_penalty: float = option(
        1.0,
        "beams: scores are divided by length to this power; above 0 favours longer ones",
        low=None,
    )
    batch_size: int = option(16, "sequences decoded together; the beams of a prompt are one", low=1)

    def __post_init__(self) -> None:
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise UsageError(
                f"--num-return-sequences {self.num_return_sequences}: --num-beams "
                f"{self.num_beams} has no more than that"
            )
        if self.repetition_penalty <= 0:
            raise UsageError("--repetition-penalty must be above 0; 1 is none")


def generation(given: Mapping[str, Any], usual: Mapping[str, Any]) -> GenerationConfig:
    """The settings that the user gave, `usual` ones in place of the defaults; beams do not draw."""
    config = pick(GenerationConfig, {**usual, **given})
    if config.top_p <= 0:
        raise UsageError("--top-p must be above 0; --temperature 0 is greedy")
    drawn = [key for key in ("temperature", "top_k", "top_p", "min_p") if given.get(key)]
    if config.num_beams > 1:
        if drawn:
            raise UsageError(f"{flag(drawn[0])} draws, --num-beams does not; leave one out")
        config = dataclasses.replace(config, temperature=0.0)
    return config
