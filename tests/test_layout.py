"""Names and paths people type."""

from pathlib import Path

import pytest

from lmcli.artifacts import layout
from lmcli.errors import MissingInputError, UsageError
from lmcli.training import checkpoint


@pytest.mark.parametrize("bad", ["./", "/", "./..", "../..", "./a b", "./.x", "runs/", "a/b", "é"])
def test_what_cannot_name_a_new_artifact(tmp_path, bad):
    with pytest.raises(UsageError, match="cannot be a name"):
        layout.new(tmp_path, "run", bad)


def test_where_new_artifacts_go(tmp_path):
    assert layout.new(tmp_path, "run", "runs/x") == tmp_path / "runs/x"
    assert layout.new(tmp_path, "run", "./there/x").as_posix() == "there/x"


@pytest.mark.parametrize("bad", ["", "/", "x" * 5000, "..", "../x", "runs/../runs", ".hidden"])
def test_what_names_nothing_is_66(tmp_path, monkeypatch, bad):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")  # a path goes from where one is
    if bad == "/":
        assert layout.find(tmp_path, bad).as_posix() == "/"
        return
    with pytest.raises(MissingInputError):
        layout.find(tmp_path, bad)


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInputError, match=f"no folder artifacts in {tmp_path}: go where"):
        layout.find(Path("artifacts"), "base", "run")


def test_a_completed_path_gets_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts/runs/base").mkdir(parents=True)
    root = layout.root(None) if "LMCLI_ARTIFACTS" not in layout.os.environ else tmp_path
    assert layout.find(tmp_path / "artifacts", "runs/base/").name == "base"
    with pytest.raises(MissingInputError, match=r"\./artifacts/runs/base"):
        layout.find(root, "artifacts/runs/base")
    assert layout.find(root, "./artifacts/runs/base").name == "base"


def test_only_a_folder_named_by_its_step_is_a_checkpoint(tmp_path):
    for name in ("step-000004", "step-1000000", "step-0000007", "step-12", "step-٠٠٠٠٠٩"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/step-000009").touch()
    assert layout.list_steps(tmp_path) == [4, 1000000]


def test_what_is_no_checkpoint_is_not_waited_for(tmp_path):
    (tmp_path / "checkpoints/step-0000007").mkdir(parents=True)
    (tmp_path / "checkpoints/step-000009").touch()
    assert layout.list_steps(tmp_path) == [] and checkpoint.newest(tmp_path) is None
