"""The Ray backend: Ray Tune places trials on warm workers. The only module that imports Ray.

Tune schedules and watches the workers, and nothing else: what to run comes from the sweep through a Searcher,
what happened goes to the sweep through a Callback, and a lost worker's trial is retried by the sweep's policy.
Tune's own experiment state is never used, so it is kept as small as Tune allows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from orchestrator.home import home

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files for every trial
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # we resume from our own journal
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would build an environment a worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def _prepare_environment() -> None:
    """Our settings of Ray, and its token authentication with a token file that nobody else can read.

    Ray reads all of this while it is imported, so it comes before `import ray`.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" in os.environ:
        return
    path = home() / "ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.replace(temporary, path)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


_prepare_environment()

import psutil  # noqa: E402
import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from orchestrator.errors import UnreachableError  # noqa: E402
from orchestrator.sweep import Sweep  # noqa: E402
from trials.reports import Assignment, Outcome  # noqa: E402
from trials.watchdog import Watchdog, lost  # noqa: E402
from trials.worker import Attempts, Said  # noqa: E402

TEMPORARY = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
PREFIX = "gan-sweep-"


def _remove_litter() -> None:
    """Remove the directories of drivers of ours that were killed."""
    for path in TEMPORARY.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).split("-")[0]
        with contextlib.suppress(FileNotFoundError):  # another driver was faster
            if path.stat().st_uid == os.getuid() and pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(path, ignore_errors=True)


class TrialWorker(tune.Trainable):  # type: ignore[misc]
    """A worker process. Tune hands it one trial or pack after the other; torch and the data stay loaded."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config["assignments"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config["assignments"])
        return True

    def _begin(self, assignments: list[Assignment]) -> None:
        self._watchdog = Watchdog(assignments)
        self._attempts = Attempts(assignments, self._watchdog.beat)

    def step(self) -> dict[str, Any]:
        with self._watchdog:
            said = self._attempts.advance()
        return {"said": said, "done": self._attempts.ended}

    def cleanup(self) -> None:
        self._attempts.close()
        self._watchdog.close()


class _Source(Searcher):  # type: ignore[misc]
    """Tune asks it for configurations; it hands out the sweep's trials and packs, each a trial to Tune."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep
        self._open: dict[str, dict[str, Assignment]] = {}
        """By Tune's trial: the assignments that have not ended, by key."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        assignments = self._sweep.next()
        if not assignments:
            return Searcher.FINISHED if self._sweep.finished else None
        self._open[trial_id] = {assignment.key: assignment for assignment in assignments}
        return {"assignments": assignments}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result and not error:
            self._hear(trial_id, result["said"])
        for assignment in self._open.pop(trial_id).values():
            step = self._sweep.records.trials[assignment.key].step
            self._sweep.heard(assignment.key, assignment.attempt, lost(assignment, step))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if not result["done"]:  # the last one comes with the end
            self._hear(trial_id, result["said"])

    def _hear(self, trial_id: str, said: list[Said]) -> None:
        for key, attempt, words in said:
            self._sweep.heard(key, attempt, words)
            if isinstance(words, Outcome):
                del self._open[trial_id][key]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that we never do; ours holds an open journal

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's journal is the state, and Tune's `restore` stays refused."""


class RayBackend:
    """Runs trials on an embedded Ray that lives as long as the sweep."""

    worker: type[TrialWorker] = TrialWorker

    def __init__(self, *, cpus: int, gpus: int) -> None:
        self._cpus, self._gpus = cpus, gpus

    def run(self, sweep: Sweep) -> None:
        """Start Ray, run, shut it down. What a killed driver leaves is removed by the next one."""
        here = Path.cwd()
        # Ray puts the driver's current directory first on every worker's path: a foreign models/ there would
        # be imported instead of ours. Sockets below the directory must have short names.
        _remove_litter()
        private = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=TEMPORARY))
        os.chdir(private)
        try:
            try:
                self._start(private)
            finally:
                os.chdir(here)
            self._tune(sweep, private / "tune")
        finally:
            ray.shutdown()
            shutil.rmtree(private, ignore_errors=True)

    def _start(self, private: Path) -> None:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(
                address="local",
                num_cpus=self._cpus,
                num_gpus=self._gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(private),
            )
        except Exception as error:  # Ray raises whatever its start-up met
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnreachableError(
                f"Ray did not start on this machine: {reason}\n"
                "gan-sweep doctor may say why; --backend inline runs the study without Ray"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():  # Ray puts its own in their place
                    signal.signal(number, handler)

    def _tune(self, sweep: Sweep, storage: Path) -> None:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the sweep reports every failure itself
        slots = sweep.slots
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ray")
            tune.Tuner(
                tune.with_resources(self.worker, {"cpu": slots.cpu, "gpu": slots.gpu}),
                tune_config=tune.TuneConfig(
                    search_alg=_Source(sweep),
                    num_samples=-1,
                    max_concurrent_trials=slots.count,
                    reuse_actors=True,
                    metric="training_iteration",
                    mode="max",
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=str(storage),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=0),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
