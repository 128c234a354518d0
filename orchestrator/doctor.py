"""What this machine has and lacks for running studies, in words."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.home import home
from orchestrator.machine import this_machine
from trials.datasets import DATASETS

NEEDED = {"torch": "2.15", "torchvision": "0.29", "ray": "2.60", "mlflow": "3.17", "optuna": "5."}
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """good: as it should be. note: works, with a limit worth knowing. bad: studies will not run."""

    level: Literal["good", "note", "bad"]
    what: str
    words: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Finding]:
    """Everything found, in the order in which a study would need it."""
    return [*_python(), *_packages(), *_hardware(), *_limits(), *_home(), *_data(), *_tracking()]


def _good(what: str, words: str) -> Finding:
    return Finding(level="good", what=what, words=words)


def _note(what: str, words: str) -> Finding:
    return Finding(level="note", what=what, words=words)


def _bad(what: str, words: str) -> Finding:
    return Finding(level="bad", what=what, words=words)


def _python() -> Iterator[Finding]:
    words = f"{platform.python_version()} at {sys.executable}"
    yield (
        _good("Python", words) if sys.version_info >= (3, 11) else _bad("Python", words + "; 3.11 is needed")
    )


def _packages() -> Iterator[Finding]:
    for name, wanted in NEEDED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield _bad(name, f"is not installed; {wanted} is needed")
            continue
        if found.startswith(wanted):
            yield _good(name, found)
        else:
            yield _note(name, f"{found}; gan-sweep is tested with {wanted}x")


def _hardware() -> Iterator[Finding]:
    machine, memory = this_machine(), psutil.virtual_memory()
    yield _good("processor", f"{machine.cpus} cores: as many one-core trials run at once")
    if machine.gpus:
        yield _good("GPU", f"{machine.gpus}; give trials a share with resources.gpu")
    else:
        yield _note("GPU", "none found: trials run on the processor, so keep models small or steps few")
    words = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free; a worker needs about 0.8 GB"
    enough = memory.available > 0.8 * GB * (machine.cpus + 2)
    yield (
        _good("memory", words)
        if enough
        else _note("memory", words + "; run fewer at once with resources.cpu")
    )


def _limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"{files} files may be open"
    yield (
        _good("open files", words)
        if files >= 1024
        else _bad("open files", words + "; Ray needs 1024: ulimit -n 4096")
    )
    shm = Path("/dev/shm")
    if shm.exists():
        free = shutil.disk_usage(shm).free
        words = f"{free / GB:.1f} GB free in {shm}"
        yield (
            _good("shared memory", words)
            if free > 0.5 * GB
            else _note("shared memory", words + "; Ray will use files")
        )


def _home() -> Iterator[Finding]:
    place = home()
    existing = next(p for p in (place, *place.parents) if p.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        yield _bad("home", f"{place} cannot be written; set GAN_SWEEP_HOME to a directory that can")
        return
    free = shutil.disk_usage(existing).free
    words = f"{place}, {free / GB:.0f} GB free (GAN_SWEEP_HOME changes it)"
    yield (
        _good("home", words)
        if free > 2 * GB
        else _note("home", words + "; a checkpoint of obs_mlp takes 24 MB")
    )


def _data() -> Iterator[Finding]:
    ships = [info.name for info in DATASETS.values() if info.ships]
    yield _good("datasets", f"{', '.join(ships)} ship with gan-sweep")
    for name, folder in (("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")):
        raw = home() / "data" / folder / "raw"
        prepared = any((home() / "datasets").glob(f"{name}-v*.json"))
        if prepared or any(raw.glob("train-images-idx3-ubyte*")):
            yield _good(name, "prepared" if prepared else f"files in {raw}")
        else:
            yield _note(name, f"is downloaded on first use, or put its four files in {raw}")


def _tracking() -> Iterator[Finding]:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        yield _note("MLflow", "MLFLOW_TRACKING_URI names the store; gan-sweep uses it as it is")
    else:
        yield _good("MLflow", f"SQLite store in {home() / 'mlflow'}; open it with: gan-sweep ui")
    if os.environ.get("RAY_ADDRESS"):
        yield _note("Ray", "RAY_ADDRESS is set and ignored: submit starts a Ray of its own on this machine")
