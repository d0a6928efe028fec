"""Which device, precision and threads: chosen once, before step 1, and stored in the run."""

import contextlib
import ctypes
import os
from dataclasses import dataclass
from typing import Any

import torch

from lmcli.errors import DeviceError


@dataclass(frozen=True)
class Machine:
    """What a run computes on, and one clause that says why."""

    device: str
    dtype: str
    threads: int
    why: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 compute over float32 weights, or nothing."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=getattr(torch, self.dtype))

    def environment(self) -> dict[str, Any]:
        """What the bits of a step depend on besides config and data."""
        return {
            "torch": torch.__version__,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }

    def differences(self, before: dict[str, Any]) -> str:
        """`torch 2.11 then, 2.13 now` for what bits depend on; empty where it is the same."""
        return ", ".join(
            f"{key} {before[key]} then, {value} now"
            for key, value in self.environment().items()
            if before.get(key, value) != value
        )


def usable_cores() -> int:
    """Cores this process may run on (affinity and `OMP_NUM_THREADS` respected)."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve(device: str, dtype: str, threads: int) -> Machine:
    """The machine for these settings, `auto` replaced; DeviceError where it is not there."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        device = next(d for d in ("cuda", "mps", "cpu") if there[d])
        why = f"{device} is the best device here"
    else:
        why = f"--device {device}"
    if not there[device]:
        raise DeviceError(f"--device {device}: not available here; try --device auto")
    if dtype == "auto":
        fast = device == "cuda" and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if fast else "float32"
        why += ", bfloat16 matmuls are fast" if fast else ", float32 is exact and fast enough"
    return Machine(device, dtype, threads or usable_cores(), why)


def prepare(machine: Machine) -> None:
    """Applies the process-wide settings: threads, and kernels that give the same bits again."""
    torch.set_num_threads(machine.threads)
    torch.set_flush_denormal(True)
    if machine.device == "cpu":
        _keep_memory()


def _keep_memory() -> None:
    """Tells glibc not to hand large buffers back to the kernel after every operation.

    Otherwise each step faults its activations in again: 10 to 30 % of a step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # not glibc
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 2**28)
