"""The lines of the README through the real command, in real processes with real pipes."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY


@pytest.fixture
def sh(tiny_copy):
    """Runs a shell line in which `lmcli` is this checkout's."""
    bin_ = Path("bin")
    bin_.mkdir()
    script = bin_ / "lmcli"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m lmcli "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_.resolve()}:{os.environ['PATH']}"}

    def run(line: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == code, f"{line}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def test_the_lines_of_the_readme_work_as_written(sh, tiny_copy, prose):
    Path("a.txt").write_text(prose[: len(prose) // 2])
    Path("b.txt.gz").write_bytes(gzip.compress(prose[len(prose) // 2 :].encode()))
    Path("val.txt").write_text("held out\n" * 20)
    Path("run.toml").write_text("steps = 12\nlr = 0.002\n")
    sh("lmcli tokenizer train a.txt b.txt.gz --name bpe --vocab-size 400")
    echoed = sh("echo 'some text' | lmcli tokenizer encode bpe | lmcli tokenizer decode bpe")
    assert echoed.stdout == ("some text\n")
    assert "bytes_per_token" in sh("lmcli tokenizer info bpe a.txt").stdout
    build = "lmcli data build a.txt b.txt.gz --tokenizer bpe --name c"
    sh(f"{build}1 --val-fraction 0.05 --test-fraction 0.05")
    sh(f"{build}2 --val val.txt --test-fraction 0.1")
    assert "train" in sh("lmcli data info c1").stdout
    assert sh("lmcli data verify c1").stdout.startswith("ok: ")
    assert sh("lmcli data show c2 --split val").stdout == "held out\n" * 20 + "\n"
    flags = " ".join(TINY)
    train = f"lmcli train --data c1 --name r --config run.toml --save-every 4 --seed 3 {flags}"
    first = sh(train)
    assert first.stdout == "" and "finished at step 12" in first.stderr
    assert "finished at step 12" in sh(train).stderr
    assert sh('lmcli sample r "prompt"').stdout
    assert sh("echo prompt | lmcli sample r").stdout.count("\n") == 1
    fox = 'lmcli sample r "The quick brown fox jumps over the lazy" --max-length 50'
    many = sh(f"{fox} --num-return-sequences 3 --echo --json").stdout.splitlines()
    assert len(many) == 3
    for line in map(json.loads, many):
        assert line["completion"].startswith("The quick brown fox jumps over the lazy")
    scores = json.loads(sh("lmcli eval r --data c1 --split test --json").stdout)["scores"]
    names = {s["name"] for s in scores}
    assert {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"} <= names
    assert all(s["signature"].startswith("ctx:32|stride:32") for s in scores)
    assert "finished" in sh("lmcli ls").stdout
    assert "datasets/c1" in sh("lmcli show r").stdout
    assert "finished" in sh("lmcli status r").stdout
    assert sh("lmcli verify r").stdout.startswith("ok")
    assert "is a parent of runs/r" in sh("lmcli rm datasets/c1", code=77).stderr
    sh("lmcli rm runs/r && lmcli rm datasets/c1")
    assert "torch" in sh("lmcli doctor").stdout


def test_one_line_out_per_line_in_and_nothing_else(sh):
    lines = "\n".join(["one", "", "three", "狐狸", "x" * 500]) + "\n"
    Path("in.txt").write_text(lines)
    done = sh("lmcli sample base --max-new-tokens 9 --seed 4 < in.txt")
    out = done.stdout.split("\n")
    assert len(out) == 6 and out[1] == "" and out[-1] == ""
    assert "keeps its last" in done.stderr
    # the same answers one by one, from a pipe that dribbles
    slow = "(head -2 in.txt; sleep 2; tail -n +3 in.txt) | lmcli sample base --max-new-tokens 9"
    assert sh(f"{slow} --seed 4 --batch-size 1").stdout == done.stdout


def test_a_closed_pipe_ends_quietly(sh):
    line = "yes prompt | lmcli sample base --max-new-tokens 2 | head -3; echo ${PIPESTATUS[1]}"
    done = sh(f"set -o pipefail; {line}")
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""


def test_a_run_folder_alone_is_enough(sh, tiny_copy):
    sh(f"mkdir away && cp -r {tiny_copy}/runs/base away/ && rm -rf {tiny_copy}")
    assert sh('lmcli sample ./away/base "The" --max-new-tokens 3').stdout
    assert sh("lmcli verify ./away/base").stdout.startswith("ok")


@pytest.mark.parametrize(
    ("spoil", "line", "code", "says"),
    [
        ("true", "lmcli tokenizer train nowhere.txt --name x", 66, "nowhere.txt: no such file"),
        ("touch e.txt", "lmcli tokenizer train e.txt --name x", 65, "e.txt: no text to read"),
        ("mkdir d", "lmcli data build d --tokenizer tok --name x", 65, "no text in this folder"),
        (
            r"printf 'a\xff' > bad.txt",
            "lmcli data build bad.txt --tokenizer tok --name x",
            65,
            "bad.txt: not UTF-8 at byte 1",
        ),
        (
            "truncate -s -2 artifacts/datasets/corpus/train.bin",
            "lmcli train --data corpus --name x",
            65,
            "train.bin",
        ),
        ("true", "lmcli train --data corpus --name x --preset huge", 2, "is not one of nano"),
        (
            "true",
            "lmcli train --data corpus --name x --context-length 1M",
            65,
            "--context-length 1000000 needs",
        ),
        (
            "f=artifacts/runs/base/checkpoints/step-000020/model.safetensors;"
            r"printf '\x01\x02\x03\x04\x05' | dd of=$f bs=1 seek=5000 conv=notrunc status=none",
            "lmcli sample base x --checkpoint 20",
            65,
            "model.safetensors: content differs",
        ),
        (
            "lmcli tokenizer train artifacts/runs/base/config.json --name t2 &&"
            "yes 'other text' | head -999 > o.txt &&"
            "lmcli data build o.txt --tokenizer t2 --name d2",
            "lmcli eval base --data d2",
            78,
            "was built with tokenizer",
        ),
        ("true", "lmcli train --data corpus --name base --seed 9", 78, "--seed 9: the run was"),
        ("true", "lmcli train --data corpus --name x --device cuda", 69, "--device cuda"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_code(sh, cli, spoil, line, code, says):
    import torch

    if code == 69 and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    sh(spoil)
    done = cli(*line.split()[1:])  # in this process: a bug would be raised here
    assert done.code == code and says in done.err.splitlines()[-1] and "Traceback" not in done.err


def test_quickstart_on_own_text_and_again(sh, tiny_copy):
    text = REPOSITORY / "data" / "en.txt"
    sh(f"cat {text} {text} {text} {text} > mine.txt")
    first = sh("lmcli quickstart mine.txt --budget 10s --quiet")
    again = sh("lmcli quickstart mine.txt --budget 60s --json")
    assert "was planned the first time; --force plans anew" in again.stderr
    assert "is finished" in again.stderr and "there already" in again.stderr
    for step in ("tokenizer train", "data build", "train", "sample", "eval"):
        assert f"$ lmcli {step}" in again.stderr
    said = json.loads(again.stdout)
    bits = said["bits_per_byte"]
    assert Path(said["page"]).read_text().startswith("<!doctype html>")
    assert {"this model", "gzip -9", "bz2 -9", "xz -6"} < set(bits)
    assert first.stderr == ""
    for name, value in bits.items():
        assert f"{name:<34} {value:.3f}" in first.stdout
    sh("echo 'One line.' > few.txt")
    few = sh("lmcli quickstart few.txt --budget 10s", code=65)
    assert "give quickstart other text, or more" in few.stderr.splitlines()[-1]
    assert not list(tiny_copy.glob("*/quickstart-few"))  # more text may have the name


@pytest.mark.parametrize(
    ("line", "code", "out"),
    [
        ("lmcli sample base The --max-new-tokens 2 <&-", 0, 1),
        ("lmcli sample base <&-", 0, 0),
        ("lmcli tokenizer encode tok <&-", 0, 0),
        ("lmcli eval base --split val 2>&-", 0, 5),
        ("lmcli train --name base 2>&-", 0, 0),
        ("lmcli ls >&-", 0, 0),
        ("PYTHONIOENCODING=ascii lmcli sample base 狐狸 --echo --max-new-tokens 2", 0, 1),
        ("lmcli sample base $'a\\xffb'", 2, 0),
        ("lmcli ls --artifacts corpus.txt", 2, 0),
        ("lmcli sample base The --checkpoint ²", 2, 0),
    ],
)
def test_closed_streams_and_odd_bytes(sh, line, code, out):
    sh("echo x > corpus.txt")
    done = sh(line, code=code)
    assert "Traceback" not in done.stderr and len(done.stdout.splitlines()) == out
