"""Beam search against every sequence there is and against `transformers`; encoder-decoders."""

import itertools
import math
import os
import warnings

import numpy as np
import pytest
import torch
from test_engine import numbered
from test_model import SHAPES, make

from lmcli.config.generation import GenerationConfig
from lmcli.errors import UsageError
from lmcli.inference.batch import Completion
from lmcli.inference.engine import Engine
from lmcli.interop.gpt2 import write_config, write_weights
from lmcli.model.transformer import Transformer

EOS = 2
PROMPTS = [[5, 6, 7], [9], [], [8] * 14, [3, 4, 5, 6, 9, 10, 11] * 2, [4, 4]]
BIASES = dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias", "norm_bias", "output_bias"), True)


def lively(arch: str = "decoder", **fields) -> Transformer:
    """A model of larger weights, so that its texts differ."""
    model = make(arch=arch, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 1.5
    return model


def config(beams: int = 4, **fields) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 10, "num_beams": beams} | fields)


def score(done: Completion, penalty: float) -> float:
    return done.logprob / (len(done.ids) + (done.finish_reason == "eos")) ** penalty


def logprobs(engine: Engine, prompt: list[int], texts: list[list[int]]) -> np.ndarray:
    """Log-probability [B, T] of each id of some texts of T ids after a prompt, without a cache."""
    fitted = engine.fit_prompt(prompt, len(texts[0]))
    start = [EOS] if engine.has_encoder else fitted
    ids = np.array([[*start, *text] for text in texts])
    source = np.array([fitted] * len(texts)) if engine.has_encoder else None
    return -engine.score(ids[:, :-1], ids[:, 1:], source)[:, len(start) - 1 :]


def same(ours: list[Completion], theirs: list[Completion]) -> None:
    assert [(d.ids, d.finish_reason) for d in ours] == [(d.ids, d.finish_reason) for d in theirs]
    assert [d.logprob for d in ours] == pytest.approx([d.logprob for d in theirs], abs=1e-4)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("arch", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("stop", [frozenset(), frozenset([3])])
def test_beams_wide_enough_find_the_best_of_all_sequences(arch, penalty, stop):
    engine = Engine(lively(arch, vocab_size=4), EOS, 0)
    every, ends = [], {EOS} | stop
    for n in range(1, 5):
        texts = [
            list(ids)
            for ids in itertools.product(range(4), repeat=n)
            if ends.isdisjoint(ids[:-1]) and (n == 4 or ids[-1] in ends)
        ]
        totals = logprobs(engine, [1, 3], texts).sum(1) / n**penalty
        every += zip(totals.tolist(), texts, strict=True)
    every.sort(reverse=True)
    [found] = engine.generate(
        [[1, 3]],
        config(64, max_new_tokens=4, length_penalty=penalty, num_return_sequences=8),
        stop_ids=stop,
    )
    assert [d.ids + [EOS] * (d.finish_reason == "eos") for d in found] == [i for _, i in every[:8]]
    assert [score(d, penalty) for d in found] == pytest.approx([s for s, _ in every[:8]], abs=1e-5)


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("arch", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_ragged_batch_equals_each_prompt_alone(arch, fields, beams):
    engine = Engine(lively(arch, **fields), EOS, 0)
    c = config(beams, batch_size=4, num_return_sequences=2, max_length=18)
    together = engine.generate(PROMPTS, c)
    for i, prompt in enumerate(PROMPTS):
        same(together[i], numbered(engine, [prompt], [i], c)[0])


@pytest.mark.parametrize("arch", ["decoder", "encoder-decoder"])
def test_logprob_is_that_of_the_model_without_a_cache(arch):
    engine = Engine(lively(arch), EOS, 0)
    for beams in (1, 5):
        done = engine.generate(PROMPTS, config(beams, num_return_sequences=3))
        for prompt, found in zip(PROMPTS, done, strict=True):
            for d in found:
                ids = d.ids + [EOS] * (d.finish_reason == "eos")
                assert d.logprob == pytest.approx(logprobs(engine, prompt, [ids]).sum(), abs=1e-4)


@pytest.mark.parametrize("arch", ["decoder", "encoder-decoder"])
def test_greedy_is_argmax_of_the_uncached_model(arch):
    engine = Engine(lively(arch), EOS, 0)
    done = engine.generate(PROMPTS, config(1, temperature=0.0))
    for prompt, [d] in zip(PROMPTS, done, strict=True):
        ids = d.ids + [EOS] * (d.finish_reason == "eos")
        for n in range(len(ids)):
            every = logprobs(engine, prompt, [[*ids[:n], token] for token in range(50)])
            assert every[:, -1].argmax() == ids[n]


def test_the_samples_and_beams_of_a_source_share_one_encoder_run(monkeypatch):
    engine = Engine(lively("encoder-decoder"), EOS, 0)
    seen = []
    encode = engine.model.encode
    monkeypatch.setattr(
        engine.model, "encode", lambda ids, mask: seen.append(ids.tolist()) or encode(ids, mask)
    )
    for beams in (1, 3):
        seen.clear()
        engine.generate([[5], [6, 7]], config(beams, num_return_sequences=3))
        assert [sorted(ids) for ids in seen] == [[[5, EOS, 0], [6, 7, EOS]]]


def test_a_source_keeps_its_first_tokens_and_takes_no_room():
    engine = Engine(lively("encoder-decoder"), EOS, 0)
    long = list(range(3, 43))
    assert engine.fit_prompt(long, 20) == [*long[:31], EOS]
    c = config(2, max_new_tokens=99)
    same(engine.generate([long], c)[0], engine.generate([long[:31]], c)[0])
    assert all(len(d[0].ids) <= 31 for d in engine.generate(PROMPTS, c))
    [[short]] = engine.generate([long], config(2, max_length=3))
    assert len(short.ids) <= 3


def test_samples_of_a_source_come_in_where_others_are_under_way(monkeypatch):
    engine, c = Engine(lively("encoder-decoder"), EOS, 0), config(1, num_return_sequences=6)
    [together] = engine.generate([[5, 6, 7]], c)
    monkeypatch.setattr("lmcli.inference.engine.READ", 8)
    same(engine.generate([[5, 6, 7]], c)[0], together)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("rule", [{"no_repeat_ngram": 1}, {"min_new_tokens": 9}])
def test_a_completion_is_one_of_the_choices_whatever_else_is_asked(beams, rule):
    engine = Engine(lively(vocab_size=2000), EOS, 0)
    choices = [[7, 7], [9, 9, 9]]
    [[done]] = engine.generate([[5]], config(beams, **rule), choices=choices)
    assert done.ids in choices and done.finish_reason == "eos"


def test_more_answers_than_beams_are_refused():
    with pytest.raises(UsageError):
        config(2, num_return_sequences=3)


def test_scores_of_padded_pairs():
    engine = Engine(lively("encoder-decoder"), EOS, 0)
    source, mask = np.array([[5, 6, 2, 0], [7, 8, 9, 2]]), np.array([[1, 1, 1, 0], [1] * 4]) > 0
    inputs, targets = np.array([[2, 5, 6], [2, 7, 8]]), np.array([[5, 6, 2], [7, 8, 2]])
    both = engine.score(inputs, targets, source, mask)
    alone = engine.score(inputs[:1], targets[:1], source[:1, :3])
    np.testing.assert_allclose(both[:1], alone, atol=1e-5)


@pytest.mark.parametrize("arch", ["decoder", "encoder-decoder"])
def test_degenerate_widths_and_lengths(arch):
    engine = Engine(lively(arch, vocab_size=3), EOS, 0)
    [one] = engine.generate([[]], config(8, max_new_tokens=1, num_return_sequences=8))
    assert len(one) == 8 and len({tuple(d.ids) for d in one}) == 3  # no more exist
    engine = Engine(lively(arch, context_length=1), EOS, 0)
    assert engine.generate([[5]], config(2))[0] == [Completion([], [], "length")]
    assert engine.generate([], config(2)) == []
    with torch.no_grad():
        engine.model.embed.weight.fill_(math.nan)
    assert len(engine.generate([[5]], config(2))[0]) == 1


def test_a_cache_that_grows_is_the_same_cache():
    engine = Engine(lively(context_length=128, output_bias=True), EOS, 0)
    with torch.no_grad():
        engine.model.output.bias[EOS] = -30
    for beams in (1, 2):
        [[d]] = engine.generate([[5]], config(beams, max_new_tokens=90, temperature=0.0))
        assert len(d.ids) == 90
        assert d.logprob == pytest.approx(logprobs(engine, [5], [d.ids]).sum(), abs=1e-3)


@pytest.fixture(scope="module")
def transformers():
    for offline in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[offline] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("transformers", reason="the reference for beam search")
    module.utils.logging.set_verbosity_error()
    return module


IDS = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": 0}


@pytest.fixture(scope="module")
def gpt2(transformers):
    """The same weights here and there, decoder-only."""
    shape = SHAPES["learned, layernorm, biases, tied"] | {"output_bias": False, "norm_eps": 1e-5}
    ours = lively(**shape | {"tie_embeddings": False})
    with torch.no_grad():  # texts of several lengths
        likely = ours.output.weight[EOS]
        ours.decoder.norm.bias += 0.5 * likely / likely.square().sum()
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**write_config(ours.config) | IDS)
    )
    tensors = write_weights(dict(ours.named_parameters()), ours.config)
    assert theirs.load_state_dict(tensors, strict=False).missing_keys == []
    return Engine(ours, EOS, 0), theirs.eval()


@pytest.fixture(scope="module")
def marian(transformers):
    """The same weights here and there, encoder-decoder: Marian is the 2017 Transformer."""
    ours = lively("encoder-decoder", **SHAPES["2017"] | BIASES | {"norm_eps": 1e-5})
    with torch.no_grad():
        ours.output_bias[EOS] += 2
    c = ours.config
    sizes = {"layers": c.n_layers, "ffn_dim": c.d_ff, "attention_heads": c.n_heads}
    theirs = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=c.vocab_size,
            d_model=c.d_model,
            max_position_embeddings=c.context_length,
            activation_function="relu",
            scale_embedding=True,
            decoder_start_token_id=EOS,
            forced_eos_token_id=None,
            **{f"{side}_{k}": n for side in ("encoder", "decoder") for k, n in sizes.items()},
            **IDS,
        )
    )
    tensors = {}
    for name, tensor in ours.named_parameters():
        for here, there in (
            ("embed.weight", "shared.weight"),
            ("output_bias", "final_logits_bias"),
            (".blocks.", ".layers."),
            (".o_proj", ".out_proj"),
            (".cross_attn.", ".encoder_attn."),
            (".attn.", ".self_attn."),
            (".cross_norm", ".encoder_attn_layer_norm"),
            (".attn_norm", ".self_attn_layer_norm"),
            (".mlp_norm", ".final_layer_norm"),
            (".mlp.up", ".fc1"),
            (".mlp.down", ".fc2"),
        ):
            name = name.replace(here, there)
        if name == "final_logits_bias":
            tensors[name] = tensor[None]
        else:
            tensors["model." + name] = tensor
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and all("embed_" in n or n == "lm_head.weight" for n in missing)
    return Engine(ours, EOS, 0), theirs.eval()


@pytest.mark.parametrize("family", ["gpt2", "marian"])
@pytest.mark.parametrize(
    ("beams", "penalty", "stop"),
    [
        *((2, p, []) for p in (0.0, 1.0)),
        *((5, p, []) for p in (-1.0, 0.0, 0.6, 1.0, 2.5)),
        (5, 1.0, [8, 30]),
        (4, 2.5, list(range(20, 40))),
        (16, 1.0, []),
    ],
)
@torch.no_grad()
def test_the_n_best_and_their_scores_are_those_of_transformers(
    family, beams, penalty, stop, request
):
    engine, theirs = request.getfixturevalue(family)
    c = config(beams, length_penalty=penalty, num_return_sequences=beams, max_new_tokens=12)
    done = engine.generate(PROMPTS, c, stop_ids=frozenset(stop))
    lengths = []
    for prompt, found in zip(PROMPTS, done, strict=True):
        fitted = engine.fit_prompt(prompt, 12)
        out = theirs.generate(
            torch.tensor([fitted]),
            attention_mask=torch.ones(1, len(fitted), dtype=torch.long),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=penalty,
            max_new_tokens=12,
            eos_token_id=[EOS, *stop],
            output_scores=True,
            return_dict_in_generate=True,
        )
        start = 1 if engine.has_encoder else len(fitted)
        for d, ids, total in zip(
            found, out.sequences[:, start:].tolist(), out.sequences_scores.tolist(), strict=True
        ):
            ours = d.ids + [EOS] * (d.finish_reason == "eos")
            assert ours == ids[: len(ours)] and set(ids[len(ours) :]) <= {0, EOS}  # filled up
            assert score(d, penalty) == pytest.approx(total, abs=1e-4)
            lengths.append(len(d.ids))
    assert penalty > 0.6 or len(set(lengths)) > 3  # else little was put to the test


@pytest.mark.parametrize("family", ["gpt2", "marian"])
@pytest.mark.parametrize(
    "rules",
    [
        {"no_repeat_ngram": 2, "min_new_tokens": 8},
        {"no_repeat_ngram": 3, "min_new_tokens": 12},
        {"min_new_tokens": 6},
        # so long that no <eos> is asked for: there the one in front counts as a repetition
        {"repetition_penalty": 1.3, "min_new_tokens": 12},
    ],
)
@torch.no_grad()
def test_the_rules_of_greedy_text_are_those_of_transformers(family, rules, request):
    engine, theirs = request.getfixturevalue(family)
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    given = {names.get(name, name): value for name, value in rules.items()}
    plain = engine.generate(PROMPTS, config(1, temperature=0, max_new_tokens=12))
    done = engine.generate(PROMPTS, config(1, temperature=0, max_new_tokens=12, **rules))
    for prompt, [d] in zip(PROMPTS, done, strict=True):
        fitted = engine.fit_prompt(prompt, 12)
        ids = torch.tensor([fitted])
        mask, how = torch.ones_like(ids), {"do_sample": False, "max_new_tokens": 12}
        out = theirs.generate(ids, attention_mask=mask, num_beams=1, **how, **given)[0].tolist()
        start = 1 if engine.has_encoder else len(fitted)
        assert d.ids == [token for token in out[start:] if token not in (EOS, 0)]
    assert [d.ids for [d] in done] != [d.ids for [d] in plain]
