"""Decoding at the ends of its settings."""

import math

import pytest
import torch

from lmcli.config.generation import GenerationConfig
from lmcli.inference.decoding import choose, largest


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.0])
def test_near_zero_temperatures_are_greedy(temperature, top_p):
    logits = torch.tensor([[1.0, 12.0, 3.0], [-90.0, -95.0, -92.0]])
    draws = torch.tensor([0.5, 0.999], dtype=torch.float64)
    config = GenerationConfig(temperature=temperature, top_p=top_p)
    assert choose(logits, config, draws).tolist() == [1, 0]


def test_a_huge_temperature_is_uniform():
    logits = torch.tensor([[1.0, 12.0, 3.0, -40.0]]).expand(4, 4)
    draws = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    assert choose(logits, GenerationConfig(temperature=1e300), draws).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("n_finite", [1, 3, 40])
@pytest.mark.parametrize("v", [2050, 4000])
def test_the_largest_are_tokens_though_few_may_be_taken(n_finite, v):
    logits = torch.full((3, v), -math.inf)
    logits[:, -n_finite:] = torch.randn(3, n_finite)
    values, ids = largest(logits, 4)
    assert ids.max() < v
    torch.testing.assert_close(values, logits.topk(4).values)
    finite = values > -math.inf
    torch.testing.assert_close(logits.gather(1, ids)[finite], values[finite])
