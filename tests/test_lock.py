"""Asking who holds a lock never takes it from the one who wants it."""

import threading

import pytest

from lmcli.artifacts import lock
from lmcli.errors import StorageError


def test_a_watcher_does_not_disturb_a_writer(tmp_path):
    path = tmp_path / "LOCK"
    path.touch()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            lock.is_held(path)

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for thread in watchers:
        thread.start()
    try:
        for _ in range(50):
            with lock.hold(path, "x"):
                pass
    finally:
        stop.set()
        for thread in watchers:
            thread.join()


def test_a_file_system_without_locks_is_said_so(tmp_path, monkeypatch):
    def none(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with pytest.raises(StorageError, match="cannot lock"), lock.hold(tmp_path / "LOCK", "x"):
        pass
    assert not lock.is_held(tmp_path / "LOCK")


def test_a_lock_that_holds_rubbish_still_names_somebody(tmp_path):
    path = tmp_path / "LOCK"
    with lock.hold(path, "x"):
        path.write_text("rubbish")
        with pytest.raises(lock.LockedError, match="another process"), lock.hold(path, "x"):
            pass


def test_a_lock_that_is_not_kept_is_gone_and_not_given_to_who_waited(tmp_path):
    path = tmp_path / "LOCK"
    with lock.hold(path, "x", keep=False):
        old = open(path)  # noqa: SIM115 - somebody who waits has it open
    assert not path.exists()
    with old, lock.hold(path, "x", keep=False):
        assert not lock._take(old, path)
    assert not path.exists()
