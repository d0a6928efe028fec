"""What the fuzz tests share: a command line in this process, and JSON that means harm."""

import contextlib
import copy
import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lmcli.artifacts import files, layout

# What a command may answer to whatever it is given; 1 is a bug, and a traceback is not an answer.
ANSWERS = {0, 2, 65, 66, 69, 70, 71, 74, 75, 77, 78}
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def fuzz(examples: int) -> settings:
    """The same examples every time, none kept."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=SLOW,
    )


LONGEST = 120  # seconds for one command line


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


def _hung(*_: object) -> None:
    raise AssertionError(f"no answer in {LONGEST} seconds")


def run(root: Path, *line: object, input: bytes = b"") -> Result:
    """One command line; an exception that escapes it fails the test."""
    from lmcli import console
    from lmcli.cli import main

    streams = [
        io.TextIOWrapper(io.BytesIO(data), "utf-8", errors)  # as Python opens them
        for data, errors in ((input, "strict"), (b"", "strict"), (b"", "backslashreplace"))
    ]
    before, sys.stdin = sys.stdin, streams[0]
    signal.signal(signal.SIGALRM, _hung)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stdout(streams[1]), contextlib.redirect_stderr(streams[2]):
            code = main([*map(str, line), "--artifacts", str(root)])
            streams[1].flush()
            streams[2].flush()
    finally:
        signal.alarm(0)
        sys.stdin = before
        console.quiet = False
    out, err = (stream.buffer.getvalue() for stream in streams[1:])
    said = err.decode("utf-8", "replace")
    assert code in ANSWERS, (line, code, said)
    assert "Traceback" not in said, said
    return Result(code, out, said)


EVIL: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 1e308, -0.5, "", "x", "\0"),
    *("../../../etc/passwd", "/etc/passwd", "..", "a/../../b", "é\ud800", "9" * 5000, [], {}),
    *([0] * 50, {"step": -1}, [[[[]]]], {"a": {"b": {"c": None}}}, "NaN", "auto", "cuda"),
]


def places(value: Any) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead there."""
    found: list[tuple[Any, ...]] = [()]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else [])
    )
    for key, inner in items:
        found += [(key, *rest) for rest in places(inner)]
    return found


def spoiled(value: dict[str, Any], place: tuple[Any, ...], evil: Any) -> dict[str, Any]:
    """A copy with another value at a place; `...` removes what is there."""
    value = copy.deepcopy(value)
    inner: Any = value
    for key in place[:-1]:
        inner = inner[key]
    if evil is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = evil
    return value


def hostile(value: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The JSON object with one place replaced or removed."""
    return st.builds(
        lambda place, evil: spoiled(value, place, evil),
        st.sampled_from([place for place in places(value) if place]),
        st.sampled_from([..., *EVIL]),
    )


def seal(folder: Path, value: dict[str, Any]) -> None:
    """A manifest whose own hashes hold, whatever it says."""
    parts = {key: value.get(key) for key in ("format", "kind", "parents", "files")}
    files.write_sealed(folder / layout.MANIFEST, value | {"id": files.digest(parts)})


def reseal(folder: Path) -> None:
    """The manifest of a folder made to fit its files as they are now."""
    value = files.read_json(folder / layout.MANIFEST)
    value.pop("check")
    for name, entry in value["files"].items():
        path = folder / name
        entry |= {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
    seal(folder, value)


@contextlib.contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Puts files back as they were, for the next example."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)
