"""lmcli score: files, pipes, fields, and one sentence for each mistake."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

HYPS = "the cat sat on the mat\nhello there world again\n\n"
REFS = "the cat sat on a mat\nhello there world again\n\n"


@pytest.fixture
def files(root):
    folder = root.parent
    (folder / "h.txt").write_text(HYPS)
    (folder / "r.txt").write_text(REFS)
    return folder


def values(result):
    assert result.code == 0, result.err
    return {s["name"]: s["value"] for s in json.loads(result.out)["scores"]}


def test_a_table_with_signatures_and_the_default_metrics(cli, files):
    result = cli("score", "h.txt", "--ref", "r.txt")
    lines = result.out.splitlines()
    assert result.code == 0 and result.err == ""
    assert [line.split()[0] for line in lines] == ["name", "bleu", "chrf", "ter"]
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in lines[1]
    assert lines[3].split()[1] == "10.0000"  # one edit in ten words


def test_files_pipes_gzip_crlf_and_bom_agree(cli, files):
    (files / "h.txt.gz").write_bytes(gzip.compress(HYPS.encode()))
    (files / "crlf.txt").write_bytes(b"\xef\xbb\xbf" + HYPS.replace("\n", "\r\n").encode())
    args = ["--ref", "r.txt", "-m", "bleu", "-m", "exact_match", "--json"]
    plain = values(cli("score", "h.txt", *args))
    assert plain["exact_match"] == pytest.approx(200 / 3)
    assert values(cli("score", "-", *args, input=HYPS)) == plain
    assert values(cli("score", "h.txt.gz", *args)) == plain
    assert values(cli("score", "crlf.txt", *args)) == plain
    assert values(cli("score", "-", *args, input=HYPS[:-1] + "\n")) == plain


def test_only_a_newline_ends_a_segment(cli, files):
    text = "a\u2028b\x0bc\rd\x85e\n"
    (files / "odd.txt").write_bytes(text.encode())
    result = cli("score", "-", "--ref", "odd.txt", "-m", "exact_match", "--json", input=text)
    assert json.loads(result.out)["n_segments"] == 1 and values(result) == {"exact_match": 100}


def test_real_pipes(files):
    """Two processes joined by a pipe; stdout is the answer and nothing else."""
    lmcli = f"{sys.executable} -m lmcli"
    line = f"cat h.txt | {lmcli} score - --ref r.txt -m chrf -m rougeL --json | cat"
    done = subprocess.run(line, shell=True, cwd=files, capture_output=True, text=True)
    scores = json.loads(done.stdout)["scores"]
    assert [s["name"] for s in scores] == ["chrf", "rougeL"] and done.stderr == ""
    line = f"{lmcli} score h.txt --ref <(gzip -c r.txt | zcat) --segments -m ter | head -2"
    done = subprocess.run(["bash", "-c", line], cwd=files, capture_output=True, text=True)
    assert done.stdout == "ter\n16.666666666666664\n" and "case:lc|tok:tercom" in done.stderr


def test_segments_are_rows_of_the_answer(cli, files):
    args = ["score", "h.txt", "--ref", "r.txt", "-m", "bleu", "-m", "exact_match", "--segments"]
    result = cli(*args)
    header, *rows = result.out.splitlines()
    assert header == "bleu\texact_match" and len(rows) == 3
    assert rows[1].split("\t")[1] == "100.0" and float(rows[0].split("\t")[0]) < 60
    assert "eff:no" in result.err and "eff:yes" in result.err
    found = json.loads(cli(*args, "--json").out)
    assert found["segments"]["exact_match"] == [0, 100, 100]
    assert "eff:yes" in found["scores"][0]["segment_signature"]
    assert "eff:no" in found["scores"][0]["signature"]


def test_several_references_as_files_and_as_a_list(cli, files):
    (files / "r2.txt").write_text("the cat sat on the mat\nx\n\n")
    two = ["--ref", "r.txt", "--ref", "r2.txt", "-m", "exact_match", "-m", "bleu", "--json"]
    plain = cli("score", "h.txt", *two)
    assert values(plain)["exact_match"] == 100 and "nrefs:2|" in plain.out
    other = ["the cat sat on the mat", "x", ""]
    with (files / "all.jsonl").open("w") as file:
        for h, *refs in zip(HYPS.split("\n"), REFS.split("\n"), other, strict=False):
            file.write(json.dumps({"answer": h, "gold": refs}) + "\n")
    keys = ["--hyp-key", "answer", "--ref-key", "gold"]
    args = ["-m", "exact_match", "-m", "bleu", "--json", *keys]
    alone = cli("score", "all.jsonl", *args)
    assert values(alone) == values(plain)
    piped = cli("score", "-", *args, input=(files / "all.jsonl").read_text() + "\n")
    assert piped.out == alone.out
    mixed = cli("score", "h.txt", "--ref", "all.jsonl", "--ref-key", "gold", *args[:5])
    assert values(mixed) == values(plain)


def test_columns_of_a_tsv(cli, files):
    (files / "t.tsv").write_text('id\thypothesis\treference\n1\ta "b" c\ta "b" c\n2\t\tx\n')
    result = cli("score", "t.tsv", "-m", "exact_match", "--json")
    assert values(result) == {"exact_match": 50} and json.loads(result.out)["n_segments"] == 2


def test_a_baseline_adds_p_values_that_the_seed_decides(cli, files):
    words = list("abcdefgh")
    refs = [" ".join(words[i % 8 :] + words[: i % 8]) for i in range(60)]
    (files / "refs").write_text("\n".join(refs))
    (files / "good").write_text("\n".join(refs[:50] + ["x y"] * 10))
    (files / "bad").write_text("\n".join(r[:7] + " z z z z" for r in refs))
    base = ["score", "good", "--ref", "refs", "-m", "bleu", "-m", "squad_f1", "--trials", "100"]
    same = json.loads(cli(*base, "--baseline", "good", "--json").out)["scores"]
    assert all(s["p_bootstrap"] == s["p_randomization"] == 1 for s in same)
    worse = cli(*base, "--baseline", "bad", "--json")
    for s in json.loads(worse.out)["scores"]:
        assert s["difference"] > 0 and s["p_bootstrap"] < 0.02 and s["p_randomization"] < 0.02
        assert "|trials:100|seed:0|" in s["test"]
    assert cli(*base, "--baseline", "bad", "--json").out == worse.out
    assert cli(*base, "--baseline", "bad", "--json", "--seed", "1").out != worse.out
    table = cli(*base, "--baseline", "bad").out.splitlines()
    assert "p_bootstrap" in table[0] and "paired:lmcli|" in table[1] and len(table) == 3


def test_warnings_of_a_bleu_that_means_nothing(cli, files):
    (files / "zh.txt").write_text("敏捷的狐狸。\n懒狗。\n")
    assert "take zh or char" in cli("score", "zh.txt", "--ref", "zh.txt", "-m", "bleu").err
    quiet = cli("score", "zh.txt", "--ref", "zh.txt", "-m", "bleu", "--tokenize", "zh")
    assert quiet.err == "" and "|tok:zh|" in quiet.out
    (files / "tok.txt").write_text("a b .\nc d .\n")
    assert "looks tokenized" in cli("score", "tok.txt", "--ref", "tok.txt", "-m", "bleu").err
    assert cli("score", "tok.txt", "--ref", "tok.txt", "-m", "chrf").err == ""


PROBLEMS = [
    {
        "prompt": "import math\n\ndef half(x):\n    return x / 2\n\ndef area(r):\n",
        "test": "def check(candidate):\n    assert candidate(half(2)) == math.pi",
        "entry_point": "area",
    },
    {"test": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]},
]
COMPLETIONS = [
    "    return math.pi * r**2",
    "    return math.pi if r is math else 0\n\ndef half(x):\n    return math",
    "    return 3.14",
    "def add(a, b): return a + b",
    "def add(a, b): return 3",
    "def add(a, b): while True: pass",
]
RUN = ["score", "c.jsonl", "--ref", "p.jsonl", "--allow-code-execution", "--timeout", "20s"]


@pytest.fixture
def programs(root):
    for name, rows in (("p", PROBLEMS), ("c", [{"completion": text} for text in COMPLETIONS])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root.parent / f"{name}.jsonl").write_text(text)
    return root.parent


@pytest.fixture(params=["namespaces", "weak"])
def sandbox(request):
    """The flags of each sandbox that there is here."""
    from lmcli.evaluation.sandbox import available

    if request.param == "namespaces" and (why := available()):
        pytest.skip(f"no namespaces here: {why}")
    return ["--weak-sandbox"] if request.param == "weak" else []


def test_pass_at_k_runs_programs(cli, programs, sandbox):
    result = cli(*RUN, *sandbox, "-m", "pass@1", "-m", "pass@2", "--json", "--segments")
    assert values(result) == pytest.approx({"pass@1": 100 / 3, "pass@2": 200 / 3})
    assert "c.jsonl: 6 programs, 3 failed, 2 passed, 1 error\n" in result.err
    assert ("own rights" in result.err) == bool(sandbox)
    found = json.loads(result.out)
    assert found["segments"]["pass@1"] == pytest.approx([100 / 3, 100 / 3])
    reasons = [[verdict["reason"] for verdict in row] for row in found["verdicts"]]
    assert reasons == [["passed", "failed", "failed"], ["passed", "failed", "error"]]
    assert "SyntaxError" in found["verdicts"][1][2]["detail"]
    kind = "weak" if sandbox else "namespaces"
    recipe = f"k:2|n:3|timeout:20s|sandbox:{kind}|python:3."
    assert found["scores"][1]["signature"].startswith(recipe)


def test_pass_at_k_of_two_systems_and_of_one_file(cli, programs):
    better = [COMPLETIONS[0], COMPLETIONS[3]]
    rows = [problem | {"completion": text} for problem, text in zip(PROBLEMS, better, strict=True)]
    (programs / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["--allow-code-execution", "--weak-sandbox", "-m", "pass@1", "--json"]
    alone = cli("score", "both.jsonl", *args)
    assert values(alone) == {"pass@1": 100}
    result = cli("score", "both.jsonl", "--ref", "p.jsonl", "--baseline", "c.jsonl", *args)
    [score] = json.loads(result.out)["scores"]
    assert score["value"] == 100 and score["baseline"] == pytest.approx(100 / 3)


def test_pass_at_k_of_the_published_sample(cli, root, test_data):
    folder = test_data / "humaneval"
    args = [folder / "example_samples.jsonl", "--ref", folder / "example_problem.jsonl"]
    args += ["--allow-code-execution", "--weak-sandbox", "--timeout", "3s", "-m", "pass@1"]
    assert values(cli("score", *args, "--json")) == {"pass@1": pytest.approx(50)}


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["c.jsonl", "--ref", "p.jsonl"], 77, "allow it by --allow-code-execution"),
        ([*RUN[1:], "-m", "pass@4"], 2, "pass@4 takes 4 completions of each problem; there are 3"),
        ([*RUN[1:], "-m", "bleu"], 2, "pass@k runs programs; score texts in a command of their"),
        ([*RUN[1:], "-m", "pass@k"], 2, "no metric 'pass@k'"),
        ([*RUN[1:], "-m", "pass@0"], 2, "did you mean 'pass@1'?"),
        ([*RUN[1:], "--timeout", "5"], 2, "'5' is not a duration"),
        ([*RUN[1:], "--timeout", "0s"], 2, "--timeout must be above 0s"),
        ([*RUN[1:], "--ref", "p.jsonl"], 2, "pass@k takes one --ref"),
        (["4.jsonl", *RUN[2:], "--ref-key", "test"], 65, "2 problems, 3 in 4.jsonl"),
        (["c.jsonl", "--ref", "text", *RUN[4:]], 65, "problems are JSONL with fields prompt"),
        (["c.jsonl", "--ref", "no.jsonl", *RUN[4:]], 65, "no.jsonl:1: field 'test' does not comp"),
        (["c.jsonl", "--ref", "odd.jsonl", *RUN[4:]], 65, "odd.jsonl:1: fields 'prompt' and 'en"),
    ],
)
def test_a_mistake_about_programs_is_one_sentence(cli, programs, args, code, says):
    three = (programs / "c.jsonl").read_text().splitlines(keepends=True)[:3]
    (programs / "4.jsonl").write_text("".join(three))
    (programs / "text").write_text("one\n")
    (programs / "no.jsonl").write_text('{"test": "assert ("}\n')
    (programs / "odd.jsonl").write_text('{"test": "", "prompt": 1}\n')
    result = cli("score", *args, "-m", "pass@1")
    assert (result.code, result.out) == (code, "") and says in result.err, result
    assert result.err.startswith("lmcli: ") and result.err.count("\n") == 1


def test_pass_at_k_is_refused_where_there_are_no_namespaces(cli, programs, monkeypatch):
    from lmcli.evaluation import sandbox

    monkeypatch.setattr(sandbox, "available", lambda: "they are forbidden")
    result = cli(*RUN, "-m", "pass@1")
    assert (result.code, result.out) == (77, "") and "--weak-sandbox" in result.err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["h.txt", "--ref", "two"], 65, "h.txt has 3, two 2"),
        (["h.txt", "--ref", "r.txt", "--baseline", "two"], 65, "h.txt has 3, two 2"),
        (["-", "--ref", "two"], 65, "standard input has 3, two 2"),
        (["h.txt", "--ref", "empty"], 65, "empty: no text to read (empty)"),
        (["empty.jsonl"], 65, "empty.jsonl: no text to read (empty)"),
        (["empty.tsv"], 65, "empty.tsv: no text to read (empty)"),
        (["h.txt", "--ref", "latin"], 65, "latin:2: not UTF-8 at byte 3"),
        (["h.txt", "--ref", "no"], 66, "no: no such file"),
        (["h.txt", "--ref", "broken.gz"], 65, "broken.gz: broken gzip"),
        (["h.txt"], 2, "no references: --ref REFS"),
        (["-", "--ref", "-"], 2, "standard input (-) can be read only once"),
        (["h.txt", "--ref", "r.txt", "-m", "blue"], 2, "did you mean 'bleu'?"),
        (["h.txt", "--ref", "r.txt", "--tokenize", "13"], 2, "did you mean '13a'?"),
        (["h.txt", "--ref", "r.txt", "--trials", "0"], 2, "--trials must be at least 1"),
        (["bad.jsonl"], 65, "bad.jsonl:2: not a JSON object"),
        (["a.jsonl"], 65, "a.jsonl:1: no field 'reference' (--hyp-key, --ref-key); it has hypo"),
        (["list.jsonl"], 65, "list.jsonl:1: field 'hypothesis' must be text"),
        (["none.jsonl"], 65, "none.jsonl:1: field 'reference' must be text"),
        (["short.tsv"], 65, "short.tsv:3: 1 columns where the header has 2"),
    ],
)
def test_a_mistake_is_one_sentence(cli, files, args, code, says):
    contents = {
        "two": b"a\nb\n",
        **dict.fromkeys(("empty", "empty.jsonl", "empty.tsv"), b""),
        "latin": b"fine\ncaf\xe9\n\n",
        "broken.gz": gzip.compress(HYPS.encode())[:-9],
        "bad.jsonl": b'{"hypothesis": "a", "reference": "b"}\n[]\n',
        "a.jsonl": b'{"hypothesis": "a"}\n',
        "list.jsonl": b'{"hypothesis": ["a"], "reference": "a"}\n',
        "none.jsonl": b'{"hypothesis": "a", "reference": []}\n',
        "short.tsv": b"hypothesis\treference\na\tb\nc\n",
    }
    for name, data in contents.items():
        (files / name).write_bytes(data)
    result = cli("score", *args, input=HYPS)
    assert (result.code, result.out) == (code, "") and says in result.err, result
    assert result.err.startswith("lmcli: ") and result.err.count("\n") == 1


def likelihoods(result):
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_greedy_completion_has_the_log_probability_that_was_reported(cli, tiny_copy):
    compared = 0
    for flags in (("--max-new-tokens", "9"), ("--max-new-tokens", "25"), ("--num-beams", "3")):
        drawn = cli("sample", "base", "The", "A king", "--json", "--temperature", "0", *flags)
        again = likelihoods(cli("score", "--model", "base", "--jsonl", "--json", input=drawn.out))
        for before, after in zip(likelihoods(drawn), again, strict=True):
            ended = before["finish_reason"] == "eos"
            # a completion that another tokenization spells has other numbers
            if after["tokens"] == before["tokens"] + ended:
                assert after["logprob"] == pytest.approx(before["logprob"], abs=1e-3)
                compared += 1
            assert after["completion"] == before["completion"]
    assert compared > 1
    lines = '{"prompt": "The", "completion": "a"}\n\n{"prompt": "A", "completion": "b"}\n'
    blank = cli("score", "--model", "base", "--jsonl", "--json", input=lines)
    assert blank.out.splitlines()[1] == "" and "2 texts" in blank.err


def test_how_likely_lines_are_from_any_kind_of_file(cli, tiny_copy):
    text = "The king\n\nsaid \u00e9t\u00e9\n"
    args = ("score", "--model", "base")
    plain = cli(*args, "--json", input=text)
    found = likelihoods(cli(*args, "--json", input=text.replace("\n\n", "\n")))
    assert [r["text"] for r in found] == ["The king", "said \u00e9t\u00e9"]
    assert plain.out.splitlines()[1] == "" and "2 texts" in plain.err
    for record in found:
        mean = record["logprob"] / record["tokens"]
        assert record["logprob_per_token"] == pytest.approx(mean) and mean < 0
        assert record["perplexity"] == pytest.approx(math.exp(-mean))
    Path("t.txt").write_text(text)
    Path("t.txt.gz").write_bytes(gzip.compress(text.encode()))
    Path("bom.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    for name in ("t.txt", "t.txt.gz", "bom.txt"):
        assert cli(*args, name, "--json").out == plain.out
    table = cli(*args, "t.txt").out.split("\n")
    assert table[1] == "" and len(table[0].split("\t")) == 4
    # the chain rule, over the end of the text and over a prompt
    open_end = likelihoods(cli(*args, "--json", "--no-end", input="The king\n"))[0]
    assert open_end["tokens"] == found[0]["tokens"] - 1
    assert open_end["logprob"] > found[0]["logprob"]
    Path("t.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"prompt": "The", "completion": " king"}).encode())
    )
    after = likelihoods(cli(*args, "t.jsonl.gz", "--json", "--no-end"))[0]
    first = likelihoods(cli(*args, "--json", "--no-end", input="The\n"))[0]
    both = likelihoods(cli(*args, "--json", "--no-end", input="The king\n"))[0]
    assert after["tokens"] + first["tokens"] == both["tokens"]
    assert after["logprob"] + first["logprob"] == pytest.approx(both["logprob"], abs=1e-3)


@pytest.mark.parametrize(
    ("args", "text", "code", "says"),
    [
        (("--ref", "r.txt"), "a\n", 2, "--model scores by itself"),
        (("--source", "two.txt"), "a\n", 65, "has more lines"),
        (("--source", "two.txt"), "a\nb\nc\n", 65, "standard input, line 3"),
        (("--source", "none.txt"), "a\n", 66, "none.txt"),
        (("none.txt",), "", 66, "none.txt"),
        (("none.gz",), "", 66, "none.gz"),
        (("broken.gz",), "", 65, "broken gzip"),
        (("--jsonl",), '{"prompt": 1, "completion": "a"}\n', 65, "'prompt'"),
        ((), b"\xff\n", 65, "standard input, line 1"),
    ],
)
def test_a_mistake_with_a_model_is_one_sentence(cli, tiny_copy, args, text, code, says):
    Path("two.txt").write_text("x\ny\n")
    Path("broken.gz").write_bytes(gzip.compress(b"abc" * 99)[:-9])
    result = cli("score", "--model", "base", *args, input=text)
    assert result.code == code and says in result.err
    assert len(result.err.strip().splitlines()) == 1
