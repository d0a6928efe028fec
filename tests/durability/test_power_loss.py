"""After a power loss at any moment the last announced checkpoint is there, never a mixture.

The writer's operations are recorded and played back into disks that lost what no fsync had made
durable: nothing, everything, each operation alone, each tail of them, with data torn or zeroed
(the method of Pillai et al., OSDI 2014, with any unordered loss allowed).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from durable import corpus, digest, scratch, warm
from test_crash_points import SCENARIOS

from lmcli.artifacts import files, layout, manifest
from lmcli.cli import main
from lmcli.errors import LmcliError
from lmcli.training import checkpoint

pytestmark = pytest.mark.durability


@dataclass
class Operation:
    """One change of the disk: when it was made, and since when it is durable."""

    kind: str  # create, data, mkdir, rename, remove
    path: Path
    target: Path | None = None
    data: bytes = b""
    inode: int = 0
    at: int = 0
    safe: float = float("inf")


class Recorder:
    """`files.observe` that turns the writer's operations into changes of a disk."""

    def __init__(self, root: Path) -> None:
        self.changes: list[Operation] = []
        self.inodes: dict[Path, int] = {}
        self.announced: list[tuple[int, int]] = []  # when, a checkpoint's step
        self.now = 0
        for i, path in enumerate(sorted(root.rglob("*")), 1):  # what was there is durable
            if path.is_dir():
                self._change("mkdir", path, safe=0)
            else:
                self.inodes[path] = -i
                self._change("create", path, inode=-i, safe=0)
                self._change("data", path, data=path.read_bytes(), inode=-i, safe=0)

    def _change(self, kind: str, path: Path, **more: Any) -> None:
        self.changes.append(Operation(kind, path, at=self.now, **more))

    def __call__(self, operation: str, path: Path, target: Path | None) -> None:
        self.now += 1
        inside = [p for p in self.inodes if p == path or path in p.parents]
        if operation in ("write", "truncate"):
            if path not in self.inodes:
                self.inodes[path] = self.now
                self._change("create", path, inode=self.now)
            self._change("data", path, data=path.read_bytes(), inode=self.inodes[path])
        elif operation == "mkdir":
            self._change("mkdir", path)
        elif operation == "rename":
            assert target is not None
            self._change("rename", path, target=target)
            for old in inside:
                self.inodes[target / old.relative_to(path)] = self.inodes.pop(old)
        elif operation in ("unlink", "rmtree"):
            self._change("remove", path)
            for old in inside:
                del self.inodes[old]
        elif operation == "fsync":
            for change in self.changes:
                if change.kind == "data" and change.inode == self.inodes[path]:
                    change.safe = min(change.safe, self.now)
        elif operation == "fsyncdir":
            for change in self.changes:
                if change.kind == "data" or change.safe <= self.now:
                    continue
                if path in (change.path.parent, change.target and change.target.parent):
                    change.safe = self.now
                    step = layout.step_of(change.target) if change.target else None
                    if step is not None:
                        self.announced.append((self.now, step))


def disk(changes: list[Operation], kept: list[bool]) -> tuple[set[Path], dict[Path, bytes]]:
    """Folders and files after the kept changes."""
    folders: set[Path] = set()
    names: dict[Path, int] = {}
    contents: dict[int, bytes] = {}
    for change, keep in zip(changes, kept, strict=True):
        path, target = change.path, change.target
        if change.kind == "data":
            if keep:
                contents[change.inode] = change.data
        elif not keep:
            continue
        elif change.kind == "create":
            names[path] = change.inode
        elif change.kind == "mkdir":
            folders.add(path)
        else:
            inside = [p for p in (*names, *folders) if p == path or path in p.parents]
            for old in inside:
                inode = names.pop(old, None)
                if inode is None:
                    folders.discard(old)
                if target is not None:
                    new = target / old.relative_to(path)
                    if inode is None:
                        folders.add(new)
                    else:
                        names[new] = inode
    return folders, {
        path: contents.get(inode, b"")
        for path, inode in names.items()
        if path.parent in folders or path.parent.name == "root"
    }


def losses(changes: list[Operation], now: int):
    """Which changes a power loss at a moment may keep, and with what data."""
    first = [change for change in changes if change.at <= now]
    pending = [i for i, change in enumerate(first) if change.safe > now]
    yield first, [True] * len(first)
    yield first, [i not in pending for i in range(len(first))]
    for place, i in enumerate(pending):
        yield first, [j != i for j in range(len(first))]
        yield first, [j not in pending[place:] for j in range(len(first))]
        change = first[i]
        if change.kind != "data":
            continue
        # what an earlier fsync made durable stays, if this only appended to it
        kept = [c.data for c in first if c.inode == change.inode and c.safe <= now]
        base = kept[-1] if kept and change.data.startswith(kept[-1]) else b""
        new = change.data[len(base) :]
        half = len(new) // 2
        for torn in {
            new[:half],
            new[: len(new) // 512 * 512],
            new[:half] + bytes(len(new) - half),
            bytes(len(new)),
        } - {new}:
            worse = Operation("data", change.path, data=base + torn, inode=change.inode)
            yield [*first[:i], worse, *first[i + 1 :]], [True] * len(first)


def check(root: Path, announced: int) -> None:
    """What is on the disk is whole, and the announced checkpoint or a later one is there."""
    for path in [*root.glob("tokenizers/[!.]*"), *root.glob("datasets/[!.]*")]:
        assert manifest.verify(path) == []
    run = root / "runs/base"
    if not run.exists():
        assert announced < 0
        return
    manifest.read(run, "run", hashes=True)
    found = checkpoint.newest(run)
    assert (found[1].step if found else 0) >= announced
    if found:
        state = found[1]
        files.Log(run / layout.METRICS, state.metrics_bytes, state.metrics_sha256)
    for path in (run / layout.STATUS, run / layout.CHECKPOINTS / layout.INDEX):
        if path.exists():
            files.read_sealed(path)
    files.read_log(run / layout.EVENTS)


def lay(root: Path, state: tuple[set[Path], dict[Path, bytes]]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for folder in state[0]:
        folder.mkdir(parents=True, exist_ok=True)
    for path, data in state[1].items():
        path.write_bytes(data)


def test_power_loss(monkeypatch, capfd):
    with scratch() as folder:
        text, root = corpus(folder), folder / "root"
        lines = [
            [w.format(text=text) for w in SCENARIOS[name]]
            for name in ("tokenizer", "data", "train", "extend")
        ]
        root.mkdir()
        states, ends = 0, []
        samples: list[tuple[int, tuple[set[Path], dict[Path, bytes]]]] = []
        for number, line in enumerate(lines):
            shutil.copytree(root, folder / f"before-{number}")
            recorder = Recorder(root)
            monkeypatch.setattr(files, "observe", recorder)
            assert main([*line, "--artifacts", str(root), "-q"]) == 0
            monkeypatch.setattr(files, "observe", None)
            ends.append(digest(root))
            for now in range(recorder.now + 1):
                announced = max((s for at, s in recorder.announced if at <= now), default=-1)
                for changes, kept in losses(recorder.changes, now):
                    state = disk(changes, kept)
                    lay(root, state)
                    try:
                        check(root, announced)
                    except (LmcliError, AssertionError) as error:
                        raise AssertionError(f"{line[:2]} at {now}: {error!r}") from error
                    states += 1
                    if states % 211 == 0:
                        samples.append((number, state))
            shutil.rmtree(root)
            shutil.copytree(folder / f"before-{number}", root)
            assert main([*line, "--artifacts", str(root), "-q"]) == 0
        for number, state in samples:
            lay(root, state)
            code, _, said = warm()[0].run(*lines[number], "--artifacts", root)
            assert code == 0, said
            assert digest(root) == ends[number]
        capfd.readouterr()
        print(f"{states} disks, {len(samples)} of them continued to the end")
        assert states > 3_500 and len(samples) > 10
