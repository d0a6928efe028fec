"""Generated code and its tests, run where they can do no harm, with a verdict they cannot forge.

Each run is a fresh process in user, network, pid, mount, ipc and uts namespaces of its own (util-
linux `unshare`), inside of which the program and the tests are two processes (see `inside`).

Promised: the program's code runs without network, files (but the libraries, read-only, and a /tmp
in memory), /proc, root's powers, and sight of any process but its own. It knows neither the tests
nor the nonce, and shares no memory with what judges it: `os._exit(0)`, a patched builtin or `==`,
a walk over frames or the heap can only spoil its own results. A run passes if the tests went
through with builtin values that the program sent back. When `run` returns, all its processes are
gone; and so they are when lmcli is killed.

Not promised: bugs of the kernel, and exact accounting (memory in pipes or memfds is not counted;
all processes together are measured 20 times a second). A program may answer right what only the
tests ask. With `weak` there are limits for each process and the separate judge, no namespaces: the
code can do whatever the user can. The tests are trusted to judge, and confined in the same way.
"""

import contextlib
import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmcli.errors import RefusedError
from lmcli.evaluation import inside

NAMESPACES = ("--user", "--keep-caps", "--net", "--pid", "--mount", "--ipc", "--uts")
UNSHARE = ("unshare", *NAMESPACES, "--mount-proc", "--fork", "--kill-child")
NOBODY = 65534


@dataclass(frozen=True)
class Limits:
    seconds: float = 5.0  # wall time, from the start of the processes
    memory: int = 2**30  # bytes, of each process and of all
    output: int = 2**20  # bytes printed
    files: int = 2**26  # bytes, of each file and of all
    processes: int = 32


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str  # passed, failed, error, timeout, memory, output
    seconds: float
    detail: str = ""  # the exception


@functools.cache
def available() -> str:
    """Why there is no sandbox here; empty if there is."""
    if not shutil.which("unshare"):
        return "`unshare` of util-linux is not installed"
    try:
        verdict = _run("f = abs", "assert f(-1) == 1", Limits(seconds=30), weak=False)
    except RefusedError as error:
        return str(error)
    return "" if verdict.passed else f"a trial ended with {verdict.reason!r}"


def run(program: str, tests: str, limits: Limits = Limits(), weak: bool = False) -> Verdict:
    """Whether the tests pass. RefusedError where there are no namespaces, unless `weak`."""
    if not weak and (why := available()):
        raise RefusedError(f"no sandbox for generated code: {why}; --weak-sandbox does without")
    return _run(program, tests, limits, weak)


def _run(program: str, tests: str, limits: Limits, weak: bool) -> Verdict:
    nonce, began = secrets.token_hex(16), time.monotonic()
    settings = {**asdict(limits), "weak": weak, "user": int(not weak and os.getuid() == 0)}
    with contextlib.ExitStack() as stack:
        told, tell = os.pipe()
        stack.callback(os.close, told)
        with os.fdopen(tell) as _:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lmcli-"))
            process = _start(folder, {**settings, "verdict": tell}, weak)
        stack.callback(_stop, process)
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError):  # it has failed, and will say so
            if not weak:
                _map_users(process)
            for text in (program, tests, nonce):
                data = text.encode(errors="surrogatepass")
                process.stdin.write(len(data).to_bytes(8, "big") + data)
            process.stdin.flush()
        reason, detail, said, printed = "timeout", "", b"", 0
        poll, output = select.poll(), process.stdout.fileno()
        poll.register(told)
        poll.register(output)
        while (left := began + limits.seconds - time.monotonic()) > 0:
            ready = [handle for handle, _ in poll.poll(1000 * left)]
            if output in ready:
                data = os.read(output, 2**16)
                said, printed = data or said, printed + len(data)
                if not data:
                    poll.unregister(output)
                if printed > limits.output:
                    reason = "output"
                    break
            if told in ready:
                words = os.read(told, 2**12).decode(errors="replace").split(maxsplit=2)
                known = words[:1] == [nonce]
                reason, detail = (words[1], " ".join(words[2:])) if known else ("error", "")
                break
    if reason == "error" and process.returncode == 1:
        lines = said.decode(errors="replace").splitlines()
        raise RefusedError(lines[-1] if lines else "unshare failed")
    if process.returncode == inside.MEMORY:
        reason = "memory"
    return Verdict(reason == "passed", reason, time.monotonic() - began, detail)


def _start(folder: str, settings: dict[str, Any], weak: bool) -> "subprocess.Popen[bytes]":
    code = Path(inside.__file__).read_text()
    command = [sys.executable, "-sSP", "-X", "utf8", "-c", code, json.dumps(settings)]
    return subprocess.Popen(
        command if weak else [*UNSHARE, *command],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[settings["verdict"]],
        start_new_session=True,
    )


def _map_users(process: "subprocess.Popen[bytes]") -> None:
    """Makes this user root in the sandbox, and gives real root a nobody for the programs.

    Nothing that root runs is held to a number of processes, or off the kernel's settings.
    """
    folder = Path("/proc", str(process.pid))
    while os.path.samefile(folder / "ns/user", "/proc/self/ns/user") and process.poll() is None:
        time.sleep(0.001)
    nobody = f"\n1 {NOBODY} 1" if os.getuid() == 0 else ""
    if not nobody:
        (folder / "setgroups").write_text("deny")
    (folder / "gid_map").write_text(f"0 {os.getgid()} 1{nobody}")
    (folder / "uid_map").write_text(f"0 {os.getuid()} 1{nobody}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends everything in the sandbox: init does when its input is closed, and is waited for."""
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process.stdout.close()
