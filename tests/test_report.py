"""What a report says is what the runs wrote, and its page needs nothing else."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lmcli.artifacts import files, layout
from lmcli.report import figures

VOID = {"meta", "line", "polyline", "circle", "br", "i"}


class Page(HTMLParser):
    """Fails on a tag that is never closed, and collects text, tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.text, self.addresses = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def two(cli, tiny_copy):
    """Runs base (evaluated) and other."""
    args = ["--steps", "10", "--eval-every", "5", "--n-layers", "1", "--d-model", "16"]
    args += ["--n-heads", "2", "--context-length", "32", "--threads", "1"]
    assert cli("train", "--data", "corpus", "--name", "other", *args).code == 0
    assert cli("eval", "base", "--split", "test").code == 0
    return tiny_copy


def test_every_format_says_what_the_runs_wrote(cli, two):
    log = files.read_log(two / "runs/base" / layout.METRICS)
    best = min(r["val_loss"] for r in log if "val_loss" in r)
    said = json.loads(cli("report", "base", "other", "--json").out)["runs"]
    assert [r["run"] for r in said] == ["base", "other"]
    assert said[0]["val_loss"] == best and said[0]["step"] == 20 and said[1]["step"] == 10
    assert said[0]["tokens"] == 20 * 4 * 32
    model = json.loads(cli("inspect", "model", "base", "--json").out)
    assert said[0]["parameters"] == model["parameters"]
    score = json.loads(cli("eval", "base", "--split", "test", "--json").out)["scores"]
    bits = next(s["value"] for s in score if s["name"] == "bits_per_byte")
    assert (
        said[0]["corpus_test_bits_per_byte"] == bits and "corpus_test_bits_per_byte" not in said[1]
    )
    rows = list(csv.DictReader(io.StringIO(cli("report", "base", "other", "--format", "csv").out)))
    assert float(rows[0]["val_loss"]) == best and rows[1]["corpus_test_bits_per_byte"] == ""
    markdown = cli("report", "base", "other", "--format", "markdown").out.splitlines()
    assert len(markdown) == 4 and f"{best:.4f}" in markdown[2]
    table = cli("report", "base", "other").out.splitlines()
    assert table[0].split() == ["base", "other"] and any(f"{best:.4f}" in line for line in table)


def test_scores_of_other_recipes_have_columns_of_their_own(cli, two):
    assert cli("eval", "base", "--split", "test", "--stride", 16).code == 0
    assert cli("eval", "base", "--split", "test", "--max-tokens", 40).code == 0
    [run] = json.loads(cli("report", "base", "--json").out)["runs"]
    keys = [f"corpus_test_bits_per_byte{s}" for s in ("", "_stride_16", "_max_tokens_40")]
    assert len({run[key] for key in keys}) == 3


def test_the_same_split_of_another_dataset_is_another_column(cli, two, prose):
    (two.parent / "more.txt").write_text(prose[: len(prose) // 2])
    build = ["more.txt", "--tokenizer", "tok", "--name", "more", "--test-fraction", "0.2"]
    assert cli("data", "build", *build).code == 0
    assert cli("eval", "base", "--data", "more", "--split", "test").code == 0
    [said] = json.loads(cli("report", "base", "--json").out)["runs"]
    assert said["corpus_test_bits_per_byte"] != said["more_test_bits_per_byte"]


def test_the_page_is_whole_and_alone(cli, two, tmp_path):
    out = tmp_path / "pages" / "runs.html"
    fox = "The <fox> & the dog"
    result = cli("report", "base", "other", "--out", out, "--sample", fox, "--look", fox)
    assert result.code == 0 and str(out) in result.err
    page = Page()
    page.feed(out.read_text())
    assert page.open == [] and page.addresses == [] and page.seen.count("svg") == 3
    assert "http" not in out.read_text() and "<script" not in out.read_text()
    text = "".join(page.text)
    assert text.count(fox) == 4 and "lmcli train --data corpus" in text
    assert "lmcli tokenizer train" in text and "not proof" in text
    heat = re.findall(r"looks at [^:]*: (\d\.\d+)", out.read_text())
    words = 1 + len(fox.split())
    assert len(heat) == 2 * words * (words + 1) // 2
    assert sum(map(float, heat)) == pytest.approx(2 * words, abs=0.05)


def test_the_suffix_says_what_is_written_and_json_where(cli, tiny_copy, tmp_path):
    out = tmp_path / "runs.html"
    said = json.loads(cli("report", "base", "--out", out, "--json").out)
    assert said == {"out": str(out), "format": "html"} and "<svg" in out.read_text()
    assert cli("report", "base", "--out", "-", "--format", "csv").out.startswith("run,state,")


def test_a_text_that_cannot_be_looked_into_is_a_note_on_the_page(cli, tiny_copy, tmp_path):
    out = tmp_path / "runs.html"
    assert cli("report", "base", "--out", out, "--look", "fox " * 99, "--look", "a").code == 0
    page = out.read_text()
    assert page.count("this model reads 31") == 1 and page.count('<table class="heat">') == 1


def test_two_runs_of_one_name_each_show_their_own_looks(cli, tiny_copy, tmp_path):
    shutil.copytree(tiny_copy / "runs/base", tmp_path / "base")
    flags = ["--data", "corpus", "--force", "--steps", "10", "--n-layers", "1"]
    assert cli("train", "--name", "base", *flags, "--context-length", "32").code == 0
    out = tmp_path / "runs.html"
    runs = ["base", str(tmp_path / "base")]
    assert cli("report", *runs, "--out", out, "--look", "The fox").code == 0
    page = out.read_text()
    shown = [re.findall(r"looks at [^:]*: (\d\.\d+)", part) for part in page.split("The fox")]
    first, second = (weights for weights in shown if weights)
    assert len(first) == len(second) and first != second


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["bsae"], 66, "no run called 'bsae' under"),
        (["bsae"], 66, "; did you mean 'base'?"),
        (["nobody"], 66, "; there are base"),
        (["nobody"], 66, "no run called 'nobody'"),
        (["base", "--sample", "x"], 2, "are for a page"),
        (["base", "--format", "pdf"], 2, "pdf"),
    ],
)
def test_a_mistake_is_one_sentence(cli, tiny_copy, args, code, says):
    result = cli("report", *args)
    assert result.code == code and says in result.err


def test_a_run_without_a_step_is_still_shown(cli, tiny_copy):
    shutil.rmtree(tiny_copy / "runs/base/checkpoints")
    for name in (layout.METRICS, layout.PERF, layout.STATUS):
        (tiny_copy / "runs/base" / name).unlink()
    assert cli("report", "base", "--format", "html").out.count("<svg") == 0
    assert json.loads(cli("report", "base", "--json").out)["runs"][0]["state"] == "created"


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.31, [0.15, 0.2, 0.25, 0.3]), (5, 5, None)],
)
def test_ticks_are_round(low, high, want):
    got = figures.ticks(low, high)
    assert got == pytest.approx(want) if want else got


def test_no_points_no_figure_and_infinities_are_left_out():
    assert figures.curves("t", "x", "y", [("a", [])]) == ""
    assert figures.curves("t", "x", "y", [("a", [(1, float("nan"))])]) == ""
    figure = figures.curves("t", "x", "y", [("a", [(0, 1), (1, float("inf")), (2, 0)])])
    assert figure.count("<circle") == 2 and "inf" not in figure


def test_the_page_in_a_browser(cli, two, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    assert cli("report", "base", "--out", tmp_path / "r.html", "--look", "The fox").code == 0
    shot = tmp_path / "r.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,2000"]
    page = f"file://{tmp_path / 'r.html'}"
    subprocess.run(
        [browser, *flags, f"--screenshot={shot}", page], check=True, capture_output=True, timeout=60
    )
    assert shot.stat().st_size > 20_000
