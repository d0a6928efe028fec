"""The engine on every shape of model, and at the smallest contexts."""

import pytest
from test_model import SHAPES, make

from lmcli.config.generation import GenerationConfig
from lmcli.inference.engine import Engine, Request

PROMPTS = [[5, 6, 7], [9], [], [8] * 14, [3] * 29, [4] * 60]


def numbered(engine, prompts, records, config):
    """The completions of prompts that are these records."""
    there = iter([[*map(Request, prompts, records)]])
    return list(engine.stream(lambda n, wait: next(there, None), config))


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES.keys())
def test_a_ragged_batch_equals_each_prompt_alone(fields):
    engine = Engine(make(**fields), 2, 0)
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, batch_size=4)
    together = engine.generate(PROMPTS, config)
    for i, prompt in enumerate(PROMPTS):
        alone = numbered(engine, [prompt], [i], config)[0][0]
        assert together[i][0].ids == alone.ids
        assert together[i][0].logprob == pytest.approx(alone.logprob, abs=1e-4)


@pytest.mark.parametrize("context_length", [1, 2, 3])
@pytest.mark.parametrize("prompt", [[], [1], [1, 2, 3, 4]])
def test_the_smallest_contexts_hold_what_they_can(context_length, prompt):
    engine = Engine(make(context_length=context_length, position="learned"), 49, 0)
    fitted = engine.fit_prompt(prompt)
    assert len(fitted) == min(len(prompt) + 1, max(1, context_length - 1))
    assert fitted == [49, *prompt][-len(fitted) :]
    done = engine.generate([prompt], GenerationConfig(temperature=0.0))[0][0]
    assert len(done.ids) <= context_length - len(fitted)


def test_no_prompts_no_completions():
    assert Engine(make(), 2, 0).generate([], GenerationConfig()) == []
