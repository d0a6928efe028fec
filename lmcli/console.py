"""The conversation: everything said on stderr. stdout belongs to answers.

rich is imported on first use and only for a terminal; off a terminal, progress is plain lines.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

quiet = False


def say(message: str) -> None:
    """One line of conversation; silent under --quiet."""
    if not quiet:
        _print(message)


def warn(message: str) -> None:
    _print(f"warning: {message}")


def _print(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:  # nobody listens any more (`2>&1 | head`); the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def answer(text: str) -> None:
    """One line of the answer, on stdout."""
    print(text, flush=True)


def answer_json(value: Any) -> None:
    answer(json.dumps(value, ensure_ascii=False, allow_nan=False))


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """Aligned columns as plain text; numbers to the right."""
    cells = [
        [str(c) for c in row] for row in ([header] if header else []) + [list(r) for r in rows]
    ]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = [
        all(row[i][:1].isdigit() or row[i][:1] in "-." for row in cells[bool(header) :] if row[i])
        for i in range(len(widths))
    ]
    return "\n".join(
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


class Progress:
    """A bar on a terminal, a plain line every `every` seconds elsewhere.

    with Progress("training", total=1000, unit="step") as progress:
        progress.update(10, "loss 3.21")
    """

    def __init__(self, title: str, total: float | None, unit: str = "", every: float = 10) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done = 0.0
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if not quiet and sys.stderr.isatty():
            from rich import progress as rich_progress
            from rich.console import Console

            columns = [
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.TaskProgressColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                rich_progress.TimeRemainingColumn(),
            ]
            self._bar = rich_progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=self.total, note="")
            self._bar.start()
        return self

    def update(self, done: float, note: str = "") -> None:
        """`done` is the total so far, not an increment."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self._line(note)

    def _line(self, note: str) -> None:
        parts = [f"{self.title} {self.done:,.0f}"]
        if self.total:
            parts[0] += f"/{self.total:,.0f}"
            elapsed = time.monotonic() - self._start
            if self.done:
                from lmcli.config.units import show_duration

                eta = show_duration(elapsed * (self.total - self.done) / self.done)
                note = f"{note}  ETA {eta}".strip()
        if self.unit:
            parts.append(self.unit)
        say("  ".join([" ".join(parts), note]).rstrip())

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            say(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
