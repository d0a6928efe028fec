"""Scores a split of documents: each after one `<eos>` context token, every token exactly once.

Validation during training and `lmcli eval` are this one function, so that perplexity is the
exponential of the validation loss on the same tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lmcli.config.generation import GenerationConfig
from lmcli.config.model import ModelConfig
from lmcli.config.scoring import EvaluationConfig
from lmcli.dataset.buckets import Example, Examples, collate
from lmcli.dataset.order import permute
from lmcli.dataset.store import TokenStore
from lmcli.errors import DataError, UsageError
from lmcli.inference.engine import Engine
from lmcli.metrics.perplexity import Counts
from lmcli.text.tokenizer import Tokenizer


def windows(ids: np.ndarray, eos_id: int, context_length: int, stride: int) -> Iterator[Example]:
    """Covers the targets of one document without gap or overlap.

    context 4, stride 2, targets a b c d e f:  [abcd] then  c d [ef]; stride 4:  [abcd] then [ef]
    """
    done = 0
    while done < len(ids):
        end = min(len(ids), context_length if done == 0 else done + stride)
        start = done if stride == context_length else max(0, end - context_length)
        before = eos_id if start == 0 else int(ids[start - 1])
        yield Example(ids[start:end].astype(np.int64), end - done, before=before)
        done = end


def halves(ids: np.ndarray, eos_id: int, context_length: int) -> Iterator[Example]:
    """The same for an encoder: half a context at a time, after as much text as it can read."""
    step = max(1, context_length // 2)
    for start in range(0, len(ids), step):
        target = ids[start : start + step].astype(np.int64)
        source = [*ids[max(0, start - context_length + 1) : start], eos_id]
        yield Example(target, len(target), np.array(source, dtype=np.int64))


def choose(lengths: np.ndarray, max_tokens: int) -> list[int]:
    """All documents, or a fixed pseudo-random choice of them, the last of which goes beyond
    `max_tokens` tokens."""
    n = len(lengths)
    if not max_tokens or lengths.sum() <= max_tokens:
        return list(range(n))
    order = permute(0, n, np.arange(n))
    needed = int(np.searchsorted(lengths[order].cumsum(), max_tokens)) + 1
    return order[:needed].tolist()  # type: ignore[no-any-return]


def score_examples(
    engine: Engine, examples: Sequence[Example], batch_tokens: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(place, nats of the scored tokens) of every example, those with the longest side first."""
    longest = [max(len(example.ids), example.n_source) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (-longest[i], -len(examples[i].ids)))
    done = 0
    while done < len(order):
        rows = order[done : done + max(1, batch_tokens // longest[order[done]])]
        batch = collate([examples[i] for i in rows], engine.eos_id, engine.pad_id)
        nats = engine.score(batch.input_ids, batch.targets, batch.source_ids, batch.source_mask)
        for row, i in enumerate(rows):
            yield i, nats[row, batch.loss_mask[row]]
        done += len(rows)


def likelihoods(
    engine: Engine, texts: Sequence[tuple[list[int] | None, list[int]]], batch_tokens: int
) -> list[np.ndarray]:
    """The log-probability of each token of a text, after its prompt or source where there is one.

    What is longer than the context is scored half of one at a time, after as much of the text
    before as fits; a target of an encoder-decoder ends with the context.
    """
    context, eos = engine.context_length, engine.eos_id
    examples, owners = list[Example](), list[int]()
    for i, (prompt, target) in enumerate(texts):
        ids = np.array([*(prompt or ()), *target], dtype=np.int64)
        if not engine.has_encoder:
            before, found = len(ids) - len(target), []
            stride = context if len(ids) <= context else max(1, context // 2)
            for window in windows(ids, eos, context, stride):
                if before < window.n_scored:
                    found.append(replace(window, n_scored=window.n_scored - before))
                before = max(0, before - window.n_scored)
        elif prompt is None:
            found = list(halves(ids, eos, context))
        else:
            kept = np.array(target[:context], dtype=np.int64)
            found = [Example(kept, len(kept), np.array(engine.fit_prompt(prompt)))][: len(kept)]
        examples += found
        owners += [i] * len(found)
    nats = dict(score_examples(engine, examples, batch_tokens))
    values: list[list[np.ndarray]] = [[np.zeros(0)] for _ in texts]
    for place, i in enumerate(owners):
        values[i].append(-nats[place].astype(np.float64))
    return [np.concatenate(parts) for parts in values]


class SplitScorer:
    """The text of a split counted once, to be scored by one or many models.

    With a `reader`, the split's targets are scored, each after its source.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        model: ModelConfig,
        config: EvaluationConfig,
        reader: Examples | None = None,
    ) -> None:
        self.context_length = context = model.context_length
        self.stride = config.stride or context
        if self.stride > context:
            raise UsageError(f"--stride {self.stride} is more than the context of {context} tokens")
        if not store.n_tokens:
            raise DataError("the split has no tokens to score")
        self._batch_tokens = config.batch_tokens
        chosen = choose(np.diff(store.offsets), config.max_tokens)
        left = config.max_tokens or store.n_tokens
        documents, self._windows = [], list[Example]()
        for i in chosen:
            if reader is not None:
                example = reader.example(i)
                ids = example.ids[example.n_read :]
                self._windows.append(example)
            else:
                ids = store.document(i)[:left]
                left -= len(ids)
                if model.arch == "encoder-decoder":
                    self._windows += halves(ids, tokenizer.eos_id, context)
                else:
                    self._windows += windows(ids, tokenizer.eos_id, context, self.stride)
            documents.append(ids)
        texts = [tokenizer.decode_bytes(ids.tolist()) for ids in documents]
        self.documents = len(documents)
        self.tokens = sum(len(ids) for ids in documents)
        self.bytes = sum(len(text) for text in texts)
        self.words = sum(len(text.decode("utf-8", "replace").split()) for text in texts)
        self.n_windows = len(self._windows)

    def score(self, engine: Engine, progress: Callable[[int], None] = lambda n: None) -> Counts:
        """Summed nats of every token; `progress(windows scored)` after each forward pass."""
        nats = 0.0
        found = score_examples(engine, self._windows, self._batch_tokens)
        for done, (_, scored) in enumerate(found, 1):
            nats += float(scored.astype(np.float64).sum())
            progress(done)
        return Counts(nats, self.tokens, self.words, self.bytes, self.documents)


def decode_pairs(
    engine: Engine, reader: Examples, tokenizer: Tokenizer, config: GenerationConfig, n: int
) -> tuple[list[str], list[list[str]]]:
    """What the model makes of the first `n` sources of a split (0: all), and the one reference of
    each."""
    chosen = range(len(reader))[: n or None]
    room = engine.room(config.max_new_tokens)
    prompts = [
        reader.template.prompt(reader.source.document(i)[:-1].tolist(), room) for i in chosen
    ]
    done = engine.generate(prompts, config)
    references = [[tokenizer.decode(reader.target.document(i).tolist()).strip()] for i in chosen]
    return [tokenizer.decode(row[0].ids).strip() for row in done], references
