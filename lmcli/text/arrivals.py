"""Lines of a stream as they come, so that a pipe that sends one and waits is answered at once."""

import codecs
import select
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from lmcli.errors import DataError
from lmcli.text.readers import decode

T = TypeVar("T")

LONGEST = 2**22  # bytes of a line


class Arrivals(Generic[T]):
    """The lines of a stream, without their ends, as `parse(place, line)` reads them."""

    def __init__(
        self, stream: Any, parse: Callable[[str, str], T], name: str = "standard input, line "
    ) -> None:
        self._stream, self._parse, self._name = stream, parse, name
        self._lines, self._rest, self._number, self._ended = deque[bytes](), b"", 0, False
        self._error: DataError | None = None

    def take(self, n: int, wait: bool) -> list[T] | None:
        """Up to n lines; None at the end, and [] where none is there and `wait` is False.

        A DataError waits until what came before it has been answered: for a `take` that waits.
        """
        found: list[T] = []
        try:
            while not (self._lines or self._ended or self._error) and (wait or self._ready()):
                self._read()
            while self._lines and not self._error and len(found) < n:
                self._number += 1
                where = f"{self._name}{self._number}"
                line = self._lines.popleft().removesuffix(b"\r")
                if self._number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                found.append(self._parse(where, decode(line, where)))
        except DataError as error:
            self._error = error
        if self._error is not None and wait and not found:
            raise self._error
        return None if self._ended and not (found or self._lines or self._error) else found

    def _ready(self) -> bool:
        """Whether reading would not wait; where the system cannot tell, it may."""
        try:
            return bool(select.select([self._stream], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    def _read(self) -> None:
        data = self._stream.read1(2**16)  # waits for the first byte only
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self._ended = True
            lines += [self._rest] if self._rest else []
        self._lines += lines
        if len(self._rest) > LONGEST:
            where = f"{self._name}{self._number + len(self._lines) + 1}"
            raise DataError(f"{where}: more than {LONGEST >> 20} MiB; shorten it")
