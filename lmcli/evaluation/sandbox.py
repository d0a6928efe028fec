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
    began, nonce = time.monotonic(), secrets.token_hex(16)
    reason, words, said, printed = "timeout", [""], b"", 0
    told, tell = os.pipe()
    user = int(not weak and os.getuid() == 0)
    settings = json.dumps({**asdict(limits), "weak": weak, "user": user, "verdict": tell})
    launcher, code = () if weak else UNSHARE, Path(inside.__file__).read_text()
    with open(told, "rb", 0) as verdict, tempfile.TemporaryDirectory(prefix="lmcli-") as folder:
        process = subprocess.Popen(
            [*launcher, sys.executable, "-sSP", "-X", "utf8", "-c", code, settings],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[tell],
            start_new_session=True,
        )
        os.close(tell)
        assert process.stdin and process.stdout
        try:
            with contextlib.suppress(OSError):  # it has failed, and will say so
                if not weak:
                    _map_users(process)
                for text in (program, tests, nonce):
                    data = text.encode(errors="surrogatepass")
                    process.stdin.write(len(data).to_bytes(8, "big") + data)
                process.stdin.flush()
            poll = select.poll()
            poll.register(verdict)
            poll.register(process.stdout)
            while (left := began + limits.seconds - time.monotonic()) > 0:
                ready = [handle for handle, _ in poll.poll(min(1000 * left, 10**6))]
                if process.stdout.fileno() in ready:
                    if not (data := os.read(process.stdout.fileno(), 2**16)):
                        poll.unregister(process.stdout)
                    said, printed = data or said, printed + len(data)
                    if printed > limits.output:
                        reason = "output"
                        break
                if told in ready:
                    words = verdict.read(2**12).decode(errors="replace").split(maxsplit=2)
                    reason = words[1] if words[:1] == [nonce] else "error"
                    break
        finally:
            _stop(process)
    if not words and process.returncode == 1:  # init has not come to start the tests
        lines = said.decode(errors="replace").splitlines()
        raise RefusedError(lines[-1] if lines else "unshare failed")
    if process.returncode == inside.MEMORY:
        reason = "memory"
    return Verdict(reason == "passed", reason, time.monotonic() - began, " ".join(words[2:]))


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
    """Ends init, and with it everything in the sandbox, which `unshare` waits for."""
    assert process.stdin and process.stdout
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        process.stdin.close()
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process.stdout.close()
