"""lmcli doctor"""

import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from lmcli.commands import options

PACKAGES = ("torch", "tokenizers", "numpy", "safetensors", "click", "rich")
EXTRAS = {"plot": "matplotlib"}


@click.command(short_help="This machine, the versions, and what lmcli would choose.")
@options.common
def command(root: Path, as_json: bool) -> None:
    """What this machine has, what is installed, and what lmcli would choose here.

    \b
    Example:
      lmcli doctor --json
    """
    from importlib import metadata, util

    import torch

    import lmcli
    from lmcli import console
    from lmcli.artifacts import files, lock
    from lmcli.config.units import show_bytes
    from lmcli.errors import LmcliError
    from lmcli.training import precision

    machine = precision.resolve("auto", "auto", 0)
    existing = next(p for p in (root, *root.absolute().parents) if p.is_dir())
    facts: dict[str, Any] = {
        "lmcli": lmcli.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": precision.usable_cores(),
        "memory": _memory(),
        "artifacts": str(root.absolute()),
        "free disk": show_bytes(shutil.disk_usage(existing).free),
        "chosen": f"{machine.device}, {machine.dtype}, {machine.threads} threads: {machine.why}",
    }
    if torch.cuda.is_available():
        facts["cuda"] = torch.cuda.get_device_name(0)
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = f"missing: pip install {package}"
    for extra, module in EXTRAS.items():
        there = util.find_spec(module) is not None
        facts[f"extra {extra}"] = "yes" if there else f"no: pip install 'lmcli[{extra}]'"
    probe = existing / f".lmcli-doctor-{platform.node()}"
    try:
        files.write_file(probe, b"probe\n")
        with lock.hold(probe, "the probe"):
            held = lock.is_held(probe)
        facts["locks and fsync"] = "work here" if held else "no lock held: one writer is up to you"
    except LmcliError as error:
        facts["locks and fsync"] = f"fail: {error}"
    finally:
        if probe.exists():
            files.remove(probe)
    if as_json:
        console.answer_json(facts)
    else:
        console.answer("\n".join(f"{k:<16} {v}" for k, v in facts.items()))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    from lmcli.config.units import show_bytes

    try:
        import os

        return show_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "unknown"
