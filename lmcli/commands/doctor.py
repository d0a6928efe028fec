"""lmcli doctor"""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

import lmcli
from lmcli import console
from lmcli.artifacts import files, lock
from lmcli.commands import options
from lmcli.config.units import show_bytes
from lmcli.errors import LmcliError

PACKAGES = (
    *("torch", "tokenizers", "numpy", "safetensors", "click", "rich"),
    *("sacrebleu", "rouge-score", "regex"),
)


@click.command()
@options.common
def command(root: Path, as_json: bool) -> None:
    """What this machine has, what is installed, and what lmcli would choose here.

    \b
    Example:
      lmcli doctor --json
    """
    # The artifact directory may not exist yet; what holds for the folder above holds for it.
    folder = next(p for p in (root, *root.absolute().parents) if p.is_dir())
    facts: dict[str, Any] = {
        "lmcli": lmcli.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "memory": show_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "artifacts": str(root.absolute()),
        "free disk": show_bytes(shutil.disk_usage(folder).free),
        "locks and fsync": _probe(folder),
        **_torch(),
        **_packages(),
    }
    console.reply(as_json, facts, console.listing(facts.items(), 16))


def _torch() -> dict[str, Any]:
    """Devices, and the choices lmcli makes from them; a broken torch is a finding, not a bug."""
    try:
        import torch

        from lmcli.training import precision
    except (ImportError, OSError) as error:
        return {"chosen": f"nothing: torch cannot be imported ({error})"}
    machine = precision.resolve("auto", "auto", 0)
    facts: dict[str, Any] = {
        "cpu": precision.cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": precision.usable_cores(),
        "devices": "cpu",
        "chosen": f"{machine.device}, {machine.dtype}, {machine.threads} threads: {machine.why}",
    }
    for i in range(torch.cuda.device_count()):
        facts["devices"] += f", cuda:{i} {torch.cuda.get_device_name(i)}"
    if torch.backends.mps.is_available():
        facts["devices"] += ", mps"
    return facts


def _packages() -> dict[str, str]:
    from importlib import metadata

    facts = {}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = f"missing: pip install {package}"
    return facts


def _probe(folder: Path) -> str:
    """Whether one writer at a time and durable files can be had in `folder`."""
    probe = folder / f".lmcli-doctor-{platform.node()}-{os.getpid()}"
    try:
        files.write_file(probe, b"probe\n")
        with lock.hold(probe, "the probe"):
            held = lock.is_held(probe)
        files.remove(probe)
    except LmcliError as error:
        return f"fail: {error}"
    return "work here" if held else "no locks here: that only one process writes is up to you"
