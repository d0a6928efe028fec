"""The error boundary in real processes: pipes, help, interrupts."""

import errno
import signal
import subprocess
import sys

import pytest

from lmcli.errors import DataError, exit_code

LMCLI = [sys.executable, "-m", "lmcli"]


@pytest.mark.parametrize("args", [["--help"], ["ls", "--help"], ["ls", "--json"], ["--version"]])
def test_a_closed_stdout_is_0_and_silent(root, args):
    with subprocess.Popen(
        [*LMCLI, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0 and said == ""


def test_a_closed_stderr_does_not_stop_the_work(tmp_path, root):
    (tmp_path / "text.txt").write_text("some words to learn from\n" * 50)
    line = ["tokenizer", "train", "text.txt", "--name", "tok", "--vocab-size", "270"]
    with subprocess.Popen([*LMCLI, *line], stderr=subprocess.PIPE) as process:
        process.stderr.close()
    assert process.returncode == 0
    assert (root / "tokenizers/tok/manifest.json").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), 65),
        (FileNotFoundError(errno.ENOENT, "no such file", "x"), 66),
        (PermissionError(errno.EACCES, "permission denied", "x"), 74),
        (MemoryError(), 71),
    ],
    ids=repr,
)
def test_a_run_records_the_code_that_the_shell_sees(cli, root, monkeypatch, error, code):
    def fail(root):
        raise error

    monkeypatch.setattr("lmcli.artifacts.inventory.artifacts", fail)
    assert cli("ls").code == exit_code(error) == code


def test_no_command_shows_the_help_and_is_2():
    for line in ([], ["data"]):
        done = subprocess.run([*LMCLI, *line], capture_output=True, text=True)
        assert done.returncode in (0, 2)  # click before 8.2: 0
        assert "lmcli: " not in done.stderr and "Commands:" in done.stderr + done.stdout


def test_ctrl_c_where_nothing_is_resumable_is_130(root):
    code = (
        "import os, signal\nfrom lmcli import cli\nfrom lmcli.artifacts import inventory\n"
        # a shell's background jobs start with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "inventory.artifacts = lambda root: os.kill(os.getpid(), signal.SIGINT)\ncli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip() == "lmcli: stopped"
    assert signal.SIGINT == 2


def test_a_bug_keeps_its_traceback_and_is_1(root):
    code = (
        "from lmcli import cli\nfrom lmcli.artifacts import inventory\n"
        "inventory.artifacts = lambda root: 1 / 0\ncli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
