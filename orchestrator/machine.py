"""What this machine has, and how many trials of a study it runs at once. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import UsageError
from orchestrator.study import Resources

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's limit of memory in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processor cores and MB of memory that this process may use, and GPUs that it may see."""

    cpus: int
    gpus: int
    memory_mb: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """What a trial gets, and how many run at once."""

    cpu: float
    gpu: float
    count: int

    @property
    def threads(self) -> int:
        """CPU threads of a trial: on a CPU, one-thread processes side by side beat one with many threads."""
        return max(1, int(self.cpu))


def this_machine() -> Machine:
    """Look at the machine."""
    return Machine(cpus=_cpus(), gpus=_gpus(), memory_mb=_memory_mb())


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_mb(limits: Sequence[Path] = CONTAINER_LIMITS) -> float:
    """What the machine has, or the container that this process is in."""
    found = float(psutil.virtual_memory().total)
    for path in limits:
        with contextlib.suppress(OSError, ValueError):  # of another system, or "max"
            found = min(found, float(path.read_text()))
    return found / 2**20


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs gives no GPUs
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def refusal(resources: Resources, machine: Machine) -> str | None:
    """Why not even one trial fits on the machine, or None."""
    try:
        slots(resources, machine, 1)
    except UsageError as error:
        return str(error)
    return None


def slots(resources: Resources, machine: Machine, n_trials: int) -> Slots:
    """How many trials run at once, at most `resources.at_once`. Raises UsageError when not even one fits.

    A fraction f of a GPU gives floor(1/f) trials a device.
    """
    cpu, gpu = resources.cpu, resources.gpu
    by_cpu = math.floor(machine.cpus / cpu + 1e-9)
    if by_cpu == 0:
        raise UsageError(f"resources.cpu: a trial needs {cpu:g} CPU cores, this machine has {machine.cpus}")
    count = by_cpu
    if gpu:
        if gpu > 1 and gpu != int(gpu):
            raise UsageError(f"resources.gpu: more than one GPU must be a whole number (got {gpu:g})")
        by_gpu = machine.gpus * math.floor(1 / gpu + 1e-9) if gpu <= 1 else machine.gpus // int(gpu)
        if by_gpu == 0:
            raise UsageError(
                f"resources.gpu: a trial needs {gpu:g} GPUs, this machine has {machine.gpus}; "
                "use --set resources.gpu=0 to run on the CPU"
            )
        count = min(count, by_gpu)
    count = min(count, resources.at_once or count)
    return Slots(cpu=cpu, gpu=gpu, count=max(1, min(count, n_trials)))
