"""Attention over words: where a model looked when it read a text.

Evidence of how a prediction came about, not proof of its cause (Jain and Wallace 2019).
"""

import re
from dataclasses import dataclass

import numpy as np

from lmcli.errors import UsageError
from lmcli.inference.engine import Engine
from lmcli.metrics.scripts import PIECE
from lmcli.text.tasks import Template
from lmcli.text.tokenizer import Tokenizer

START, END = "<start>", "<end>"


@dataclass(frozen=True)
class WordAttention:
    """`weights` [L, H, W, S]: row = the word that looks, column = the one of `source` looked at,
    which are the words themselves but for the target of an encoder-decoder."""

    words: list[str]
    source: list[str]
    weights: np.ndarray
    note: str = "attention is evidence of what was read, not proof of what caused the prediction"

    def chosen(self, layer: int | None, head: int | None) -> np.ndarray:
        """[W, S] of one layer and head (from 1), or the mean over those not given."""
        n_layers, n_heads = self.weights.shape[:2]
        for flag, value, n in (("--layer", layer, n_layers), ("--head", head, n_heads)):
            if value is not None and not 1 <= value <= n:
                raise UsageError(f"{flag} {value}: this model has 1 to {n}")
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
    words, ids, groups = _by_words(tokenizer, text, engine.context_length - 1)
    looking = groups / groups.sum(1, keepdims=True)
    return WordAttention(words, words, looking @ (engine.attention(ids) @ groups.T))


def cross_attention(
    engine: Engine, tokenizer: Tokenizer, source: str, target: str, template: Template
) -> WordAttention:
    """What each word of a target looked at in its source, by an encoder-decoder's cross-attention.

    What stands before and after the source counts as its <start> and <end>.
    """
    if not target:
        raise UsageError("the model writes nothing here; give a target")
    before, after = len(template.before), len(template.after) + 1  # and <eos>
    words, looks, rows = _by_words(tokenizer, target, engine.context_length - 1)
    columns, ids, groups = _by_words(tokenizer, source, engine.context_length - before - after)
    names, parts = [*columns, END], np.zeros((len(columns) + 1, before + len(ids) + after))
    parts[0, :before] = parts[-1, -after:] = 1
    parts[1:-1, before:-after] = groups[1:, 1:]
    if not before:
        parts, names = parts[1:], names[1:]
    weights = engine.attention(looks, template.prompt(ids)) @ parts.T
    return WordAttention(words, names, rows / rows.sum(1, keepdims=True) @ weights)


def _by_words(
    tokenizer: Tokenizer, text: str, most: int
) -> tuple[list[str], list[int], np.ndarray]:
    """Words, <start> before them; the tokens, `most` of which are read; and which token is part of
    which word [W, T + 1]."""
    spans = tokenizer.spans(text)
    if not spans:
        raise UsageError("no text to look into")
    if len(spans) > most:
        raise UsageError(f"the text has {len(spans)} tokens; this model reads {most}")
    # A word is what stands between white space, or a character of a script that writes none.
    words = list(PIECE.finditer(text)) or list(re.finditer(r"\s+", text))
    ends = np.array([word.end() for word in words])
    found = np.searchsorted(ends, [end for _, _, end in spans]).clip(max=len(ends) - 1)
    owner = np.array([0, *(1 + found)])  # the word of each token; the first is <start>
    used = np.unique(owner)
    names = [START, *(word.group() for word in words)]
    groups = (owner[None] == used[:, None]).astype(float)
    return [names[i] for i in used], [i for i, _, _ in spans], groups
