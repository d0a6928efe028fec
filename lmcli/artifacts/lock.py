"""One writer at a time: a kernel lock on a file that is never deleted.

The kernel frees the lock when its holder dies, however it dies. Readers need no lock.
"""

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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path` for the block, or raises LockedError naming host and pid."""
    make_directory(path.parent)
    try:
        file = open(path, "a+")  # noqa: SIM115 - held open: closing it frees the lock
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    with file:
        if not _take(file, path):
            file.seek(0)
            raise LockedError(f"{what} is being written by {_holder(file.read())}")
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, file)
        file.flush()
        yield


def _take(file: TextIO, path: Path) -> bool:
    for _ in range(5):
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)  # it may only be somebody asking is_held
        except OSError as error:
            raise StorageError(f"{path}: this file system cannot lock: {error.strerror}") from error
    return False


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if fcntl is None or not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks on this file system
            return False
    return False


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
