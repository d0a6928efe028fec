"""Law 13: no `--help` imports anything heavy."""

import json
import subprocess
import sys

import click

from lmcli.cli import COMMANDS, cli

HEAVY = ["torch", "numpy", "rich", "tokenizers", "nltk", "sacrebleu", "transformers", "safetensors"]
SCRIPT = """
import json, sys
from lmcli.cli import main
found = {}
for line in json.loads(sys.argv[1]):
    assert main([*line, "--help"]) == 0, line
    found[" ".join(line)] = [m for m in json.loads(sys.argv[2]) if m in sys.modules]
print("RESULT" + json.dumps(found))
"""


def every_command() -> list[list[str]]:
    lines: list[list[str]] = [[]]
    context = click.Context(cli)
    for name in COMMANDS:
        lines.append([name])
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            lines += [[name, sub] for sub in command.commands]
    return lines


def test_no_help_imports_anything_heavy():
    lines = every_command()
    assert len(lines) > 18
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.rpartition("RESULT")[2])
    assert len(found) == len(lines) and not any(found.values()), found


def test_version_and_short_help():
    for flag in ("--version", "-h"):
        done = subprocess.run([sys.executable, "-m", "lmcli", flag], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout and not done.stderr
