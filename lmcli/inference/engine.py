"""The one inference engine: batched generation with a cache, and scoring. Token ids only.

Every prompt is preceded by one `<eos>`, because documents follow one in training. Generation stops
at `<eos>`, at a stop id, at the length asked for, or at the model's context length; a prompt that
does not fit keeps its last tokens (`Engine.fit_prompt`). An encoder-decoder reads its prompt once
and starts from `<eos>`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lmcli.config.generation import GenerationConfig
from lmcli.errors import UsageError
from lmcli.inference import decoding
from lmcli.inference.cache import Cache
from lmcli.model.loss import nll
from lmcli.model.transformer import Transformer
from lmcli.randomness import uniform


@dataclass(frozen=True)
class Completion:
    """Generated ids without `<eos>`; `logprob` is the model's own, before temperature."""

    ids: list[int]
    logprob: float
    finish_reason: str  # eos, stop or length


@dataclass
class _Row:
    """One sequence being decoded, or the beams of one."""

    index: int
    record: int
    sample: int
    prompt: list[int]  # an encoder-decoder's source
    limit: int  # new tokens at most
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    reason: str = ""
    done: list[tuple[float, Completion]] = field(default_factory=list)  # beams: by score


@dataclass
class _Context:
    """What the tokens decoded so far are read from: the cache, and the encoded sources."""

    cache: Cache
    memory: list[tuple[Tensor, Tensor]] | None
    mask: Tensor | None

    def select(self, rows: Tensor, beams: int = 1) -> None:
        """Keeps rows of the cache, of which `beams` share a source."""
        self.cache.select(rows)
        sources = rows[::beams] // beams
        if self.memory is not None and len(sources) < len(self.memory[0][0]):
            self.memory = [(k[sources], v[sources]) for k, v in self.memory]
            self.mask = None if self.mask is None else self.mask[sources]


class Engine:
    """Generates and scores with one model; keeps no state between calls."""

    def __init__(self, model: Transformer, eos_id: int, pad_id: int) -> None:
        self.model, self.eos_id, self.pad_id = model, eos_id, pad_id
        self.device = model.embed.weight.device
        self.has_encoder = model.config.arch == "encoder-decoder"

    @property
    def context_length(self) -> int:
        return self.model.config.context_length

    def fit_prompt(self, ids: Sequence[int], n_new: int = 1) -> list[int]:
        """`<eos>` and the prompt, or its last tokens that leave room for `n_new` more.

        New tokens may take half of the context from a prompt, and no more. An encoder's prompt is
        its source, which ends in `<eos>` and keeps its first tokens.
        """
        if self.has_encoder:
            return [*ids[: self.context_length - 1], self.eos_id]
        room = max(1, min(n_new, self.context_length // 2))
        return [self.eos_id, *ids][-max(1, self.context_length - room) :]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        records: Sequence[int] | None = None,
        stop_ids: frozenset[int] = frozenset(),
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """`num_return_sequences` completions of each prompt, in order; of beams the best ones.

        `records` number the prompts for their random draws (default 0, 1, ..). A stop id ends a
        completion and is its last id. `on_token(row, id)` sees each token as it is chosen, but for
        beams. Prompts of similar length are decoded together.
        """
        beams = config.num_beams > 1
        rows: list[_Row] = []
        for i, prompt in enumerate(prompts):
            limit = config.max_new_tokens
            if config.max_length:
                limit = min(limit, config.max_length - (0 if self.has_encoder else len(prompt)))
            fitted = self.fit_prompt(prompt, limit)
            limit = min(limit, self.context_length - (1 if self.has_encoder else len(fitted)))
            record = records[i] if records is not None else i
            for sample in range(1 if beams else config.num_return_sequences):
                rows.append(_Row(len(rows), record, sample, fitted, max(0, limit)))
        self.model.eval()
        by_length = sorted(rows, key=lambda row: -len(row.prompt))
        for start in range(0, len(rows), config.batch_size):
            batch = by_length[start : start + config.batch_size]
            for row in batch:
                row.reason = "length"
            batch = [row for row in batch if row.limit > 0]
            if batch and beams:
                self._beams(batch, config, stop_ids)
            elif batch:
                self._run(batch, config, stop_ids, on_token)
        n = config.num_return_sequences
        if beams:
            found = [[c for _, c in row.done] or [Completion([], 0.0, "length")] for row in rows]
            return [(best + best[-1:] * n)[:n] for best in found]  # the last where there are fewer
        done = [Completion(r.ids, r.logprob, r.reason) for r in rows]
        return [done[i : i + n] for i in range(0, len(done), n)]

    def _read(self, rows: list[_Row]) -> tuple[_Context, Tensor, Tensor]:
        """Reads the prompts; returns the context, logits [B, V] and last position [B] of each."""
        prompts = [row.prompt for row in rows]
        if self.has_encoder:  # the samples of a source share one
            prompts = list(map(list, dict.fromkeys(map(tuple, prompts))))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids = torch.full((len(prompts), int(lengths.max())), self.pad_id, device=self.device)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = torch.tensor(prompt)
        dtype = self.model.embed.weight.dtype
        context = _Context(Cache(self.model.config, len(rows), self.device, dtype), None, None)
        if self.has_encoder:
            mask = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
            memory = self.model.memory(self.model.encode(ids, None if mask.all() else mask))
            place = {tuple(prompt): i for i, prompt in enumerate(prompts)}
            which = torch.tensor([place[tuple(row.prompt)] for row in rows], device=self.device)
            context.memory = [(k[which], v[which]) for k, v in memory]
            context.mask = None if mask.all() else mask[which]
            ids = torch.full((len(rows), 1), self.eos_id, device=self.device)
            lengths = torch.ones(len(rows), dtype=torch.long, device=self.device)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        hidden = self._forward(ids, positions, context, ids.shape[1])
        last = lengths - 1
        return context, self.model.logits(hidden[torch.arange(len(rows)), last]), last

    def _run(
        self,
        rows: list[_Row],
        config: GenerationConfig,
        stop_ids: frozenset[int],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        """Decodes rows together; a finished row leaves, so that the rest get cheaper."""
        context, logits, last = self._read(rows)
        while True:
            draws = [uniform(config.seed, row.record, row.sample, len(row.ids)) for row in rows]
            chosen = decoding.choose(logits, config, torch.tensor(draws, dtype=torch.float64))
            logprobs = -torch.nn.functional.cross_entropy(logits.float(), chosen, reduction="none")
            alive = []
            for i, (row, token, logprob) in enumerate(
                zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)
            ):
                row.logprob += logprob
                if token == self.eos_id:
                    row.reason = "eos"
                    continue
                row.ids.append(token)
                if on_token is not None:
                    on_token(row.index, token)
                if token in stop_ids:
                    row.reason = "stop"
                elif len(row.ids) < row.limit:
                    alive.append(i)
            if not alive:
                return
            if len(alive) < len(rows):
                keep = torch.tensor(alive, device=self.device)
                context.select(keep)
                rows, chosen, last = [rows[i] for i in alive], chosen[keep], last[keep]
            last = last + 1
            hidden = self._forward(chosen[:, None], last[:, None], context, int(last.max()) + 1)
            logits = self.model.logits(hidden[:, 0])

    def _beams(self, rows: list[_Row], config: GenerationConfig, stop_ids: frozenset[int]) -> None:
        """Beam search as in `transformers` (`early_stopping=False`), so that outputs are the same.

        A hypothesis that ends is scored by its log-probability, `<eos>` included, over its length,
        `<eos>` included, to the power of `length_penalty`. A prompt is done when it has `num_beams`
        of them and the best open one, scored at its present length, is no better than the worst.
        """
        b, alpha = config.num_beams, config.length_penalty
        context, logits, last = self._read(rows)
        v = logits.shape[-1]
        first = torch.arange(len(rows), device=self.device).repeat_interleave(b)
        context.cache.select(first)
        logits, last = logits[first], last[first]
        scores = torch.full((len(rows), b), -1e9, device=self.device)
        scores[:, 0] = 0.0  # all beams are one at first
        texts = torch.zeros((len(rows), b, 0), dtype=torch.long, device=self.device)
        ends = torch.zeros(v, dtype=torch.bool, device=self.device)
        ends[[self.eos_id, *stop_ids]] = True
        k = min(2 * b, v)
        while True:
            length = texts.shape[2] + 1
            top, tokens = decoding.largest(logits.float(), k)
            top = top - logits.float().logsumexp(-1, keepdim=True)
            total = (scores[:, :, None] + top.view(len(rows), b, k)).flatten(1)
            total, place = total.topk(min(2 * b, b * k), dim=1)  # in order
            beam = place // k
            token = tokens.view(len(rows), b * k).gather(1, place)
            full = torch.tensor([length >= row.limit for row in rows], device=self.device)
            ended = ends[token] | full[:, None]
            for i, rank in (ended & (total > -1e8))[:, :b].nonzero().tolist():
                row, said = rows[i], texts[i, beam[i, rank]].tolist()
                last_id, logprob = int(token[i, rank]), float(total[i, rank])
                reason = "eos" if last_id == self.eos_id else "length"
                reason = "stop" if last_id in stop_ids and reason != "eos" else reason
                ids = said if reason == "eos" else [*said, last_id]
                row.done.append((logprob / length**alpha, Completion(ids, logprob, reason)))
            for row in rows:
                row.done = sorted(row.done, key=lambda found: -found[0])[:b]
            total = total.masked_fill(ended, -1e9)
            scores, place = total.topk(min(b, total.shape[1]), dim=1)
            beam, token = beam.gather(1, place), token.gather(1, place)
            best = (scores[:, 0] / length**alpha).tolist()
            alive = [
                i
                for i, row in enumerate(rows)
                if length < row.limit and (len(row.done) < b or best[i] > row.done[-1][0])
            ]
            if not alive:
                return
            keep = torch.tensor(alive, device=self.device)
            beam, token, scores = beam[keep], token[keep], scores[keep]
            texts = torch.cat([texts[keep[:, None], beam], token[:, :, None]], dim=2)
            from_rows = (keep[:, None] * b + beam).flatten()
            rows = [rows[i] for i in alive]
            context.select(from_rows, b)
            last = last[from_rows] + 1
            chosen = token.flatten()[:, None]
            hidden = self._forward(chosen, last[:, None], context, int(last.max()) + 1)
            logits = self.model.logits(hidden[:, 0])

    def _forward(self, ids: Tensor, positions: Tensor, context: _Context, used: int) -> Tensor:
        keys = context.cache.use(used)
        return self.model(  # type: ignore[no-any-return]
            ids,
            positions,
            memory=context.memory,
            source_mask=context.mask,
            cache=context.cache.layers,
            key_positions=keys,
        )

    @torch.inference_mode()
    def next_logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """log P(next token | `<eos>` and ids): float64 [V], without temperature or constraints.

        Of an encoder-decoder the first token for a source.
        """
        self.model.eval()
        prompt = torch.tensor([self.fit_prompt(ids)], device=self.device)
        start = torch.tensor([[self.eos_id]], device=self.device)
        hidden = self.model(start, source_ids=prompt) if self.has_encoder else self.model(prompt)
        logits = self.model.logits(hidden[0, -1]).double()
        return logits.log_softmax(-1).cpu().numpy()

    @torch.inference_mode()
    def attention(self, ids: Sequence[int]) -> np.ndarray:
        """Self-attention weights [L, H, T + 1, T + 1] of `<eos>` and T ids; each row sums to 1."""
        if self.has_encoder:
            raise UsageError("attention can be shown of decoder-only models so far")
        self.model.eval()
        inputs = torch.tensor([[self.eos_id, *ids]], device=self.device)
        seen: list[Tensor] = []
        layers = [block.attn for block in self.model.decoder.blocks]
        try:
            for layer in layers:
                layer.watch = seen.append  # type: ignore[union-attr]
            self.model(inputs)
        finally:
            for layer in layers:
                layer.watch = None  # type: ignore[union-attr]
        return torch.cat(seen).double().cpu().numpy()

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
