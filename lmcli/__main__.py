"""`python -m lmcli` is the `lmcli` command."""

from lmcli.cli import run

if __name__ == "__main__":
    run()
