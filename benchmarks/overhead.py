"""What a trial costs beside its training, against stock Ray Tune; and what a warm worker saves.

    python benchmarks/overhead.py [--ours 16,100,1000] [--stock 16,100] [--warm 12]

First table: trials that do nothing. A trial reports two rows of 13 metrics and ends. Ours: journal, Optuna and MLflow
(SQLite) as in every study. Stock: tune.Tuner with its defaults, without and with its MLflowLoggerCallback (SQLite
too). Each number of trials is a process of its own, with a store of its own, which has run two trials before the clock
starts: imports, the store's tables and the start of Ray are not counted, nor is Ray's end. Ours is counted twice: until
the last trial has ended and is in the journal, and until MLflow has everything. "A further trial" is the slope between
two numbers of trials.

Second table: real trials of a tiny obs_mlp on mnist5k, as many as --warm says (0: none), on the same backend, with
workers that are reused and with a new worker for every trial. Seconds are medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

OURS = "gan-sweep, everything recorded"
STOCK = "stock Tune"
STOCK_MLFLOW = "stock Tune with its MLflow callback"
REUSED, FRESH = "workers that are reused", "a new worker for every trial"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ours", default="16,100,1000", help="numbers of trials, or nothing")
    parser.add_argument("--stock", default="16,100", help="numbers of trials, or nothing")
    parser.add_argument("--warm", type=int, default=12, help="real trials of the second table; 0: none")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "N", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, n, directory = options.child
        child(what, int(n), Path(directory))
        return
    from _common import table, where

    print(f"{where()}\n")
    wanted = [(OURS, n) for n in numbers(options.ours)]
    wanted += [(name, n) for n in numbers(options.stock) for name in (STOCK, STOCK_MLFLOW)]
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for name, n in sorted(wanted, key=lambda pair: pair[1]):
        found[name][n] = measured(name, n)
        print(f"{name}, {n}: {found[name][n]}", file=sys.stderr, flush=True)
    if found:
        print(table(*overhead_rows(found)), "\n", flush=True)
    if options.warm:
        print(table(*warm_rows({what: measured(what, options.warm) for what in (REUSED, FRESH)})))


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def measured(what: str, n: int) -> dict[str, Any]:
    """What a process of its own measures: ours sets variables that would change how stock Tune works."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as directory:
        env = {**os.environ, "GAN_SWEEP_HOME": str(Path(directory) / "home")}
        with open(os.devnull, "w") as quiet:
            subprocess.run(
                [sys.executable, __file__, "--child", what, str(n), directory],
                check=True,
                env=env,
                stdout=quiet,
            )
        result: dict[str, Any] = json.loads((Path(directory) / "result.json").read_text())
        return result


def child(what: str, n: int, directory: Path) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    result: dict[str, Any]
    if what in (REUSED, FRESH):
        result = warm(n, directory, reuse=what == REUSED)
    elif what == OURS:
        ours(2, directory)
        result = ours(n, directory)
    else:
        stock(2, directory, mlflow=what == STOCK_MLFLOW)
        result = stock(n, directory, mlflow=what == STOCK_MLFLOW)
    (directory / "result.json").write_text(json.dumps(result))


def overhead_rows(
    found: dict[str, dict[int, dict[str, float]]],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; the ratios are to stock Tune with MLflow, at the same number of trials."""
    base = rates(found.get(STOCK_MLFLOW, {}), "recorded")
    last = base[max(base)][1] if base else None
    rows = []
    for name, by_n in found.items():
        for n, (each, further) in rates(by_n, "recorded").items():
            at_end = rates(by_n, "ended")[n][1]
            ratios = [
                "-" if theirs is None or mine is None or name == STOCK_MLFLOW else f"{theirs / mine:.1f}"
                for mine, theirs in ((each, base[n][0] if n in base else None), (further, last))
            ]
            times = [f"{by_n[n]['ended']:.1f}", f"{by_n[n]['recorded']:.1f}", f"{each:.4f}"]
            slopes = ["-" if slope is None else f"{slope:.4f}" for slope in (at_end, further)]
            rows.append([name, f"{n:,}", *times, *slopes, *ratios])
    header = [
        "what", "trials", "seconds until the last ended", "until all is recorded", "a trial",
        "a further trial, ended", "a further trial, recorded", "stock with MLflow / this, a trial",
        "stock with MLflow / this, a further trial",
    ]  # fmt: skip
    return header, rows


def rates(by_n: dict[int, dict[str, float]], until: str) -> dict[int, tuple[float, float | None]]:
    """Seconds a trial, and of a further trial since the number before, by number of trials."""
    made: dict[int, tuple[float, float | None]] = {}
    before: tuple[int, float] | None = None
    for n, times in sorted(by_n.items()):
        taken = times[until]
        made[n] = taken / n, None if before is None else (taken - before[1]) / (n - before[0])
        before = n, taken
    return made


def ours(n: int, directory: Path) -> dict[str, float]:
    """Seconds of a study of n arms whose trials end at once."""
    from orchestrator.backends import ray as backend
    from trials.reports import TRAIN_METRICS, Assignment, Outcome, Report, Row, State

    metrics = {f"train/{name}": 0.5 for name in TRAIN_METRICS}

    class Stub(backend.TrialWorker):
        def _begin(self, assignments: list[Assignment]) -> None:
            self._assignments, self._told = assignments, 0

        def step(self) -> dict[str, Any]:
            self._told += 1
            rows = [Row(step=6, metrics=metrics), Row(step=12, metrics={**metrics, "eval/swd": 0.1})]
            report, end = Report(step=12, rows=tuple(rows)), Outcome(state=State.COMPLETED, step=12)
            said = [(a.key, a.attempt, report if self._told == 1 else end) for a in self._assignments]
            return {"said": said, "done": self._told == 2}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._begin(new_config["assignments"])
            return True

        def cleanup(self) -> None:
            pass

    side = max(i for i in range(1, math.isqrt(n) + 1) if n % i == 0)
    text = f"""
version: 1
name: overhead{n}
model: obs_mlp
dataset: digits
train: {{steps: 12, batch_size: 8, log_every: 6}}
fixed: {{width: 8, latent_dim: 4}}
space:
  lr: {{choices: {[1e-6 * (i + 1) for i in range(side)]}}}
  label_real: {{choices: {[0.5 + i / 1000 for i in range(n // side)]}}}
pictures: {{count: 1, samples: 4}}
evaluate: {{samples: 16}}
execution: {{pack: off}}
"""
    times = run_study(text, directory, Stub)
    return {"ended": times["ended"], "recorded": times["recorded"]}


def run_study(text: str, directory: Path, worker: type, *, reuse: bool = True) -> dict[str, float]:
    """Submit a study on Ray with workers of another class; seconds since Ray is up, without Ray's end."""
    from rich.console import Console

    from orchestrator import submit
    from orchestrator.backends import ray as backend
    from orchestrator.loader import load_text

    source = directory / "study.yaml"
    source.write_text(text)
    study = load_text(text.encode(), str(source))
    at: dict[str, float] = {}
    config = backend.tune.TuneConfig

    class Backend(backend.RayBackend):
        def _tune(self, sweep: Any, storage: Path) -> None:
            backend.tune.TuneConfig = lambda **how: config(**{**how, "reuse_actors": reuse})
            at["began"] = time.perf_counter()
            super()._tune(sweep, storage)
            at["ended"] = time.perf_counter()

        def run(self, sweep: Any) -> None:
            super().run(sweep)
            at["down"] = time.perf_counter()

    Backend.worker = worker
    submit._make_backend = lambda name, cpus, gpus: Backend(cpus=cpus, gpus=gpus)  # type: ignore[assignment]
    with open(os.devnull, "w") as quiet:
        done = submit.submit(study, source, backend="ray", data_dir=None, console=Console(file=quiet))
    at["recorded"] = time.perf_counter()
    assert done.state == "completed", done
    assert done.pending == 0, done
    return {
        "ended": at["ended"] - at["began"],
        "recorded": at["recorded"] - at["began"] - (at["down"] - at["ended"]),
        "ray_down": at["down"] - at["ended"],
    }


def stock(n: int, directory: Path, *, mlflow: bool) -> dict[str, float]:
    """Seconds of a Tune run of n trials that end at once."""
    import ray
    from ray import tune

    metrics = {f"metric_{i}": 0.5 for i in range(13)}

    def trial(config: dict[str, Any]) -> None:
        for _ in range(2):
            tune.report({**metrics, "swd": 0.1})

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    callbacks = []
    if mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        uri = f"sqlite:///{directory / 'stock.db'}"  # its tables are made by the run that does not count
        callbacks = [MLflowLoggerCallback(tracking_uri=uri, experiment_name=f"stock{n}")]
    try:
        started = time.perf_counter()
        tune.Tuner(
            trial,
            param_space={"lr": tune.grid_search([1e-6 * (i + 1) for i in range(n)])},
            tune_config=tune.TuneConfig(max_concurrent_trials=2, metric="swd", mode="min"),
            run_config=tune.RunConfig(
                name=f"stock{n}", storage_path=str(directory), verbose=0, callbacks=callbacks
            ),
        ).fit()
        taken = time.perf_counter() - started
    finally:
        ray.shutdown()
    return {"ended": taken, "recorded": taken}


def warm(n: int, directory: Path, *, reuse: bool) -> dict[str, Any]:
    """Of every trial of a study of n small real ones: its process, and seconds from its start to set-up and step 1."""
    import psutil

    from orchestrator.backends import ray as backend
    from orchestrator.home import StudyFiles
    from orchestrator.journal import TrialStarted, read
    from trials.reports import Assignment

    notes = directory / "notes"
    notes.mkdir()

    class Timed(backend.TrialWorker):
        def _begin(self, assignments: list[Assignment]) -> None:
            self._note: dict[str, float] | None = {
                "process": os.getpid(), "born": psutil.Process().create_time(), "set_up": time.time()
            }  # fmt: skip
            self._key = assignments[0].key
            super()._begin(assignments)

        def step(self) -> dict[str, Any]:
            result = super().step()  # returns after step 1, for a checkpoint is due
            if self._note is not None:
                self._note["step_1"] = time.time()
                (notes / self._key).write_text(json.dumps(self._note))
                self._note = None
            return result

    text = f"""
version: 1
name: warm
model: obs_mlp
dataset: mnist5k
seeds: {list(range(n))}
train: {{steps: 4, batch_size: 16, log_every: 1, checkpoint_every: 1}}
fixed: {{width: 16}}
pictures: {{count: 1, samples: 4}}
evaluate: {{samples: 16}}
execution: {{pack: off}}
"""
    run_study(text, directory, Timed, reuse=reuse)
    trials = []
    for event, _ in read(StudyFiles.of("warm").journal):
        if isinstance(event, TrialStarted):
            note = json.loads((notes / event.key).read_text())
            start = event.at_ms / 1000
            trials.append(
                {
                    "process": note["process"],
                    "waiting": start - note["born"],
                    "to_set_up": note["set_up"] - start,
                    "to_step_1": note["step_1"] - start,
                }
            )
    return {"trials": trials}


def warm_rows(found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: first and later trials of reused workers, and trials of workers of their own."""
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for what, result in found.items():
        seen: set[float] = set()
        for trial in result["trials"]:
            first = trial["process"] not in seen
            seen.add(trial["process"])
            if what == FRESH:
                assert first, "a worker was used twice"
                groups[FRESH].append(trial)
            else:
                groups["first trial of a worker" if first else "second and later trials of it"].append(trial)
    rows = []
    for name, trials in groups.items():
        begun, stepped = (median(t[part] for t in trials) for part in ("to_set_up", "to_step_1"))
        rows.append([name, str(len(trials)), f"{begun:.3f}", f"{stepped - begun:.3f}", f"{stepped:.3f}"])
    header = [
        "trial", "trials", "seconds from its start to the worker", "from there to the end of step 1", "together"
    ]  # fmt: skip
    return header, rows


if __name__ == "__main__":
    main()
