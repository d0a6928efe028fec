"""A warm process that runs `lmcli` command lines in forks of itself, to crash at a chosen point.

Starting Python and torch takes seconds and a fork milliseconds, so thousands of crashes fit into
minutes. The warm process has one thread, else a fork of it could hang.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Forks:
    """with Forks(warm=[["train", ...], ...]) as forks: forks.run("train", ..., crash_at=7)"""

    def __init__(self, warm: list[list[str]]) -> None:
        self._warm = warm

    def __enter__(self) -> "Forks":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        for line in self._warm:
            self._ask({"warm": line})
        return self

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def run(self, *args: object, **how: object) -> tuple[int, int, str]:
        """(exit code or minus the signal, crash points passed, stderr) of one command line; see
        `start`."""
        self.start(*args, **how)
        return self.end()

    def start(
        self,
        *args: object,
        crash_at: int = 0,
        strace: Sequence[object] = (),
        before: str = "",
    ) -> int:
        """The pid of a command line, the leader of its own group; `end` comes next.

        With `strace`, the options of one that is attached to it from its first call on; `before`
        is Python that the process runs first.
        """
        request = {"args": args, "crash_at": crash_at, "strace": strace, "before": before}
        pid: int = self._ask(json.loads(json.dumps(request, default=str)))["pid"]
        return pid

    def end(self) -> tuple[int, int, str]:
        """What `run` says, of the command line that was started."""
        answer = self._answer()
        return answer["code"], answer["points"], answer["err"]

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def _attached(pid: int, options: list[str]) -> subprocess.Popen[str]:
    """strace on a process that has stopped itself, which goes on once it is traced."""
    os.waitpid(pid, os.WUNTRACED)
    command = ["strace", "-p", str(pid), *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None and "attached" in tracer.stderr.readline()
    os.kill(pid, signal.SIGCONT)
    return tracer


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from lmcli.artifacts import files
    from lmcli.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    scratch = Path(f"/dev/shm/lmcli-forks-{os.getpid()}")
    for line in sys.stdin:
        request = json.loads(line)
        if "warm" in request:
            answer = {"code": main([*request["warm"], "-q"])}
        else:
            scratch.write_bytes(b"")
            pid = os.fork()
            if not pid:
                os.setsid()
                exec(request["before"], {})
                if request["strace"]:
                    os.kill(os.getpid(), signal.SIGSTOP)
                handle = os.open(scratch, os.O_RDWR | os.O_APPEND)
                for target in (0, 1, 2):
                    os.dup2(handle if target else os.open(os.devnull, os.O_RDONLY), target)
                files._CRASH_AT, files._count = request["crash_at"], 0
                try:
                    code = main(request["args"])
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    code = 1
                sys.stderr.flush()
                os.write(2, f"\n{files._count}".encode())
                os._exit(code)
            tracer = _attached(pid, request["strace"]) if request["strace"] else None
            answers.write(json.dumps({"pid": pid}) + "\n")
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if tracer is not None:
                tracer.communicate()
            said, _, points = scratch.read_text("utf-8", "replace").rpartition("\n")
            answer = {"code": code, "points": int(points) if code >= 0 else -1, "err": said}
        answers.write(json.dumps(answer) + "\n")
    scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    _serve()
