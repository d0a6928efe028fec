"""The only writer: nothing on disk is ever half written.

A file appears by temporary name, fsync, rename, fsync of its folder; a directory likewise, as a
whole; a log only grows, and is cut back to a recorded length on resume. Every operation passes
through `_do`, which tests use to visit every point of a crash: `LMCLI_CRASH_AT=k` makes the process
kill itself at the k-th point (before, in the middle of, after an operation, or at a training step),
and `observe` sees every operation, so that a power loss can be played back from the list.
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lmcli.artifacts import schema
from lmcli.errors import DataError, MismatchError, MissingInputError, StorageError

TEMPORARY = ".tmp-"
TRASH = ".trash"
EMPTY = hashlib.sha256().hexdigest()

# Called with (operation, path, target of a rename) after each operation.
observe: Callable[[str, Path, Path | None], None] | None = None
_crash_at = os.environ.get("LMCLI_CRASH_AT", "")
_CRASH_AT = int(_crash_at) if _crash_at.isdecimal() else 0
_count = 0


def crash_point(half: Callable[[], Any] | None = None) -> None:
    """Counts one point, and dies there if it is the chosen one, with half of the work done."""
    global _count
    _count += 1
    if _count == _CRASH_AT:
        if half is not None:
            half()
        os.kill(os.getpid(), signal.SIGKILL)


def _do(
    operation: str,
    action: Callable[[], Any],
    path: Path,
    target: Path | None = None,
    half: Callable[[], Any] | None = None,
) -> None:
    """Runs one file operation; `half` performs part of it for a crash in the middle."""
    crash_point()
    if half is not None:
        crash_point(half)
    try:
        action()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; nothing was lost") from error
    if observe is not None:
        observe(operation, path, target)
    crash_point()


def make_directory(path: Path) -> None:
    if not path.is_dir():
        make_directory(path.parent)
        _do("mkdir", lambda: path.mkdir(exist_ok=True), path)
        _sync(path.parent)


def _write(path: Path, data: bytes, mode: str) -> None:
    def put(part: bytes) -> None:
        with open(path, mode) as file:
            file.write(part)

    _do("write", lambda: put(data), path, half=lambda: put(data[: len(data) // 2]))


def write_with(path: Path, save: Callable[[Path], Any]) -> None:
    """A file that a library writes by itself into a staged folder, as one operation."""

    def half() -> None:
        save(path)
        os.truncate(path, path.stat().st_size // 2)

    _do("write", lambda: save(path), path, half=half)


def _sync(path: Path) -> None:
    """Makes what a file holds durable, or which names a folder holds."""
    folder = path.is_dir()

    def sync() -> None:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    _do("fsyncdir" if folder else "fsync", sync, path)


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, whole or not at all."""
    make_directory(path.parent)
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        _write(temporary, data, "wb")
        _sync(temporary)
        move(temporary, path)
    except StorageError:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise


def to_json(value: Any) -> bytes:
    """Canonical, readable JSON: sorted keys, no NaN, one final newline.

    Bytes of a file name that are not UTF-8 become escapes (`\\udcff`), which read back the same.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_json(path: Path, value: Any) -> None:
    write_file(path, to_json(value))


def read_json(path: Path, of: Any = schema.ANY, format: int | None = None) -> dict[str, Any]:
    """One JSON object of a schema, or a DataError naming the file; MismatchError for one of a
    newer format."""
    return schema.check(_parse(_read(path), path, format), of, path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder where a file belongs; restore or rebuild it") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None


def _parse(data: bytes, where: Path | str, format: int | None = None) -> dict[str, Any]:
    """One JSON object, of no newer format; NaN and infinity are no JSON."""
    try:
        value = json.loads(data, parse_constant=int)  # which refuses them
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); restore or rebuild it") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object; restore or rebuild it")
    newer = value.get("format")
    if format is not None and isinstance(newer, int) and newer > format:
        raise MismatchError(
            f"{where}: format {newer} is newer than this lmcli reads ({format}); upgrade"
        )
    return value


def digest(value: dict[str, Any]) -> str:
    """sha256, in hex, of a JSON object; the same for equal objects."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """JSON with `check`, the digest of the rest, so that no byte of it can change unseen."""
    write_json(path, value | {"check": digest(value)})


def read_sealed(path: Path, of: Any = schema.ANY, format: int | None = None) -> dict[str, Any]:
    """What `write_sealed` wrote, byte for byte, without `check`, and of a schema; a DataError
    otherwise."""
    data = _read(path)
    value = _parse(data, path, format)
    check = value.pop("check", None)
    try:
        same = data == to_json(value | {"check": check}) and not path.is_symlink()
    except (ValueError, RecursionError):  # NaN, or nested beyond sense
        same = False
    if not same or digest(value) != check:
        raise DataError(f"{path}: its check does not match its content; changed")
    return schema.check(value, of, path)


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
        _commit(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _commit(temporary: Path, final: Path) -> None:
    """Makes every file durable and readable as the umask allows, then renames the folder."""
    mask = os.umask(0)
    os.umask(mask)
    for path in inside(temporary):
        if not path.is_dir():
            _do("chmod", partial(os.chmod, path, 0o666 & ~mask), path)
        _sync(path)
    _sync(temporary)
    move(temporary, final)


def inside(folder: Path) -> list[Path]:
    """Everything under `folder`, sorted; OSError for what cannot be listed, where rglob is silent.

    What a living run removes meanwhile is left out.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(folder, onerror=refuse)
    return sorted(Path(where, name) for where, *lists in walk for names in lists for name in names)


def remove(path: Path) -> None:
    """Removes a file or folder; a folder leaves its name in one step before it is emptied."""
    if path.is_symlink() or path.is_file():
        _do("unlink", path.unlink, path)
    elif path.is_dir():
        doomed = path
        if not path.name.startswith(TEMPORARY):
            doomed = path.with_name(TEMPORARY + "gone-" + path.name)
            remove(doomed)
            _do("rename", lambda: os.rename(path, doomed), path, doomed)
        _do("rmtree", lambda: shutil.rmtree(doomed), doomed)


def sweep(folder: Path) -> None:
    """Removes what a killed writer left in `folder`; the caller holds the lock."""
    for path in folder.glob(TEMPORARY + "*"):
        remove(path)


def copy(path: Path, target: Path) -> None:
    """A copy of a file, in a folder that is made for it; not durable by itself."""
    make_directory(target.parent)
    _do("write", lambda: shutil.copyfile(path, target), target)


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
    """Renames within one file system, durably; a file replaces the one that is there."""
    _do("rename", lambda: os.replace(path, target), path, target)
    _sync(target.parent)
    if path.parent != target.parent:
        _sync(path.parent)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts(path: Path) -> dict[str, Any]:
    """What is recorded of a file, to know it again: its size and hash."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


class Stream:
    """A large file written piece by piece into a staged folder, which makes it durable."""

    BUFFER = 2**22

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = bytearray()
        _write(path, b"", "wb")

    def write(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= self.BUFFER:
            self.flush()

    def flush(self) -> None:
        """Appends what is held; the folder's commit makes it durable."""
        _write(self.path, bytes(self._held), "ab")
        self._held.clear()


_MEND = "restore it, or move the later checkpoints away to train again from an earlier one"


class Log:
    """An append-only file of JSON lines that knows the length and hash of what it holds.

    Opened at a recorded `length` it first drops whatever came later; without one, a torn last line.
    Given a recorded `sha256` too, what is kept must have it.
    """

    def __init__(self, path: Path, length: int | None = None, sha256: str = "") -> None:
        self.path = path
        data = _read_log(path)
        keep = data.rfind(b"\n") + 1 if length is None else length
        if len(data) < keep:
            raise DataError(
                f"{path}: {len(data)} bytes, but the checkpoint recorded {keep}; {_MEND}"
            )
        self.length = keep
        self._hash = hashlib.sha256(data[:keep])
        if sha256 and self.sha256 != sha256:
            raise DataError(
                f"{path}: its first {keep} bytes are not what the checkpoint recorded; {_MEND}"
            )
        if len(data) > keep:
            _do("truncate", lambda: os.truncate(path, keep), path)

    def append(self, record: dict[str, Any]) -> None:
        data = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        _write(self.path, data, "ab")
        self.length += len(data)
        self._hash.update(data)

    def sync(self) -> None:
        """Makes every line so far durable, and the file's name."""
        if self.length:
            _sync(self.path)
            _sync(self.path.parent)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _read_log(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path}: a folder where a log belongs; remove it or restore the file")
    return path.read_bytes() if path.exists() else b""


def read_log(path: Path, of: Any = schema.ANY) -> list[dict[str, Any]]:
    """The complete lines of a log, each of a schema; a torn last line is left out."""
    whole, _, _ = _read_log(path).rpartition(b"\n")
    lines = [(f"{path}:{n}", line) for n, line in enumerate(whole.split(b"\n"), 1) if line]
    return [schema.check(_parse(line, where), of, where) for where, line in lines]
