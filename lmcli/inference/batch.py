"""The sequences that are decoded together: rows come and go, each with its own length.

A row is one sample of a prompt, or all the beams of one (`width`); n rows take n * width rows R of
the cache, the first ones. A prompt is read once however many rows begin with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmcli.inference.cache import Cache
from lmcli.model.transformer import Transformer


@dataclass(frozen=True)
class Completion:
    """Generated ids without `<eos>`; `logprobs` of each id, and of `<eos>` where it ended there,
    are the model's own: before temperature and other rules."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: str  # eos, stop or length

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)


@dataclass(eq=False)
class Prompt:
    """A prompt, or an encoder-decoder's source, and what has been made of it."""

    ids: list[int]
    record: int
    limit: int  # new tokens at most
    done: list[tuple[float, Completion]] = field(default_factory=list)  # by sample or by score
    left: int = 0  # rows that are not finished
    logits: Tensor | None = None  # after the prompt, for samples to come


@dataclass(eq=False)
class Row:
    """One sequence that grows, or the beams of a prompt."""

    prompt: Prompt
    sample: int = 0
    ids: list[int] = field(default_factory=list)  # of a sample; beams are in the cache
    logprobs: list[float] = field(default_factory=list)
    n: int = 0  # new tokens


class Batch:
    """The rows, the cache they are read from, and the logits [R, V] of their next tokens."""

    def __init__(self, model: Transformer, eos_id: int, pad_id: int, width: int) -> None:
        self.model, self.eos_id, self.pad_id, self.width = model, eos_id, pad_id, width
        self.device = model.embed.weight.device
        self.has_encoder = model.config.arch == "encoder-decoder"
        self.rows: list[Row] = []
        self.cache = Cache(model)
        self.memory = Cache(model)  # of sources: one row for all beams
        self.logits = torch.zeros((0, model.config.vocab_size), device=self.device)
        self.last = torch.zeros(0, dtype=torch.long, device=self.device)  # position [R]

    def start(self, prompt: Prompt) -> int:
        """The slot of a prompt's first new token."""
        return 1 if self.has_encoder else len(prompt.ids)

    def bytes(self, rows: Sequence[Row]) -> int:
        """What the cache may grow to with these rows beside those that are here."""
        rows = [*self.rows, *rows]
        slots = max(self.start(row.prompt) + row.prompt.limit for row in rows)
        sources = max(len(row.prompt.ids) for row in rows) if self.has_encoder else 0
        return len(rows) * (self.width * slots + sources) * self.cache.slot_bytes

    def texts(self) -> tuple[Tensor, Tensor]:
        """Ids [R, L] so far and how many [R] are real; the `<eos>` in front is not text."""
        return self.cache.ids[: len(self.last), 1 : int(self.last.max()) + 1], self.last

    def written(self) -> list[list[int]]:
        """The new ids of each of the R rows."""
        starts = [self.start(row.prompt) for row in self.rows for _ in range(self.width)]
        every = self.cache.ids[: len(self.last), : int(self.last.max()) + 1].tolist()
        ends = self.last.tolist()
        return [ids[a : b + 1] for ids, a, b in zip(every, starts, ends, strict=True)]

    def add(self, rows: Sequence[Row]) -> None:
        """Rows for the next step; prompts that no row here begins with are read."""
        n, w = len(self.rows), self.width
        holder = {row.prompt: i for i, row in enumerate(self.rows)}
        fresh = {}
        for i, row in enumerate(rows, n):
            if holder.setdefault(row.prompt, i) == i:
                fresh[row.prompt] = i
        self.rows += rows
        self.cache.reserve(len(self.rows) * w, 1)
        if self.has_encoder:
            self.memory.reserve(len(self.rows), 0)
        if fresh:
            self._read(list(fresh), self._tensor(list(fresh.values())))
        at = torch.arange(n, len(self.rows), device=self.device)
        source = self._tensor([holder[row.prompt] for row in rows])
        if self.has_encoder:
            self.memory.copy(at, source, slice(0, max(len(row.prompt.ids) for row in rows)))
        length = max(self.start(row.prompt) for row in rows)
        self.cache.copy(self._each(at), source.repeat_interleave(w) * w, slice(0, length))
        logits = [row.prompt.logits for row in rows for _ in range(w)]
        self.logits = torch.cat([self.logits, torch.stack(logits)])  # type: ignore[arg-type]
        last = [self.start(row.prompt) - 1 for row in rows for _ in range(w)]
        self.last = torch.cat([self.last, self._tensor(last)])

    def _read(self, prompts: list[Prompt], at: Tensor) -> None:
        """Reads prompts into the cache, for the rows `at`."""
        lengths = self._tensor([len(prompt.ids) for prompt in prompts])
        padded = pad_sequence([torch.tensor(prompt.ids) for prompt in prompts], True, self.pad_id)
        ids, memory, mask = padded.to(self.device), None, None
        if self.has_encoder:
            real = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
            mask = None if real.all() else real
            memory = self.model.memory(self.model.encode(ids, mask))
            self.memory.reserve(0, ids.shape[1])
            self.memory.read(at, ids.shape[1])
            for layer, (k, v) in zip(self.memory.layers, memory, strict=True):
                layer.update(k, v)
            ids, lengths = torch.full_like(ids[:, :1], self.eos_id), torch.ones_like(lengths)
        self.cache.reserve(0, ids.shape[1])
        self.cache.ids[at * self.width, : ids.shape[1]] = ids
        self.cache.read(at * self.width, ids.shape[1])
        hidden = self.model(ids, memory=memory, source_mask=mask, cache=self.cache.layers)
        hidden = hidden[torch.arange(len(ids), device=self.device), lengths - 1]
        for prompt, logits in zip(prompts, self.model.logits(hidden).float(), strict=True):
            prompt.logits = logits

    def keep(self, alive: list[int]) -> Tensor:
        """Drops the other rows; the last ones move to their places. Returns who is where now."""
        n = len(alive)
        late = iter(i for i in alive if i >= n)
        staying = set(alive)
        order = self._tensor([i if i in staying else next(late) for i in range(n)])
        if n < len(self.rows):
            at, used = torch.arange(n, device=self.device), int(self.last.max()) + 1
            self.cache.copy(self._each(at), self._each(order), slice(0, used))
            if self.has_encoder:
                self.memory.copy(at, order, slice(0, self.memory.ids.shape[1]))
            self.rows = [self.rows[i] for i in order.tolist()]
            self.last, self.logits = self.last[self._each(order)], self.logits[: n * self.width]
        return order

    def advance(self, ids: Tensor, logprobs: Tensor) -> None:
        """Writes the next id [R] of every row and reads it."""
        self.last = self.last + 1
        ends = {self.start(row.prompt) + row.n for row in self.rows}
        used = max(ends) + 1
        self.cache.reserve(0, used)
        at = torch.arange(len(ids), device=self.device)
        self.cache.ids[at, self.last], self.cache.logprobs[at, self.last] = ids, logprobs
        for row in self.rows:
            row.n += 1
        memory, mask = None, None
        if self.has_encoder:
            n = len(self.rows)
            lengths = self._tensor([len(row.prompt.ids) for row in self.rows])
            width = int(lengths.max())
            memory = [(x.k[:n, :, :width], x.v[:n, :, :width]) for x in self.memory.layers]
            if (lengths < width).any():
                mask = torch.arange(width, device=self.device) < lengths[:, None]
        slots, cache = self.last[: None if len(ends) > 1 else 1, None], self.cache.layers
        self.cache.step(slots, used)
        hidden = self.model(ids[:, None], slots, memory=memory, source_mask=mask, cache=cache)
        self.logits = self.model.logits(hidden[:, 0]).float()

    def _each(self, rows: Tensor) -> Tensor:
        """The places in the cache of some rows, [n] -> [n * width]."""
        beams = torch.arange(self.width, device=self.device)
        return (rows[:, None] * self.width + beams).flatten()

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
