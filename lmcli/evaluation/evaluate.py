"""Scores a split of documents: each after one `<eos>` context token, every token exactly once.

Validation during training and `lmcli eval` are this one function, so that perplexity is the
exponential of the validation loss on the same tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lmcli.config.evaluation import EvaluationConfig
from lmcli.dataset.order import permute
from lmcli.dataset.store import TokenStore
from lmcli.errors import DataError, UsageError
from lmcli.inference.engine import Engine
from lmcli.metrics.perplexity import Counts
from lmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Window:
    """`input_ids` of one forward pass; the last `n_scored` of its `targets` count."""

    input_ids: np.ndarray
    targets: np.ndarray
    n_scored: int


def windows(ids: np.ndarray, eos_id: int, context_length: int, stride: int) -> Iterator[Window]:
    """Covers the targets of one document without gap or overlap.

    context 4, stride 2, targets a b c d e f:  [abcd] then  c d [ef]; stride 4:  [abcd] then [ef]
    """
    inputs = np.concatenate([[eos_id], ids[:-1]]).astype(np.int64)
    done = 0
    while done < len(ids):
        end = min(len(ids), context_length if done == 0 else done + stride)
        start = done if stride == context_length else max(0, end - context_length)
        yield Window(inputs[start:end], ids[start:end].astype(np.int64), end - done)
        done = end


def choose_documents(store: TokenStore, max_tokens: int) -> list[np.ndarray]:
    """All documents, or a fixed pseudo-random choice of them up to `max_tokens` tokens."""
    n = store.n_documents
    if not max_tokens or store.n_tokens <= max_tokens:
        return [store.document(i) for i in range(n)]
    chosen, left = [], max_tokens
    for i in permute(0, n, np.arange(n)):
        ids = store.document(int(i))[:left]
        chosen.append(ids)
        left -= len(ids)
        if left <= 0:
            break
    return chosen


class SplitScorer:
    """The text of a split counted once, to be scored by one or many models."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        context_length: int,
        config: EvaluationConfig,
    ) -> None:
        if config.stride > context_length:
            raise UsageError(
                f"--stride {config.stride} is more than the context of {context_length} tokens"
            )
        if not store.n_tokens:
            raise DataError("the split has no tokens to score")
        self.context_length = context_length
        self.stride = config.stride or context_length
        self._batch_tokens = config.batch_tokens
        documents = choose_documents(store, config.max_tokens)
        texts = [tokenizer.decode_bytes(ids.tolist()) for ids in documents]
        self.documents = len(documents)
        self.tokens = sum(len(ids) for ids in documents)
        self.bytes = sum(len(text) for text in texts)
        self.words = sum(len(text.decode("utf-8", "replace").split()) for text in texts)
        eos = tokenizer.eos_id
        self._windows = [
            w for ids in documents for w in windows(ids, eos, context_length, self.stride)
        ]
        self._pad = tokenizer.pad_id

    def score(self, engine: Engine, progress: Callable[[int], None] = lambda n: None) -> Counts:
        """Summed nats of every token; `progress(windows scored)` after each forward pass."""
        order = sorted(range(len(self._windows)), key=lambda i: -len(self._windows[i].input_ids))
        nats = np.zeros(len(order))
        done = 0
        while done < len(order):
            width = len(self._windows[order[done]].input_ids)
            rows = order[done : done + max(1, self._batch_tokens // width)]
            inputs = np.full((len(rows), width), self._pad, dtype=np.int64)
            targets = inputs.copy()
            for r, i in enumerate(rows):
                w = self._windows[i]
                inputs[r, : len(w.input_ids)], targets[r, : len(w.targets)] = w.input_ids, w.targets
            scored = engine.score(inputs, targets)
            for r, i in enumerate(rows):
                w = self._windows[i]
                end = len(w.targets)
                nats[i] = scored[r, end - w.n_scored : end].astype(np.float64).sum()
            done += len(rows)
            progress(done)
        return Counts(float(nats.sum()), self.tokens, self.words, self.bytes, self.documents)

    @property
    def n_windows(self) -> int:
        return len(self._windows)
