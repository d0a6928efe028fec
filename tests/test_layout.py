"""Names and paths people type."""

import pytest

from lmcli.artifacts import layout
from lmcli.errors import MissingInputError, UsageError


@pytest.mark.parametrize("bad", ["./", "/", "./..", "../..", "./a b", "./.x", "runs/", "a/b", "é"])
def test_what_cannot_name_a_new_artifact(tmp_path, bad):
    with pytest.raises(UsageError, match="cannot be a name"):
        layout.new(tmp_path, "run", bad)


def test_where_new_artifacts_go(tmp_path):
    assert layout.new(tmp_path, "run", "runs/x") == tmp_path / "runs/x"
    assert layout.new(tmp_path, "run", "./there/x").as_posix() == "there/x"


@pytest.mark.parametrize("bad", ["", "/", "x" * 5000, "..", "../x", "runs/../runs", ".hidden"])
def test_what_names_nothing_is_66(tmp_path, bad):
    (tmp_path / "runs").mkdir()
    if bad == "/":
        assert layout.find(tmp_path, bad).as_posix() == "/"
        return
    with pytest.raises(MissingInputError):
        layout.find(tmp_path, bad)


def test_a_completed_path_gets_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts/runs/base").mkdir(parents=True)
    root = layout.root(None) if "LMCLI_ARTIFACTS" not in layout.os.environ else tmp_path
    assert layout.find(tmp_path / "artifacts", "runs/base/").name == "base"
    with pytest.raises(MissingInputError, match=r"\./artifacts/runs/base"):
        layout.find(root, "artifacts/runs/base")
    assert layout.find(root, "./artifacts/runs/base").name == "base"
