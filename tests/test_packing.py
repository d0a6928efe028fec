"""Packed and rounded weights compute what the plain ones do, as nearly as their bits allow."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_model import IDS, SHAPES, make

from lmcli.model.packing import FEW_ROWS, GROUP, FourBits, Int8, pack
from lmcli.training import precision


@pytest.mark.parametrize("arch", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("shape", ["default", "gqa", "learned, layernorm, biases, tied"])
@pytest.mark.parametrize(("quantize", "tolerance"), [("none", 0.03), ("int8", 0.05), ("int4", 0.4)])
def test_a_packed_model_has_nearly_the_same_logits(arch, shape, quantize, tolerance):
    model = make(**{"init": "xavier"} | SHAPES[shape] | {"arch": arch, "vocab_size": 64}).eval()
    given = {"source_ids": IDS[:, :5]} if arch == "encoder-decoder" else {}
    plain = model.logits(model(IDS, **given))
    low = copy.deepcopy(model).bfloat16()
    with torch.inference_mode():
        pack(low, quantize)
        packed = low.logits(low(IDS, **given)).float()
    assert (packed - plain).norm() < tolerance * plain.norm()


def test_rounding_errors_are_those_of_the_bits():
    weight = torch.randn(64, 128)
    x = torch.eye(128).bfloat16()
    for layer, worst in (
        (FourBits(weight.bfloat16(), None, 8), 0.01),
        (FourBits(weight.bfloat16(), None, 4), 0.1),
    ):
        again = torch.cat([layer(x[i : i + FEW_ROWS]) for i in range(0, len(x), FEW_ROWS)])
        assert (again.float().T - weight).norm() < worst * weight.norm()
        # more rows are multiplied by the same rounded weights in another layout
        assert (layer(x) - again).abs().max() < 0.01 * weight.abs().max()
    # one outlier costs its own group alone
    weight[0, 0] = 50.0
    again = FourBits(weight.bfloat16(), None, 4)(x).float().T
    assert (again - weight)[:, GROUP:].norm() < 0.1 * weight[:, GROUP:].norm()


def test_a_width_that_no_kernel_takes_keeps_8_bits(monkeypatch):
    weight, bias, x = torch.randn(24, 40), torch.randn(24), torch.randn(3, 40)
    plain = torch.nn.functional.linear(x, weight, bias)
    for packed in (True, False):  # as on a CPU, and elsewhere
        monkeypatch.setattr("lmcli.model.packing.packs", lambda weight, packed=packed: packed)
        layer = Int8(weight.bfloat16(), bias.bfloat16())
        assert (layer(x.bfloat16()).float() - plain).norm() < 0.02 * plain.norm()
    assert layer.weight.dtype == torch.int8
    model = make(arch="decoder", vocab_size=64, d_model=24, n_heads=2, d_ff=64).eval().bfloat16()
    with torch.inference_mode():
        pack(model, "int4")
    assert isinstance(model.output, Int8)


@pytest.mark.parametrize("width", [32, 96, 768])  # one group, and several
@pytest.mark.parametrize(("bits", "worst"), [(8, 0.01), (4, 0.12)])
def test_few_rows_and_many_give_the_same_with_a_bias(monkeypatch, bits, worst, width):
    monkeypatch.setattr("lmcli.model.packing.ROWS", 24)
    weight, bias, x = torch.randn(40, width), torch.randn(40), torch.randn(5, width).bfloat16()
    layer = FourBits(weight.bfloat16(), bias.bfloat16(), bits)
    few, many = layer(x[:FEW_ROWS]).float(), layer(x)[:FEW_ROWS].float()
    assert few.shape == (FEW_ROWS, 40) and (few - many).norm() < 0.02 * many.norm()
    plain = torch.nn.functional.linear(x[:FEW_ROWS].float(), weight, bias)
    assert (few - plain).norm() < worst * plain.norm()


def test_a_cpu_without_onednns_bfloat16_packs_what_it_can():
    """In a process of its own, which is told that it has AVX2 and no more."""
    script = """
import torch
from lmcli.model.packing import pack
from test_model import IDS, make
for quantize, most in (("none", 0.03), ("int8", 0.05), ("int4", 0.4)):
    model = make(init="xavier", vocab_size=64).eval().bfloat16()
    with torch.inference_mode():
        plain = model.logits(model(IDS))
        pack(model, quantize)
        assert (model.logits(model(IDS)) - plain).norm() < most * plain.norm()
"""
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, cwd=Path(__file__).parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rows", [FEW_ROWS, 10**6])  # that the kernels of decoding multiply
def test_fewer_bits_on_the_command_line(cli, tiny_copy, monkeypatch, rows):
    monkeypatch.setattr("lmcli.model.packing.FEW_ROWS", rows)
    nats = {}
    for flags in ((), ("--dtype", "bfloat16"), ("--quantize", "int8"), ("--quantize", "int4")):
        result = cli("eval", "base", "--data", "corpus", "--split", "test", *flags, "--json")
        scores = json.loads(result.out)["scores"]
        nats[flags] = next(s["value"] for s in scores if s["name"] == "loss")
        assert cli("sample", "base", "The ", *flags).code == 0
    assert len(set(nats.values())) == 4  # each computes something of its own
    plain = nats[("--dtype", "bfloat16")]
    for quantize, most in (("int8", 0.005), ("int4", 0.03)):  # of perplexity
        assert abs(math.exp(nats[("--quantize", quantize)] - plain) - 1) < most
    assert len(list((tiny_copy / "runs/base/evals").glob("*-test-*.json"))) == 4
    refused = cli("sample", "base", "x", "--quantize", "int8", "--dtype", "float32")
    assert refused.code == 2 and "--quantize int8 computes in bfloat16" in refused.err


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it deprecates
@pytest.mark.parametrize("works", [True, False])
def test_a_compiled_run_says_the_same(cli, tiny_copy, monkeypatch, works):
    """Traced and not compiled, which takes a minute; and where nothing can be compiled."""
    real, seen = torch.compile, []

    def backend(graph, inputs):
        seen.append(graph)
        if not works:
            raise RuntimeError("no compiler here")
        return graph.forward

    monkeypatch.setattr(precision.torch, "compile", lambda f: real(f, backend=backend))
    line = ("sample", "base", "Once", "--temperature", "0", "--max-new-tokens", "8")
    plain, compiled = cli(*line), cli(*line, "--compile")
    assert compiled.code == 0 and compiled.out == plain.out and seen
