"""The model against written formulas in float64, and law 2 on every shape it can take."""

import math

import pytest
import torch
import torch.nn.functional as F

from lmcli.config.model import ModelConfig
from lmcli.errors import UsageError
from lmcli.inference.cache import Cache
from lmcli.model import loss as loss_module
from lmcli.model.attention import attention_weights, relative_bucket, rotate, rotation
from lmcli.model.kernels import Dropout
from lmcli.model.loss import nll, summed_nll, token_nll
from lmcli.model.presets import PRESETS, preset
from lmcli.model.transformer import Transformer, sinusoids

SMALL = {"vocab_size": 50, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": 32}
SHAPES = {
    "default": {},
    "gqa": {"n_kv_heads": 2},
    "one kv head, wide heads": {"n_kv_heads": 1, "head_dim": 12},
    "learned, layernorm, biases, tied": {
        "position": "learned",
        "norm": "layernorm",
        "norm_bias": True,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "activation": "gelu_tanh",
        "tie_embeddings": True,
        "output_bias": True,
        "init": "gpt2",
    },
    "2017": {
        "position": "sinusoidal",
        "norm": "layernorm",
        "norm_bias": True,
        "norm_position": "post",
        "activation": "relu",
        "qk_norm": False,
        "embedding_scale": 0.0,
        "tie_embeddings": True,
    },
    "relative": {"position": "relative", "attention_scale": 1.0},
    "window": {"sliding_window": 5},
    "no positions, swiglu": {"position": "none", "activation": "swiglu"},
    "scaled rope, geglu": {"rope_scaling": 4.0, "rope_theta": 500.0, "activation": "geglu"},
}


def make(seed: int = 0, **fields) -> Transformer:
    model = Transformer(ModelConfig(**SMALL | fields).resolved())
    model.init_weights(seed)
    # zero output projections would hide mistakes
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def model(request) -> Transformer:
    return make(**request.param)


IDS = torch.tensor([[7, 3, 9, 11, 4, 30, 21, 8, 17, 2, 40, 6]])


def test_self_attention_is_the_written_formula_in_float64():
    attention = make(position="none", qk_norm=False).double().decoder.blocks[0].attn
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    q = (x @ attention.q_proj.weight.T).view(2, 6, 4, 8).transpose(1, 2)
    k = (x @ attention.k_proj.weight.T).view(2, 6, 4, 8).transpose(1, 2)
    v = (x @ attention.v_proj.weight.T).view(2, 6, 4, 8).transpose(1, 2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(8)
    for causal in (True, False):
        allowed = torch.ones(6, 6).tril().bool() if causal else torch.ones(6, 6).bool()
        weights = torch.exp(scores) * allowed
        weights = weights / weights.sum(-1, keepdim=True)
        y = (weights @ v).transpose(1, 2).reshape(2, 6, 32) @ attention.o_proj.weight.T
        torch.testing.assert_close(attention(x, None, causal), y, rtol=0, atol=1e-12)
        shown = attention_weights(q, k, 8**-0.5, allowed)
        torch.testing.assert_close(shown, weights, rtol=0, atol=1e-12)
        torch.testing.assert_close(shown.sum(-1), torch.ones_like(shown.sum(-1)))


def test_cross_attention_is_the_written_formula_in_float64():
    attention = make(qk_norm=False).double().decoder.blocks[0].attn
    x, memory = torch.randn(2, 3, 32).double(), torch.randn(2, 5, 32).double()
    q = (x @ attention.q_proj.weight.T).view(2, 3, 4, 8).transpose(1, 2)
    k = (memory @ attention.k_proj.weight.T).view(2, 5, 4, 8).transpose(1, 2)
    v = (memory @ attention.v_proj.weight.T).view(2, 5, 4, 8).transpose(1, 2)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    y = (weights @ v).transpose(1, 2).reshape(2, 3, 32) @ attention.o_proj.weight.T
    out = attention(x, None, False, memory=attention.keys_values(memory))
    torch.testing.assert_close(out, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_softmax_of_hw_plus_b_in_float64(tied):
    model = make(tie_embeddings=tied, output_bias=True).double()
    h = torch.randn(5, 32, dtype=torch.float64)
    w = model.embed.weight if tied else model.output.weight
    b = model.output_bias if tied else model.output.bias
    scores = h @ w.T + b
    expected = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
    torch.testing.assert_close(model.logits(h).softmax(-1), expected, rtol=0, atol=1e-12)
    target = torch.tensor([1, 2, 3, 4, 5])
    nats = -torch.log(expected[torch.arange(5), target])
    torch.testing.assert_close(token_nll(scores, target).double(), nats, rtol=1e-6, atol=1e-6)


def test_the_future_never_affects_the_past(model):
    changed = IDS.clone()
    changed[0, 7:] = 1
    a, b = model(IDS)[:, :7], model(changed)[:, :7]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not torch.allclose(model(IDS)[:, 7:], model(changed)[:, 7:])


def cached(model: Transformer, ids: torch.Tensor, read: int) -> torch.Tensor:
    """The first `read` tokens at once, as a prompt is, the others one by one."""
    cache = Cache(model)
    cache.reserve(len(ids), ids.shape[1])
    cache.read(torch.arange(len(ids)), read)
    out = [model(ids[:, :read], cache=cache.layers)]
    for i in range(read, ids.shape[1]):
        at = torch.full((len(ids), 1), i)
        cache.step(at, i + 1)
        out.append(model(ids[:, i : i + 1], at, cache=cache.layers))
    return torch.cat(out, dim=1)


def test_cached_equals_uncached(model):
    ids = torch.cat((IDS, IDS.flip(1)))
    for read in (12, 5, 1):
        torch.testing.assert_close(cached(model, ids, read), model(ids), rtol=0, atol=1e-5)


def test_segments_keep_packed_texts_apart():
    model = make()
    segments = torch.tensor([[0] * 5 + [1] * 7])
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = model(IDS, positions, segments=segments)
    alone = torch.cat((model(IDS[:, :5]), model(IDS[:, 5:])), dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def test_encoder_decoder_shares_the_block_and_padding_is_invisible():
    model = make(arch="encoder-decoder", n_encoder_layers=3)
    assert len(model.encoder.blocks) == 3 and len(model.decoder.blocks) == 2
    names = {n for n, _ in make().named_parameters()}
    assert names < {n for n, _ in model.named_parameters()}
    source = torch.tensor([[5, 6, 7, 8]])
    plain = model(IDS, source_ids=source, source_mask=torch.ones(1, 4).bool())
    padded = torch.tensor([[5, 6, 7, 8, 0, 0]])
    mask = padded != 0
    torch.testing.assert_close(
        model(IDS, source_ids=padded, source_mask=mask), plain, rtol=0, atol=1e-5
    )
    other = torch.tensor([[5, 6, 7, 9]])
    assert not torch.allclose(model(IDS, source_ids=other), plain)
    # the encoder sees both ways, the decoder does not
    assert not torch.allclose(model.encode(source)[:, 0], model.encode(other)[:, 0])
    changed = IDS.clone()
    changed[0, 7:] = 1
    a, b = (model(i, source_ids=source)[:, :7] for i in (IDS, changed))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_rope_depends_on_relative_position_only():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def dot(i: int, j: int) -> float:
        config = ModelConfig(head_dim=16, d_model=64)
        at = [rotation(torch.tensor([[p]]), config, torch.float64) for p in (i, j)]
        return float((rotate(q, *at[0]) * rotate(k, *at[1])).sum())

    assert dot(3, 1) == pytest.approx(dot(9, 7), abs=1e-6)
    assert dot(3, 1) != pytest.approx(dot(3, 2), abs=1e-3)


def test_sinusoids_are_the_papers_in_halves():
    table = sinusoids(torch.tensor([[0, 1, 5]]), 8)[0]
    assert table[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert table[2, 0] == pytest.approx(math.sin(5)) and table[2, 4] == pytest.approx(math.cos(5))


def test_relative_buckets_are_exact_near_by():
    distance = torch.arange(-40, 41)
    causal = relative_bucket(distance, True)
    assert causal[40 - 15 : 41].tolist() == list(range(15, -1, -1)) and causal[41:].max() == 0
    both = relative_bucket(distance, False)
    assert both[41] == 17 and both[39] == 1 and both[:40].max() < 16 <= both[41:].min()


@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout"])
def test_dropout_is_for_training_only(dropout):
    model = make(**{dropout: 0.5})
    torch.testing.assert_close(model(IDS), model(IDS))
    model.train()
    assert not torch.allclose(model(IDS), model(IDS))


def test_chunked_loss_is_the_plain_one_in_value_and_gradient(monkeypatch):
    model = make()
    hidden = torch.randn(3, 10, 32, requires_grad=True)
    targets = torch.randint(0, 50, (3, 10))
    mask = torch.rand(3, 10) > 0.3
    grads = []
    for n_bytes in (2**26, 50 * 4 * 4):
        monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", n_bytes)
        hidden.grad = model.output.weight.grad = None
        value = summed_nll(model, hidden, targets, mask)
        value.backward()
        grads.append((value.detach(), hidden.grad.clone(), model.output.weight.grad.clone()))
    for plain, chunked in zip(*grads, strict=True):
        torch.testing.assert_close(plain, chunked, rtol=1e-5, atol=1e-6)
    expected = F.cross_entropy(
        model.logits(hidden).flatten(0, 1), targets.flatten(), reduction="none"
    )
    torch.testing.assert_close(nll(model, hidden, targets).flatten(), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("tied", [True, False])
def test_the_fused_loss_has_the_gradients_of_cross_entropy(monkeypatch, tied, smoothing):
    """In float64, over several chunks, with a bias, and with rows that do not count."""
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 50 * 4 * 8)
    model = make(tie_embeddings=tied, output_bias=True).double()
    hidden = torch.randn(3, 10, 32, dtype=torch.float64, requires_grad=True)
    targets, mask = torch.randint(0, 50, (3, 10)), torch.rand(3, 10) > 0.3
    learns = [hidden, model.output_weight, model.output_bias_or_none]
    fused = 0.5 * summed_nll(model, hidden, targets, mask, smoothing)
    plain = 0.5 * F.cross_entropy(
        model.logits(hidden)[mask], targets[mask], reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(fused.double(), plain, rtol=1e-6, atol=0)
    for one, other in zip(
        torch.autograd.grad(fused, learns), torch.autograd.grad(plain, learns), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_weights_depend_on_seed_and_name_alone():
    first, again, other = (Transformer(ModelConfig(**SMALL).resolved()) for _ in range(3))
    torch.manual_seed(1)
    first.init_weights(5)
    torch.manual_seed(2)
    again.init_weights(5)
    other.init_weights(6)
    deeper = Transformer(ModelConfig(**SMALL | {"n_layers": 3}).resolved())
    deeper.init_weights(5)
    for name, p in first.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
        assert torch.equal(p, deeper.get_parameter(name))
    assert not torch.equal(first.embed.weight, other.embed.weight)
    assert first.output.weight.abs().max() == 0
    assert first.decoder.blocks[0].attn.o_proj.weight.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2_presets_have_the_published_size(name, parameters):
    with torch.device("meta"):
        assert Transformer(preset(name).resolved()).n_parameters() == parameters


def test_every_preset_runs_and_grows():
    sizes = []
    for name in ("nano", "micro", "mini", "small", "medium"):
        with torch.device("meta"):
            sizes.append(Transformer(PRESETS[name].resolved(4096)).n_parameters())
    assert sizes == sorted(sizes)
    with pytest.raises(UsageError, match=r"--preset 'nan0' is not one of.*mean 'nano'"):
        preset("nan0")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"d_model": 30}, "--d-model 30 is not a multiple of --n-heads 4"),
        ({"n_kv_heads": 3}, "--n-heads 4 is not a multiple of --n-kv-heads 3"),
        ({"head_dim": 7}, "--position rope needs an even --head-dim"),
    ],
)
def test_impossible_shapes_name_the_flag(fields, says):
    with pytest.raises(UsageError, match=says):
        ModelConfig(**SMALL | fields).resolved()


def test_parameter_names_are_the_file_format():
    assert [n for n, _ in make(n_layers=1).named_parameters()] == [
        "embed.weight",
        "decoder.blocks.0.attn_norm.weight",
        "decoder.blocks.0.attn.q_proj.weight",
        "decoder.blocks.0.attn.k_proj.weight",
        "decoder.blocks.0.attn.v_proj.weight",
        "decoder.blocks.0.attn.o_proj.weight",
        "decoder.blocks.0.attn.q_norm.weight",
        "decoder.blocks.0.attn.k_norm.weight",
        "decoder.blocks.0.mlp_norm.weight",
        "decoder.blocks.0.mlp.up.weight",
        "decoder.blocks.0.mlp.down.weight",
        "decoder.norm.weight",
        "output.weight",
    ]


def test_dropout_keeps_the_mean_and_repeats_with_its_seed():
    drop, x = Dropout(0.3).train(), torch.ones(1001, 1000)
    torch.manual_seed(1)
    one = drop(x)
    assert sorted(one.unique().tolist()) == pytest.approx([0.0, 1 / 0.7], rel=1e-4)
    assert (one == 0).float().mean() == pytest.approx(0.3, abs=0.002)
    for part in one.split(100):  # of every place alike
        assert (part == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    torch.manual_seed(1)
    assert torch.equal(one, drop(x))
    assert torch.equal(drop.eval()(x), x)
