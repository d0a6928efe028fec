"""The engine: ragged == alone, draws that know no batch, limits; and decoding by hand."""

import math

import numpy as np
import pytest
import torch
from test_engine import numbered
from test_model import make

from lmcli.config.generation import GenerationConfig
from lmcli.inference.batch import Batch
from lmcli.inference.cache import Cache, _group_rooms, free_bytes
from lmcli.inference.decoding import choose, keep_top_k, keep_top_p
from lmcli.inference.engine import Engine, Request
from lmcli.inference.search import Samples

EOS = 2
PROMPTS = [[5, 6, 7], [9], [], [8] * 14, [11, 12, 13, 14, 15, 16]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(make(), EOS, 0)


def config(**fields) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 12, "temperature": 0.9} | fields)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_ragged_batch_equals_each_prompt_alone(engine, temperature, batch_size):
    c = config(temperature=temperature, batch_size=batch_size)
    together = engine.generate(PROMPTS, c)
    for i, prompt in enumerate(PROMPTS):
        alone = numbered(engine, [prompt], [i], config(temperature=temperature))[0][0]
        assert together[i][0].ids == alone.ids
        assert together[i][0].logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_draws_know_the_record_not_its_place(engine):
    forward = numbered(engine, PROMPTS, [0, 1, 2, 3, 4], config())
    backward = numbered(engine, PROMPTS[::-1], [4, 3, 2, 1, 0], config())
    assert [c[0].ids for c in forward] == [c[0].ids for c in backward[::-1]]
    assert engine.generate([PROMPTS[0]], config(seed=1))[0][0].ids != forward[0][0].ids


def rows_of_each_step(engine, monkeypatch, requests, **fields) -> list[int]:
    """How many rows were under way at each step, and that every request had its tokens."""
    steps, step = [], Samples.step

    def count(self, batch):
        steps.append(len(batch.rows))
        step(self, batch)

    monkeypatch.setattr(Samples, "step", count)
    arriving = iter([requests])
    c = config(temperature=0.0, max_new_tokens=20, min_new_tokens=20, **fields)
    done = list(engine.stream(lambda n, wait: next(arriving, None), c))
    assert [len(d[0].ids) for d in done] == [r.limit for r in requests]
    return steps


def test_a_finished_row_makes_room_while_others_go_on(engine, monkeypatch):
    requests = [Request([5, 6], i, limit=n) for i, n in enumerate([20, 3, 3, 3, 3, 3])]
    steps = rows_of_each_step(engine, monkeypatch, requests, batch_size=2)
    assert steps == [2] * 15 + [1] * 5


def test_no_more_rows_than_memory_holds(engine, monkeypatch):
    requests = [Request([5, 6], i, limit=4) for i in range(5)]
    slots = (3 + 4) * Cache(engine.model).slot_bytes
    for most in (0, 1, 2, 3):
        monkeypatch.setattr("lmcli.inference.engine.free_bytes", lambda _, n=most: 2 * n * slots)
        steps = rows_of_each_step(engine, monkeypatch, requests, batch_size=8)
        assert max(steps) == max(1, most)


def test_a_control_groups_limit_bounds_the_memory(tmp_path):
    """Of both versions; a limit may stand above the process's own group, and be out of sight."""
    for group, limit, used in (
        ("job/step", "max", "anon 1000"),
        ("job", "5000", "anon 3000\nfile 900"),
        ("memory", "9223372036854771712", "total_rss 0"),
        ("memory/job", "7000", "rss 1\ntotal_rss 4500"),
    ):
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        name = "memory.limit_in_bytes" if group.startswith("memory") else "memory.max"
        (tmp_path / group / name).write_text(limit + "\n")
        (tmp_path / group / "memory.stat").write_text(used + "\n")
    second, first = "0::/job/step\n", "3:cpuset:/other\n4:memory:/job\n"
    assert min(_group_rooms(second, tmp_path)) == 2000
    assert min(_group_rooms(first, tmp_path)) == 2500
    assert list(_group_rooms("0::/elsewhere\n", tmp_path)) == []
    assert 0 < free_bytes(torch.device("cpu")) <= 1 << 40


def test_samples_of_one_prompt_share_its_reading(engine, monkeypatch):
    read, seen = Batch._read, []

    def count(self, prompts, at):
        seen.append(len(prompts))
        read(self, prompts, at)

    monkeypatch.setattr(Batch, "_read", count)
    engine.generate([PROMPTS[0], PROMPTS[1]], config(num_return_sequences=4, batch_size=8))
    assert sum(seen) == 2


def test_prompts_of_similar_length_are_read_together(engine, monkeypatch):
    read, seen = Batch._read, []

    def count(self, prompts, at):
        seen.append(sorted(len(prompt.ids) for prompt in prompts))
        read(self, prompts, at)

    monkeypatch.setattr(Batch, "_read", count)
    prompts = [[7] * n for n in (3, 12, 3, 12, 3, 12)]
    engine.generate(prompts, config(batch_size=3, min_new_tokens=12))
    assert seen == [[4] * 3, [13] * 3]


def test_samples_of_one_prompt_differ_and_repeat(engine):
    c = config(num_return_sequences=4, temperature=1.5)
    texts = [tuple(s.ids) for s in engine.generate([PROMPTS[0]], c)[0]]
    assert len(set(texts)) > 1
    assert texts == [tuple(s.ids) for s in engine.generate([PROMPTS[0]], c)[0]]


@torch.no_grad()
def test_greedy_is_argmax_of_the_uncached_model_and_logprob_is_its_own(engine):
    done = engine.generate([PROMPTS[0]], config(temperature=0.0))[0][0]
    ids, total = [EOS, *PROMPTS[0]], 0.0
    for token in done.ids:
        logits = engine.model.logits(engine.model(torch.tensor([ids]))[:, -1])[0]
        assert int(logits.argmax()) == token
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    assert done.logprob == pytest.approx(total, abs=1e-4)
    scored = engine.score(np.array([ids[:-1]]), np.array([ids[1:]]))[0]
    assert -scored[len(PROMPTS[0]) :].sum() == pytest.approx(total, abs=1e-4)


def test_lengths_and_the_context_limit(engine):
    long = [7] * 100
    assert len(engine.fit_prompt(long)) == engine.context_length - 1
    done = engine.generate([long, [5]], config(max_new_tokens=1000, temperature=2.0))
    assert len(engine.fit_prompt(long, 3)) == engine.context_length - 3
    assert len(engine.fit_prompt(long, 1000)) == -(-engine.context_length // 2)
    assert len(done[0][0].ids) <= engine.context_length // 2
    assert len(done[1][0].ids) <= engine.context_length - 2
    limited = engine.generate([[5, 6, 7], [5] * 9], config(max_length=8, temperature=0.0))
    assert len(limited[0][0].ids) <= 5 and limited[1][0].ids == []
    assert limited[1][0].finish_reason == "length"


def test_generation_ends_at_eos_and_at_stop_ids(engine):
    free = engine.generate([[5]], config(max_new_tokens=25, temperature=2.0))[0][0]
    stop = free.ids[1]
    c = config(max_new_tokens=25, temperature=2.0)
    stopped = engine.generate([[5]], c, stop_ids=frozenset([stop]))[0][0]
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert stopped.finish_reason == "stop"
    as_eos = Engine(engine.model, stop, 0)
    with torch.no_grad():
        prompt = as_eos.generate([[5]], c)
    assert stop not in prompt[0][0].ids


def test_top_k_and_top_p_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    assert torch.isfinite(keep_top_k(logits, 2))[0].tolist() == [False, True, False, True]
    assert torch.isfinite(keep_top_p(logits, 0.5))[0].tolist() == [False, True, False, True]
    assert torch.isfinite(keep_top_p(logits, 0.39))[0].tolist() == [False, True, False, False]
    assert torch.isfinite(keep_top_p(logits, 0.0001)).sum() == 1
    assert keep_top_k(logits, 0) is logits and keep_top_p(logits, 1.0) is logits


def test_choose_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    at = [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.7001, 0.999999]
    draws = torch.tensor(at, dtype=torch.float64)
    c = GenerationConfig(temperature=1.0)
    assert choose(logits.expand(7, 4), c, draws).tolist() == [0, 0, 1, 1, 2, 3, 3]
    cold = choose(logits.expand(7, 4), GenerationConfig(temperature=0.0), draws)
    assert cold.tolist() == [1] * 7
    top = GenerationConfig(temperature=1.0, top_k=1)
    assert choose(logits.expand(7, 4), top, draws).tolist() == [1] * 7


def test_sampling_frequencies_follow_the_distribution():
    p = [0.05, 0.6, 0.25, 0.1]
    n = 4000
    draws = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ids = choose(
        torch.log(torch.tensor([p])).expand(n, 4), GenerationConfig(temperature=1.0), draws
    )
    for token, share in enumerate(p):
        assert (ids == token).double().mean() == pytest.approx(share, abs=0.001)


def test_scores_are_nats():
    engine = Engine(make(), EOS, 0)
    ids = np.array([[2, 5, 6, 7]])
    scored = engine.score(ids[:, :-1], ids[:, 1:])
    logits = engine.model.logits(engine.model(torch.tensor(ids[:, :-1])))
    expected = -logits.log_softmax(-1)[0, [0, 1, 2], [5, 6, 7]]
    assert scored.shape == (1, 3) and scored.dtype == np.float32
    np.testing.assert_allclose(scored[0], expected.detach().numpy(), atol=1e-5)
    assert math.isfinite(scored.sum())
