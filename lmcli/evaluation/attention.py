"""Attention over words: where a model looked when it read a text.

Evidence of how a prediction came about, not proof of its cause (Jain and Wallace 2019).
"""

import re
from dataclasses import dataclass

import numpy as np

from lmcli.errors import UsageError
from lmcli.inference.engine import Engine
from lmcli.text.tokenizer import Tokenizer

START = "<start>"
# A word is what stands between white space; scripts that write none give a word each character.
_WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\s\u2e80-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True)
class WordAttention:
    """`weights` [L, H, W, W]: row = the word that looks, column = the word looked at."""

    words: list[str]
    weights: np.ndarray
    note: str = "attention is evidence of what was read, not proof of what caused the prediction"

    def chosen(self, layer: int | None, head: int | None) -> np.ndarray:
        """[W, W] of one layer and head (from 1), or the mean over those not given."""
        n_layers, n_heads = self.weights.shape[:2]
        for flag, value, n in (("--layer", layer, n_layers), ("--head", head, n_heads)):
            if value is not None and not 1 <= value <= n:
                raise UsageError(f"{flag} {value}: this model has {n}")
        layers = self.weights if layer is None else self.weights[layer - 1 : layer]
        heads = layers if head is None else layers[:, head - 1 : head]
        return heads.mean((0, 1))  # type: ignore[no-any-return]

    def find(self, focus: str) -> int:
        """The last word that is `focus`, punctuation aside; a UsageError lists the words."""
        for i in reversed(range(len(self.words))):
            if focus in (self.words[i], re.sub(r"\W", "", self.words[i])):
                return i
        raise UsageError(f"--focus {focus!r} is not one of: {' '.join(self.words[1:])}")


def word_attention(engine: Engine, tokenizer: Tokenizer, text: str) -> WordAttention:
    """The attention of a text by words: summed over a word's tokens looked at, mean over those
    that look, so that each row still sums to 1. White space belongs to the word after it."""
    spans = tokenizer.spans(text)
    if not spans:
        raise UsageError("no text to look into")
    if len(spans) >= engine.context_length:
        raise UsageError(
            f"the text has {len(spans)} tokens; this model reads {engine.context_length - 1}"
        )
    words = list(_WORD.finditer(text)) or list(re.finditer(r"\s+", text))
    ends = np.array([word.end() for word in words])
    owner = [0]  # the word of each token; the first is <start>
    for _, _, end in spans:
        owner.append(1 + min(int(np.searchsorted(ends, end)), len(ends) - 1))
    used = sorted(set(owner))
    names = [START, *(word.group() for word in words)]
    groups = (np.array(owner)[None] == np.array(used)[:, None]).astype(float)  # [W, T]
    weights = engine.attention([i for i, _, _ in spans]) @ groups.T
    looking = groups / groups.sum(1, keepdims=True)
    return WordAttention([names[i] for i in used], looking @ weights)
