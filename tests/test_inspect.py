"""Looking inside never changes what is looked at, and what is shown adds up."""

import json
import math

import numpy as np
import pytest

from lmcli.errors import UsageError
from lmcli.evaluation.attention import cross_attention, word_attention
from lmcli.runs.load import load
from lmcli.text.tasks import Template

FOX = "The quick fox and the dog"


@pytest.fixture
def base(tiny):
    return load(tiny, "base", "last")


def test_rows_of_attention_sum_to_one_and_never_see_the_future(base):
    found = word_attention(base.engine, base.tokenizer, "The quick  fox,\nand 一只 fox")
    assert found.words == ["<start>", "The", "quick", "fox,", "and", "一", "只", "fox"]
    assert found.weights.shape == (2, 2, 8, 8)
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-6)
    assert np.abs(np.triu(found.weights, 1)).max() < 1e-6
    assert found.weights.min() >= 0 and found.weights[..., 0].max() > 0
    np.testing.assert_allclose(found.chosen(None, None), found.weights.mean((0, 1)))
    np.testing.assert_allclose(found.chosen(2, 1), found.weights[1, 0])
    assert found.find("fox") == 7 and found.find("fox,") == 3


def test_attention_is_what_the_model_computes(base):
    """The weights of the last layer, applied to its values, give what the layer gave."""
    ids = base.tokenizer.encode(FOX)[:20]
    layer = base.engine.model.decoder.blocks[-1].attn
    outputs = []
    handle = layer.o_proj.register_forward_pre_hook(lambda m, args: outputs.append(args[0]))
    values = []
    hook = layer.v_proj.register_forward_hook(lambda m, args, out: values.append(out))
    weights = base.engine.attention(ids)[-1]
    handle.remove()
    hook.remove()
    v = values[0][0].view(len(ids) + 1, layer.n_heads, -1).double().numpy()  # [T, H, D]
    again = np.einsum("hts,shd->thd", weights, v).reshape(len(ids) + 1, -1)
    np.testing.assert_allclose(again, outputs[0][0].double().numpy(), atol=1e-5)
    assert all(block.attn.watch is None for block in base.engine.model.decoder.blocks)


def test_next_words_are_the_distribution_that_sampling_draws_from(cli, tiny, monkeypatch):
    args = ["--artifacts", tiny, "--checkpoint", "last"]
    said = json.loads(cli("inspect", "next", "base", FOX, "--top", 320, "--json", *args).out)
    assert sum(row["probability"] for row in said["next"]) == pytest.approx(1)
    best = [row["probability"] for row in said["next"]]
    assert best == sorted(best, reverse=True)
    greedy = cli(
        *("sample", "base", FOX, "--temperature", 0, "--max-new-tokens", 1, "--json"), *args
    )
    record = json.loads(greedy.out)
    assert record["completion"] == said["next"][0]["token"]
    assert record["logprob"] == pytest.approx(said["next"][0]["logprob"], abs=1e-4)
    shown = cli("inspect", "next", "base", FOX, "--top", 3, *args)
    assert len(shown.out.splitlines()) == 3 and "█" in shown.out
    assert "other 317 tokens" in shown.err


def test_attention_on_the_shell(cli, tiny):
    line = ["inspect", "attention", "base", FOX, "--artifacts", tiny]
    whole = cli(*line)
    rows = whole.out.splitlines()
    assert whole.code == 0 and len(rows) == 8 and "not proof" in whole.err
    assert rows[0].split() == ["<start>", "█100"]
    said = json.loads(cli(*line, "--focus", "fox", "--layer", 2, "--head", 1, "--json").out)
    assert said["focus"] == "fox" and sum(said["looks_at"]) == pytest.approx(1, abs=1e-6)
    assert [sum(row) for row in said["weights"]] == pytest.approx([1] * 7, abs=1e-6)
    assert said["looked_at_by"][:3] == [0, 0, 0]
    text = cli(*line, "--focus", "fox").out
    assert "fox looks at" in text and "who looks at fox" in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--focus", "cat"], "--focus 'cat' is not one of: The quick fox"),
        (["--layer", "3"], "--layer 3: this model has 1 to 2"),
        (["--head", "0"], "--head 0: this model has 1 to 2"),
    ],
)
def test_what_is_not_there_is_said(cli, tiny, args, says):
    result = cli("inspect", "attention", "base", FOX, *args, "--artifacts", tiny)
    assert result.code == 2 and says in result.err
    long = cli("inspect", "attention", "base", FOX * 9, "--artifacts", tiny)
    assert long.code == 2 and "this model reads 31" in long.err
    assert cli("inspect", "attention", "base", "", "--artifacts", tiny).code == 2


def test_parameters_add_up(cli, tiny):
    gpt2 = json.loads(cli("inspect", "model", "--preset", "gpt2", "--json").out)
    assert gpt2["parameters"] == 124_439_808
    for entry in gpt2["by_name"].values():
        assert entry["parameters"] == math.prod(entry["shape"])
    table = cli("inspect", "model", "base", "--artifacts", tiny).out
    assert "decoder.blocks.*.attn.q_proj.weight" in table and "2 times" in table
    assert cli("inspect", "model").code == 2
    assert cli("inspect", "model", "base", "--preset", "nano").code == 2


def test_a_model_that_writes_nothing_is_what_is_named(tiny):
    with pytest.raises(UsageError, match="writes nothing here; give a target"):
        cross_attention(None, None, "a fox", "", Template((), ()))
