"""One writer at a time: a kernel lock on a file that stays.

The kernel frees the lock when its holder dies, however it dies. Readers need no lock.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lmcli.artifacts.files import make_directory
from lmcli.errors import LockedError, StorageError


@contextmanager
def hold(path: Path, what: str, patience: float = 0.25, keep: bool = True) -> Iterator[None]:
    """Holds the lock file `path` for the block, or raises LockedError naming host and pid.

    `patience` is how many seconds to wait for it; somebody may only be asking `is_held`. Without
    `keep` the file is removed in the end, and whoever waited for it has to come again.
    """
    make_directory(path.parent)
    try:
        file = open(path, "a+")  # noqa: SIM115 - held open: closing it frees the lock
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    with file:
        deadline = time.monotonic() + patience
        while not _take(file, path):
            if time.monotonic() > deadline:
                raise LockedError(f"{what} is being written by {holder(path)}")
            time.sleep(0.02)
        value = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        try:
            file.truncate(0)
            os.write(file.fileno(), json.dumps(value).encode())
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; make room and try again") from error
        try:
            yield
        finally:
            if not keep:
                path.unlink(missing_ok=True)


def _take(file: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (FileNotFoundError, BlockingIOError):
        return False
    except OSError as error:
        raise StorageError(f"{path}: this file system cannot lock: {error.strerror}") from error


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks on this file system
            return False
    return False


def holder(path: Path) -> str:
    """Who wrote its name into a lock file; it may be about to."""
    deadline = time.monotonic() + 0.25
    while True:
        try:
            value = json.loads(path.read_text())
            return f"process {value['pid']} on {value['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() > deadline:
                return "another process"
        time.sleep(0.01)
