"""What this machine is and what it can do at most: probed once into a frozen DeviceInfo, measured on request.

``probe`` reads the operating system's own files and loads no torch; ``probe_torch`` and the measurements do. Knows
nothing of models: whoever reports a speed takes the limit to set beside it from here.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwench.errors import OutOfMemory
from qwench.fault import fault

# What kernels ask for, under the kernel's names in /proc/cpuinfo; in the order of their appearance in silicon.
INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
ARM_INSTRUCTION_SETS = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
CPUINFO = Path("/proc/cpuinfo")
UNKNOWN = "unknown"
STREAM_BYTES = 1 << 30
MATMUL_SIZE = 2048


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; ``capability`` is (major, minor)."""

    name: str
    memory_total: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class DeviceInfo:
    """The facts of a machine, sizes in bytes; 0 or "unknown" where the system does not tell.

    ``threads`` is how many this process may use (affinity and container quota), ``memory_total`` what it may use.
    ``huge_pages`` is the kernel's transparent huge page mode.
    """

    cpu: str
    architecture: str
    threads: int
    instruction_sets: tuple[str, ...]
    memory_total: int
    memory_available: int
    huge_pages: str
    nvidia_driver: bool


@dataclass(frozen=True)
class TorchInfo:
    """The torch that is installed: ``cuda`` is the version it was built for, None for a CPU build."""

    version: str
    cuda: str | None
    threads: int
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one limit in ``unit``, and how they were taken."""

    samples: tuple[float, ...]
    unit: str
    method: str

    @property
    def best(self) -> float:
        """The limit itself: neighbours only ever slow a machine down."""
        return max(self.samples)

    @property
    def median(self) -> float:
        from statistics import median  # loads decimal and random, which `qwench --help` need not wait for

        return median(self.samples)


def probe(root: Path = Path("/")) -> DeviceInfo:
    """Read the machine's facts below ``root`` (tests hand in a folder of recorded files)."""
    cpuinfo = _read(root / "proc/cpuinfo")
    meminfo = _memory(_read(root / "proc/meminfo"))
    quota, limit, left = _container(root)
    total = meminfo.get("MemTotal") or _physical_memory()
    available = meminfo.get("MemAvailable") or total * 3 // 4
    return DeviceInfo(
        cpu=_cpu_name(cpuinfo),
        architecture=platform.machine(),
        threads=min(_affinity(), quota) if quota else _affinity(),
        instruction_sets=_instruction_sets(cpuinfo),
        memory_total=min(total, limit) if limit else total,
        memory_available=min(available, left) if limit else available,
        huge_pages=_huge_pages(_read(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        nvidia_driver=(root / "proc/driver/nvidia/version").is_file(),
    )


def probe_torch() -> TorchInfo:
    """The installed torch and the CUDA devices it can use; loads torch."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = (torch.cuda.get_device_properties(index) for index in range(count))
    gpus = tuple(Gpu(each.name, each.total_memory, (each.major, each.minor)) for each in found)
    return TorchInfo(str(torch.__version__), torch.version.cuda, torch.get_num_threads(), gpus)


def usable_threads() -> int:
    """Threads of one operation: one for each core this process may run on, or OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else min(probe().threads, _cores(_read(CPUINFO)))


def has_bf16() -> bool:
    """Whether this processor's vectors are wide enough to multiply BF16 at a gain."""
    return not {"avx512bw", "bf16"}.isdisjoint(probe().instruction_sets)


def resident_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory this process holds for itself, mapped files left out; 0 where the system does not tell."""
    return _memory(_read(root / "proc/self/status").replace("\t", " ")).get("RssAnon", 0)


def available_memory() -> int:
    """Bytes of main memory this process may still take."""
    return probe().memory_available


@contextmanager
def memory_for(what: Literal["weights", "cache"], fix: str) -> Iterator[None]:
    """What is allocated inside is ``what``: where an allocator gives up, OutOfMemory says so, with ``fix``."""
    try:
        fault(f"memory.{what}")
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for the CPU's allocator, which raises plain RuntimeErrors.
        told = str(error)
        if not isinstance(error, MemoryError) and "out of memory" not in told and "allocate memory" not in told:
            raise
        free = f"{available_memory() / 2**30:.2f} GiB of main memory is free"
        raise OutOfMemory(f"There is not enough memory for the {what}: {free}; {fix}.") from error


def measure_bandwidth(device: str = "cpu", *, runs: int = 5, num_bytes: int = STREAM_BYTES) -> Measurement:
    """Bytes per second read from the device's memory: the bound of decoding one sequence.

    A read-only pass (the maximum of float32 values) over a buffer larger than the caches. On the CPU numpy allocates
    it, because numpy asks for huge pages where the system hands them out on request: this is the most one can get.
    """
    import numpy
    import torch

    if device == "cpu":
        values = torch.from_numpy(numpy.full(num_bytes // 4, 1.0, dtype=numpy.float32))
    else:
        values = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    seconds = _time(values.max, device, runs)
    method = f"maximum of {num_bytes >> 20} MiB of float32, {_where(device)}, best of {runs}"
    return Measurement(tuple(num_bytes / each for each in seconds), "bytes/s", method)


def measure_arithmetic(
    device: str = "cpu", dtype: str = "bfloat16", *, runs: int = 5, size: int = MATMUL_SIZE
) -> Measurement:
    """Floating point operations per second of a square matrix product in ``dtype``: the bound of prefill."""
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(size, size, generator=generator) for _ in range(2))
    left, right = (each.to(device=device, dtype=getattr(torch, dtype)) for each in drawn)
    seconds = _time(lambda: left @ right, device, runs)
    method = f"{size}x{size} matrix product in {dtype}, {_where(device)}, best of {runs}"
    return Measurement(tuple(2 * size**3 / each for each in seconds), "flop/s", method)


def _time(work: Callable[[], object], device: str, runs: int) -> list[float]:
    """Seconds of each of ``runs`` calls, after one that warms caches and threads."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):  # a CUDA call only queues its work
            torch.cuda.synchronize()

    work()
    seconds = []
    for _ in range(runs):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def _where(device: str) -> str:
    import torch

    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else device


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_name(cpuinfo: str) -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return named.group(1).strip() if named else platform.processor() or UNKNOWN


def _cores(cpuinfo: str) -> int:
    """How many of the listed processors are cores of their own; all of them where the system does not tell."""
    places = re.findall(r"^physical id\s*: (\d+)$.*?^core id\s*: (\d+)$", cpuinfo, flags=re.MULTILINE | re.DOTALL)
    return len(set(places)) or _affinity()


def _instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    present = set(listed.group(1).split()) if listed else set()
    return tuple(name for name in (*INSTRUCTION_SETS, *ARM_INSTRUCTION_SETS) if name in present)


def _memory(meminfo: str) -> Mapping[str, int]:
    """``/proc/meminfo`` in bytes."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, flags=re.MULTILINE)}


def _huge_pages(setting: str) -> str:
    chosen = re.search(r"\[(\w+)\]", setting)
    return chosen.group(1) if chosen else UNKNOWN


def _physical_memory() -> int:
    """What POSIX tells where there is no /proc; a quarter of it counts as taken by others."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container(root: Path) -> tuple[int, int, int]:
    """(threads, bytes, bytes still free) a control group (v2) grants this process; 0 where it grants all."""
    group = root / "sys/fs/cgroup"
    quota = re.match(r"(\d+) (\d+)", _read(group / "cpu.max"))
    threads = max(1, int(quota.group(1)) // int(quota.group(2))) if quota else 0
    limit, used = (_read(group / name).strip() for name in ("memory.max", "memory.current"))
    if not limit.isdecimal():
        return threads, 0, 0
    return threads, int(limit), max(1, int(limit) - (int(used) if used.isdecimal() else 0))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
