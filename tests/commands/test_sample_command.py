"""lmcli sample: a filter whose output is text and nothing else, and the rules of decoding."""

import itertools
import json
import os
import select
import subprocess
import sys
import time

import pytest

from lmcli import console

GREEDY = ("--temperature", "0", "--max-new-tokens", "24")
LINES = "The\n\nA king said\n\u00e9t\u00e9 \u738b\nthe end\n"


def records(result):
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def text_of(cli, *flags, prompt="The "):
    """The one completion of a prompt, and its record."""
    [record] = records(cli("sample", "base", prompt, "--json", *flags))
    return record["completion"], record


@pytest.mark.parametrize("flags", [GREEDY, ("--seed", "3", "--max-new-tokens", "12")])
def test_a_line_out_for_each_line_in_whatever_the_batch(cli, tiny_copy, flags):
    together = cli("sample", "base", *flags, input=LINES)
    assert together.code == 0 and together.err == ""
    lines = together.out.split("\n")
    assert len(lines) == LINES.count("\n") + 1 and lines[1] == lines[-1] == ""
    assert cli("sample", "base", *flags, "--batch-size", "1", input=LINES).out == together.out
    assert cli("sample", "base", *flags, input=LINES.replace("\n", "\r\n")).out == together.out
    assert cli("sample", "base", *flags, input="\ufeff" + LINES[:-1]).out == together.out
    if flags is GREEDY:  # draws know the number of their line
        for line, found in zip(LINES.split("\n"), lines, strict=True):
            assert cli("sample", "base", *flags, input=line + "\n").out == found + "\n"


def test_records_keep_their_fields_and_gain_four(cli, tiny_copy):
    given = [{"id": 7, "prompt": "The", "x": {"y": [None, "\u00e9"]}}, {"prompt": "A", "z": 1.5}]
    lines = "\n\n".join(json.dumps(record) for record in given)
    out = cli("sample", "base", "--jsonl", *GREEDY, input=lines + "\n").out.split("\n")
    assert len(out) == 4 and out[1] == out[3] == ""
    for before, after in zip(given, map(json.loads, out[::2]), strict=True):
        own = {"completion", "tokens", "logprob", "finish_reason"}
        assert {k: v for k, v in after.items() if k not in own} == before
        assert after["finish_reason"] in ("eos", "length") and after["tokens"] <= 24
        text, alone = text_of(cli, *GREEDY, prompt=before["prompt"])
        assert after["completion"] == text
        assert after["logprob"] == pytest.approx(alone["logprob"], abs=1e-3)
    [record] = records(
        cli("sample", "base", "--jsonl", "--prompt-key", "q", "--logprobs", input='{"q": "The"}')
    )
    n = record["tokens"] + (record["finish_reason"] == "eos")
    assert len(record["logprobs"]) == n
    total = sum(token["logprob"] for token in record["logprobs"])
    assert total == pytest.approx(record["logprob"], abs=1e-4)


def test_a_record_that_cannot_be_read_comes_after_the_answers_before_it(cli, tiny_copy):
    result = cli("sample", "base", "--jsonl", *GREEDY, input='{"prompt": "The"}\n{"q": "A"}\n')
    assert result.code == 65 and "standard input, line 2" in result.err
    assert "prompt" in result.err and result.err.count("\n") == 1
    assert [json.loads(line)["prompt"] for line in result.out.splitlines()] == ["The"]


def test_line_feeds_end_a_line_or_are_escaped_or_stay(cli, tiny_copy):
    choice = ("--choice", "a\\b\nc", "--temperature", "0")
    assert cli("sample", "base", *choice, input="x\n").out == "a\\b\n"
    assert cli("sample", "base", *choice, "--escape", input="x\n").out == "a\\\\b\\nc\n"
    assert cli("sample", "base", "x", *choice).out == "a\\b\nc\n"
    assert text_of(cli, *choice)[0] == "a\\b\nc"


def test_all_of_standard_input_as_one_prompt(cli, tiny_copy):
    prompt = "The king\n\nsaid"
    whole = cli("sample", "base", "--whole", "--seed", "5", input="\ufeff" + prompt)
    assert whole.code == 0 and whole.out == cli("sample", "base", prompt, "--seed", "5").out
    echoed = cli("sample", "base", "--whole", "--echo", "--seed", "5", input=prompt)
    assert echoed.out == prompt + whole.out


def test_a_stop_text_ends_anywhere_and_never_shows(cli, tiny_copy):
    """Every short piece of a text, so that many lie across tokens or begin inside of one."""
    drawn = ("--seed", "3", "--max-new-tokens", "24")
    whole, _ = text_of(cli, *drawn)
    pieces = [whole[i : i + n] for i, n in itertools.product(range(2, len(whole), 5), (1, 3))]
    pieces = [piece for piece in pieces if "\ufffd" not in piece and whole.index(piece) > 0]
    assert len(pieces) > 3
    for stop in pieces:
        text, record = text_of(cli, *drawn, "--stop", stop, "--stop", "\u00a7never\u00a7")
        assert text == whole[: whole.index(stop)] and record["finish_reason"] == "stop"
        assert cli("sample", "base", "The ", *drawn, "--stop", stop, "--stream").out == text + "\n"


def test_a_completion_is_one_of_the_choices(cli, tiny_copy, tmp_path):
    choices = [" good day", " good", " bad day", "\u00e9"]
    (tmp_path / "choices.txt").write_text("\n".join(choices))
    flags = [flag for choice in choices for flag in ("--choice", choice)]
    drawn = ("--temperature", "3", "--num-return-sequences", "40")
    said = cli("sample", "base", "It was a", *flags, *drawn).out.splitlines()
    assert len(said) == 40 and len(set(said)) > 1 and set(said) <= set(choices)
    assert cli("sample", "base", "It was a", "--choices", "choices.txt", *drawn).out == "\n".join(
        [*said, ""]
    )


def test_what_streams_is_what_is_said_at_once_and_never_half_a_character(
    cli, tiny_copy, monkeypatch
):
    pieces: list[str] = []
    answer = console.answer

    def spy(text: str = "", end: str = "\n") -> None:
        pieces.append(text)
        answer(text, end=end)

    # bytes of several characters, token by token
    choice = ("--choice", "\u738b\u5f97\u00e9\U0001f600 x", "--temperature", "0")
    for flags in (("--seed", "2"), ("--seed", "2", "--echo"), choice):
        at_once = cli("sample", "base", "The \u738b", *flags).out
        with monkeypatch.context() as patch:
            patch.setattr(console, "answer", spy)
            assert cli("sample", "base", "The \u738b", *flags, "--stream").out == at_once
    assert len(pieces) > 20
    assert not any("\ufffd" in piece for piece in pieces[-8:])  # those of the choice


def test_lines_that_stream_stay_in_order(cli, tiny_copy):
    lines = "\nThe king\n\n\n\nA\n\n"
    flags = ("--seed", "2", "--max-new-tokens", "8")
    assert (
        cli("sample", "base", *flags, "--stream", input=lines).out
        == cli("sample", "base", *flags, input=lines).out
    )


def test_filters_that_leave_one_token_are_greedy(cli, tiny_copy):
    greedy, _ = text_of(cli, *GREEDY)
    for flags in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert text_of(cli, *GREEDY[2:], *flags)[0] == greedy
    assert text_of(cli, *GREEDY[2:], "--seed", "1")[0] != greedy


def test_lengths_and_repetition(cli, tiny_copy):
    def ids(*flags):
        record = text_of(cli, "--logprobs", "--temperature", "0", *flags)[1]
        return [token["id"] for token in record["logprobs"] if token["token"] != "<eos>"]

    usual = ids("--max-new-tokens", "20")
    assert len(set(usual)) < len(usual)
    once = ids("--max-new-tokens", "20", "--no-repeat-ngram", "1")
    assert len(once) == len(set(once)) > 5
    assert len(set(ids("--max-new-tokens", "20", "--repetition-penalty", "9"))) > len(set(usual))
    assert len(ids("--max-new-tokens", "7", "--min-new-tokens", "7")) == 7
    prompt = len(cli("tokenizer", "encode", "tok", input="The ").out.split())
    assert len(ids("--max-length", "9", "--min-new-tokens", "9")) == 9 - prompt


def test_several_completions_of_each_prompt_in_order(cli, tiny_copy):
    flags = ("--num-return-sequences", "3", "--max-new-tokens", "8", "--json", "--batch-size", "2")
    found = records(cli("sample", "base", "The", "A", *flags))
    assert [r["prompt"] for r in found] == ["The"] * 3 + ["A"] * 3
    assert len({r["completion"] for r in found[:3]}) > 1
    best = records(cli("sample", "base", "The", "--num-beams", "4", *flags))
    assert [r["logprob"] / (r["tokens"] + (r["finish_reason"] == "eos")) for r in best] == sorted(
        (r["logprob"] / (r["tokens"] + (r["finish_reason"] == "eos")) for r in best), reverse=True
    )


def test_a_grid_is_a_row_for_each_combination(cli, tiny_copy):
    grid = ("--grid", "temperature=0,1", "--grid", "top_p=0.5,1", "--max-new-tokens", "6")
    table = cli("sample", "base", "The", "A", *grid).out.splitlines()
    header = ["temperature", "top_p", "prompt", "tokens", "logprob/token", "text"]
    assert table[0].split() == header and len(table) == 1 + 4 * 2
    assert [line.split()[2] for line in table[1:]] == ["The", "A"] * 4
    again = cli("sample", "base", "The", "--grid", "top_k=1", "--grid", "top-k=2").out.splitlines()
    assert again[0].split() == ["top_k", *header[3:]] and len(again) == 3
    found = records(cli("sample", "base", "The", *grid, "--json"))
    wanted = [{"temperature": t, "top_p": p} for t in ("0", "1") for p in ("0.5", "1")]
    assert [r["settings"] for r in found] == wanted
    for record in found:
        flags = [f for k, v in record["settings"].items() for f in (f"--{k.replace('_', '-')}", v)]
        alone = text_of(cli, *flags, "--max-new-tokens", "6", prompt="The")[0]
        assert record["completion"] == alone


def test_a_prompt_longer_than_the_context_keeps_its_end(cli, tiny_copy):
    long = "king " * 100
    result = cli("sample", "base", long, "--seed", "1")
    assert result.code == 0 and "keeps its last" in result.err
    assert cli("sample", "base", "x" + long, "--seed", "1").out == result.out
    assert cli("sample", "base", "king queen " * 50, "--seed", "1").out != result.out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("x", "--whole"), "--whole reads standard input"),
        (("x", "--jsonl"), "--jsonl reads standard input"),
        (("--whole", "--jsonl"), "--whole is one prompt"),
        (("x", "--logprobs"), "--logprobs is for"),
        (("x", "--stream", "--json"), "--stream prints text"),
        (("x", "--stream", "--num-beams", "2"), "--stream shows draws"),
        (("x", "--num-beams", "2", "--top-k", "3"), "--top-k draws"),
        (("x", "--num-beams", "2", "--num-return-sequences", "3"), "has no more than that"),
        (("x", "--grid", "temprature=0"), "temperature"),
        (("x", "--grid", "temperature=hot"), "hot"),
        (("x", "--stop", ""), "an empty text"),
        (("x", "--top-p", "0"), "--top-p must be above 0"),
        (("x", "--choice", "a" * 99), "fills the context"),
        (("x", "--choice", "a", "--max-length", "3"), "a choice is written whole"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(cli, tiny_copy, flags, says):
    result = cli("sample", "base", *flags)
    assert (result.code, result.out) == (2, "") and says in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="waits for a pipe")
def test_each_line_is_answered_before_the_next_comes(tiny_copy):
    line = [sys.executable, "-m", "lmcli", "sample", "base", *GREEDY]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for prompt in (b"The\n", b"\n", b"A king\n"):
            process.stdin.write(prompt)
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 60)[0], "no answer"
            answer = process.stdout.readline()
            assert answer.endswith(b"\n") and (answer == b"\n") == (prompt == b"\n")
        process.stdin.close()
        assert process.stdout.read() == b"" and process.wait(60) == 0


def test_a_grid_on_a_terminal_wants_prompts(cli, tiny_copy, monkeypatch):
    monkeypatch.setattr("conftest._Stdin.isatty", lambda self: True)
    refused = cli("sample", "base", "--grid", "temperature=0,1")
    assert refused.code == 2 and "--grid compares prompts" in refused.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
@pytest.mark.parametrize("flags", [GREEDY, ("--num-beams", "2", "--max-new-tokens", "24")])
def test_on_a_terminal_it_asks_answers_and_ends(cli, tiny_copy, flags):
    """A real process on a real terminal: two prompts, then the end of input."""
    import pty

    wanted = cli("sample", "base", "The", *flags).out.split("\n")[0]
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "lmcli", "sample", "base", *flags]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, asked = b"", 0
    deadline = time.monotonic() + 90
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the terminal went with the process
                break
            if seen.count(b"> ") > asked:
                os.write(ours, b"The\n" if asked < 2 else b"\x04")
                asked += 1
        assert process.wait(10) == 0 and asked == 3
    finally:
        process.kill()
        os.close(ours)
    said = seen.decode().replace("\r\n", "\n")
    assert said.count(wanted) == 2
