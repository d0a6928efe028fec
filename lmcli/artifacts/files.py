"""The only writer: nothing on disk is ever half written.

A file appears by temporary name, fsync, rename, fsync of its folder; a directory likewise, as a
whole; a log only grows, and is cut back to a recorded length on resume. Every operation passes
through `_do`, where `LMCLI_CRASH_AT=k` makes the process kill itself before (k), in the middle of
or after the k-th one, so that tests can visit every point of a crash.
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcli.errors import DataError, MissingInputError, StorageError

TEMPORARY = ".tmp-"
TRASH = ".trash"

_CRASH_AT = int(os.environ.get("LMCLI_CRASH_AT", "0"))
_count = 0


def _crash_point() -> bool:
    """Counts one point; True when it is the one chosen for a crash."""
    global _count
    _count += 1
    return _count == _CRASH_AT


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _do(action: Callable[[], Any], path: Path, half: Callable[[], Any] | None = None) -> Any:
    """Runs one file operation; `half` performs part of it for a crash in the middle."""
    if _CRASH_AT:
        if _crash_point():
            _die()
        if half is not None and _crash_point():
            half()
            _die()
    try:
        result = action()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; nothing was lost") from error
    if _CRASH_AT and _crash_point():
        _die()
    return result


def make_directory(path: Path) -> None:
    if not path.is_dir():
        make_directory(path.parent)
        _do(lambda: path.mkdir(exist_ok=True), path)
        sync_directory(path.parent)


def _write(path: Path, data: bytes, mode: str = "wb") -> None:
    def put(part: bytes) -> None:
        with open(path, mode) as file:
            file.write(part)
            file.flush()
            os.fsync(file.fileno())

    _do(lambda: put(data), path, half=lambda: put(data[: len(data) // 2]))


def sync_directory(path: Path) -> None:
    def sync() -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    if os.name == "posix":
        _do(sync, path)


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, whole or not at all."""
    make_directory(path.parent)
    temporary = path.with_name(TEMPORARY + path.name)
    _write(temporary, data)
    _do(lambda: os.replace(temporary, path), path)
    sync_directory(path.parent)


def to_json(value: Any) -> bytes:
    """Canonical, readable JSON: sorted keys, no NaN, one final newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def write_json(path: Path, value: Any) -> None:
    write_file(path, to_json(value))


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object, or a DataError naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); restore or rebuild it") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object; restore or rebuild it")
    return value


@contextmanager
def staged_directory(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and vanishes otherwise.

    The caller holds the lock of `final` and writes its manifest last.
    """
    temporary = final.with_name(TEMPORARY + final.name)
    make_directory(final.parent)
    remove(temporary)
    make_directory(temporary)
    try:
        yield temporary
        commit_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def commit_directory(temporary: Path, final: Path) -> None:
    """Makes every file durable and readable as the umask allows, then renames the folder."""
    mask = os.umask(0)
    os.umask(mask)

    def settle(path: Path) -> None:
        os.chmod(path, 0o666 & ~mask)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())

    for path in sorted(temporary.rglob("*")):
        if path.is_dir():
            sync_directory(path)
        else:
            _do(lambda path=path: settle(path), path)  # type: ignore[misc]
    sync_directory(temporary)
    _do(lambda: os.rename(temporary, final), final)
    sync_directory(final.parent)


def remove(path: Path) -> None:
    """Removes a file or folder; a folder leaves its name in one step before it is emptied."""
    if path.is_symlink() or path.is_file():
        _do(path.unlink, path)
    elif path.is_dir():
        doomed = path
        if not path.name.startswith(TEMPORARY):
            doomed = path.with_name(TEMPORARY + "gone-" + path.name)
            if doomed.exists():
                _do(lambda: shutil.rmtree(doomed), doomed)
            _do(lambda: os.rename(path, doomed), path)
        _do(lambda: shutil.rmtree(doomed), doomed)


def sweep(folder: Path) -> None:
    """Removes what a killed writer left in `folder`; the caller holds the lock."""
    for path in folder.glob(TEMPORARY + "*"):
        remove(path)


def to_trash(path: Path, root: Path) -> Path:
    """Moves an artifact to `root/.trash`, where the user can still find it."""
    bin_ = root / TRASH
    make_directory(bin_)
    number = 0
    while (target := bin_ / f"{path.parent.name}-{path.name}-{number}").exists():
        number += 1
    move(path, target)
    return target


def move(path: Path, target: Path) -> None:
    """Renames within one file system, durably."""
    _do(lambda: os.rename(path, target), path)
    sync_directory(target.parent)
    sync_directory(path.parent)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _append(path: Path, data: bytes) -> None:
    def put(part: bytes) -> None:
        with open(path, "ab") as file:
            file.write(part)

    _do(lambda: put(data), path, half=lambda: put(data[: len(data) // 2]))


class Stream:
    """A large file written piece by piece into a staged folder, which makes it durable."""

    BUFFER = 2**22

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = bytearray()
        _do(path.touch, path)

    def write(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= self.BUFFER:
            self.flush()

    def flush(self) -> None:
        """Appends what is held; the folder's commit makes it durable."""
        _append(self.path, bytes(self._held))
        self._held.clear()


class Log:
    """An append-only file of JSON lines that knows the length and hash of what it holds.

    Opened at a recorded `length` it first drops whatever came later; without one, a torn last line.
    Given a recorded `sha256` too, what is kept must have it.
    """

    def __init__(self, path: Path, length: int | None = None, sha256: str = "") -> None:
        self.path = path
        self._named = False
        data = path.read_bytes() if path.exists() else b""
        keep = data.rfind(b"\n") + 1 if length is None else length
        if len(data) < keep:
            raise DataError(f"{path}: {len(data)} bytes, but the checkpoint recorded {keep}")
        self.length = keep
        self._hash = hashlib.sha256(data[:keep])
        if sha256 and self.sha256 != sha256:
            raise DataError(f"{path}: its first {keep} bytes are not what the checkpoint recorded")
        if len(data) > keep:
            _do(lambda: os.truncate(path, keep), path)

    def append(self, record: dict[str, Any]) -> None:
        data = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        _append(self.path, data)
        self.length += len(data)
        self._hash.update(data)

    def sync(self) -> None:
        """Makes every line so far durable, and once the file's name."""

        def flush() -> None:
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())

        _do(flush, self.path)
        if not self._named:
            sync_directory(self.path.parent)
            self._named = True

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines log; a torn last line is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise DataError(f"{path}: not JSON lines ({error})") from None
