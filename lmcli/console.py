"""The conversation: everything said on stderr. stdout belongs to answers.

rich is imported on first use and only for a terminal; off a terminal, progress is plain lines.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lmcli.config.units import show_duration

T = TypeVar("T")

EVERY = 10  # seconds between plain lines of progress
quiet = verbose = False
_warned: set[tuple[str, int]] = set()


def say(message: str) -> None:
    """One line of conversation; silent under --quiet."""
    if not quiet:
        _print(message)


def detail(message: str) -> None:
    """A line that only --verbose shows."""
    if verbose:
        _print(message)


def warn(message: str) -> None:
    _print(f"warning: {message}")


def warn_once(message: str) -> None:
    """The first of many warnings of a kind, known by its place in the code, is enough."""
    place = sys._getframe(1)
    key = (place.f_code.co_filename, place.f_lineno)
    if key not in _warned:
        _warned.add(key)
        warn(f"{message} (said once)")


def _print(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:  # nobody listens any more (`2>&1 | head`); the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def answer(text: str | bytes, end: str = "\n") -> None:
    """One line of the answer, on stdout, or a part of one; as bytes where it may not be UTF-8."""
    if isinstance(text, bytes):
        sys.stdout.buffer.write(text + b"\n")
        sys.stdout.buffer.flush()
    else:
        print(text, end=end, flush=True)


def answer_json(value: Any) -> None:
    answer(json.dumps(value, ensure_ascii=False, allow_nan=False))


def reply(as_json: bool, value: Any, text: str | bytes) -> None:
    """The answer of a command: `value` under --json, else `text`."""
    if as_json:
        answer_json(value)
    else:
        answer(text)


def coloured() -> bool:
    """Whether an answer may have colours: on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def plain(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def listing(facts: Iterable[tuple[str, Any]], width: int = 18) -> str:
    """One line for each fact: its name, padded, and its value."""
    return "\n".join(f"{name:<{width}} {value}" for name, value in facts)


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """Aligned columns as plain text; numbers to the right."""
    columns = []
    for column in zip(*([header] if header else []), *rows, strict=True):
        cells = [str(c) for c in column]
        width = max(map(len, cells))
        right = all(c[:1].isdigit() or c[:1] in "-." for c in cells[bool(header) :])
        columns.append([c.rjust(width) if right else c.ljust(width) for c in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


class Progress:
    """A bar on a terminal, a plain line every EVERY seconds elsewhere.

    with Progress("training", total=1000, unit="step") as progress:
        progress.update(10, "loss 3.21")
    """

    def __init__(self, title: str, total: float | None, unit: str = "", done: float = 0.0) -> None:
        self.title, self.total, self.unit = title, total, unit
        # What earlier sessions did counts for the bar, not for the time left.
        self.done = self._first = done
        self._start = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if not quiet and sys.stderr.isatty():
            from rich import progress as rich_progress
            from rich.console import Console

            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.TaskProgressColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                rich_progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.done, note=""
            )
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, note: str = "") -> None:
        """`done` is the total so far, not an increment."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, total=self.total, completed=done, note=note)
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._line(note)

    def over(self, items: Iterable[T], size: Callable[[T], float]) -> Iterator[T]:
        """The items, each counted as done when it is handed out."""
        for item in items:
            self.update(self.done + size(item))
            yield item

    def _line(self, note: str) -> None:
        words = f"{self.title} {self.done:,.0f}"
        if self.total:
            words += f"/{self.total:,.0f}"
            if here := self.done - self._first:
                left = (self.total - self.done) / here * (time.monotonic() - self._start)
                note = f"{note}  ETA {show_duration(left)}".strip()
        say(f"{words} {self.unit}".rstrip() + f"  {note}".rstrip())

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            say(message)
