"""The one inference engine: batched generation with a cache, and scoring. Token ids only.

Every prompt is preceded by one `<eos>`, because documents follow one in training. Generation stops
at `<eos>`, at a stop id, at the length asked for, or at the model's context length; a prompt that
does not fit keeps its last tokens (`Engine.fit_prompt`). An encoder-decoder reads its prompt once
and starts from `<eos>`.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcli.config.generation import GenerationConfig
from lmcli.inference.batch import Batch, Completion, Prompt, Row
from lmcli.inference.cache import free_bytes
from lmcli.inference.search import Beams, OnToken, Rules, Samples, Stopped
from lmcli.model.loss import nll
from lmcli.model.transformer import Transformer

WINDOW = 4  # batches of prompts that may be under way, of which similar lengths are read together
READ = 2**14  # tokens that are read at once, pads included


@dataclass(frozen=True)
class Request:
    """A prompt; `record` numbers it for its random draws. `limit`: fewer new tokens than usual."""

    ids: Sequence[int]
    record: int
    limit: int | None = None


Arrivals = Callable[[int, bool], Sequence[Request] | None]


class Engine:
    """Generates and scores with one model; keeps no state between calls."""

    def __init__(self, model: Transformer, eos_id: int, pad_id: int) -> None:
        self.model, self.eos_id, self.pad_id = model, eos_id, pad_id
        self.device = model.embed.weight.device
        self.has_encoder = model.config.arch == "encoder-decoder"

    @property
    def context_length(self) -> int:
        return self.model.config.context_length

    def room(self, n_new: int = 1) -> int:
        """How many tokens a prompt may have beside its `<eos>` and `n_new` more, which may take
        half of the context from it and no more. They take nothing from an encoder's."""
        taken = 0 if self.has_encoder else max(1, min(n_new, self.context_length // 2))
        return max(0, self.context_length - 1 - taken)

    def fit_prompt(self, ids: Sequence[int], n_new: int = 1) -> list[int]:
        """`<eos>` and the prompt, or its last tokens that leave room for `n_new` more.

        An encoder's prompt is its source, which ends in `<eos>` and keeps its first tokens.
        """
        if self.has_encoder:
            return [*ids[: self.room()], self.eos_id]
        return [self.eos_id, *ids][-self.room(n_new) - 1 :]

    def generate(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, **rules: Any
    ) -> list[list[Completion]]:
        """`stream` of prompts that are all there."""
        all_at_once = iter([[Request(ids, record) for record, ids in enumerate(prompts)]])
        return list(self.stream(lambda n, wait: next(all_at_once, None), config, **rules))

    @torch.inference_mode()
    def stream(
        self,
        arrivals: Arrivals,
        config: GenerationConfig,
        stop_ids: frozenset[int] = frozenset(),
        stopped: Stopped | None = None,
        choices: Sequence[Sequence[int]] = (),
        on_token: OnToken | None = None,
    ) -> Iterator[list[Completion]]:
        """`num_return_sequences` completions of each request, of beams the best, in order.

        `arrivals(n, wait)` gives about `n` requests: [] where none has come yet and `wait` is
        False, None at the end. A finished row makes room for the next prompt at once; the oldest
        one goes first, with those of most similar length.

        A completion ends with a stop id or where `stopped(ids)`; one of `choices` is all of it.
        `on_token(record, sample, ids, ended)` sees samples grow.
        """
        self.model.eval()
        n = config.num_return_sequences
        rules = Rules(config, self.eos_id, stop_ids, stopped, choices)
        batch = Batch(self.model, self.eos_id, self.pad_id, config.num_beams)
        search = Beams(rules) if config.num_beams > 1 else Samples(rules, on_token)
        room = free_bytes(self.device) // 2
        opened: deque[Prompt] = deque()
        waiting: list[Row] = []
        more = True
        while more or opened:
            if more and len(opened) < WINDOW * config.batch_size:
                found = arrivals(WINDOW * config.batch_size - len(opened), not opened)
                more = found is not None
                for request in found or ():
                    opened.append(self._prompt(request, config))
                    waiting += [Row(opened[-1], sample) for sample in range(opened[-1].left)]
            while opened and not opened[0].left:
                best = sorted(opened.popleft().done, key=lambda scored: -scored[0])
                done = [completion for _, completion in best] or [Completion([], [], "length")]
                yield (done + done[-1:] * n)[:n]  # the last again where there are fewer
            if starting := self._next(waiting, batch, config.batch_size, room):
                batch.add(starting)
                gone = set(starting)
                waiting = [row for row in waiting if row not in gone]
            if batch.rows:
                search.step(batch)

    def _prompt(self, request: Request, config: GenerationConfig) -> Prompt:
        ids, limit = request.ids, config.max_new_tokens
        if request.limit is not None:
            limit = min(limit, request.limit)
        if config.max_length:
            limit = min(limit, config.max_length - (0 if self.has_encoder else len(ids)))
        fitted = self.fit_prompt(ids, limit)
        limit = min(limit, self.context_length - (1 if self.has_encoder else len(fitted)))
        prompt = Prompt(fitted, request.record, max(0, limit))
        if prompt.limit:
            prompt.left = 1 if config.num_beams > 1 else config.num_return_sequences
        return prompt

    def _next(self, waiting: list[Row], batch: Batch, most: int, room: int) -> list[Row]:
        """Rows to begin with: as many as there is room and memory for; one if there is none.

        A few places are left to wait for each other, so that prompts are read together.
        """
        places = min(len(waiting), most - len(batch.rows))
        if places < min(len(waiting), max(1, most // 8)) or not waiting:
            return []
        first = len(waiting[0].prompt.ids)
        near = sorted(waiting[: WINDOW * most], key=lambda r: abs(len(r.prompt.ids) - first))
        longest = itertools.accumulate((len(row.prompt.ids) for row in near[:places]), max)
        fits = [i for i, length in enumerate(longest, 1) if i * length <= READ]
        near = near[: max(fits, default=1)]
        while near and batch.bytes(near) > room:
            near.pop()
        return near if near or batch.rows else waiting[:1]

    @torch.inference_mode()
    def next_logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """log P(next token | `<eos>` and ids): float64 [V], without temperature or constraints.

        Of an encoder-decoder the first token for a source.
        """
        self.model.eval()
        prompt = torch.tensor([self.fit_prompt(ids)], device=self.device)
        start = torch.tensor([[self.eos_id]], device=self.device)
        hidden = self.model(start, source_ids=prompt) if self.has_encoder else self.model(prompt)
        logits = self.model.logits(hidden[0, -1]).cpu().double()
        return logits.log_softmax(-1).numpy()

    @torch.inference_mode()
    def attention(self, ids: Sequence[int], source: Sequence[int] | None = None) -> np.ndarray:
        """Weights [L, H, T + 1, T + 1] of `<eos>` and T ids, or of what these see of the S ids of a
        source and its `<eos>` [L, H, T + 1, S + 1]; each row sums to 1."""
        self.model.eval()
        inputs = torch.tensor([[self.eos_id, *ids]], device=self.device)
        seen: list[Tensor] = []
        name, read = "attn", None
        if source is not None:
            name, read = "cross_attn", torch.tensor([self.fit_prompt(source)], device=self.device)
        layers = [getattr(block, name) for block in self.model.decoder.blocks]
        try:
            for layer in layers:
                layer.watch = seen.append
            self.model(inputs, source_ids=read)
        finally:
            for layer in layers:
                layer.watch = None
        return torch.cat(seen).cpu().double().numpy()

    @torch.inference_mode()
    def score(
        self,
        input_ids: np.ndarray,
        targets: np.ndarray,
        source_ids: np.ndarray | None = None,
        source_mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Nats of each target: two [B, T] int64 arrays, and an encoder's [B, S] and which of them
        are real -> float32 [B, T]."""
        self.model.eval()
        side = {"source_ids": source_ids, "source_mask": source_mask}
        given = {k: torch.from_numpy(v).to(self.device) for k, v in side.items() if v is not None}
        hidden = self.model(torch.from_numpy(input_ids).to(self.device), **given)
        nats = nll(self.model, hidden, torch.from_numpy(targets).to(self.device))
        return nats.float().cpu().numpy()
