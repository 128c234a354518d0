"""What a trial costs beside its training: trials that do nothing, everything recorded, against stock Ray Tune.

    python benchmarks/overhead.py [--ours 16,100,1000] [--stock 16,100]

Both run on an embedded Ray with two slots. A trial reports two rows of 13 metrics and ends. Ours: journal, Optuna and
MLflow (SQLite) as in every study. Stock: tune.Tuner with its defaults, without and with its MLflowLoggerCallback
(SQLite too). Seconds are of the whole run without the start of Ray; "a further trial" is the slope between two numbers
of trials.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

METRICS = {f"metric_{i}": 0.5 for i in range(13)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ours", default="16,100,1000")
    parser.add_argument("--stock", default="16,100")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="overhead-"))
    os.environ["GAN_SWEEP_HOME"] = str(directory / "home")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from _common import table, where

    seconds: dict[str, dict[int, float]] = {}
    for n in map(int, options.ours.split(",")):
        seconds.setdefault("gan-sweep, everything recorded", {})[n] = ours(n, directory)
    for n in map(int, options.stock.split(",")):
        seconds.setdefault("stock Tune", {})[n] = stock(n, directory, mlflow=False)
        seconds.setdefault("stock Tune with its MLflow callback", {})[n] = stock(n, directory, mlflow=True)
    rows = []
    for name, found in seconds.items():
        before: tuple[int, float] | None = None
        for n, taken in found.items():
            slope = "-" if before is None else f"{(taken - before[1]) / (n - before[0]):.3f}"
            rows.append((name, n, f"{taken:.1f}", f"{taken / n:.3f}", slope))
            before = n, taken
    print(f"{where()}\n")
    print(table(("what", "trials", "seconds", "seconds a trial", "a further trial"), rows))


def ours(n: int, directory: Path) -> float:
    """Seconds of a study of n arms whose trials end at once."""
    from rich.console import Console

    from orchestrator import submit
    from orchestrator.backends import ray as backend
    from orchestrator.loader import load_text
    from trials.reports import Assignment, Outcome, Report, Row, State

    class Stub(backend.TrialWorker):
        def _begin(self, assignments: list[Assignment]) -> None:
            self._assignments, self._told = assignments, 0

        def step(self) -> dict[str, Any]:
            self._told += 1
            rows = [Row(step=6 * i, metrics={**METRICS, "eval/swd": 0.1}) for i in (1, 2)]
            report, end = Report(step=12, rows=tuple(rows)), Outcome(state=State.COMPLETED, step=12)
            said = [(a.key, a.attempt, report if self._told == 1 else end) for a in self._assignments]
            return {"said": said, "done": self._told == 2}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._begin(new_config["assignments"])
            return True

        def cleanup(self) -> None:
            pass

    side = max(1, round(n**0.5))
    text = f"""
version: 1
name: overhead{n}
model: obs_mlp
dataset: digits
train: {{steps: 12, batch_size: 8, log_every: 6}}
fixed: {{width: 8, latent_dim: 4}}
space:
  lr: {{choices: {[1e-6 * (i + 1) for i in range(side)]}}}
  label_real: {{choices: {[0.5 + i / 1000 for i in range(-(-n // side))]}}}
pictures: {{count: 1, samples: 4}}
evaluate: {{samples: 16}}
execution: {{pack: off}}
"""
    source = directory / f"overhead{n}.yaml"
    source.write_text(text)
    study = load_text(text.encode(), str(source))
    started = [0.0]

    class Backend(backend.RayBackend):
        worker = Stub

        def _tune(self, sweep: Any, storage: Path) -> None:
            started[0] = time.perf_counter()  # Ray is up
            super()._tune(sweep, storage)

    submit._make_backend = lambda name, cpus, gpus: Backend(cpus=cpus, gpus=gpus)  # type: ignore[assignment]
    with open(os.devnull, "w") as quiet:
        done = submit.submit(study, source, backend="ray", data_dir=None, console=Console(file=quiet))
    assert done.state == "completed", done
    assert done.pending == 0, done
    return time.perf_counter() - started[0]


def stock(n: int, directory: Path, *, mlflow: bool) -> float:
    """Seconds of a Tune run of n trials that end at once."""
    import ray
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        for _ in range(2):
            tune.report({**METRICS, "swd": 0.1})

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    callbacks = []
    if mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        uri = f"sqlite:///{directory / f'stock{n}.db'}"
        callbacks = [MLflowLoggerCallback(tracking_uri=uri, experiment_name=f"stock{n}")]
    try:
        started = time.perf_counter()
        tune.Tuner(
            trial,
            param_space={"lr": tune.grid_search([1e-6 * (i + 1) for i in range(n)])},
            tune_config=tune.TuneConfig(max_concurrent_trials=2, metric="swd", mode="min"),
            run_config=tune.RunConfig(
                name=f"stock{n}{mlflow}", storage_path=str(directory), verbose=0, callbacks=callbacks
            ),
        ).fit()
        return time.perf_counter() - started
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
