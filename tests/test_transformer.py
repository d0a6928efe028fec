"""The whole model against GPT-2 written out, and the laws of an encoder-decoder on every shape."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_model import IDS, SHAPES, make

from lmcli.inference.cache import Cache
from lmcli.model.transformer import Transformer, sinusoids

GPT2 = SHAPES["learned, layernorm, biases, tied"] | {"norm_eps": 1e-5, "output_bias": False}
SOURCE = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 0, 0, 0, 0]])
REAL = SOURCE != 0


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def pair_model(request) -> Transformer:
    """An encoder-decoder of every shape."""
    return make(arch="encoder-decoder", **request.param)


def test_gpt2_is_the_published_function_in_float64():
    """Radford et al. 2019 from the stored names alone: another reader of the file format."""
    model = make(**GPT2).double()
    p = dict(model.named_parameters())
    b, t, c, h = 1, IDS.shape[1], 32, 4

    def linear(x, name):
        return x @ p[name + ".weight"].T + p[name + ".bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * p[name + ".weight"] + p[name + ".bias"]

    x = p["embed.weight"][IDS] + p["position.weight"][:t]
    for i in range(2):
        at = f"decoder.blocks.{i}."
        n = norm(x, at + "attn_norm")
        q, k, v = (
            linear(n, f"{at}attn.{part}_proj").view(b, t, h, c // h).transpose(1, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(c // h)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c)
        x = x + linear(y, at + "attn.o_proj")
        u = linear(norm(x, at + "mlp_norm"), at + "mlp.up")
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        x = x + linear(u, at + "mlp.down")
    expected = norm(x, "decoder.norm") @ p["embed.weight"].T
    torch.testing.assert_close(model.logits(model(IDS)), expected, rtol=0, atol=1e-10)


def test_sinusoids_turn_at_the_rates_of_the_paper():
    width = 8
    table = sinusoids(torch.tensor([[0, 3, 200]]), width)[0]
    for row, position in enumerate((0, 3, 200)):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            assert table[row, i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[row, width // 2 + i] == pytest.approx(math.cos(angle), abs=1e-5)


@torch.no_grad()
def test_source_padding_is_invisible(pair_model):
    ids = torch.cat((IDS, IDS.flip(1)))
    padded = pair_model(ids, source_ids=SOURCE, source_mask=REAL)
    alone = pair_model(ids[1:], source_ids=SOURCE[1:, :3])
    torch.testing.assert_close(padded[1:], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cached_decoder_over_a_source_equals_the_uncached(pair_model):
    ids = torch.cat((IDS, IDS.flip(1)))
    memory = pair_model.memory(pair_model.encode(SOURCE, REAL))
    cache = Cache(pair_model.config, 2, ids.shape[1], torch.device("cpu"), torch.float32)
    steps = [
        pair_model(
            ids[:, i : i + 1],
            torch.tensor([[i]]),
            source_mask=REAL,
            memory=memory,
            cache=cache.layers,
            key_positions=cache.use(i + 1),
        )
        for i in range(ids.shape[1])
    ]
    whole = pair_model(ids, source_ids=SOURCE, source_mask=REAL)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)


def test_the_gradient_reaches_every_parameter_and_repeats_bit_for_bit(pair_model):
    def gradients() -> dict[str, torch.Tensor]:
        pair_model.zero_grad()
        logits = pair_model.logits(pair_model(IDS, source_ids=SOURCE[:1]))
        F.cross_entropy(logits[0, :-1], IDS[0, 1:]).backward()
        return {name: p.grad.clone() for name, p in pair_model.named_parameters()}

    first, again = gradients(), gradients()
    for name, gradient in first.items():
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, name
        assert torch.equal(gradient, again[name]), name


@torch.no_grad()
def test_reordered_cache_rows_are_the_reordered_texts():
    model, rows = make(), torch.tensor([1, 0, 1])
    ids, following = torch.tensor([[2, 5, 6], [2, 7, 8]]), torch.tensor([[9], [10], [11]])
    cache = Cache(model.config, 2, 4, torch.device("cpu"), torch.float32)
    model(ids, torch.arange(3)[None], cache=cache.layers, key_positions=cache.use(3))
    cache.select(rows)
    step = model(following, torch.tensor([[3]]), cache=cache.layers, key_positions=cache.use(4))
    whole = model(torch.cat((ids[rows], following), dim=1))[:, -1:]
    torch.testing.assert_close(step, whole, rtol=0, atol=1e-5)
