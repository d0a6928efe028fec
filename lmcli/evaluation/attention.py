"""Attention over words: where a model looked when it read a text.

Evidence of how a prediction came about, not proof of its cause (Jain and Wallace 2019).
"""

import re
from dataclasses import dataclass

import numpy as np

from lmcli.errors import UsageError
from lmcli.inference.engine import Engine
from lmcli.text.tasks import Template
from lmcli.text.tokenizer import Tokenizer

START, END = "<start>", "<end>"
# A word is what stands between white space; scripts that write none give a word each character.
_WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\s\u2e80-\u9fff\uf900-\ufaff]+")


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
    words, ids, groups = _by_words(engine, tokenizer, text)
    looking = groups / groups.sum(1, keepdims=True)
    return WordAttention(words, words, looking @ (engine.attention(ids) @ groups.T))


def cross_attention(
    engine: Engine, tokenizer: Tokenizer, source: str, target: str, template: Template
) -> WordAttention:
    """What each word of a target looked at in its source, by an encoder-decoder's cross-attention.

    What stands before and after the source counts as its <start> and <end>.
    """
    words, looks, rows = _by_words(engine, tokenizer, target)
    columns, ids, groups = _by_words(engine, tokenizer, source)
    before, after = len(template.before), len(template.after) + 1  # and <eos>
    inner = np.pad(groups[1:, 1:], ((0, 0), (before, after)))
    ends = np.zeros((2, inner.shape[1]))
    ends[0, :before] = ends[1, -after:] = 1
    parts, names = np.vstack([ends[:1], inner, ends[1:]]), [*columns, END]
    if not before:
        parts, names = parts[1:], names[1:]
    weights = engine.attention(looks, template.prompt(ids)) @ parts.T
    return WordAttention(words, names, rows / rows.sum(1, keepdims=True) @ weights)


def _by_words(
    engine: Engine, tokenizer: Tokenizer, text: str
) -> tuple[list[str], list[int], np.ndarray]:
    """Words, <start> before them; the tokens; and which token is part of which word [W, T + 1]."""
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
    groups = (np.array(owner)[None] == np.array(used)[:, None]).astype(float)
    return [names[i] for i in used], [i for i, _, _ in spans], groups
