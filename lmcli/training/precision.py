"""Which device, precision and threads: chosen once, before step 1, and stored in the run."""

import atexit
import contextlib
import copy
import ctypes
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lmcli
from lmcli.errors import DeviceError
from lmcli.model.transformer import Transformer

# What Linux says of a CPU, and what that is called.
BFLOAT16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
CPU_NUMBERS = {"family": "cpu family", "model": "model"}


@dataclass(frozen=True)
class Machine:
    """What a run computes on, and one clause that says why."""

    device: str
    dtype: str
    threads: int
    why: str

    def matmul_peak(self) -> float:
        """Operations a second of the best of some large matrix products in this precision."""
        best, dtype = 0.0, getattr(torch, self.dtype)
        for rows, width in ((2048, 512), (2048, 1024), (8192, 4096)):
            if self.device == "cpu" and rows * width > 2**22:
                continue
            a = torch.ones(rows, width, dtype=dtype, device=self.device)
            b = torch.ones(width, 2 * width, dtype=dtype, device=self.device)
            for _ in range(4):
                began = time.perf_counter()
                (a @ b)[0, 0].item()
                best = max(best, 4 * rows * width**2 / (time.perf_counter() - began))
        return best

    def environment(self) -> dict[str, Any]:
        """What the bits of a step depend on besides config and data."""
        return {
            "lmcli": lmcli.__version__,
            "torch": torch.__version__,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "cpu": cpu_name(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }

    def differences(self, before: dict[str, Any]) -> str:
        """`torch 2.11 then, 2.13 now` for what bits depend on; empty where it is the same."""
        return ", ".join(
            f"{key} {before.get(key, 'unknown')} then, {value} now"
            for key, value in self.environment().items()
            if before.get(key) != value
        )


class Working:
    """The model that computes, in the machine's precision, beside the float32 weights that learn.

    Without a lower precision it is the model itself and nothing is copied.
    """

    def __init__(
        self, model: Transformer, machine: Machine, compiled: bool = False, recompute: bool = False
    ) -> None:
        self.master = self.model = model
        if machine.dtype != "float32":
            self.model = copy.deepcopy(model).to(getattr(torch, machine.dtype))
        self.pairs = list(zip(model.parameters(), self.model.parameters(), strict=True))
        self.learn = [(m, w) for m, w in self.pairs if m.requires_grad]
        for stack in filter(None, (self.model.encoder, self.model.decoder)):
            stack.recompute = recompute
        copied = self.learn if self.model is not model else []
        self.apart = [(master, weight, torch.empty_like(master)) for master, weight in copied]
        self.device, self.compiled = machine.device, compiled
        self.forward: Callable[..., Tensor] = (
            compiled_forward(self.model) if compiled else self.model
        )

    @torch.no_grad()
    def refresh(self, frozen: bool = False) -> None:
        """Rounds the weights anew, after each update; the frozen ones where they were loaded."""
        if self.model is not self.master:
            masters, working = zip(*(self.pairs if frozen else self.learn), strict=True)
            torch._foreach_copy_(working, masters)  # noqa: SLF001

    @contextlib.contextmanager
    def averaged(self, mean: dict[Tensor, Tensor]) -> Iterator[None]:
        """With a running mean of the weights in their place; nothing changes where it is empty."""
        own = {p: p.detach().clone() for p in mean}
        try:
            self._take(mean)
            yield
        finally:
            self._take(own)

    @torch.no_grad()
    def _take(self, weights: dict[Tensor, Tensor]) -> None:
        for parameter, value in weights.items():
            parameter.copy_(value)
        if weights:
            self.refresh()

    @torch.no_grad()
    def collect(self, first: bool) -> None:
        """Adds the gradients of a backward pass to those of the weights, in float32; the `first` of
        a step replaces them.

        They keep their memory, since what comes and goes in many sizes leaves holes.
        """
        for master, weight, memory in self.apart:
            if weight.grad is None:
                continue
            if not first and master.grad is not None:
                master.grad += weight.grad
            else:
                master.grad = memory.copy_(weight.grad)
            weight.grad = None


def compiled_forward(
    forward: Callable[..., Tensor], fall_back: bool = False
) -> Callable[..., Tensor]:
    """torch.compile that reads nothing from disk: its caches are pickles, and libraries in a folder
    whose name anyone can guess. It compiles anew in each process, in a folder of its own. Where it
    fails it raises when it is called, or computes as before with `fall_back`."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    inductor.fx_graph_cache = inductor.fx_graph_remote_cache = False
    functorch.enable_autograd_cache = dynamo.automatic_dynamic_local_pgo = False
    inductor.compile_threads = 1  # in this process: others would be talked to in pickles
    folder = tempfile.mkdtemp(prefix="lmcli-compile-")  # for this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    if fall_back:
        dynamo.suppress_errors = True
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # which would show the failure
    return torch.compile(forward)


def compiler_failed(error: Exception) -> bool:
    """Whether torch.compile is what failed, for want of a C++ compiler, say."""
    return any(
        c.__module__.startswith(("torch._dynamo", "torch._inductor")) for c in type(error).mro()
    )


def usable_cores() -> int:
    """Cores this process may run on (affinity and `OMP_NUM_THREADS` respected)."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bfloat16_unit(device: str) -> str:
    """What multiplies bfloat16 matrices faster than float32 ones here; empty where nothing does."""
    if device == "cuda":
        return "the GPU" if torch.cuda.is_bf16_supported() else ""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if device != "cpu" or (limit and not limit.endswith(("DEFAULT", "AMX", "BF16"))):
        return ""
    flags = _cpuinfo().get("flags", "").split()
    return next((n for f, n in BFLOAT16_FLAGS.items() if f in flags), "")


def cpu_name() -> str:
    """`AMD EPYC, family 25, model 17`: the libraries below choose kernels by all three."""
    facts = _cpuinfo()
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    numbers = (f", {word} {facts[key]}" for word, key in CPU_NUMBERS.items() if key in facts)
    return facts["model name"] + "".join(numbers)


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def resolve(device: str, dtype: str, threads: int, exact: bool = False) -> Machine:
    """The machine for these settings, `auto` replaced; DeviceError where it is not there. With
    `exact` a CPU computes in float32."""
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
        unit = "" if exact and device == "cpu" else bfloat16_unit(device)
        dtype = "bfloat16" if unit else "float32"
        why += f", {unit} multiplies bfloat16" if unit else ", nothing multiplies bfloat16 faster"
    return Machine(device, dtype, threads or usable_cores(), why)


def prepare(machine: Machine, tune: bool = True) -> None:
    """Applies the process-wide settings: threads, and kernels that give the same bits again."""
    torch.set_num_threads(machine.threads)
    torch.set_flush_denormal(True)
    if machine.device == "cpu" and tune:
        # Batches of sentences have ever new shapes, for each of which oneDNN would keep some
        # megabytes; a step of one shape needs some fifty products. Read at the first one.
        if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        _keep_memory()


def _keep_memory() -> None:
    """Tells glibc not to hand buffers below 32 MiB, its limit, back to the kernel after every
    operation.

    Otherwise each step faults its activations in again: 10 to 20 % of a step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # not glibc
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(m_mmap_threshold, 2**25)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 2**28)
