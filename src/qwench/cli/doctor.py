"""``qwench doctor``: what this machine has and reaches, which kernels were chosen, and what mends each finding.

It changes nothing. Measurements come from device.py, reasons for kernels from the engine's own start lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import TYPE_CHECKING

from qwench import device
from qwench.errors import QwenchError

if TYPE_CHECKING:
    from qwench.device import DeviceInfo, Measurement, TorchInfo
    from qwench.engine.client import EngineClient
    from qwench.ops.limits import Limits

GIB = 1 << 30
LITTLE_MEMORY = 2 * GIB
NANO_TIMEOUT = 120.0
REINSTALL = "pip install --force-reinstall --no-deps qwench"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that costs speed or does not work, and the command that mends it. ``broken``: it does not work."""

    text: str
    mend: str
    broken: bool = False


@dataclasses.dataclass(frozen=True)
class NanoCheck:
    """The embedded model, loaded and asked for one token: the engine's start lines, or why it failed."""

    lines: tuple[str, ...]
    error: str | None


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything doctor knows, in the order it prints it."""

    machine: DeviceInfo
    torch: TorchInfo
    limits: Limits
    kernels: tuple[str, ...]  # instruction sets the native library can use here, best first; none without the library
    nano: NanoCheck
    findings: tuple[Finding, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run(args: argparse.Namespace) -> int:
    """0 if everything works, 1 if a finding says that something does not."""
    report = examine()
    if args.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        print("\n".join(render(report)))
    return int(any(finding.broken for finding in report.findings))


def examine() -> Report:
    from qwench.ops.limits import measure_limits

    machine, torch_info, nano = device.probe(), device.probe_torch(), check_nano()
    return Report(
        machine=machine,
        torch=torch_info,
        limits=measure_limits("cpu", torch_info.threads, small_pages=True),
        kernels=kernels(),
        nano=nano,
        findings=tuple(diagnose(machine, torch_info, nano)),
    )


def kernels() -> tuple[str, ...]:
    """The instruction sets of the native kernels that this processor runs; the engine takes the first."""
    from qwench.ops.native import instruction_sets

    try:
        return tuple(instruction_sets())
    except OSError:
        return ()


def check_nano() -> NanoCheck:
    """Load the embedded model and let it generate one token."""
    from qwench.config import EngineConfig
    from qwench.engine.client import EngineClient

    try:
        client = EngineClient(EngineConfig(model="nano", offline=True))
        try:
            return NanoCheck(tuple(_first_token(client)), None)
        finally:
            client.close()
    except QwenchError as error:
        return NanoCheck((), error.message)


def _first_token(client: EngineClient) -> list[str]:
    from qwench.engine.request import SamplingParams

    client.start()
    client.wait_ready(NANO_TIMEOUT)
    for event in client.submit([0], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)):
        if event.error:
            raise QwenchError(event.error)
    return client.banner()


def diagnose(machine: DeviceInfo, torch_info: TorchInfo, nano: NanoCheck) -> list[Finding]:
    """What is worth mending, worst first."""
    found = []
    if nano.error:
        found.append(Finding(f"the embedded model does not run: {nano.error}", REINSTALL, broken=True))
    if machine.nvidia_driver and not torch_info.gpus:
        build = f"torch {torch_info.version} is a CPU build" if not torch_info.cuda else "torch finds no device"
        mend = "pip install --force-reinstall torch" if not torch_info.cuda else "nvidia-smi"
        found.append(Finding(f"there is an NVIDIA driver but {build}: the GPU stays unused.", mend))
    if machine.huge_pages == "never":
        text = "huge pages are off: reading weights, and so decoding, is slower by up to a third."
        found.append(Finding(text, "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"))
    if torch_info.threads < machine.threads:
        reason = "OMP_NUM_THREADS is set" if "OMP_NUM_THREADS" in os.environ else "torch chose so"
        text = f"torch uses {torch_info.threads} of {machine.threads} threads ({reason})."
        found.append(Finding(text, f"export OMP_NUM_THREADS={machine.threads}"))
    if 0 < machine.memory_available < LITTLE_MEMORY:
        text = f"only {machine.memory_available / GIB:.1f} GiB of memory are free: larger models will not load."
        found.append(Finding(text, "ps -eo rss,comm --sort=-rss | head"))
    return found


def render(report: Report) -> list[str]:
    machine, torch_info = report.machine, report.torch
    memory = f"{machine.memory_total / GIB:.1f} GiB, {machine.memory_available / GIB:.1f} GiB free"
    gpus = [
        f"{gpu.name}, {gpu.memory_total / GIB:.0f} GiB, compute capability {'.'.join(map(str, gpu.capability))}"
        for gpu in torch_info.gpus
    ]
    return [
        "Machine",
        _row("processor", f"{machine.cpu} ({machine.architecture}), {machine.threads} threads"),
        _row("instructions", " ".join(machine.instruction_sets) or "unknown"),
        _row("memory", f"{memory}; huge pages: {machine.huge_pages}"),
        _row("gpu", "; ".join(gpus) or "none"),
        _row("torch", f"{torch_info.version}, {_cuda(torch_info)}, {torch_info.threads} threads"),
        "",
        "Limits, measured now",
        _row("memory reads", _limit(report.limits.reads, 1e9, "GB/s")),
        *([_row("", _limit(report.limits.small_pages, 1e9, "GB/s"))] if report.limits.small_pages else []),
        *(_row("arithmetic", _limit(each, 1e12, "T operations/s")) for each in report.limits.arithmetic.values()),
        "",
        "Kernels and the embedded model",
        _row("native", ", ".join(report.kernels) or "none: the library was not built"),
        *([f"  {line}" for line in report.nano.lines] or ["  not loaded"]),
        "",
        *_findings(report.findings),
    ]


def _row(name: str, value: str) -> str:
    return f"  {name:13} {value}"


def _cuda(torch_info: TorchInfo) -> str:
    return f"built for CUDA {torch_info.cuda}" if torch_info.cuda else "CPU build"


def _limit(measured: Measurement, unit: float, name: str) -> str:
    return f"{measured.best / unit:.3g} {name} (median {measured.median / unit:.3g}; {measured.method})"


def _findings(findings: tuple[Finding, ...]) -> list[str]:
    if not findings:
        return ["Nothing to mend."]
    lines = ["To mend"]
    for finding in findings:
        lines += [f"  - {finding.text}", f"      {finding.mend}"]
    return lines
