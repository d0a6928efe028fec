"""The one inference engine: batched generation with a cache, and scoring. Token ids only.

Every prompt is preceded by one `<eos>`, because documents follow one in training. Generation stops
at `<eos>`, at a stop id, at the length asked for, or at the model's context length; a prompt that
does not fit keeps its last tokens (`Engine.fit_prompt`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lmcli.config.generation import GenerationConfig
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
    """One sequence being decoded."""

    index: int
    record: int
    sample: int
    prompt: list[int]
    limit: int  # new tokens at most
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    reason: str = ""


class Engine:
    """Generates and scores with one model; keeps no state between calls."""

    def __init__(self, model: Transformer, eos_id: int, pad_id: int) -> None:
        self.model, self.eos_id, self.pad_id = model, eos_id, pad_id
        self.device = model.embed.weight.device

    @property
    def context_length(self) -> int:
        return self.model.config.context_length

    def fit_prompt(self, ids: Sequence[int], n_new: int = 1) -> list[int]:
        """`<eos>` and the prompt, or its last tokens that leave room for `n_new` more.

        New tokens may take half of the context from a prompt, and no more.
        """
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
        """`num_return_sequences` completions of each prompt, in order.

        `records` number the prompts for their random draws (default 0, 1, ..). A stop id ends a
        completion and is its last id. `on_token(row, id)` sees each token as it is chosen.
        """
        rows: list[_Row] = []
        for i, prompt in enumerate(prompts):
            limit = config.max_new_tokens
            if config.max_length:
                limit = min(limit, config.max_length - len(prompt))
            fitted = self.fit_prompt(prompt, limit)
            limit = min(limit, self.context_length - len(fitted))
            record = records[i] if records is not None else i
            for sample in range(config.num_return_sequences):
                rows.append(_Row(len(rows), record, sample, fitted, max(0, limit)))
        self.model.eval()
        for start in range(0, len(rows), config.batch_size):
            self._run(rows[start : start + config.batch_size], config, stop_ids, on_token)
        done = [Completion(r.ids, r.logprob, r.reason) for r in rows]
        n = config.num_return_sequences
        return [done[i : i + n] for i in range(0, len(done), n)]

    def _run(
        self,
        rows: list[_Row],
        config: GenerationConfig,
        stop_ids: frozenset[int],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        """Decodes rows together; a finished row leaves, so that the rest get cheaper."""
        for row in rows:
            row.reason = "length"
        rows = [row for row in rows if row.limit > 0]
        if not rows:
            return
        lengths = [len(row.prompt) for row in rows]
        slots = max(n + row.limit for n, row in zip(lengths, rows, strict=True))
        cache = Cache(self.model.config, len(rows), slots, self.device, self._cache_dtype())
        ids = torch.full((len(rows), max(lengths)), self.pad_id, device=self.device)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = torch.tensor(row.prompt)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        last = torch.tensor(lengths, device=self.device) - 1
        hidden = self._forward(ids, positions, cache, ids.shape[1])
        logits = self.model.logits(hidden[torch.arange(len(rows)), last])
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
                cache.select(keep)
                rows, chosen, last = [rows[i] for i in alive], chosen[keep], last[keep]
            last = last + 1
            hidden = self._forward(chosen[:, None], last[:, None], cache, int(last.max()) + 1)
            logits = self.model.logits(hidden[:, 0])

    def _forward(self, ids: Tensor, positions: Tensor, cache: Cache, used: int) -> Tensor:
        keys = cache.use(used)
        return self.model(ids, positions, cache=cache.layers, key_positions=keys)  # type: ignore[no-any-return]

    def _cache_dtype(self) -> torch.dtype:
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.model.embed.weight.dtype

    @torch.inference_mode()
    def next_logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """log P(next token | `<eos>` and ids): float64 [V], without temperature or constraints."""
        self.model.eval()
        hidden = self.model(torch.tensor([self.fit_prompt(ids)], device=self.device))
        logits = self.model.logits(hidden[0, -1]).double()
        return logits.log_softmax(-1).cpu().numpy()

    @torch.inference_mode()
    def attention(self, ids: Sequence[int]) -> np.ndarray:
        """Self-attention weights [L, H, T + 1, T + 1] of `<eos>` and T ids; each row sums to 1."""
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
