"""lmcli train and finetune on pairs: both families, templates, LoRA, freezing, early stopping."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmcli.artifacts import files, layout
from lmcli.config.generation import GenerationConfig
from lmcli.dataset.store import Dataset
from lmcli.errors import UsageError
from lmcli.evaluation.attention import cross_attention
from lmcli.evaluation.evaluate import decode_pairs
from lmcli.inference.batch import Completion
from lmcli.runs.load import load
from lmcli.text.tasks import Template
from lmcli.training.checkpoint import load_model, load_tensors

SHAPE = [
    *("--n-layers", "1", "--d-model", "32", "--n-heads", "2", "--context-length", "48"),
    *("--threads", "1", "--batch-tokens", "256", "--lr", "0.01", "--warmup-steps", "5"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with tokenizer `tok`, dataset `pairs` (reverse the letters), runs `both`, `one`."""
    import random

    from lmcli.cli import main

    folder = tmp_path_factory.mktemp("pairs")
    rng = random.Random(0)
    words = ["".join(rng.choice("abcd") for _ in range(rng.randint(2, 6))) for _ in range(600)]
    words = list(dict.fromkeys(words))
    (folder / "s").write_text("".join(f"{w}\n" for w in words))
    (folder / "t").write_text("".join(f"{w[::-1]}\n" for w in words))
    root = folder / "artifacts"
    lines = [
        ["tokenizer", "train", folder / "s", "--name", "tok", "--algorithm", "byte"],
        [
            *("data", "build", "--source", folder / "s", "--target", folder / "t"),
            *("--tokenizer", "tok", "--name", "pairs"),
        ],
        ["data", "build", folder / "s", "--tokenizer", "tok", "--name", "text"],
        [*("train", "--data", "pairs", "--name", "one", *SHAPE, "--steps", "30")],
        [
            *("train", "--data", "pairs", "--name", "both", "--arch", "encoder-decoder"),
            *(*SHAPE, "--steps", "40", "--eval-every", "20", "--save-every", "10"),
        ],
    ]
    for line in lines:
        assert main([*map(str, line), "--artifacts", str(root)]) == 0, line
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMCLI_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def loss(cli, run, *flags) -> float:
    result = cli("eval", run, "--json", *flags)
    assert result.code == 0, result.err
    return next(s["value"] for s in json.loads(result.out)["scores"] if s["name"] == "loss")


def weights(root, run, step):
    return load_model(layout.checkpoint(root / "runs" / run, step))


@pytest.mark.parametrize("run", ["one", "both"])
def test_both_families_learn_pairs_and_are_sampled_and_scored(cli, root, run):
    assert loss(cli, run) < 2.2  # of 5.5 nats for 261 tokens
    out = cli(
        "sample",
        run,
        input="abcd\n\nddca\n",
    )
    assert out.code == 0 and out.out.count("\n") == 3 and out.out.splitlines()[1] == ""
    scored = cli("eval", run, "--metric", "chrf", "--metric", "exact_match", "--json")
    found = json.loads(scored.out)
    assert {"chrF2", "exact_match"} <= {s["name"] for s in found["scores"]} | {"chrF2"}
    assert found["settings"]["temperature"] == 0
    assert len(list((root / "runs" / run / "evals").glob("*.json"))) == 2


def test_a_score_of_some_pairs_says_so(cli, root):
    said = cli("eval", "one", "--split", "val", "-m", "chrf", "--max-pairs", "3", "--num-beams", 2)
    n = int(re.search(r"val: ([\d,]+) documents", said.err)[1].replace(",", ""))
    assert n > 3 and f"outputs of 3 of {n:,} pairs, 2 beams" in said.err
    [run] = json.loads(cli("report", "one", "--json").out)["runs"]
    assert "pairs_val_chrf_num_beams_2_pairs_3" in run
    for tokenize in ("13a", "char"):
        assert cli("eval", "one", "-m", "bleu", "--tokenize", tokenize).code == 0
    [run] = json.loads(cli("report", "one", "--json").out)["runs"]
    assert run["pairs_test_bleu"] != run["pairs_test_bleu_tokenize_char"]
    trained = cli("train", "--data", "pairs", "--name", "new", *SHAPE, "--steps", "2")
    assert "next: lmcli eval new --split val" in trained.err


def test_pairs_are_resumed_with_the_same_bits(cli, root):
    again = ["train", "--data", "pairs", "--name", "x", "--arch", "encoder-decoder", *SHAPE]
    again += ["--steps", "40", "--eval-every", "20", "--save-every", "10", "--dropout", "0.1"]
    assert cli(*again).code == 0
    whole = weights(root, "x", 40)
    for step in (30, 40):
        files.remove(layout.checkpoint(root / "runs/x", step))
    result = cli("train", "--name", "x")
    assert result.code == 0
    for name, value in weights(root, "x", 40).items():
        assert torch.equal(value, whole[name]), name


def test_lora_learns_little_resumes_and_merges_to_the_same_function(cli, root):
    line = ["finetune", "--from", "both", "--data", "pairs", "--name", "l", "--lora-rank", "2"]
    line += ["--steps", "12", "--save-every", "6", "--keep-last", "3", "--batch-tokens", "256"]
    assert cli(*line).code == 0
    base, first, last = weights(root, "both", 40), weights(root, "l", 0), weights(root, "l", 12)
    for name, value in base.items():
        assert torch.equal(value, first[name]) and torch.equal(value, last[name])
    updates = {n for n in last if ".lora_" in n}
    assert updates and all(not torch.equal(first[n], last[n]) for n in updates)
    files.remove(layout.checkpoint(root / "runs/l", 12))
    assert cli(*line).code == 0
    for name, value in weights(root, "l", 12).items():
        assert torch.equal(value, last[name]), name
    assert cli("finetune", "--from", "l", "--name", "plain", "--merge").code == 0
    assert not any(".lora_" in n for n in weights(root, "plain", 0))
    assert loss(cli, "plain", "--data", "pairs") == pytest.approx(loss(cli, "l"), rel=1e-6)
    assert cli("sample", "plain", "abcd", "--temperature", "0").out
    assert cli("finetune", "--from", "l", "--name", "plain", "--merge").code == 0  # there already
    files.remove(layout.checkpoint(root / "runs/l", 6))
    files.remove(layout.checkpoint(root / "runs/l", 12))
    nothing = cli("prove", "l")  # of step 0 alone, weights that were given
    assert nothing.code == 2 and "has taken no step yet" in nothing.err


def test_frozen_weights_are_stored_once(cli, root, monkeypatch):
    line = ["finetune", "--from", "both", "--data", "pairs", "--name", "once", "--lora-rank", "2"]
    line += ["--save-every", "2", "--keep-last", "2", "--batch-tokens", "256", "--eval-every", "0"]
    assert cli(*line, "--steps", "6").code == 0
    start, before, last = (layout.checkpoint(root / "runs/once", step) for step in (0, 4, 6))
    assert sorted(last.parent.glob("step-*")) == [start, before, last]
    assert all(".lora_" in name for name in load_tensors(last / layout.MODEL))
    assert cli("verify", "once").code == 0
    assert "steps 5 to 6" in cli("prove", "once", "--steps", "2").out
    assert "steps 1 to 6" in cli("prove", "once", "--steps", "5").out
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**16))
        assert cli(*line, "--steps", "7").code == 0  # there is room for what is written
        assert "its checkpoints need" in cli(*line[:5], "--name", "whole").err
    said, report = loss(cli, "once"), json.loads(cli("report", "once", "--json").out)["runs"][0]
    assert report["parameters"] == sum(
        t.numel() for t in load_tensors(start / layout.MODEL).values()
    )
    assert cli("export", "once", "--format", "hf", "--out", "x").code == 78
    data = (start / layout.MODEL).read_bytes()
    (start / layout.MODEL).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for again in (["sample", "once", "a"], ["verify", "once"], ["train", "--name", "once"]):
        result = cli(*again)
        assert result.code == 65 and "step-000000" in result.err + result.out, again
    (start / layout.MODEL).write_bytes(data)
    assert loss(cli, "once") == said
    files.remove(start)
    result = cli("sample", "once", "a")
    assert result.code in (65, 66) and "step-000000" in result.err


def test_frozen_weights_stay_and_nothing_left_to_learn_is_an_error(cli, root):
    line = ["finetune", "--from", "one", "--data", "pairs", "--steps", "3"]
    assert cli(*line, "--name", "f", "--freeze", "embed*, *.attn.*").code == 0
    before, after = weights(root, "one", 30), weights(root, "f", 3)
    for name in before:
        kept = name.startswith("embed") or ".attn." in name
        assert torch.equal(before[name], after[name]) == kept, name
    result = cli(*line, "--name", "g", "--freeze", "*")
    assert result.code == 2 and "leaves no weight to learn" in result.err
    result = cli(*line, "--name", "g", "--freeze", "nose*")
    assert result.code == 2 and "--freeze nose*: no weight has such a name" in result.err


def test_early_stopping_is_a_decision_that_resuming_keeps(cli, root):
    line = ["finetune", "--from", "both", "--data", "pairs", "--name", "e", "--lr", "1e-9"]
    line += ["--steps", "200", "--eval-every", "2", "--patience", "3", "--best-by", "exact_match"]
    line += ["--eval-pairs", "5"]
    result = cli(*line)
    assert result.code == 0 and "no better for 3 validations; stopped" in result.err
    status = files.read_sealed(root / "runs/e" / layout.STATUS)
    assert status["state"] == "finished" and status["step"] == status["steps"] < 200
    for again in (["train", "--name", "e"], line):
        assert cli(*again).code == 0
        assert files.read_sealed(root / "runs/e" / layout.STATUS)["step"] == status["step"]
    further = ["train", "--name", "e", "--steps", "300"]
    assert cli(*further).code == 0
    second = files.read_sealed(root / "runs/e" / layout.STATUS)["step"]
    assert status["step"] < second < 300 and cli(*further).code == 0
    assert files.read_sealed(root / "runs/e" / layout.STATUS)["step"] == second


def test_a_prompt_at_validation_is_cut_as_sample_cuts_it(cli, root, tmp_path, monkeypatch):
    from lmcli.inference.engine import Engine
    from lmcli.runs.load import load

    (tmp_path / "t.txt").write_text("Q: {source} A:")
    asked, generate = [], Engine.generate
    monkeypatch.setattr(
        Engine, "generate", lambda self, ids, how: asked.append(ids) or generate(self, ids, how)
    )
    line = ["finetune", "--from", "one", "--data", "pairs", "--name", "v", "--steps", "1"]
    prompt = "ab" * 400
    assert cli(*line, "--template", tmp_path / "t.txt", "--eval-prompt", prompt).code == 0
    loaded = load(root, "v")
    assert asked[0] == [loaded.encode(prompt, 128)]
    assert loaded.tokenizer.decode(asked[0][0]).startswith("Q: abab")


def test_the_mean_of_the_last_checkpoints_is_used(cli, root):
    line = ["finetune", "--from", "both", "--data", "pairs", "--name", "m", "--average-last", "3"]
    assert cli(*line, "--steps", "12", "--save-every", "3", "--lr", "0.01").code == 0
    kept = sorted(p.name for p in (root / "runs/m/checkpoints").glob("step-*"))
    assert kept[-3:] == ["step-000006", "step-000009", "step-000012"]
    from lmcli.runs.load import load

    mean = load(root, "m").engine.model.state_dict()
    for name, value in mean.items():
        parts = [weights(root, "m", step)[name] for step in (6, 9, 12)]
        torch.testing.assert_close(value, sum(parts) / 3)
    last = load(root, "m", "last")
    assert last.checkpoint_id != load(root, "m").checkpoint_id


def test_the_mean_of_a_run_that_was_not_told_so_leaves_the_best_out(cli, root):
    line = ["finetune", "--from", "one", "--data", "pairs", "--name", "m", "--eval-every", "1"]
    assert cli(*line, "--steps", "4", "--save-every", "1", "--lr", "10", "--no-tune").code == 0
    steps = sorted(int(p.name[5:]) for p in (root / "runs/m/checkpoints").glob("step-*"))
    assert len([step for step in steps if step]) > 2 and steps[-2:] == [3, 4]
    from lmcli.runs.load import load

    for name, value in load(root, "m", "mean").engine.model.state_dict().items():
        parts = [weights(root, "m", step)[name] for step in (3, 4)]
        torch.testing.assert_close(value, sum(parts) / 2)


def test_what_a_run_began_with_is_no_part_of_the_mean(cli, root):
    line = ["finetune", "--from", "one", "--data", "pairs", "--name", "m", "--average-last", "9"]
    assert cli(*line, "--steps", "4", "--save-every", "2", "--lr", "0.01").code == 0
    assert layout.checkpoint(root / "runs/m", 0).exists()
    from lmcli.runs.load import load

    for name, value in load(root, "m").engine.model.state_dict().items():
        parts = [weights(root, "m", step)[name] for step in (2, 4)]
        torch.testing.assert_close(value, sum(parts) / 2)


def test_a_chat_is_asked_as_it_was_trained_whatever_the_run_before_read(cli, root, tmp_path):
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    (tmp_path / "c.jsonl").write_text(f"{json.dumps({'messages': turns})}\n")
    (tmp_path / "t.txt").write_text("Q: {source} A:")
    line = ["data", "build", tmp_path / "c.jsonl", "--pairs", "--tokenizer", "tok"]
    line += ["--val-fraction", "0", "--test-fraction", "0"]
    assert cli(*line, "--name", "chat").code == 0
    line = ["finetune", "--from", "one", "--data", "pairs", "--name", "q", "--steps", "1"]
    assert cli(*line, "--template", tmp_path / "t.txt").code == 0
    assert cli("finetune", "--from", "q", "--data", "chat", "--name", "c", "--steps", "1").code == 0
    config = json.loads((root / "runs/c/config.json").read_text())
    assert config["tuning"]["template"] == "{source}<sep>{target}"
    line = ["finetune", "--from", "one", "--data", "chat", "--name", "d"]
    refused = cli(*line, "--template", tmp_path / "t.txt")
    assert refused.code == 2 and "--template: the chats" in refused.err
    for flags in (("--patience", "2"), ("--best-by", "bleu"), ("--eval-prompt", "ab")):
        refused = cli(*line, *flags)  # nothing was held out
        assert refused.code == 2 and f"{flags[0]} goes by validation" in refused.err
    assert not (root / "runs/d").exists()


def test_a_template_is_kept_in_the_run_and_wraps_what_it_is_asked(cli, root, tmp_path):
    (tmp_path / "t.txt").write_text("turn {source} into {target}")
    line = ["finetune", "--from", "one", "--data", "pairs", "--name", "t", "--steps", "2"]
    assert cli(*line, "--template", tmp_path / "t.txt").code == 0
    config = json.loads((root / "runs/t/config.json").read_text())
    assert config["tuning"]["template"] == "turn {source} into {target}"
    from lmcli.runs.load import load

    loaded = load(root, "t")
    assert loaded.tokenizer.decode(loaded.encode("abc")) == "turn abc into "
    (tmp_path / "bad.txt").write_text("no place")
    result = cli(*line[:-3], "u", "--template", tmp_path / "bad.txt")
    assert result.code == 2 and "must have {source} once" in result.err
    result = cli(*line[:-3], "u", "--template", tmp_path / "none.txt")
    assert result.code == 66 and "no such file" in result.err


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (["train", "--data", "text", "--name", "x", "--task", "qa"], 2, "--task is for pairs"),
        (["train", "--data", "text", "--name", "x", "--pack"], 2, "--pack is for pairs"),
        (
            ["train", "--data", "pairs", "--name", "x", "--pack", "--arch", "encoder-decoder"],
            2,
            "--pack is for decoder-only models",
        ),
        (
            ["finetune", "--from", "one", "--data", "pairs", "--name", "x", "--lora-rank", "2"]
            + ["--lora-targets", "nose"],
            2,
            "--lora-targets nose: the model has",
        ),
        (
            ["finetune", "--from", "one", "--data", "pairs", "--name", "x", "--lora-rank", "2"]
            + ["--lora-targets", "output"],
            2,
            "--lora-targets output: the model has",
        ),
        (["finetune", "--data", "pairs", "--name", "x"], 2, "Missing option '--from'"),
        (
            ["finetune", "--from", "one", "--data", "pairs", "--name", "x", "--dropout", "5"],
            2,
            "--dropout must be at most 0.95",
        ),
        (["finetune", "--from", "one", "--name", "x", "--merge", "--dry-run"], 2, "--merge trains"),
        (
            ["finetune", "--from", "one", "--data", "pairs", "--name", "x", "--lora-alpha", "4"],
            2,
            "--lora-alpha needs --lora-rank",
        ),
        (
            ["train", "--data", "pairs", "--name", "x", "--patience", "2", "--eval-every", "0"],
            2,
            "--patience counts validations",
        ),
        (["finetune", "--from", "nobody", "--data", "pairs", "--name", "x"], 66, "nobody"),
        (["eval", "one", "--data", "text", "--metric", "bleu"], 2, "--metric bleu is for pairs"),
        (["eval", "one", "--data", "text", "--max-pairs", 3], 2, "--max-pairs 3 is for pairs"),
    ],
)
def test_mistakes_are_one_sentence(cli, root, line, code, says):
    result = cli(*line)
    assert result.code == code and says in result.err, result.err


def test_what_is_not_for_this_split_is_refused_before_the_split_is_scored(cli, root, monkeypatch):
    monkeypatch.setattr("lmcli.runs.load.SplitScorer", lambda *_: 1 / 0)
    assert cli("eval", "one", "--data", "text", "--metric", "bleu").code == 2
    refused = cli("eval", "one", "--stride", "16")  # whose targets are scored whole
    assert refused.code == 2 and "--stride is for plain text" in refused.err


def test_an_encoder_decoder_learns_plain_text_as_a_prefix_model(cli, root):
    line = ["train", "--data", "text", "--name", "p", "--arch", "encoder-decoder", "--steps", "30"]
    assert cli(*line, *SHAPE[:8], "--batch-size", "8", "--lr", "0.01", "--threads", "1").code == 0
    assert loss(cli, "p") < 4
    assert cli("sample", "p", "ab").code == 0


def test_packed_pairs_train_a_decoder(cli, root):
    assert (
        cli("train", "--data", "pairs", "--name", "k", *SHAPE, "--steps", "5", "--pack").code == 0
    )


def test_cross_attention_is_shown_by_words(cli, root):
    """Each row of what was written sums to 1 over the source; the report has the same picture."""
    line = ["inspect", "attention", "both", "abcd dcba", "--target", "dcba abcd"]
    said = json.loads(cli(*line, "--json").out)
    assert said["words"] == ["<start>", "dcba", "abcd"]
    assert said["source"][-3:] == ["abcd", "dcba", "<end>"]
    assert [sum(row) for row in said["weights"]] == pytest.approx([1, 1, 1], abs=1e-6)
    loaded = load(root, "both")
    ids = loaded.engine.attention(loaded.tokenizer.encode("dcba abcd"), loaded.encode("abcd dcba"))
    assert said["weights"][0][-1] == pytest.approx(ids.mean((0, 1))[0, -1], abs=1e-6)
    focus = cli(*line, "--focus", "abcd").out
    assert "abcd looks at" in focus and "who looks at" not in focus
    assert "of: " in cli(*line[:4]).out  # of what it writes
    assert cli(*line[:2], "one", "abcd", "--target", "dcba").code == 2
    page = cli("report", "both", "--out", root / "page.html", "--look", "abcd dcba")
    assert page.code == 0 and "looks at dcba" in (root / "page.html").read_text()


@pytest.mark.parametrize("run", ["one", "both"])
def test_a_source_that_is_too_long_is_read_as_in_training(cli, root, run):
    """It loses its end, and its template stays whole."""
    said = cli("sample", run, "abcd" * 20, "--max-new-tokens", "8").err
    assert "keeps its first 47" in said or "of 80 tokens loses its last 42" in said
    loaded = load(root, run)
    tuning = replace(loaded.config.tuning, template="Q {source} A")
    loaded = replace(loaded, config=replace(loaded.config, tuning=tuning))
    source, ids = "abcd" * 20, loaded.tokenizer.encode("abcd" * 20)
    fitted = loaded.engine.fit_prompt(loaded.encode(source, 8), 8)
    template = loaded.config.template(loaded.tokenizer)
    room = 47 if run == "both" else 39
    prompt = template.prompt(ids[: room - len(template.prompt([]))])
    assert template.before and template.after and len(prompt) == room
    eos = [loaded.engine.eos_id]
    assert fitted == ([*prompt, *eos] if run == "both" else [*eos, *prompt])


def test_sources_are_judged_within_their_template(root, monkeypatch):
    """What `eval --metric` asks about leaves room for an answer, and ends as the template does."""
    loaded, asked = load(root, "one"), []
    tuning = replace(loaded.config.tuning, template="Q" * 34 + "{source} A")
    config = replace(loaded.config, tuning=tuning)
    reader = config.reader(Dataset.open(root / "datasets/pairs"), "test", loaded.tokenizer)
    answer = [Completion([], [], "length")]
    monkeypatch.setattr(
        loaded.engine, "generate", lambda p, _: asked.extend(p) or [answer] * len(p)
    )
    decode_pairs(loaded.engine, reader, loaded.tokenizer, GenerationConfig(max_new_tokens=8), 0)
    assert len(asked) == len(reader) and max(map(len, asked)) == loaded.engine.room(8) == 39
    assert all(tuple(ids[-2:]) == reader.template.after for ids in asked)


def test_a_source_that_does_not_fit_with_its_template_is_not_shown(root):
    loaded = load(root, "both")
    tokenizer, text = loaded.tokenizer, "ab"
    while len(tokenizer.spans(text)) < loaded.engine.context_length - 2:
        text += " ab"
    with pytest.raises(UsageError, match="tokens; this model reads"):
        cross_attention(loaded.engine, tokenizer, text, "ab", Template((7, 8), (9,)))


@pytest.mark.parametrize("run", ["both", "one"])
def test_how_likely_pairs_are(cli, root, run):
    """A line with a tab is a source and a target; or they stand in two files."""
    sources = "abcd\ndcba\n"
    flags = ("--temperature", "0", "--json", "--max-new-tokens", "3", "--min-new-tokens", "3")
    said = [json.loads(line) for line in cli("sample", run, *flags, input=sources).out.splitlines()]
    lines = "".join(f"{r['prompt']}\t{r['completion']}\n" for r in said)
    scored = cli("score", "--model", run, "--json", "--no-end", input=lines)
    found = [json.loads(line) for line in scored.out.splitlines()]
    for before, after in zip(said, found, strict=True):
        assert (after["source"], after["target"]) == (before["prompt"], before["completion"])
        assert after["logprob"] == pytest.approx(before["logprob"], abs=1e-3)
    Path("s.txt").write_text(sources)
    targets = "".join(f"{r['completion']}\n" for r in said)
    apart = cli("score", "--model", run, "--source", "s.txt", "--json", "--no-end", input=targets)
    assert apart.out == scored.out
    wrong = cli("score", "--model", run, input=lines + "no tab\n")
    assert wrong.code == 65 and "standard input, line 3: no tab" in wrong.err
    assert len(wrong.out.splitlines()) == 2
    # an empty target has the probability of its <eos>; an empty line has none
    empty, blank = cli("score", "--model", run, input="abcd\t\n\n").out.splitlines()
    assert empty.split("\t")[1] == "1" and blank == ""
    assert cli("score", "--model", run, "--no-end", input="abcd\t\n").out == "\n"
    Path("t.txt").write_text("\n")
    assert cli("score", "--model", run, "t.txt", "--source", "s.txt").out.splitlines()[0] == empty
