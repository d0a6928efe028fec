"""Layers with hand-written gradients, and every fast path against the plain one in float32."""

import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_model import SHAPES, make

from lmcli.config.training import TrainingConfig
from lmcli.dataset.batches import Batch
from lmcli.model import kernels
from lmcli.model.kernels import RMSNorm, _Attention, _RMSNorm
from lmcli.model.loss import summed_nll
from lmcli.randomness import INCREMENT
from lmcli.training import precision
from lmcli.training.optimizers import Optimizer
from lmcli.training.precision import Working
from lmcli.training.step import gradients


def test_the_written_gradient_of_rmsnorm_is_the_true_one():
    x = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-6), (x, weight))
    ours, torchs = _RMSNorm.apply(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-12)


def test_rmsnorm_of_zeros_is_zero_with_a_finite_gradient():
    norm = RMSNorm(8, 1e-6)
    torch.nn.init.ones_(norm.weight)
    x = torch.zeros(1, 2, 8, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.abs().max() == 0 and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("bias", ["none", "causal", "rows", "heads"])
def test_the_written_gradient_of_attention_is_the_true_one(bias):
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64).requires_grad_() for n in (5, 6, 6))
    shapes = {"none": (), "causal": (5, 6), "rows": (2, 1, 5, 6), "heads": (1, 3, 5, 6)}
    mask = torch.randn(shapes[bias], dtype=torch.float64, requires_grad=bias != "none")
    mask = mask if bias != "none" else torch.zeros(())

    def ours(q, k, v, mask):
        return _Attention.apply(q, k, v, mask, False, 0.7, 0.0)

    assert torch.autograd.gradcheck(ours, (q, k, v, mask.double()))
    plain = F.scaled_dot_product_attention(q, k, v, mask.expand(2, 3, 5, 6), scale=0.7)
    torch.testing.assert_close(ours(q, k, v, mask.double()), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_keys", [8, 11])
def test_causal_attention_some_queries_at_a_time_is_the_whole_one(n_keys, monkeypatch):
    monkeypatch.setattr(kernels, "QUERIES", 3)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (8, n_keys, n_keys))
    given = [x.requires_grad_() for x in (q, k, v)]
    none = torch.zeros((), dtype=torch.float64)

    def ours(q, k, v):
        return _Attention.apply(q, k, v, none, True, 0.7, 0.0)

    assert torch.autograd.gradcheck(ours, given)
    seen = torch.ones(8, n_keys, dtype=torch.bool).tril(n_keys - 8)
    plain = F.scaled_dot_product_attention(q, k, v, seen, scale=0.7)
    torch.testing.assert_close(ours(*given), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_dropped_attention_has_the_gradient_of_what_was_kept(causal, monkeypatch):
    monkeypatch.setattr(kernels, "QUERIES", 6)
    q, k, v = (torch.randn(1, 2, 16, 4, dtype=torch.float64).requires_grad_() for _ in range(3))

    def ours(*qkv):
        torch.manual_seed(0)
        return _Attention.apply(*qkv, torch.zeros(()).double(), causal, 0.5, 0.4)

    assert torch.autograd.gradcheck(ours, (q, k, v))
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.5)
    assert not torch.allclose(ours(q, k, v), plain)
    k.data.zero_()
    v.data.fill_(1.0)
    shares = ours(q, k, v)[..., 0]  # of the weights of each query that were kept, times 1 / 0.6
    assert 0.6 < shares.mean() < 1.4
    if causal:
        first = shares[0, :, 0] * 0.6  # one key only
        assert ((first - first.round()).abs() < 1e-4).all()


def test_random_bits_are_balanced_apart_and_their_seeds(monkeypatch):
    """Each bit of 64, neighbours at every distance of two lanes, parts of the whole, two calls."""
    monkeypatch.setattr(kernels, "CACHED", 2**14)
    n = 2**18
    torch.manual_seed(1)
    one, two = kernels.random_bits(n), kernels.random_bits(n)
    torch.manual_seed(1)
    assert torch.equal(one, kernels.random_bits(n)) and len(one) == n
    signs = torch.stack([(one >> i & 1) for i in range(64)]).float() * 2 - 1
    assert signs.mean(1).abs().max() < 5 / n**0.5
    for distance in (1, 2, 64, 2**14):
        along = signs[:, :-distance] @ signs[:, distance:].T / (n - distance)
        assert along.abs().max() < 6 / n**0.5
    other = torch.stack([(two >> i & 1) for i in range(64)]).float() * 2 - 1
    assert (signs @ other.T / n).abs().max() < 6 / n**0.5
    among = signs @ signs.T / n
    assert (among - torch.eye(64)).abs().max() < 6 / n**0.5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_in_bfloat16_is_torchs(kv_heads, monkeypatch):
    """Causal, with fewer key heads, and with a row of the mask that sees nothing but padding."""
    monkeypatch.setattr(kernels, "QUERIES", 16)
    q, grad = torch.randn(2, 2, 4, 33, 16).bfloat16()
    k, v = torch.randn(2, 2, kv_heads, 33, 16).bfloat16()
    seen = torch.rand(2, 1, 33, 33) > 0.4
    seen[..., 0] = True
    for mask, causal in ((None, True), (None, False), (seen, False)):
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            given = [t.detach().clone().to(dtype).requires_grad_() for t in (q, k, v)]
            out = kernels.attend(*given, mask, causal, 0.25, 0.0)
            out.backward(grad.to(dtype))
            found.append([out.detach(), *(t.grad for t in given)])
        for low, exact in zip(*found, strict=True):
            assert (low.float() - exact).norm() < 0.02 * exact.norm()


def test_a_weights_gradient_in_parts_is_the_whole_one():
    x, grad = torch.randn(2000, 512), torch.randn(2000, 520)
    torch.testing.assert_close(kernels.weight_grad(grad, x), grad.T @ x, rtol=1e-4, atol=1e-3)


def test_sums_of_many_parts_keep_what_is_small(monkeypatch):
    """Gradients of many rows that point the same way, a weight's and the output layer's."""
    monkeypatch.setattr(kernels, "ROWS", 4)
    monkeypatch.setattr(kernels, "LARGE", 1)
    monkeypatch.setattr("lmcli.model.loss._chunk", lambda *_: 4)
    x, grad = 1 + torch.rand(4000, 32).bfloat16(), 1 + torch.rand(4000, 24).bfloat16()
    exact = grad.double().T @ x.double()
    assert (kernels.weight_grad(grad, x) - exact).norm() < 0.004 * exact.norm()
    model = make(init="gpt2", vocab_size=64).bfloat16()
    targets = torch.zeros(4000, dtype=torch.long)
    summed_nll(model, x, targets).backward()
    weight = model.output_weight
    logits = x.double() @ weight.detach().double().T
    exact = (logits.softmax(1) - F.one_hot(targets, 64)).T @ x.double()
    assert (weight.grad - exact).norm() < 0.006 * exact.norm()


def test_z_loss_has_its_written_gradient():
    model = make().double()
    hidden = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (7,))
    logits = model.logits(hidden)
    plain = F.cross_entropy(logits, targets, reduction="sum") + 0.3 * (
        logits.logsumexp(1).square().sum()
    )
    ours = summed_nll(model, hidden, targets, z_loss=0.3)
    expected = torch.autograd.grad(plain, hidden)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, hidden)[0], expected, rtol=1e-6, atol=1e-8)
    nats = F.cross_entropy(logits, targets, reduction="sum")
    assert ours.item() == pytest.approx(nats.item())


# ---- a run in which all is fast against one in which nothing is ----


def pattern(config: TrainingConfig, index: int = 1) -> list[Batch]:
    """The parts of a batch of a text that can be learned: counting, from a random place on."""
    size = config.batch_size
    first = np.random.default_rng(index).integers(50, size=(size, 1))
    ids = (first + np.arange(17)) * 7 % 50
    mask = np.ones((size, 16), dtype=bool)
    return [
        Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), mask[: len(rows)], np.arange(16)[None])
        for rows in np.split(ids, size // (config.micro_batch_size or size))
    ]


def losses(steps: int, shape: str = "default", recompute: bool = False, **settings) -> list[float]:
    model = make(**{"init": "gpt2"} | SHAPES[shape])
    config = TrainingConfig(lr=1e-2, batch_size=8, optimizer="muon", **settings)
    machine = precision.resolve("cpu", config.dtype, 1)
    optimizer = Optimizer(model, config)
    working, found = Working(model, machine, config.compile == "on", recompute), []
    for step in range(1, steps + 1):
        found.append(gradients(working, pattern(config, step), config, step)[0])
        optimizer.step(1e-2, step)
        working.refresh()
    return found


@pytest.mark.parametrize("shape", ["default", "gqa", "learned, layernorm, biases, tied"])
def test_fifty_steps_in_bfloat16_stay_near_float32(shape):
    """Within 0.05 nats of each other all along, on a loss that falls from 3.9 to under 1.5."""
    exact = losses(50, shape, dtype="float32")
    fast = losses(50, shape, dtype="bfloat16")
    assert exact[-1] < 1.5 < 3.5 < exact[0]
    assert max(abs(a - b) for a, b in zip(exact, fast, strict=True)) < 0.05 * exact[0]
    assert abs(exact[-1] - fast[-1]) < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accumulating_and_recomputing_change_nothing(dtype):
    tolerance = 1e-5 if dtype == "float32" else 0.02
    plain = losses(10, dtype=dtype)
    assert losses(10, dtype=dtype, micro_batch_size=2) == pytest.approx(plain, rel=tolerance)
    assert losses(10, dtype=dtype, recompute=True) == plain


def test_gradients_in_bfloat16_are_near_those_in_float32():
    found = []
    for dtype in ("float32", "bfloat16"):
        model = make(init="gpt2")
        working = Working(model, precision.resolve("cpu", dtype, 1))
        config = TrainingConfig(grad_clip=0)
        gradients(working, pattern(config), config, 1)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert found[-1].dtype == torch.float32
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it deprecates
def test_compiled_forward_and_backward_are_one_graph(monkeypatch):
    """Each break costs a small model more than compiling gains."""
    monkeypatch.setattr(kernels, "QUERIES", 4)
    model = make(n_layers=1, n_kv_heads=2, dropout=0.1, attention_dropout=0.1).bfloat16().train()
    compute = torch.compile(model, fullgraph=True, backend="eager")
    compute(torch.randint(0, 50, (2, 10))).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "output" not in n)


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it deprecates
def test_texts_of_other_lengths_need_no_other_graph():
    """Two: of the first length alone, and of all."""
    model, graphs = make(n_layers=1, context_length=512).bfloat16().train(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compute = torch.compile(model, fullgraph=True, backend=backend)
    for length in (12, 30, 140, 270, 399):
        compute(torch.randint(0, 50, (2, length))).sum().backward()
    assert len(graphs) <= 2


def test_random_bits_are_those_of_the_formula():
    def signed(x):
        return (x + 2**63) % 2**64 - 2**63

    n = 2 * kernels.CACHED + 5
    torch.manual_seed(1)
    found = kernels.random_bits(n)
    torch.manual_seed(1)
    place = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    for i in (0, 1, kernels.CACHED - 1, kernels.CACHED, kernels.CACHED + 1, n - 1):
        x = signed(place + i * INCREMENT)
        x = signed((x ^ x >> 30) * 0xBF58476D1CE4E5B9)
        assert found[i] == signed((x ^ x >> 27) * 0x94D049BB133111EB)


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it deprecates
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compiled", [False, True])
def test_factors_of_dropout_keep_the_mean(dtype, compiled):
    keep = torch.compile(kernels.keep, backend="eager") if compiled else kernels.keep
    factors = keep(torch.empty(1001, 999, dtype=dtype), 2**14)
    assert set(factors.unique().tolist()) == {0.0, float(torch.tensor(4 / 3).to(dtype))}
    assert abs((factors == 0).double().mean() - 0.25) < 0.003


def test_parts_of_attention_drop_what_they_draw_themselves(monkeypatch):
    monkeypatch.setattr(kernels, "QUERIES", 32)
    keep, drawn = kernels.keep, []
    monkeypatch.setattr(kernels, "keep", lambda *given: drawn.append(keep(*given)) or drawn[-1])
    q = torch.zeros(1, 1, 64, 8)
    _Attention.apply(q, q, q, torch.zeros(()), True, 1.0, 0.5)
    one, two = (factors.flatten()[:1024] for factors in drawn)
    assert 0.3 < (one == two).float().mean() < 0.7


def test_recomputing_drops_the_same(monkeypatch):
    monkeypatch.setattr(kernels, "QUERIES", 4)
    found = []
    for recompute in (False, True):
        model = make(init="gpt2", dropout=0.2, attention_dropout=0.2)
        working = Working(model, precision.resolve("cpu", "bfloat16", 1), False, recompute)
        config = TrainingConfig(batch_size=8)
        gradients(working, pattern(config), config, 1)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of what it deprecates
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler")
def test_fifty_compiled_steps_stay_near_eager_ones(monkeypatch):
    """And nothing is unpickled on the way, not even what torch left on disk the time before."""

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle is read")

    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 0.05)):
        eager = losses(50, dtype=dtype)
        compiled = losses(50, dtype=dtype, compile="on")
        assert max(abs(a - b) for a, b in zip(eager, compiled, strict=True)) < tolerance * eager[0]


def test_what_a_failed_pass_left_behind_does_not_count():
    model = make(init="gpt2")
    working, config = Working(model, precision.resolve("cpu", "bfloat16", 1)), TrainingConfig()
    _, norm, _ = gradients(working, pattern(config), config, 1)
    for master, weight in working.learn:
        master.grad, weight.grad = None, torch.ones_like(weight)
    assert gradients(working, pattern(config), config, 1)[1] == norm


def test_a_usual_z_loss_counts_in_bfloat16():
    """1e-4 moves gradients by a thousandth, less than one bfloat16 step; over many it shows."""
    model = make(init="gpt2", vocab_size=64).bfloat16()
    torch.manual_seed(0)
    hidden, targets = 30 * torch.randn(2000, 32), torch.randint(0, 64, (2000,))
    sums = []
    for z_loss in (0.0, 1e-4):
        h = hidden.bfloat16().requires_grad_()
        w = model.output_weight
        w.grad = None
        summed_nll(model, h, targets, z_loss=z_loss).backward()
        sums.append(float((w.grad.float() * w.detach().float()).sum()))
    logits = hidden.bfloat16().double() @ model.output_weight.detach().double().T
    share = 2e-4 * logits.logsumexp(1)
    expected = float((share[:, None] * logits.softmax(1) * logits).sum())
    assert sums[1] - sums[0] == pytest.approx(expected, rel=0.5)


def test_a_usual_z_loss_counts_in_bfloat16_from_the_start():
    """Where all words are about as likely, it moves each probability by less than a rounding."""
    model = make(init="gpt2", vocab_size=4096).bfloat16()
    hidden, targets = torch.randn(512, 32).bfloat16(), torch.randint(0, 4096, (512,))
    found = []
    for z_loss in (0.0, 1e-4):
        model.output_weight.grad = None
        summed_nll(model, hidden, targets, z_loss=z_loss).backward()
        found.append(model.output_weight.grad.double())
    logits = hidden.double() @ model.output_weight.detach().double().T
    exact = (2e-4 * logits.logsumexp(1, keepdim=True) * logits.softmax(1)).T @ hidden.double()
    share = ((found[1] - found[0]) * exact).sum() / exact.square().sum()
    assert float(share) == pytest.approx(1, abs=0.3)


def test_a_frozen_output_layer_gets_no_gradient():
    model = make(tie_embeddings=False)
    model.output_weight.requires_grad_(False)
    hidden, targets = torch.randn(7, 32, requires_grad=True), torch.randint(0, 50, (7,))
    for smoothing in (0.0, 0.1):
        hidden.grad = None
        summed_nll(model, hidden, targets, label_smoothing=smoothing).backward()
        plain = F.cross_entropy(
            model.logits(hidden), targets, reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain, hidden)[0])
        assert model.output_weight.grad is None
