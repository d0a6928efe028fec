"""Requests to stop: a signal sets a flag, and the work in hand ends where nothing is lost.

SIGINT, SIGTERM, SIGHUP or SIGUSR1 (what Slurm sends before the time is up) ask for a stop after the
current step; a second one leaves at once. `deadline` asks by the clock. No torch, so that a command
can listen before it loads anything heavy.
"""

import os
import signal
import socket
import threading
import time
from typing import Any


class StopRequest:
    """with StopRequest() as stop:
    ... if stop.requested: save and leave
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self, seconds: float | None = None) -> None:
        self._signal: str | None = None
        self._before: dict[Any, Any] = {}
        self._bell: socket.socket | None = None
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.margin = 0.0  # seconds that the next step and a save may take

    @property
    def requested(self) -> str | None:
        """What asked for the stop: a signal's name or `--max-time`."""
        if self._signal is None and self._deadline is not None:
            return "--max-time" if time.monotonic() + self.margin >= self._deadline else None
        return self._signal

    def _listen(self, arrivals: socket.socket) -> None:
        """Takes note of signals in a thread of its own: a handler would have to wait for the end of
        whatever torch is computing, and the second signal for the first."""
        with arrivals:
            while arrived := arrivals.recv(1):
                number = arrived[0]
                if number not in self._before:
                    continue
                if self._signal is not None:
                    os._exit(128 + number)
                self._signal = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            arrivals, self._bell = socket.socketpair()
            self._bell.setblocking(False)
            self._bell_before = signal.set_wakeup_fd(self._bell.fileno())
            self._thread = threading.Thread(target=self._listen, args=(arrivals,), daemon=True)
            self._thread.start()
            for number in self.SIGNALS:
                before = signal.getsignal(number)
                if before == signal.SIG_IGN and number != signal.SIGTERM:
                    continue  # nohup, or a background job of a script
                self._before[number] = before  # first: the thread looks it up
                signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._bell is not None:
            signal.set_wakeup_fd(self._bell_before)
            self._bell.close()  # ends the thread
            self._thread.join()
