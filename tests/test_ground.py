"""The ground: errors and exit codes, units, config fields, the writer, manifests, names, locks."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from lmcli import cli as cli_module
from lmcli.artifacts import files, layout, lock, manifest
from lmcli.config import fields, units
from lmcli.config.training import TrainingConfig
from lmcli.errors import DataError, LmcliError, LockedError, MismatchError, StorageError, UsageError

# ---- the error boundary ----


def test_every_error_has_its_own_documented_exit_code():
    import lmcli.errors as errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and c is not LmcliError]
    codes = {c.__name__: c.exit_code for c in classes}
    assert len(set(codes.values())) == len(codes)
    for name, code in codes.items():
        assert f"{name:<19}{code:>2}" in errors.__doc__.replace("├── ", "").replace("└── ", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), 65),
        (OSError(errno.ENOSPC, "No space left on device", "/full/file"), 74),
        (MemoryError(), 71),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 71),
        (BrokenPipeError(), 0),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_boundary_turns_errors_into_codes(cli, root, monkeypatch, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("lmcli.artifacts.inventory.artifacts", fail)
    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr(cli_module.os, "dup2", lambda a, b: None)
    result = cli("ls")
    assert result.code == code
    assert "Traceback" not in result.err


def test_a_bug_keeps_its_traceback(cli, root, monkeypatch):
    monkeypatch.setattr("lmcli.artifacts.inventory.artifacts", lambda r: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("ls")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train"], "Missing option '--name'"),
        (["train", "--name", "x"], "--data names the dataset of a new run"),
        (["train", "--name", "x", "--lr", "fast"], "--lr takes a number, not 'fast'"),
        (["train", "--name", "x", "--lr", "-1"], "--lr must be at least 0, not -1"),
        (["train", "--name", "x", "--lr", "nan"], "--lr must be finite"),
        (["train", "--name", "x", "--steps", "10m"], "write 10M for million or 10min for minutes"),
        (["train", "--name", "x", "--schedule", "cosin"], "did you mean 'cosine'?"),
        (["train", "--name", "a/b/c", "--data", "d"], "cannot be a name"),
        (["quickstart", "--budget", "10"], "'--budget': '10' is not a duration such as 90s"),
        (["train", "--name", "x", "--max-time", "10"], "'--max-time': '10' is not a duration"),
        (["score", "--timeout", "5"], "--timeout: '5' is not a duration"),
        (["sample", "x", "p", "--top-p", "0"], "--top-p must be above 0"),
        (
            ["eval", "x", "--checkpoint", "worst"],
            "'worst' is not best, last, mean or a step",
        ),
        (["rm"], "name an artifact to remove"),
        (["train", "--name", "x", "--batch-size", "1e18"], "--batch-size must be at most"),
    ],
)
def test_usage_errors_are_one_sentence_and_2(cli, root, args, says):
    result = cli(*args)
    assert result.code == 2 and says in result.err and result.out == ""
    assert result.err.count("\n") == 1 and result.err.startswith("lmcli: ")


def test_a_shell_completes_and_is_told_of_no_mistake():
    from click.shell_completion import ShellComplete

    from lmcli.cli import cli

    complete = ShellComplete(cli, {}, "lmcli", "_LMCLI_COMPLETE").get_completions
    assert [found.value for found in complete([], "tr")] == ["train"]
    assert "--name" in [found.value for found in complete(["train"], "--na")]
    assert [found.value for found in complete(["train", "--optimizer"], "m")] == ["muon"]
    assert complete(["trian"], "--na") == []


@pytest.mark.parametrize("args", [["sample", "x", "p"], ["eval", "x"], ["show", "x"], ["rm", "x"]])
def test_a_missing_artifact_is_66(cli, root, args):
    result = cli(*args)
    assert result.code == 66 and "called 'x' under" in result.err


# ---- units and fields ----


def test_units():
    assert units.parse_count("1.5M") == 1_500_000 and units.parse_count("5_000") == 5000
    assert units.parse_count("1e6") == 10**6
    assert units.parse_duration("3h55m") == 14100 and units.parse_duration("10min") == 600
    assert units.parse_bytes("2GiB") == 2**31 and units.parse_bytes("100MB") == 10**8
    for parse, bad in (
        (units.parse_count, ["10m", "1.5", "-3", "ten", ""]),
        (units.parse_duration, ["10", "10m", "10M", "min", "1h-5s"]),
        (units.parse_bytes, ["2 GX", "-1", "GiB"]),
    ):
        for text in bad:
            with pytest.raises(UsageError):
                parse(text)
    assert units.show_count(1234567) == "1.23M" and units.show_bytes(1536) == "1.5 KiB"
    assert [units.show_duration(s) for s in (9, 75, 3700)] == ["9s", "1m15s", "1h01m"]


def test_precedence_is_flag_environment_file_default(tmp_path, monkeypatch):
    known = {f.name: f for f in fields.dataclasses.fields(TrainingConfig)}
    path = tmp_path / "run.toml"
    path.write_text('steps = 1\nlr = 0.1\nseed = 5\noptimizer = "muon"\n')
    for name, value in {"STEPS": "2k", "LR": "0.2", "ARTIFACTS": "x"}.items():
        monkeypatch.setenv(f"LMCLI_{name}", value)
    given = fields.collect(known, {"steps": "3k", "lr": None}, path)
    assert given == {"steps": 3000, "lr": 0.2, "seed": 5, "optimizer": "muon"}
    path.write_text("step = 1")
    with pytest.raises(UsageError, match=r"unknown key 'step'; did you mean 'steps'\?"):
        fields.collect(known, {}, path)
    path.write_text("steps = ")
    with pytest.raises(UsageError, match="not valid TOML"):
        fields.collect(known, {}, path)
    monkeypatch.setenv("LMCLI_SEED", "x")
    with pytest.raises(UsageError, match="LMCLI_SEED: 'x' is not a count"):
        fields.collect(known, {})


def test_a_variable_that_no_command_knows_is_named(cli, root, monkeypatch):
    for name in ("STEPS", "TEMPERATURE", "ARTIFACTS", "MAX_TIME"):
        monkeypatch.setenv(f"LMCLI_{name}", "10s")
    assert "in the environment" not in cli("eval", "x").err
    monkeypatch.setenv("LMCLI_STEP", "3")
    monkeypatch.setenv("LMCLI_TREE", "3")
    warning = "in the environment: LMCLI_STEP, LMCLI_TREE; did you mean 'steps'?"
    assert warning in cli("tokenizer", "train", "x", "--name", "x").err


def test_device_and_time_may_come_from_the_environment(cli, tiny_copy, monkeypatch):
    monkeypatch.setenv("LMCLI_DEVICE", "mps")
    assert cli("sample", "base", "x").code == 69
    monkeypatch.delenv("LMCLI_DEVICE")
    monkeypatch.setenv("LMCLI_DTYPE", "float64")
    assert "--dtype" in cli("sample", "base", "x").err
    monkeypatch.setenv("LMCLI_MAX_TIME", "10")
    said = cli("train", "--name", "base")
    assert said.code == 2 and "--max-time': '10' is not" in said.err


def test_unknown_config_keys_are_errors():
    with pytest.raises(UsageError, match=r"--stepz is not a setting; did you mean 'steps'"):
        fields.build(TrainingConfig, {"stepz": 1})


# ---- the writer ----

SCRIPT = """
import sys
from pathlib import Path
from lmcli.artifacts import files, manifest
root = Path(sys.argv[1])
files.sweep(root)
log = files.Log(root / "log.jsonl", 0)
for i in range(3):
    log.append({"i": i})
log.sync()
files.write_file(root / "file", b"new content")
if not (root / "folder").exists():
    with files.staged_directory(root / "folder") as folder:
        stream = files.Stream(folder / "stream")
        stream.write(b"x" * 1000)
        stream.flush()
        files.write_json(folder / "a.json", {"a": 1})
        manifest.write(folder, "thing", "folder")
files.remove(root / "old")
"""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on
def test_a_crash_at_every_operation_leaves_nothing_half_written(tmp_path):
    """Every crash point of a script that writes a log, a file and a folder; then it runs again."""
    at = 0
    while True:
        at += 1
        root = tmp_path / str(at)
        (root / "old").mkdir(parents=True)
        (root / "old" / "x").write_text("x")
        (root / "file").write_bytes(b"old content")
        if at % 20 == 0:  # a process each is slow; the other points are visited by a fork
            environment = {**os.environ, "LMCLI_CRASH_AT": str(at)}
            code = subprocess.run([sys.executable, "-c", SCRIPT, root], env=environment).returncode
        else:
            pid = os.fork()
            if not pid:
                files._CRASH_AT, files._count = at, 0
                sys.argv[1:] = [str(root)]
                exec(SCRIPT, {})
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert (root / "file").read_bytes() in (b"old content", b"new content")
        if (root / "folder").exists():
            assert manifest.verify(root / "folder") == []
        if (root / "old").exists():
            assert (root / "old" / "x").exists()
        if code == 0:
            break
        assert code == -9
        sys.argv[1:] = [str(root)]
        exec(SCRIPT, {})
        assert (root / "file").read_bytes() == b"new content"
        assert manifest.verify(root / "folder") == []
        names = sorted(p.name for p in root.iterdir())
        assert names == ["file", "folder", "log.jsonl"]
        assert files.read_log(root / "log.jsonl") == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert at > 40


def test_a_full_disk_is_74_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_file(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        files.write_file(path, b"new")
    assert str(path.parent) in str(caught.value) and caught.value.exit_code == 74
    with pytest.raises(StorageError), files.staged_directory(tmp_path / "d") as folder:
        files.write_file(folder / "x", b"x")
    assert path.read_bytes() == b"old" and not (tmp_path / "d").exists()


def test_a_full_disk_while_training_keeps_the_earlier_checkpoint(cli, tiny_copy, monkeypatch):
    """The kernel's own limit on file size stands in for a full disk, in a real process."""
    command = "ulimit -f 200; exec {} -m lmcli train --name base --steps 40 --save-every 5"
    done = subprocess.run(
        ["bash", "-c", command.format(sys.executable)], capture_output=True, text=True
    )
    assert done.returncode == 74 and "File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert cli("status", "base", "--field", "exit").out == "74\n"
    resumed = cli("train", "--name", "base", "--steps", 40)
    assert resumed.code == 0 and "from step 20 of 40" in resumed.err
    assert cli("verify", "base").code == 0


def test_log_drops_what_came_after_its_recorded_length(tmp_path):
    log = files.Log(tmp_path / "log")
    log.append({"a": 1})
    length, digest = log.length, log.sha256
    log.append({"a": 2})
    with open(tmp_path / "log", "ab") as file:
        file.write(b'{"torn')
    assert files.read_log(tmp_path / "log") == [{"a": 1}, {"a": 2}]
    again = files.Log(tmp_path / "log", length)
    assert again.sha256 == digest and files.read_log(tmp_path / "log") == [{"a": 1}]
    with pytest.raises(DataError, match="the checkpoint recorded 999"):
        files.Log(tmp_path / "log", 999)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with files.staged_directory(tmp_path / "d") as folder:
            (folder / "x").write_bytes(b"x")
            os.chmod(folder / "x", 0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "d" / "x").stat().st_mode & 0o777 == 0o640


# ---- manifests ----


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "thing"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(range(200)))
    (folder / "b.json").write_bytes(b'{"b": 1}\n')
    manifest.write(folder, "thing", "thing", {"tokenizer": "0" * 64})
    assert manifest.verify(folder) == []
    return folder


@pytest.mark.parametrize("name", ["a.bin", "b.json"])
def test_every_flipped_byte_and_truncation_is_found(artifact, name):
    path = artifact / name
    good = path.read_bytes()
    for i in range(len(good)):
        for bad in (good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :], good[:i]):
            path.write_bytes(bad)
            assert any(str(path) in problem for problem in manifest.verify(artifact)), i


def test_missing_foreign_swapped_and_edited_are_found(artifact):
    (artifact / "stranger").write_text("x")
    assert "stranger: not listed" in manifest.verify(artifact)[0]
    (artifact / "stranger").unlink()
    path = artifact / layout.MANIFEST
    value = files.read_sealed(path)
    path.write_text(json.dumps({**value, "parents": {}}))
    assert "its check does not match" in manifest.verify(artifact)[0]
    files.write_sealed(path, {**value, "parents": {}})
    assert "its id does not match" in manifest.verify(artifact)[0]
    path.write_text(json.dumps({**value, "format": 99}))
    with pytest.raises(MismatchError, match="format 99 is newer"):
        manifest.read(artifact)
    for bad in ("{", "[]", '{"format": 1}', '{"files": 3}'):
        path.write_text(bad)
        with pytest.raises(DataError):
            manifest.read(artifact)
    path.unlink()
    assert "no manifest.json" in manifest.verify(artifact)[0]


def test_the_id_is_content_alone(artifact, tmp_path):
    first = manifest.read(artifact)
    again = manifest.write(artifact, "thing", "other", first.parents, {"x": 1})
    assert again.id == first.id
    (artifact / "a.bin").write_bytes(b"other")
    assert manifest.write(artifact, "thing", "other").id != first.id
    with pytest.raises(MismatchError, match="is a thing, not a run"):
        manifest.read(artifact, "run")


# ---- names and locks ----


def test_names_and_paths(tmp_path):
    for kind in ("datasets", "runs"):
        (tmp_path / kind / "base").mkdir(parents=True)
    (tmp_path / "runs" / "only").mkdir()
    assert layout.find(tmp_path, "only").parent.name == "runs"
    assert layout.find(tmp_path, "runs/base").parent.name == "runs"
    assert layout.find(tmp_path, "base", "dataset").parent.name == "datasets"
    with pytest.raises(UsageError, match="say datasets/base or runs/base"):
        layout.find(tmp_path, "base")
    with pytest.raises(LmcliError, match="there are base, only"):
        layout.find(tmp_path, "nothing", "run")
    for bad in ("../x", "a b", "", ".hidden", "x" * 200):
        if not layout.is_path(bad):
            with pytest.raises(UsageError):
                layout.new(tmp_path, "run", bad)
    assert layout.step_of(layout.checkpoint(tmp_path, 1234567)) == 1234567


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    path = tmp_path / "LOCK"
    code = (
        "import sys, time; from pathlib import Path; from lmcli.artifacts import lock\n"
        "with lock.hold(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(LockedError, match=f"process {holder.pid} on "), lock.hold(path, "x"):
            pass
        assert time.monotonic() - began < 2 and lock.is_held(path)
        holder.kill()
        holder.wait()
    with lock.hold(path, "x"):
        assert lock.is_held(path)
    assert not lock.is_held(path)
