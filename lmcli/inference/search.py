"""One step of all rows of a batch: draws of samples, or beams. n rows of b beams, V tokens."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lmcli.config.generation import GenerationConfig
from lmcli.inference import decoding
from lmcli.inference.batch import Batch, Completion
from lmcli.model.loss import token_nll
from lmcli.randomness import uniform

Stopped = Callable[[Sequence[int]], bool]
OnToken = Callable[[int, int, Sequence[int], bool], None]


class Rules:
    """What a text must and must not be, apart from what is drawn; and where it ends."""

    def __init__(
        self,
        config: GenerationConfig,
        eos_id: int,
        stop_ids: frozenset[int],
        stopped: Stopped | None,
        choices: Sequence[Sequence[int]],
    ) -> None:
        self.config, self.eos_id, self.stop_ids, self.stopped = config, eos_id, stop_ids, stopped
        self.ends = sorted({eos_id, *stop_ids})
        self.paths = decoding.paths(choices, eos_id)
        repeats = config.repetition_penalty != 1 or config.no_repeat_ngram
        self.any = bool(repeats or config.min_new_tokens or choices)

    def __call__(self, scores: Tensor, batch: Batch) -> Tensor:
        """Scores [R, V] under the rules; all but choices give way where they leave nothing."""
        if not self.any:
            return scores
        if self.paths:
            allowed = [self.paths.get(tuple(text), [self.eos_id]) for text in batch.written()]
            scores = decoding.keep_allowed(scores, allowed)
        ids, n = batch.texts()
        kept = decoding.penalize_repeats(scores, ids, n, self.config.repetition_penalty)
        kept = decoding.ban_ngrams(kept, ids, n, self.config.no_repeat_ngram)
        if self.config.min_new_tokens:
            short = [row.n < self.config.min_new_tokens for row in batch.rows]
            rows = torch.tensor(short, device=scores.device).repeat_interleave(batch.width)
            ends = torch.tensor(self.ends, device=scores.device)
            kept = kept.index_fill(1, ends, -decoding.INF).where(rows[:, None], kept)
        return kept.where((kept > -decoding.INF).any(-1, keepdim=True), scores)

    def reason(self, ids: Sequence[int], token: int, limit: int) -> str:
        """Why a text of `ids` (and `token`, unless it is `<eos>`) ends here; "" if it does not."""
        if token == self.eos_id:
            return "eos"
        if token in self.stop_ids or (self.stopped is not None and self.stopped(ids)):
            return "stop"
        return "length" if len(ids) >= limit else ""


class Samples:
    """One token for each row, drawn or the likeliest."""

    def __init__(self, rules: Rules, on_token: OnToken | None) -> None:
        self.rules, self.config, self.on_token = rules, rules.config, on_token

    def step(self, batch: Batch) -> None:
        config, rows = self.config, batch.rows
        draws = [0.0] * len(rows)
        if config.temperature:
            draws = [uniform(config.seed, r.prompt.record, r.sample, r.n) for r in rows]
        scores = self.rules(batch.logits, batch)
        chosen = decoding.choose(scores, config, torch.tensor(draws, dtype=torch.float64))
        own, alive = -token_nll(batch.logits, chosen), []
        found = zip(rows, chosen.tolist(), own.tolist(), strict=True)
        for i, (row, token, logprob) in enumerate(found):
            row.logprobs.append(logprob)
            if token != batch.eos_id:
                row.ids.append(token)
            reason = self.rules.reason(row.ids, token, row.prompt.limit)
            if self.on_token is not None:
                self.on_token(row.prompt.record, row.sample, row.ids, bool(reason))
            if reason:
                done = Completion(row.ids, row.logprobs, reason)
                row.prompt.done.append((-row.sample, done))
                row.prompt.left -= 1
            else:
                alive.append(i)
        order = batch.keep(alive)
        if alive:
            batch.advance(chosen[order], own[order])


class Beams:
    """Beam search as in `transformers` (`early_stopping=False`), so that outputs are the same.

    A hypothesis that ends is scored by its log-probability, `<eos>` included, over its length,
    `<eos>` included, to the power of `length_penalty`. A prompt is done when it has `num_beams` of
    them and the best open one, scored at its present length, is no better than the worst.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules, self.config = rules, rules.config
        self.scores = torch.zeros((0, self.config.num_beams))  # [n, b]

    def step(self, batch: Batch) -> None:
        b, alpha, rows, rules = batch.width, self.config.length_penalty, batch.rows, self.rules
        device, v = batch.device, batch.logits.shape[-1]
        new = torch.full((len(rows) - len(self.scores), b), -1e9, device=device)
        new[:, 0] = 0.0  # all beams are one at first
        scores = torch.cat([self.scores.to(device), new])
        lengths = [row.n + 1 for row in rows]
        # Enough for b that go on: m tokens end a text, of each beam and so of all m * b.
        k = min(b + max(b, len(rules.ends)), v)
        most = min((1 + len(rules.ends)) * b, k * b)
        logits = batch.logits
        norm = logits.logsumexp(-1, keepdim=True)
        if rules.any:
            top, tokens = decoding.largest(rules(logits - norm, batch), k)
        else:
            top, tokens = decoding.largest(logits, k)
            top = top - norm
        total = (scores[:, :, None] + top.view(len(rows), b, k)).flatten(1)
        total, place = total.topk(most, dim=1)  # in order
        beam = place // k
        token = tokens.view(len(rows), b * k).gather(1, place)
        each = torch.arange(len(rows), device=device)[:, None] * b + beam  # rows of the cache
        own = logits[each, token] - norm[each, 0]
        full = [n >= row.prompt.limit for n, row in zip(lengths, rows, strict=True)]
        ended = torch.isin(token, torch.tensor(rules.ends, device=device))
        ended |= torch.tensor(full, device=device)[:, None]
        looked = ended[:, :b] if rules.stopped is None else torch.ones_like(ended[:, : 2 * b])
        found = (looked & (total[:, : looked.shape[1]] > -1e8)).nonzero().tolist()
        written = batch.written() if found else []
        for i, rank in found:
            row, at, last_id = rows[i], int(each[i, rank]), int(token[i, rank])
            ids = written[at] if last_id == rules.eos_id else [*written[at], last_id]
            if reason := rules.reason(ids, last_id, row.prompt.limit):
                ended[i, rank] = True
                if rank < b:
                    start = batch.start(row.prompt)
                    logprobs = batch.cache.logprobs[at, start : start + row.n].tolist()
                    done = Completion(ids, [*logprobs, float(own[i, rank])], reason)
                    row.prompt.done.append((float(total[i, rank]) / lengths[i] ** alpha, done))
        total = total.masked_fill(ended, -1e9)
        scores, place = total.topk(b, dim=1)
        beam, token, own = (x.gather(1, place) for x in (beam, token, own))
        alive = []
        for i, (row, best) in enumerate(zip(rows, scores[:, 0].tolist(), strict=True)):
            best_done = sorted(row.prompt.done, key=lambda found: -found[0])[:b]
            row.prompt.done = best_done
            worst = best_done[-1][0] if len(best_done) == b else -decoding.INF
            if lengths[i] < row.prompt.limit and best > -1e8 and best / lengths[i] ** alpha > worst:
                alive.append(i)
            else:
                row.prompt.left = 0
        places = torch.arange(len(rows) * b, device=device)
        shared = min(batch.start(row.prompt) for row in rows)
        used = slice(shared, int(batch.last.max()) + 1)
        batch.cache.copy(places, (places.view(-1, b)[:, :1] + beam).flatten(), used)
        order = batch.keep(alive)
        self.scores = scores[order]
        if alive:
            batch.advance(token[order].flatten(), own[order].flatten())
