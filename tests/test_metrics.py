"""Metrics equal the numbers that others published for the same texts."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rouge_score import tokenize as rouge_tokenize

from lmcli.errors import MissingInputError
from lmcli.metrics.answers import answers, normalise
from lmcli.metrics.rouge import rouge
from lmcli.metrics.significance import compare
from lmcli.metrics.translation import translation
from lmcli.metrics.words import words


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def value(metric, hyps, *refs) -> float:
    return metric.score(metric.statistics(hyps, list(zip(*refs, strict=True)))).value


def published(folder: Path):
    """(pair, system, references, metric, score) of the WMT 2021 organisers that can be computed."""
    table = lines(folder / "automatic-scores.tsv")
    for row in csv.DictReader(table, delimiter="\t"):
        pair, (name, _, ref) = row["pair"], row["metric"].partition("-")
        path = folder / "system-outputs" / f"newstest2021.{pair}.hyp.{row['system']}.{pair[3:]}"
        ref_path = folder / "references" / f"newstest2021.{pair}.ref.{ref}.{pair[3:]}"
        if name in ("bleu", "chrf") and path.exists() and ref_path.exists():
            yield pair, path, ref_path, name, float(row["score"])


def check_wmt(folder: Path, step: int) -> int:
    n = 0
    for pair, path, ref_path, name, score in list(published(folder))[::step]:
        metric = translation(name, "zh" if pair == "en-zh" else "13a", False)
        assert value(metric, lines(path), lines(ref_path)) == pytest.approx(score, abs=1e-9), path
        n += 1
    return n


def test_a_few_of_wmt21(test_data):
    assert check_wmt(test_data / "wmt21-systems", 40) >= 4


@pytest.mark.slow
def test_all_of_wmt21(test_data):
    assert check_wmt(test_data / "wmt21-systems", 1) >= 150


def test_multeval(test_data):
    folder = test_data / "multeval-bleu"
    hyps = lines(folder / "hyps.lc.tok.en.baseline.opt0")
    refs = lines(folder / "refs.test2010.lc.tok.en.0")
    bleu = translation("bleu", "none", False)
    assert value(bleu, hyps, refs) == pytest.approx(18.538888654535743, abs=1e-9)
    four = [lines(folder / f"set1.ref{i}") for i in range(4)]
    for i, score in enumerate((29.099580708386608, 29.156618043575804, 28.509597087788205)):
        assert value(bleu, lines(folder / f"set1.out.{i}"), *four) == pytest.approx(score, abs=1e-9)


@pytest.mark.slow
def test_ter_of_multeval(test_data):
    folder = test_data / "multeval-bleu"
    hyps = lines(folder / "hyps.lc.tok.en.baseline.opt0")
    refs = lines(folder / "refs.test2010.lc.tok.en.0")
    ter = value(translation("ter", "none", False), hyps, refs)
    assert ter == pytest.approx(65.51916398508937, abs=0.05)  # the gold is another program's


def test_ter_counts_edits():
    """A shift, a substitution and an insertion in ten words (Snover et al. 2006)."""
    ter = translation("ter", "none", False)
    assert value(ter, ["a b c d"], ["a b c d"]) == 0
    assert value(ter, ["d a b c"], ["a b c d"]) == 25
    assert value(ter, ["a b x d e"], ["a b c d"]) == 50


def test_mteval(test_data):
    folder = test_data / "wmt15-mteval"
    hyps, refs = lines(folder / "google.ru"), lines(folder / "ref.ru")
    assert round(value(translation("bleu", "13a", False), hyps, refs), 2) == 23.18


def test_rouge_vectors(test_data):
    folder = test_data / "rouge-vectors"
    hyps, refs = lines(folder / "prediction_large.txt"), lines(folder / "target_large.txt")
    for tokenize in ("rouge", "script"):
        rouge1 = value(rouge("rouge1", False, tokenize), hyps, refs)
        rouge2 = value(rouge("rouge2", False, tokenize), hyps, refs)
        assert (round(rouge1, 5), round(rouge2, 5)) == (38.55255, 22.14491)


TEXTS = {
    "zh": ("敏捷的棕色狐狸跳过了懒狗。", "棕色的狐狸跳过懒狗"),
    "ja": ("吾輩は猫である。名前はまだ無い。", "我輩は猫です。名前は無い"),
    "ar": ("الثعلب البني السريع يقفز فوق الكلب", "الثعلب السريع يقفز فوق كلب"),
    "ru": ("Быстрая бурая лиса прыгает через собаку", "бурая лиса прыгает через кошку"),
    "th": ("สุนัขจิ้งจอกสีน้ำตาล", "สุนัขสีน้ำตาล"),
    "hi": ("तेज़ भूरी लोमड़ी कुत्ते पर कूदती है", "भूरी लोमड़ी कुत्ते पर कूदी"),
    "ko": ("빠른 갈색 여우가 개를 뛰어넘는다", "갈색 여우가 개를 넘는다"),
}


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("script", TEXTS)
def test_rouge_knows_every_script(script, name):
    text, other = TEXTS[script]
    metric = rouge(name, False)
    assert value(metric, [text], [text]) == 100
    assert 0 < value(metric, [other], [text]) < 100
    assert "tok:script" in metric.signature and "stem:no" in metric.signature
    assert "tok:rouge" in rouge(name, True, "rouge").signature


@pytest.mark.parametrize(
    "text", ["It's a dog's_life, isn't it?", "3.14 + x2 = Y", "", "  \t\n a-b", "ALL\x00caps~9"]
)
def test_words_of_ascii_are_those_of_rouge_score(text):
    assert words(text) == rouge_tokenize.tokenize(text, None)


def test_words_of_other_scripts():
    assert words("Die 狐狸 jumps!") == ["die", "狐", "狸", "jumps"]
    assert words("café naïve") == ["café", "naïve"] and words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("กำ") == ["กำ"] or words("กำ") == ["ก", "ำ"]
    assert words("\u0301x") == ["\u0301", "x"]  # a mark with nothing to join stands alone


@pytest.mark.parametrize(
    ("hypothesis", "refs", "exact", "em", "f1"),
    [
        ("The cat.", ["a cat"], 0, 100, 100),
        ("Paris", ["Paris", "London"], 100, 100, 100),
        ("in the city of Paris", ["Paris"], 0, 0, 40),
        ("", ["x"], 0, 0, 0),
        ("the", ["a"], 0, 100, 100),  # nothing but articles on both sides
        ("北京大学", ["北京 大学"], 0, 0, 100),
        ("北京", ["北京大学。"], 0, 0, 100 * 2 * 2 / 6),
        ("U.S.", ["us"], 0, 100, 100),
        ("don't", ["dont"], 0, 100, 100),
    ],
)
def test_answers(hypothesis, refs, exact, em, f1):
    for name, want in (("exact", exact), ("em", em), ("f1", f1)):
        metric = answers(name)
        assert metric.score(metric.statistics([hypothesis], [refs])).value == pytest.approx(want)
    assert "tok:script" in answers("f1").signature
    assert normalise("  The  Quick, brown—fox! ") == "quick brownfox"


def test_a_system_is_not_better_than_itself_but_than_a_worse_one(test_data):
    folder = test_data / "multeval-bleu"
    refs = [[line] for line in lines(folder / "refs.test2010.lc.tok.en.0")][:300]
    good = lines(folder / "hyps.lc.tok.en.baseline.opt0")[:300]
    worse = [" ".join(line.split()[:-2]) for line in good]
    for metric in (translation("bleu", "none", False), rouge("rouge1", False), answers("f1")):
        ours, theirs = metric.statistics(good, refs), metric.statistics(worse, refs)
        for test in ("bootstrap", "randomisation"):
            same = compare(metric, ours, ours, test, 200)
            assert same.p == 1 and same.difference == 0
            better = compare(metric, ours, theirs, test, 200)
            assert better.p < 0.02 and better.difference > 0
            assert better == compare(metric, ours, theirs, test, 200)
            assert better.low < metric.value(ours.sum(0), 300) < better.high
        assert compare(metric, ours, theirs, seed=1, samples=50) != compare(
            metric, ours, theirs, seed=2, samples=50
        )


def test_p_values_are_uniform_where_there_is_no_difference():
    """Two systems of one quality: p below 0.1 about one time in ten, not half the time."""
    generator = np.random.default_rng(0)
    metric = answers("exact")
    small = 0
    for i in range(100):
        ours, theirs = generator.integers(0, 2, (2, 200, 1)).astype(float)
        small += compare(metric, ours, theirs, samples=200, seed=i).p < 0.1
    assert 2 <= small <= 20


def test_tokenizers_that_are_not_here_are_named_and_nothing_is_fetched(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInputError, match="needs the package MeCab"):
        translation("bleu", "ja-mecab", False)
    monkeypatch.undo()
    monkeypatch.setitem(os.environ, "SACREBLEU", "/nowhere")
    assert json.dumps(translation("bleu", "char", True).signature)
