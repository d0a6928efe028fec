"""The whole model against GPT-2 written out, and the laws of an encoder-decoder on every shape."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from test_model import IDS, SHAPES, make

from lmcli.inference.cache import Cache
from lmcli.model.presets import TRAINING, preset
from lmcli.model.transformer import Transformer, parameters, sinusoids

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
    cache = Cache(pair_model)
    cache.reserve(2, ids.shape[1])
    given = {"memory": memory, "source_mask": REAL, "cache": cache.layers}
    steps = []
    for i in range(ids.shape[1]):
        at = torch.tensor([[i]])
        cache.step(at, i + 1)
        steps.append(pair_model(ids[:, i : i + 1], at, **given))
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
    cache = Cache(model)
    cache.reserve(3, 4)
    cache.read(torch.arange(2), 3)
    model(ids, cache=cache.layers)
    cache.copy(torch.arange(3), rows, slice(0, 3))
    at = torch.full((3, 1), 3)
    cache.step(at, 4)
    step = model(following, at, cache=cache.layers)
    whole = model(torch.cat((ids[rows], following), dim=1))[:, -1:]
    torch.testing.assert_close(step, whole, rtol=0, atol=1e-5)


TORCH_NAMES = {
    "attn.o_proj": "self_attn.out_proj",
    "cross_attn.o_proj": "multihead_attn.out_proj",
    "mlp.up": "linear1",
    "mlp.down": "linear2",
}


def as_torch(model: Transformer, pre: bool) -> torch.nn.Transformer:
    """`torch.nn.Transformer` with the same weights; its stacks have no norm of their own when the
    layers end in one."""
    c = model.config
    peer = torch.nn.Transformer(
        c.d_model,
        c.n_heads,
        c.n_encoder_layers,
        c.n_layers,
        c.d_ff,
        dropout=0.0,
        activation=c.activation,
        layer_norm_eps=c.norm_eps,
        batch_first=True,
        norm_first=pre,
    ).double()
    if not pre:
        peer.encoder.norm = peer.decoder.norm = None
    state, ours = peer.state_dict(), model.state_dict()
    for side in ("encoder", "decoder"):
        for i in range(len(getattr(model, side).blocks)):
            at, to = f"{side}.blocks.{i}.", f"{side}.layers.{i}."
            norms = ["attn_norm", "mlp_norm"] if side == "encoder" else None
            for n, name in enumerate(norms or ["attn_norm", "cross_norm", "mlp_norm"], 1):
                for part in ("weight", "bias"):
                    state[f"{to}norm{n}.{part}"] = ours[f"{at}{name}.{part}"]
            for part in ("weight", "bias"):
                for name, theirs in TORCH_NAMES.items():
                    if f"{at}{name}.{part}" in ours:
                        state[f"{to}{theirs}.{part}"] = ours[f"{at}{name}.{part}"]
                for name, theirs in (("attn", "self_attn"), ("cross_attn", "multihead_attn")):
                    if f"{at}{name}.q_proj.{part}" in ours:
                        qkv = [ours[f"{at}{name}.{x}_proj.{part}"] for x in "qkv"]
                        state[f"{to}{theirs}.in_proj_{part}"] = torch.cat(qkv)
        if pre:
            for part in ("weight", "bias"):
                state[f"{side}.norm.{part}"] = ours[f"{side}.norm.{part}"]
    peer.load_state_dict(state)
    return peer


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("pre", [False, True], ids=["post-norm", "pre-norm"])
def test_the_2017_transformer_is_torchs_in_forward_and_gradients(pre):
    shape = dataclasses.asdict(preset("transformer-tiny"))
    shape |= {"d_model": 32, "d_ff": 48, "n_layers": 3, "n_encoder_layers": 2, "dropout": 0.0}
    shape |= {"norm_position": "pre" if pre else "post", "vocab_size": 60}
    model = make(**shape).double()
    with torch.no_grad():  # norms and biases that do something
        for name, p in model.named_parameters():
            if "norm" in name or "bias" in name:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    peer = as_torch(model, pre)
    position = sinusoids(torch.arange(20)[None], 32).double()
    targets = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

    def embed(ids):
        return model.embed(ids) * math.sqrt(32) + position[:, : ids.shape[1]]

    expected = peer(
        embed(SOURCE),
        embed(targets),
        tgt_mask=causal,
        tgt_is_causal=True,
        src_key_padding_mask=~REAL,
        memory_key_padding_mask=~REAL,
    )
    hidden = model(targets, source_ids=SOURCE, source_mask=REAL)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-10)
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).double()
    (hidden * weight).sum().backward()
    ours = model.embed.weight.grad.clone()
    model.embed.weight.grad = None
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours, model.embed.weight.grad, rtol=0, atol=1e-9)
    theirs = dict(peer.named_parameters())
    for i in range(3):
        block, layer = f"decoder.blocks.{i}.", f"decoder.layers.{i}."
        grads = dict(model.named_parameters())
        for name, other in TORCH_NAMES.items():
            one, two = grads[f"{block}{name}.weight"].grad, theirs[f"{layer}{other}.weight"].grad
            torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
        qkv = torch.cat([grads[f"{block}attn.{x}_proj.weight"].grad for x in "qkv"])
        torch.testing.assert_close(
            qkv, theirs[f"{layer}self_attn.in_proj_weight"].grad, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("size", ["tiny", "small", "base", "big"])
def test_published_presets_have_the_published_shape_and_recipe(size):
    name, c = f"transformer-{size}", preset(f"transformer-{size}").resolved(1000)
    assert c.embedding_scale == c.d_model**0.5 and c.norm_position == "post"
    blocks = sum(math.prod(s) for n, s in parameters(c).items() if ".blocks." in n)
    # Vaswani et al. 2017, table 3: 65M and 213M with a shared vocabulary of about 37,000
    millions = {"tiny": 1.325, "small": 31.5, "base": 44.1, "big": 176.4}[size]
    assert blocks / 1e6 == pytest.approx(millions, rel=0.01)
    assert TRAINING[name]["schedule"] == "inverse-sqrt"
    assert TRAINING[name]["label_smoothing"] == 0.1
