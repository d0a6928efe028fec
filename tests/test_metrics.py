"""Metrics against published numbers, other implementations and hand-made cases."""

import json
import random
import re
import string
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcli.config.scoring import METRICS, ScoringConfig
from lmcli.errors import MissingInputError, UsageError
from lmcli.metrics import answers, passk, rouge, scripts, significance, translation
from lmcli.text.segments import read

FAMILY = {"translation": translation, "rouge": rouge, "answers": answers}
LANGUAGES = {
    "zh": ("敏捷的棕色狐狸跳过了懒狗。", "一只敏捷的狐狸跳过那条懒狗。"),
    "ja": ("素早い茶色の狐がコーヒーを飲む。", "茶色い狐がコーヒーを飲んだ。"),
    "th": ("สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัข", "สุนัขจิ้งจอกกระโดดข้ามหมา"),
    "ar": ("الثعلب البني السريع يقفز فوق الكلب", "الثعلب السريع يقفز فوق الكلب الكسول"),
    "ru": ("Быстрая лиса прыгает через ленивую собаку", "Лиса прыгает через собаку"),
    "hi": ("तेज़ भूरी लोमड़ी कुत्ते के ऊपर कूदती है", "लोमड़ी कुत्ते के ऊपर कूदी"),
    "ko": ("빠른 갈색 여우가 게으른 개를 뛰어넘는다", "빠른 여우가 개를 뛰어넘는다"),
    "el": ("Η γρήγορη αλεπού πηδάει πάνω από το σκυλί", "Η αλεπού πηδάει το σκυλί"),
}
ASCII = st.text(st.characters(max_codepoint=127))


def measure(name, hyps, *refs, **config):
    """`refs` are columns, as files are."""
    rows = [list(texts) for texts in zip(*refs, strict=True)]
    return FAMILY[METRICS[name]].measure(name, hyps, rows, ScoringConfig(**config))


def score(name, hyps, *refs, **config):
    return measure(name, hyps, *refs, **config).score()


def lines(path):
    return [texts[0] for texts in read(str(path), "").segments("")]


# Published numbers


def wmt21(test_data, metric):
    """(hypotheses, reference, tokenizer, published score) of WMT21 en-de and en-zh."""
    folder = test_data / "wmt21-systems"
    for _, row in read(str(folder / "automatic-scores.tsv"), "").rows:
        kind, _, letter = row["metric"].partition("-")
        pair, target = row["pair"], row["pair"][-2:]
        hyp = folder / f"system-outputs/newstest2021.{pair}.hyp.{row['system']}.{target}"
        if kind == metric and len(letter) == 1 and hyp.exists():
            ref = folder / f"references/newstest2021.{pair}.ref.{letter}.{target}"
            yield hyp, ref, "zh" if target == "zh" else "13a", float(row["score"])


def check(rows, metric, every):
    checked = 0
    for hyp, ref, tokenize, published in rows[::every]:
        found = score(metric, lines(hyp), lines(ref), tokenize=tokenize)
        assert found.value == pytest.approx(published, abs=1e-9), hyp
        assert f"tok:{tokenize}|" in found.signature or metric == "chrf"
        checked += 1
    return checked


@pytest.mark.parametrize(("metric", "every", "n"), [("bleu", 17, 6), ("chrf", 51, 2)])
def test_some_of_the_published_wmt21_scores(test_data, metric, every, n):
    assert check(list(wmt21(test_data, metric)), metric, every) == n


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_all_published_wmt21_scores(test_data, metric):
    assert check(list(wmt21(test_data, metric)), metric, 1) == 102


def test_bleu_of_tokenized_text_with_one_and_four_references(test_data):
    folder = test_data / "multeval-bleu"
    hyps = lines(folder / "hyps.lc.tok.en.baseline.opt0")
    refs = lines(folder / "refs.test2010.lc.tok.en.0")
    found = score("bleu", hyps, refs, tokenize="none")
    assert found.value == pytest.approx(18.538888654535743, abs=1e-9)
    four = [lines(folder / f"set1.ref{i}") for i in range(4)]
    published = [29.099580708386608, 29.156618043575804, 28.509597087788205, 29.30287229186319]
    for i, value in enumerate(published):
        found = score("bleu", lines(folder / f"set1.out.{i}"), *four, tokenize="none")
        assert found.value == pytest.approx(value, abs=1e-9)
        assert found.signature.startswith("nrefs:4|case:mixed|eff:no|tok:none|smooth:exp|")


@pytest.mark.slow
def test_ter_of_multeval(test_data):
    """tercom's number; sacrebleu searches shifts a little differently."""
    folder = test_data / "multeval-bleu"
    hyps = lines(folder / "hyps.lc.tok.en.baseline.opt0")
    found = score("ter", hyps, lines(folder / "refs.test2010.lc.tok.en.0"))
    assert found.value == pytest.approx(100 * 0.6551916398508937, abs=0.01)


def test_bleu_of_mteval(test_data):
    folder = test_data / "wmt15-mteval"
    found = score("bleu", lines(folder / "google.ru"), lines(folder / "ref.ru"))
    assert round(found.value / 100, 4) == 0.2318


@pytest.mark.parametrize("tok", ["script", "rouge"])
def test_rouge_of_a_thousand_pairs(test_data, tok):
    folder = test_data / "rouge-vectors"
    hyps, refs = lines(folder / "prediction_large.txt"), lines(folder / "target_large.txt")
    for name, value in (("rouge1", 38.55255), ("rouge2", 22.14491)):
        found = score(name, hyps, refs, rouge_tokenizer=tok)
        assert found.value == pytest.approx(value, abs=5e-6)
        assert f"|stat:f|tok:{tok}|stem:no|" in found.signature


def test_rouge_of_pltrdy_pairs(test_data):
    """Theirs counts each n-gram once; so does ours when each is written as one word, once."""
    pairs = json.loads((test_data / "rouge-vectors" / "pltrdy-data.json").read_text())
    assert len(pairs) == 4
    for n in (1, 2):
        number: dict[tuple[str, ...], int] = {}

        def once(text, n=n, number=number):
            words = text.split()
            grams = dict.fromkeys(zip(*(words[i:] for i in range(n)), strict=False))
            return " ".join(f"w{number.setdefault(gram, len(number))}" for gram in grams)

        for pair in pairs:
            found = score("rouge1", [once(pair["hyp"])], [once(pair["ref"])])
            assert found.value / 100 == pytest.approx(pair["scores"][f"rouge-{n}"]["f"], abs=1e-6)


# Agreement with the libraries


TEXTS = ["The cat sat on the mat .", "He's here, isn't he?", "a b", "", "The quick brown fox jumps"]
OTHERS = ["The cat sat on a mat .", "He is here, is he not?", "b a", "x y", "A quick brown fox ran"]
THIRDS = ["A cat is on the mat .", "Is he here?", "a b", "", "The fox jumps quickly"]


def test_scores_are_those_of_sacrebleu_for_the_corpus_and_each_segment():
    from sacrebleu.metrics import BLEU, CHRF, TER

    theirs = {
        "bleu": (BLEU(force=True), BLEU(effective_order=True)),
        "chrf": (CHRF(), CHRF()),
        "chrf++": (CHRF(word_order=2), CHRF(word_order=2)),
        "ter": (TER(), TER()),
    }
    for name, (corpus, segment) in theirs.items():
        found = measure(name, TEXTS, OTHERS, THIRDS)
        assert found.score().value == pytest.approx(
            corpus.corpus_score(TEXTS, [OTHERS, THIRDS]).score, abs=1e-9
        )
        assert found.signature == str(corpus.get_signature())
        pairs = zip(OTHERS, THIRDS, strict=True)
        each = [segment.sentence_score(t, r).score for t, r in zip(TEXTS, pairs, strict=True)]
        assert found.segments() == pytest.approx(each, abs=1e-9)
        assert found.single_signature == str(segment.get_signature())


def test_lowercase_changes_the_number_and_the_signature():
    for name in ("bleu", "chrf", "exact_match"):
        plain, folded = (score(name, ["THE cat sat down"], ["the cat sat down"], lowercase=x)
                         for x in (False, True))  # fmt: skip
        assert plain.value < folded.value == pytest.approx(100), name
        assert "case:mixed" in plain.signature and "case:lc" in folded.signature


def test_a_varying_number_of_references():
    rows = [["a b c d"], ["x", "e f g h"]]
    for name, module in METRICS.items():
        found = FAMILY[module].measure(name, ["a b c d", "e f g h"], rows, ScoringConfig())
        assert "nrefs:var|" in found.signature, name
        if name != "ter":  # its length is the mean over references
            assert found.score().value == pytest.approx(100), name


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "zh", "char", "none"])
def test_every_tokenizer_of_bleu_is_in_its_signature(tokenizer):
    text = ["我 爱 the cat, 狗。"]
    found = score("bleu", text, text, tokenize=tokenizer)
    assert f"|tok:{tokenizer}|" in found.signature and found.value == pytest.approx(100)


def test_a_tokenizer_that_is_not_installed_says_so_and_downloads_nothing(monkeypatch, tmp_path):
    import sacrebleu
    from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_spm

    def refuse(*args):
        raise AssertionError("downloads")

    monkeypatch.setattr(tokenizer_spm, "download_file", refuse)
    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    monkeypatch.setattr(sacrebleu, "SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=r"--tokenize ja-mecab: Japanese .* sacrebleu\[ja\]"):
        score("bleu", ["a"], ["a"], tokenize="ja-mecab")
    for name in ("flores101", "flores200"):
        with pytest.raises(MissingInputError, match=f"--tokenize {name}: .* downloads nothing"):
            score("bleu", ["a"], ["a"], tokenize=name)


# ROUGE in any script


@settings(max_examples=300, derandomize=True, deadline=None)
@given(text=ASCII)
def test_words_of_ascii_are_those_of_rouge_score(text):
    from rouge_score.tokenize import tokenize

    assert scripts.words(text) == tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The 狐狸, naïve_25!", ["the", "狐", "狸", "naïve", "25"]),
        ("コーヒーを飲む。", list("コーヒーを飲む")),
        ("か\u3099", ["か\u3099"]),  # a kana and its combining mark are one
        ("ที่สุด", ["ที่", "สุ", "ด"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("كِتاب، هذا", ["كِتاب", "هذا"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("\U00020000\U00020001", ["\U00020000", "\U00020001"]),
        ("—“”…!", []),
    ],
)
def test_words_by_script(text, words):
    assert scripts.words(text) == words


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_not_zero_in_any_script(language, name):
    text, other = LANGUAGES[language]
    assert score(name, [text], [text]).value == pytest.approx(100)
    assert 10 < score(name, [other], [text]).value < 100
    assert score(name, [text], [text], rouge_tokenizer="rouge").value == 0


def test_rouge_is_not_zero_for_real_texts_in_eighteen_languages(test_data):
    paths = sorted((test_data / "udhr").glob("*.txt"))
    assert len(paths) > 10
    for path in paths:
        texts = [text for text in lines(path) if text.strip()][:40]
        assert score("rouge1", texts, texts).value == pytest.approx(100), path


def test_stemming_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    hyp, ref = "The foxes were jumping happily over does", "the fox jumps happy over doe"
    plain = score("rouge1", [hyp], [ref])
    stemmed = score("rouge1", [hyp], [ref], stem=True)
    theirs = RougeScorer(["rouge1"], use_stemmer=True).score(ref, hyp)["rouge1"].fmeasure
    assert plain.value < stemmed.value == pytest.approx(100 * theirs)
    assert score("rouge1", ["was"], ["wa"], stem=True).value == 0  # three letters stay
    assert "stem:no" in plain.signature and "stem:porter" in stemmed.signature
    assert score("rouge1", [hyp], [ref], stem=True, rouge_tokenizer="rouge").value == (
        pytest.approx(stemmed.value)
    )


def test_the_best_reference_counts_and_lsum_goes_by_lines():
    assert score("rouge1", ["a b"], ["x y"], ["a b"]).value == pytest.approx(100)
    hyp, ref = "one two\nthree four", "three four\none two"
    assert score("rougeLsum", [hyp], [ref]).value == pytest.approx(100)
    assert score("rougeL", [hyp], [ref]).value == pytest.approx(50)


# EM and F1


@pytest.mark.parametrize(
    ("hyp", "refs", "em", "f1"),
    [
        ("The U.S. Navy!", ["us navy"], 1, 1),
        ("an apple, a day", ["apple day"], 1, 1),
        ("Denver Broncos", ["the Denver Broncos team"], 0, 4 / 5),
        ("to to be", ["to be be"], 0, 2 / 3),
        ("blue", ["red", "Blue."], 1, 1),
        ("blue sky", ["red", "sky"], 0, 2 / 3),
        ("yes", ["no"], 0, 0),
        ("", [""], 1, 1),
        ("", ["x"], 0, 0),
        ("the", ["!"], 1, 1),  # both empty once normalised
        ("don’t", ["dont"], 0, 0),  # only ASCII punctuation goes, officially
        ("北京大学", ["北京大学。"], 1, 1),
        ("北京", ["北京大学"], 0, 2 / 3),
        ("在 2008 年", ["2008年"], 0, 4 / 5),
        ("A股", ["股"], 0, 2 / 3),
        ("東京タワー", ["東京"], 0, 4 / 7),
    ],
)
def test_squad_em_and_f1(hyp, refs, em, f1):
    columns = [[ref] for ref in refs]
    assert score("squad_em", [hyp], *columns).value == pytest.approx(100 * em)
    found = score("squad_f1", [hyp], *columns)
    assert found.value == pytest.approx(100 * f1)
    assert "norm:squad|unspaced:char|" in found.signature


def official(text):
    """normalize_answer of SQuAD's evaluate-v2.0.py, and its f1."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split())


WORDS = st.lists(st.sampled_from(["a", "an", "the", "The", "fox,", "fox.", "é", "U.S.", "\x1c"]))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(a=WORDS, b=WORDS)
def test_squad_is_the_official_script_where_words_have_spaces(a, b):
    a, b = " ".join(a), " ".join(b)
    assert score("squad_em", [a], [b]).value == 100 * (official(a) == official(b))
    found, wanted = official(a).split(), official(b).split()
    same = sum((Counter(found) & Counter(wanted)).values())
    f1 = float(found == wanted)
    if found and wanted:
        precision, recall = same / len(found), same / len(wanted)
        f1 = 2 * precision * recall / (precision + recall) if same else 0
    assert score("squad_f1", [a], [b]).value == pytest.approx(100 * f1)


def test_exact_match_is_exact_and_takes_the_mean():
    found = score("exact_match", ["a", "b ", "C"], ["a", "b", "c"])
    assert found.value == pytest.approx(100 / 3) and "case:mixed" in found.signature


# Significance


def system(seed, error):
    """200 sentences with a share of wrong words, and their references."""
    draw = random.Random(seed)
    refs = [" ".join(draw.choices("abcdefghij", k=12)) for _ in range(200)]
    hyps = [" ".join(w if draw.random() > error else "z" for w in r.split()) for r in refs]
    return hyps, refs


@pytest.mark.parametrize("name", METRICS)
def test_a_system_against_itself_and_against_a_worse_one(name):
    good, refs = system(1, 0.05)
    bad, again = system(1, 0.30)
    assert refs == again
    ours, worse = measure(name, good, refs), measure(name, bad, refs)
    same = significance.compare(ours, ours, 100, 0)
    assert (same["p_bootstrap"], same["p_randomization"], same["difference"]) == (1, 1, 0)
    found = significance.compare(ours, worse, 200, 0)
    assert found["p_bootstrap"] == found["p_randomization"] == 1 / 201
    assert found["difference"] == ours.score().value - worse.score().value != 0
    assert found["low"] < ours.score().value < found["high"]
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert found["difference_low"] * found["difference_high"] > 0
    assert found["test"].startswith("paired:lmcli|trials:200|seed:0|rng:splitmix64|ci:95|")


def test_the_same_seed_gives_the_same_numbers_and_another_other_ones():
    (a, refs), (b, _) = system(2, 0.2), system(2, 0.21)
    ours, theirs = measure("chrf", a, refs), measure("chrf", b, refs)
    first, again, other = (significance.compare(ours, theirs, 50, seed) for seed in (3, 3, 4))
    assert first == again and first["low"] != other["low"]


def test_p_values_are_uniform_where_nothing_differs():
    """Two systems of one quality: about as many p below 0.2 as 0.2 says."""
    found = []
    for seed in range(60):
        good, refs = system(seed, 0.2)
        draw = random.Random(-1 - seed)
        other = [" ".join(w if draw.random() > 0.2 else "z" for w in r.split()) for r in refs]
        a, b = measure("squad_f1", good, refs), measure("squad_f1", other, refs)
        test = significance.compare(a, b, 99, 0)
        found.append((test["p_bootstrap"], test["p_randomization"]))
    below = (np.array(found) <= 0.2).mean(0)
    assert ((below > 0.06) & (below < 0.36)).all(), below


def test_resamples_are_sacrebleus_in_distribution():
    """Interval width and p-value against sacrebleu's own paired bootstrap."""
    from sacrebleu.metrics import CHRF
    from sacrebleu.significance import PairedTest

    (a, refs), (b, _) = system(5, 0.20), system(5, 0.22)
    ours = significance.compare(measure("chrf", a, refs), measure("chrf", b, refs), 1000, 0)
    test = PairedTest([("base", b), ("new", a)], {"chrF": CHRF()}, [refs], "bs", 1000)
    theirs = test()[1]["chrF2"][1]
    assert (ours["high"] - ours["low"]) / 2 == pytest.approx(theirs.ci, rel=0.1)
    test = PairedTest([("base", b), ("new", a)], {"chrF": CHRF()}, [refs], "ar", 1000)
    assert ours["p_randomization"] == pytest.approx(test()[1]["chrF2"][1].p_value, abs=0.05)


def test_draws_depend_on_the_counters_alone_and_use_every_segment():
    long = significance._draws(7, 0, 3, 1000)
    assert (significance._draws(7, 0, 3, 10) == long[:10]).all()
    assert len(set(long.tolist())) == 1000 and (long >= 0).all()
    assert 450 < (long % 2).sum() < 550 and np.bincount(long % 10).min() > 60
    assert (significance._draws(7, 1, 3, 1000) != long).all()


# ---- pass@k ----


def test_pass_at_k_is_the_share_of_choices_with_a_program_that_passes():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                choices = list(combinations([True] * c + [False] * (n - c), k))
                assert passk.estimate(n, c, k) == pytest.approx(
                    sum(map(any, choices)) / len(choices)
                )
    assert passk.estimate(10**5, 10, 10**4) == pytest.approx(1 - 0.9**10, rel=1e-4)
    assert 0 < passk.estimate(10**6, 1, 1) == pytest.approx(1e-6)


def test_pass_at_k_is_the_mean_over_problems_with_its_recipe():
    config = ScoringConfig(timeout="3s", weak_sandbox=True)
    score = passk.measure("pass@2", [[True, False, False], [True] * 3], [], config).score()
    assert score.value == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert score.signature.startswith("k:2|n:3|timeout:3s|sandbox:weak|python:3.")
