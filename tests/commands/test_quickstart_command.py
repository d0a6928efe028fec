"""lmcli quickstart: the names it gives, and what it says where and when."""

import json
import shutil
import sysconfig
import types
from pathlib import Path

import pytest

from lmcli.commands import quickstart


def said(cli, monkeypatch, *args, stop=None):
    """(name of what would be made, result) of a quickstart whose steps only speak."""
    names = []

    def pipeline(name, *_):
        names.append(name)
        print("a step's answer")
        if stop:
            raise stop
        return {"bits_per_byte": {}}

    monkeypatch.setattr(quickstart, "_pipeline", pipeline)
    result = cli("quickstart", *args)
    return names[0], result


def test_texts_that_differ_have_names_that_differ(cli, root, monkeypatch):
    texts = [(), ("a.txt",), ("a b.txt",), ("a-b.txt",), ("狐狸.txt",), ("红楼梦.txt",)]
    texts += [("a.txt", "b.txt"), ("a.txt", "c.txt"), ("x" * 200,), ("x" * 201,), ("a\udcff",)]
    names = [said(cli, monkeypatch, *text)[0] for text in texts]
    assert len(set(names)) == len(texts) and max(map(len, names)) < 100
    assert names[:2] == ["quickstart", "quickstart-a"]
    assert said(cli, monkeypatch, "a.txt", "--name", "mine")[0] == "mine"


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_json_is_all_of_standard_output(cli, root, monkeypatch, quiet):
    _, result = said(cli, monkeypatch, "--json", *quiet)
    assert result.out == '{"bits_per_byte": {}}\n'
    assert result.err == ("" if quiet else "a step's answer\n")


@pytest.mark.parametrize(
    ("flags", "how"), [([], "the same command"), (["--force"], "without --force")]
)
def test_a_stop_says_how_to_go_on(cli, root, monkeypatch, flags, how):
    _, result = said(cli, monkeypatch, *flags, stop=KeyboardInterrupt())
    assert result.code == 130 and how in result.err and "goes on from here" in result.err


def test_the_library_gives_summaries_with_rouge(root, monkeypatch, tmp_path):
    """All of it on a few modules: a tiny model learns what functions do, and is judged."""
    for module in Path(sysconfig.get_paths()["stdlib"]).glob("*.py"):
        if module.stat().st_size < 20_000:
            shutil.copy(module, tmp_path)
    here = types.SimpleNamespace(get_paths=lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(quickstart, "sysconfig", here)
    made = quickstart._pipeline("quickstart", (), 1.0, False, root)
    assert made["rouge"].keys() == {"rouge1", "rougeL"}
    assert all(0 <= value <= 100 for value in made["rouge"].values())
    lines = (root / "quickstart-summaries/train.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    assert any(pair["source"].startswith("def ") and pair["target"] for pair in pairs)
    tuned = json.loads((root / "runs/quickstart-summaries/config.json").read_text())
    assert tuned["origin"]["name"] == "quickstart"
