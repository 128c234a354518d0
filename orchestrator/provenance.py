"""Where results come from: what a reader needs to run a study again, recorded at every submit.

Short facts become tags of the study's run. The whole record lies in the study's directory, in submits/: one JSON file a
submit, and beside it what was not committed. No environment variable is recorded: they hold secrets.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path

import psutil

from orchestrator.home import StudyFiles
from orchestrator.machine import Slots, this_machine
from orchestrator.records import Records
from orchestrator.study import StudySpec
from orchestrator.sweep import MATMUL
from trials.data import PreparedDataset
from trials.datasets import DatasetSource
from trials.kernels import probe_matmul

PACKAGES = ("gan-sweep", "torch", "ray", "mlflow", "optuna", "numpy")
MOST_DIFFERENCE = 1_000_000
"""Characters of what was not committed that are kept."""
DETERMINISM = {
    "cpu": "identical to the last bit with the same processor, packages, kernels, threads and packs; within rounding "
    "otherwise",
    "gpu": "within rounding: kernels of the same device may add in another order",
}
"""What running a trial again gives, by the device it ran on."""


def provenance(
    datasets: Mapping[DatasetSource, PreparedDataset], source: Path, granted: Slots
) -> dict[str, str]:
    """Facts for the study's run: versions, machine, dataset digests, and the commit of the study's repository."""
    facts = {
        # In a value: the name of a folder may hold what MLflow takes in no key.
        "gan_sweep.dataset_digests": json.dumps({str(s): found.digest for s, found in datasets.items()}),
        "gan_sweep.python": platform.python_version(),
        "gan_sweep.machine": f"{platform.machine()} {platform.system()}, {this_machine().cpus} cores",
        "gan_sweep.processor": processor(),
        "gan_sweep.determinism": DETERMINISM["gpu" if granted.gpu else "cpu"],
        "mlflow.source.name": f"gan-sweep submit {source.name}",
        "mlflow.source.type": "LOCAL",
        **{f"gan_sweep.version.{name}": version(name) for name in PACKAGES},
    }
    commit = _git(source.absolute().parent, "rev-parse", "HEAD")
    if commit:
        facts["mlflow.source.git.commit"] = commit
        facts["gan_sweep.git_dirty"] = str(
            bool(_git(source.absolute().parent, "status", "--porcelain"))
        ).lower()
    return facts


def write_record(files: StudyFiles, study: StudySpec, source: Path, facts: Mapping[str, str]) -> Path:
    """Write the record of one submit; returns its file."""
    directory = files.submits
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    ours = Path(__file__).parent.parent
    record = {
        "facts": dict(facts),
        "study": study.name,
        "seeds": study.seeds,
        "search_seed": study.search.seed,
        "arguments": _without_secrets(sys.argv[1:]),
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions())),
        "machine": hardware(),
        "repositories": {
            what: _repository(place, directory / f"{name}-{what}.diff")
            for what, place in (("study", source.absolute().parent), ("gan-sweep", ours))
        },
    }
    path = directory / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1))
    os.replace(temporary, path)
    return path


def matmul_kernels(records: Records, granted: Slots) -> dict[str, str]:
    """Which matrix kernels the study's trials use, with the figures of the probe that chose them.

    A study that goes on keeps those it began with: a trial's numbers may not change half-way.
    """
    if granted.gpu or records.uid:
        before = {name: words for name, words in records.provenance.items() if name.startswith(MATMUL)}
        return {MATMUL: "default"} | before
    probe = probe_matmul()
    return {
        MATMUL: probe.matmul,
        f"{MATMUL}.probe": probe.words,
    }


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """The arguments without the address of a webhook, which services give out like a password.

    >>> _without_secrets(["submit", "--webhook", "https://x/secret", "--webhook=https://x/secret"])
    ['submit', '--webhook', '***', '--webhook=***']
    """
    after = ["", *arguments]
    return [
        "***" if before == "--webhook" else "--webhook=***" if word.startswith("--webhook=") else word
        for before, word in zip(after, arguments, strict=False)
    ]


def hardware() -> dict[str, object]:
    """Processor, memory and GPUs of this machine."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": this_machine().cpus,
        "memory_gib": round(memory, 1),
        "gpus": _gpus(),
    }


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:  # not on Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return _run(query).splitlines()


def _repository(place: Path, difference: Path) -> dict[str, object] | None:
    """Commit and state of the repository around a directory; what is not committed goes to the file `difference`."""
    commit = _git(place, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(place, "status", "--porcelain").splitlines()
    text = _git(place, "diff", "HEAD") if changed else ""
    if text:
        difference.write_text(text[:MOST_DIFFERENCE] + "\n", errors="replace")
    return {
        "commit": commit,
        "changed": changed[:1000],
        "difference": difference.name if text else None,
        "cut_off": len(text) > MOST_DIFFERENCE,
    }


def _git(directory: Path, *arguments: str) -> str:
    return _run(["git", "-C", str(directory), *arguments])


def _run(command: list[str]) -> str:
    """What a command prints; nothing when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip("\n") if done.returncode == 0 else ""
