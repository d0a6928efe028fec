"""The writer's corners: logs that were changed, the trash, folders that nest."""

import errno
import subprocess
import sys

import pytest

from lmcli import console
from lmcli.artifacts import files
from lmcli.artifacts.again import creating
from lmcli.errors import DataError, Interrupted, MissingInputError, StorageError


def test_a_log_whose_kept_part_changed_is_refused(tmp_path):
    log = files.Log(tmp_path / "log")
    log.append({"loss": 1.5})
    log.append({"loss": 1.4})
    log.sync()
    assert files.Log(log.path, log.length, log.sha256).length == log.length
    data = log.path.read_bytes()
    log.path.write_bytes(data.replace(b"1.5", b"1.6") + b"more\n")
    with pytest.raises(DataError, match="are not what the checkpoint recorded"):
        files.Log(log.path, log.length, log.sha256)
    assert log.path.read_bytes().endswith(b"more\n")  # nothing is cut off a log that is wrong


def test_the_trash_keeps_every_version(tmp_path):
    for number in range(3):
        files.write_file(tmp_path / "runs/base/x", b"%d" % number)
        where = files.to_trash(tmp_path / "runs/base", tmp_path)
        assert where == tmp_path / f".trash/runs-base-{number}"
    assert (tmp_path / ".trash/runs-base-2/x").read_bytes() == b"2"


def test_an_interrupted_new_one_says_where_the_old_one_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "quiet", False)
    run = tmp_path / "runs/base"
    files.write_file(run / "old", b"")
    with pytest.raises(ZeroDivisionError), creating(run, tmp_path, "run", force=True):
        raise ZeroDivisionError  # before there is a new one
    assert (run / "old").exists() and "is in" not in capsys.readouterr().err
    with pytest.raises(Interrupted), creating(run, tmp_path, "run", force=True):
        files.write_file(run / "new", b"")
        raise Interrupted("SIGINT: saved")
    said = capsys.readouterr().err
    assert f"the old base is in {tmp_path / '.trash/runs-base-0'}" in said


def test_a_log_on_a_full_disk_is_74(tmp_path, monkeypatch):
    log = files.Log(tmp_path / "log")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(StorageError, match="log: No space left on device"):
        log.append({"a": 1})


def test_a_block_that_fails_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), files.staged_directory(tmp_path / "a/b") as folder:
        files.write_file(folder / "x", b"x")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.rglob("*")] == ["a"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_json_that_is_no_object_is_named(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DataError, match="x.json: not "):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(MissingInputError):
        files.read_json(tmp_path / "y.json")


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_crash_point_that_is_no_number_is_none(monkeypatch):
    monkeypatch.setenv("LMCLI_CRASH_AT", "x")
    assert not subprocess.run([sys.executable, "-c", "import lmcli.artifacts.files"]).returncode
