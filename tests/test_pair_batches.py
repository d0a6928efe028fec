"""Batches of pairs: every pair once, sized in tokens, the loss on targets only, packing apart."""

import numpy as np
import pytest
import torch
from test_dataset import make_store
from test_model import make

from lmcli.config.training import TrainingConfig
from lmcli.dataset import buckets, order
from lmcli.dataset.buckets import Example, Examples, Pairs, collate, pack
from lmcli.errors import DataError
from lmcli.evaluation.evaluate import score_examples
from lmcli.model.loss import summed_nll
from lmcli.text.tasks import Template
from lmcli.training import precision
from lmcli.training.precision import Working
from lmcli.training.step import forward_nll

EOS, PAD, SEP = 2, 0, 3
NONE = Template((), ())


def reader(tmp_path, n=300, context=64, encoder=True, template=NONE) -> Examples:
    rng = np.random.default_rng(1)
    (tmp_path / "s").mkdir()
    (tmp_path / "t").mkdir()
    sides = [[rng.integers(4, 50, k).tolist() for k in rng.integers(1, 30, n)] for _ in range(2)]
    stores = [make_store(tmp_path / f, side) for f, side in zip("st", sides, strict=True)]
    return Examples(*stores, template, context, encoder, EOS)


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("tokens", [0, 200])
def test_an_epoch_has_every_pair_once_in_batches_of_the_asked_size(tmp_path, encoder, tokens):
    pairs = Pairs(reader(tmp_path, encoder=encoder), 3, tokens, False, PAD)
    n = len(pairs._batches(0, 7))
    for epoch in range(2):
        seen = [pairs.members(epoch * n + i, 7) for i in range(n)] if epoch == 0 else []
        for i, members in enumerate(seen):
            [batch] = pairs.parts(i, 7)
            sides = [batch.input_ids] + ([batch.source_ids] if encoder else [])
            assert len(members) == len(batch.input_ids)
            if tokens:
                assert max(side.size for side in sides) <= tokens
            else:
                assert len(members) <= 7
        if seen:
            assert sorted(np.concatenate(seen).tolist()) == list(range(300))
    first = [pairs.members(i, 7).tolist() for i in range(n)]
    again = Pairs(pairs.reader, 3, tokens, False, PAD)
    assert [again.members(i, 7).tolist() for i in reversed(range(n))] == first[::-1]
    later = [pairs.members(n + i, 7).tolist() for i in range(n)]
    assert later != first
    if tokens:  # most of a batch is not padding
        batches = [pairs.parts(i, 7)[0] for i in range(n)]
        real = sum((b.targets != PAD).sum() for b in batches)
        assert real / sum(b.targets.size for b in batches) > 0.85


def test_many_rows_are_a_multiple_of_32(tmp_path):
    pairs = Pairs(reader(tmp_path, n=600), 3, 4096, False, PAD)
    assert sorted(len(batch) for batch in pairs._batches(0, 7)) == [88, 128, 128, 128, 128]
    assert [buckets._even(rows) for rows in (1, 3, 4, 7, 8, 63, 64, 127, 255)] == [
        1, 3, 4, 7, 8, 56, 64, 112, 224]  # fmt: skip
    before = Pairs(pairs.reader, 3, 4096, False, PAD, even=False)  # datasets of before
    assert sorted(len(batch) for batch in before._batches(0, 7))[-4] > 128
    packed = Pairs(pairs.reader, 3, 4096, True, PAD)
    assert any(len(batch) % 8 for batch in packed._batches(0, 7)[:-1])


def test_another_thread_may_ask_while_an_epoch_is_dealt(tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "POOL", 40)  # so that epochs differ in length
    found = reader(tmp_path)
    alone, shared = (Pairs(found, 3, 200, False, PAD) for _ in range(2))
    expected = [alone.members(i, 7).tolist() for i in range(100)]
    asked = []

    def permute(*args):
        if not asked:  # as if from the thread that reads ahead
            asked.append(True)
            shared.members(0, 7)
        return order.permute(*args)

    monkeypatch.setattr(buckets, "permute", permute)
    assert [shared.members(i, 7).tolist() for i in range(100)] == expected


@pytest.mark.parametrize("encoder", [True, False])
def test_a_template_as_long_as_the_context_is_refused(tmp_path, encoder):
    with pytest.raises(DataError, match="--context-length 4 is all taken by the template"):
        reader(tmp_path, context=4, encoder=encoder, template=Template((7, 8), (9, SEP)))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [0, 1, 4])
def test_ranks_and_parts_make_up_the_same_global_batch(tmp_path, world, micro):
    pairs = Pairs(reader(tmp_path), 3, 200, False, PAD)
    parts = [part for rank in range(world) for part in pairs.parts(5, 16, micro, rank, world)]
    rows = sorted(tuple(r[m]) for p in parts for r, m in zip(p.targets, p.loss_mask, strict=True))
    [whole] = pairs.parts(5, 16)
    assert rows == sorted(tuple(r[m]) for r, m in zip(whole.targets, whole.loss_mask, strict=True))


def test_a_decoder_reads_the_template_and_learns_the_target_only(tmp_path):
    found = reader(tmp_path, encoder=False, template=Template((7, 8), (SEP,)))
    example = found.example(4)
    source, target = found.source.document(4), found.target.document(4)
    assert example.ids.tolist() == [7, 8, *source[:-1], SEP, *target]
    batch = collate([example, found.example(5)], EOS, PAD)
    assert batch.input_ids[0, 0] == EOS
    assert batch.targets[0][batch.loss_mask[0]].tolist() == target.tolist()
    assert np.array_equal(batch.input_ids[:, 1:], batch.targets[:, :-1])


def test_an_encoder_reads_the_source_and_the_decoder_starts_from_eos(tmp_path):
    found = reader(tmp_path, template=Template((7,), ()))
    batch = collate([found.example(4)], EOS, PAD)
    assert batch.source_ids[0].tolist() == [7, *found.source.document(4)]
    assert batch.targets[0].tolist() == found.target.document(4).tolist()
    assert batch.loss_mask.all() and batch.source_mask.all()


@pytest.mark.parametrize("encoder", [True, False])
def test_what_is_longer_than_the_context_loses_the_end_of_its_source(tmp_path, encoder):
    found = reader(tmp_path, context=20, encoder=encoder, template=Template((7,), (SEP,)))
    assert found.n_cut > 20
    for i in range(len(found)):
        e = found.example(i)
        assert len(e.ids) <= 20 and e.n_source <= 20
        assert len(e.ids) == found.target_lengths[i]
        read = e.source if encoder else e.ids
        kept = [*found.source.document(i)[:-1]]
        assert read[0] == 7
        if SEP in read:
            end = read.tolist().index(SEP)
            assert read[1:end].tolist() == kept[: end - 1]
        if len(found.target.document(i)) <= 18:
            assert e.ids[-1] == EOS


def test_packed_pairs_have_the_loss_of_each_alone(tmp_path):
    found = reader(tmp_path, n=40, encoder=False, template=Template((), (SEP,)))
    model = make(vocab_size=50, context_length=64).eval()
    examples = [found.example(i) for i in range(12)]
    packed = pack(examples, 64, EOS, PAD)
    assert len(packed.input_ids) < 12
    working, config = Working(model, precision.resolve("cpu", "float32", 1)), TrainingConfig()
    alone = sum(forward_nll(working, collate([e], EOS, PAD), config) for e in examples)
    torch.testing.assert_close(forward_nll(working, packed, config), alone, rtol=1e-5, atol=1e-4)
    assert packed.loss_mask.sum() == sum(e.n_scored for e in examples)


def test_masked_targets_never_reach_the_loss(tmp_path):
    torch.manual_seed(0)
    model, hidden = make(vocab_size=50), torch.randn(2, 5, 32)
    targets, mask = torch.randint(0, 50, (2, 5)), torch.rand(2, 5) > 0.5
    changed = targets.masked_fill(~mask, 1)
    one, other = (summed_nll(model, hidden, t, mask) for t in (targets, changed))
    assert one == other


def test_label_smoothing_is_the_mixture_with_the_uniform(tmp_path):
    torch.manual_seed(0)
    model, hidden = make(vocab_size=50), torch.randn(6, 32)
    targets = torch.randint(0, 50, (6,))
    logp = model.logits(hidden).log_softmax(-1)
    picked = logp[torch.arange(6), targets]
    expected = -(0.9 * picked + 0.1 * logp.mean(-1)).sum()
    torch.testing.assert_close(summed_nll(model, hidden, targets, None, 0.1), expected)


def test_scoring_keeps_to_its_tokens_on_the_longer_side():
    class Seen:
        eos_id, pad_id = EOS, PAD

        def score(self, inputs, targets, source, mask):
            assert max(targets.size, source.size) <= 100
            return targets.astype(np.float32)

    lengths = [(9, 3)] * 5 + [(8, 40), (2, 90), (50, 1)]
    examples = [Example(np.full(t, i), t, np.full(s, 6)) for i, (t, s) in enumerate(lengths)]
    found = dict(score_examples(Seen(), examples, 100))
    assert [found[i].tolist() for i in range(8)] == [[i] * t for i, (t, _) in enumerate(lengths)]
