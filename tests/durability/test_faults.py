"""A system call that fails: one sentence with path and reason, and the same command goes on.

strace makes the calls fail that a command makes under its artifact root: once, at each place, in
forks of a warm process; and from one place on, as a full disk does, in real processes.
"""

import errno
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from durable import DATA, SHAPE, call, corpus, digest, scratch, sentence, warm
from forks import Forks

from lmcli.artifacts import inventory

pytestmark = pytest.mark.durability

LINES = {
    "tokenizer": DATA[0],
    "data": DATA[1],
    "train": [
        *("train", "--data", "corpus", "--name", "base", *SHAPE, "--steps", "2"),
        *("--save-every", "1", "--eval-every", "2", "--log-every", "1", "--keep-last", "1"),
    ],
    "eval": ["eval", "base", "--split", "test"],
}
CALLS = (
    "openat,write,pwrite64,truncate,ftruncate,fsync,fdatasync,rename,renameat,renameat2,"
    "unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod"
)
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EACCES", "EROFS", "ESTALE")
REASONS = [os.strerror(getattr(errno, name)) for name in ERRORS]
PROCESSES = 2


@pytest.fixture(scope="module", autouse=True)
def strace(tmp_path_factory):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ["strace", "-o", tmp_path_factory.mktemp("strace") / "log", "true"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("ptrace is not permitted here")


@pytest.fixture(scope="module")
def stage(strace):
    """(folder with a root `before-<command>` each, command lines, digest that each ends with)."""
    with scratch() as folder:
        text, root = corpus(folder), folder / "root"
        lines = {k: [w.format(text=text) for w in line] + ["-q"] for k, line in LINES.items()}
        ends = {}
        root.mkdir()
        see = ["-y", "-s", "0", "-e", f"trace={CALLS}"]
        for name, line in lines.items():
            shutil.copytree(root, folder / f"before-{name}")
            log = ["-o", folder / f"{name}.log"]
            code, _, said = warm()[0].run(*line, "--artifacts", root, strace=see + log)
            assert code == 0, said
            ends[name] = digest(root)
        yield folder, lines, ends


def places(folder: Path, name: str) -> dict[str, list[int]]:
    """Which calls of each name, counted from 1, a command makes under its root."""
    found: dict[str, list[int]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for line in (folder / f"{name}.log").read_text().splitlines():
        if match := re.match(r"(\w+)\(", line):
            counts[match[1]] += 1
            if f"{folder}/root" in line:
                found[match[1]].append(counts[match[1]])
    return found


def judge(stage, name: str, root: Path, code: int, said: str, forks: Forks) -> None:
    """It failed as documented, or did not need the call; nothing is lost, and it goes on."""
    folder, lines, ends = stage
    if code == 0:
        assert digest(root) == ends[name], "a failure passed over"
    else:
        last = sentence(said)
        assert code == 74 and str(folder) in last, said
        assert any(r in last for r in REASONS) or "cannot be opened" in last, said
    if (run := root / "runs/base").exists():
        assert inventory.verify(run)[0] == []
        if code:  # 0: it failed after the end
            assert inventory.status(run)["exit"] in (74, None, 0)
    again = forks.run(*lines[name], "--artifacts", root)
    assert again[0] == 0, again
    assert digest(root) == ends[name], "other bytes after it went on"


@pytest.mark.parametrize("name", LINES)
def test_a_call_that_fails(stage, name):
    """Each call of each name fails in some trial; of the many that only open, every third."""
    folder, lines, _ = stage
    found = places(folder, name)
    assert {"openat", "write", "fsync", "rename", "mkdir"} <= set(found)
    trials = [
        (kind, at, ERRORS[(i + j) % len(ERRORS)])
        for j, (kind, all_) in enumerate(found.items())
        for i, at in enumerate(all_[:: 3 if kind == "openat" and name == "train" else 1])
    ]
    assert name != "train" or {(k, e) for k, _, e in trials} >= {
        (k, e) for k in ("openat", "write", "fsync", "rename") for e in ERRORS
    }

    def fail(number: int) -> None:
        root, forks = folder / f"{name}-{number}", warm(PROCESSES)[number]
        for kind, at, error in trials[number::PROCESSES]:
            shutil.copytree(folder / f"before-{name}", root)
            fault = ["-e", f"trace={kind}", "-e", f"inject={kind}:error={error}:when={at}"]
            fault += ["-o", folder / f"{number}.log"]
            code, _, said = forks.run(*lines[name], "--artifacts", root, strace=fault)
            try:
                judge(stage, name, root, code, said, forks)
            except AssertionError as wrong:
                raise AssertionError(f"{name}: {kind} {at} {error}: {said}") from wrong
            shutil.rmtree(root)

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(fail, range(PROCESSES)))


LASTING = [
    *(("train", "write", error, share) for error, share in (("ENOSPC", 0), ("EDQUOT", 0.6))),
    *(("train", "fsync", error, share) for error, share in (("EIO", 0.9), ("ESTALE", 0))),
    *(("train", "openat", error, share) for error, share in (("EMFILE", 0), ("EACCES", 0.8))),
    ("train", "mkdir", "EROFS", 0.7),
    ("train", "rename", "EACCES", 0.9),
    ("train", "unlinkat", "EIO", 0.5),
    ("eval", "write", "ENOSPC", 0),
    ("data", "write", "ENOSPC", 0.5),
    ("tokenizer", "openat", "EROFS", 0.5),
]


def test_calls_that_fail_from_here_on(stage):
    """In real processes, where the calls of the interpreter and of torch are left alone."""
    folder, lines, _ = stage

    def fail(number: int) -> None:
        for i, (name, kind, error, share) in list(enumerate(LASTING))[number::PROCESSES]:
            root = folder / f"lasting-{i}"
            shutil.copytree(folder / f"before-{name}", root)
            log = (folder / f"{name}.log").read_text().replace(f"{folder}/root", str(root))
            paths = {p for p in re.findall(r'[<"](/[^>"]*)[>"]', log) if p.startswith(str(root))}
            first = 1 + int(share * (len(places(folder, name)[kind]) - 1))
            prefix = ["strace", "-f", "--seccomp-bpf", "-o", f"{root}.log", "-e", f"trace={kind}"]
            prefix += ["-e", f"inject={kind}:error={error}:when={first}+"]
            prefix += [word for path in sorted(paths) for word in ("-P", path)]
            code, _, said = call(*lines[name], root=root, prefix=prefix)
            assert code == 74, (name, kind, error, share, code, said)
            judge(stage, name, root, code, said, warm(PROCESSES)[number])

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(fail, range(PROCESSES)))
