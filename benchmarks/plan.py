"""What `gan-sweep plan --measure` predicts against what the study then takes. Prints two Markdown tables.

    python benchmarks/plan.py                    three small studies, 5 to 10 minutes
    python benchmarks/plan.py --only pack        one of them

Each study is planned, submitted with its own GAN_SWEEP_HOME, and planned again: other work on the machine changes both
figures. Memory is what processes hold alone plus their share of what they hold together (PSS), looked at every second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from _common import table, where

from orchestrator.costs import Between, Prediction, disk_usage
from orchestrator.home import StudyFiles
from orchestrator.status import load_records

MLP = {"model": "obs_mlp", "dataset": "mnist5k", "seeds": [0, 1], "pictures": {"count": 4}}
STUDIES: Mapping[str, dict[str, Any]] = {
    "mlp": MLP
    | {
        "train": {"steps": 1200, "batch_size": 64},
        "fixed": {"width": 128},
        "space": {"lr": {"choices": [2e-4, 1e-3]}},
        "evaluate": {"count": 4},
        "execution": {"pack": "off"},
    },
    "conv": {
        "model": "obs_dcgan",
        "dataset": "digits",
        "seeds": [0, 1, 2, 3],
        "train": {"steps": 600, "batch_size": 32},
        "pictures": {"count": 4},
        "evaluate": {"count": 2, "samples": 500},
    },
    "pack": MLP
    | {
        "seeds": [0, 1, 2, 3],
        "train": {"steps": 3000, "batch_size": 16},
        "fixed": {"width": 32},
        "space": {"lr": {"choices": [2e-4, 1e-3]}},
        "evaluate": {"count": 2, "samples": 500, "features": "random"},
        "execution": {"pack": 4},
    },
}
PROGRAM = Path(sys.executable).with_name("gan-sweep")


class Taken(NamedTuple):
    """Of a submit. `whole_s`: of the program; `seconds`: of the study alone, once data and classifier are there.

    `worker_mb`: of the largest worker; `load`: the machine's mean load meanwhile, this study's
    own included.
    """

    whole_s: float
    seconds: float
    worker_mb: float
    memory_mb: float
    disk_mb: float
    load: float


def plan(study: Path) -> Prediction:
    said = subprocess.run(
        [PROGRAM, "plan", study, "--measure", "--json"], capture_output=True, text=True, check=True
    )
    found = Prediction.from_json(json.loads(said.stdout)["prediction"])
    assert found is not None
    return found


def submit(study: Path) -> Taken:
    """Run the study; the first submit in its home."""
    started = time.monotonic()
    with open(study.with_suffix(".log"), "w") as log:
        process = psutil.Popen([PROGRAM, "submit", study], stdout=log, stderr=log)
    workers_mb, all_mb, loads = 0.0, 0.0, []
    while process.poll() is None:
        each = {p: _mb(p) for p in [process, *_children(process)]}
        workers_mb = max(workers_mb, *(mb for p, mb in each.items() if _is_worker(_name(p))), 0.0)
        all_mb = max(all_mb, sum(each.values()))
        loads.append(os.getloadavg()[0])
        time.sleep(1)
    whole_s = time.monotonic() - started
    files = StudyFiles.of(study.stem)
    records = load_records(files)
    assert records.state == "completed", study.with_suffix(".log").read_text()
    seconds = (records.updated_ms - records.submitted_ms) / 1000
    return Taken(whole_s, seconds, workers_mb, all_mb, disk_usage(files) / 2**20, sum(loads) / len(loads))


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_worker(name: str) -> bool:
    """By what Ray calls a worker while it waits and while it works; Tune makes a class of its own of ours."""
    return "TrialWorker" in name or "ResourceTrainable" in name


def _mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.Error:  # it has ended
        return 0.0


def ratio(fact: float, predicted: Between) -> str:
    """Fact over prediction; over the nearer end of a range that it lies outside of."""
    nearest = min(max(fact, predicted.low), predicted.high)
    return f"{fact / nearest:.2f}"


def words(found: Between) -> str:
    low, high = f"{found.low:,.0f}", f"{found.high:,.0f}"
    return low if low == high else f"{low} to {high}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--only", choices=STUDIES)
    only = options.parse_args().only
    rows, parts = [], []
    for name, document in STUDIES.items():
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="gan-sweep-plan-") as home:
            os.environ["GAN_SWEEP_HOME"] = home
            study = Path(home) / f"{name}.yaml"
            study.write_text(json.dumps({"version": 1, "name": name, **document}))  # JSON is YAML
            before, taken, after = plan(study), submit(study), plan(study)
        label = f"{name} (load {taken.load:.1f})"
        for what, predicted, fact in (
            ("time of the program, s", before.time_s, taken.whole_s),
            ("time of the study, planned afterwards, s", after.time_s, taken.seconds),
            ("a worker, MB", _one(before.worker_mb), taken.worker_mb),
            ("memory at once, MB", _one(before.memory_mb), taken.memory_mb),
            ("disk, MB", before.disk, taken.disk_mb),
        ):
            rows.append([label, what, words(predicted), f"{fact:,.0f}", ratio(fact, predicted)])
        parts += [[name, what, words(s)] for what, s in before.seconds.items()]
        print(f"{name} done", file=sys.stderr)
    print(where(), "\n")
    header = ["study", "what", "predicted", "taken", "taken / predicted"]
    print(table(header, rows), "\n")
    print(table(["study", "part", "seconds"], parts))


def _one(mb: float) -> Between:
    return Between(mb, mb)


if __name__ == "__main__":
    main()
