"""The Ray backend against the contract, and what only it can show: warm workers and lost ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from orchestrator.journal import TrialEnded, TrialReported, TrialStarted
from orchestrator.testing import BackendContract, events, make_sweep, run_sweep, tiny_study
from trials.reports import State

if TYPE_CHECKING:
    from orchestrator.backends.ray import RayBackend

pytestmark = [
    pytest.mark.ray,
    # Ray 2.60 leaves sockets and log files to the collector when it shuts down (seen 2026-11).
    pytest.mark.filterwarnings("ignore"),
]


def ray_backend(cpus: int = 2) -> RayBackend:
    from orchestrator.backends.ray import RayBackend

    return RayBackend(cpus=cpus, gpus=0)


class TestRayBackend(BackendContract):
    def make_backend(self) -> RayBackend:
        return ray_backend()


def test_a_worker_is_kept_warm_from_trial_to_trial(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(seeds=[0, 1, 2, 3]), tmp_path, BackendContract.ARMS)
    workers: set[int] = set()
    done = threading.Event()
    watcher = threading.Thread(target=_collect_workers, args=(workers, done))
    watcher.start()
    records = run_sweep(sweep, ray_backend())
    done.set()
    watcher.join()
    assert records.count(State.COMPLETED) == 8
    assert len(workers) == 2


def test_a_killed_worker_costs_at_most_one_checkpoint_interval(tmp_path: Path) -> None:
    study = tiny_study(
        seeds=[0], space={}, train={"steps": 6000, "batch_size": 8, "log_every": 10, "checkpoint_every": 100}
    )
    sweep, _ = make_sweep(study, tmp_path, [{}])
    killer = threading.Thread(target=_kill_the_worker_at, args=(sweep, 1000))
    killer.start()
    records = run_sweep(sweep, ray_backend())
    killer.join()
    (trial,) = records.trials.values()
    assert (trial.state, trial.attempts) == (State.COMPLETED, 2)
    assert [e.attempt for e in events(tmp_path, TrialStarted)] == [1, 2]
    first_end = events(tmp_path, TrialEnded)[0]
    assert (first_end.state, "its worker died" in first_end.reason) == ("waiting", True)
    reference, _ = make_sweep(study, tmp_path / "whole", [{}])
    (expected,) = run_sweep(reference, ray_backend()).trials.values()
    assert trial.value(sweep.study.objective) == expected.value(sweep.study.objective)


def test_a_killed_worker_costs_every_trial_of_its_pack_at_most_one_checkpoint_interval(
    tmp_path: Path,
) -> None:
    study = tiny_study(
        seeds=[0, 1, 2],
        space={},
        train={"steps": 3000, "batch_size": 8, "log_every": 10, "checkpoint_every": 100},
    )
    sweep, _ = make_sweep(study, tmp_path, [{}], slots=1, pack=3)
    killer = threading.Thread(target=_kill_the_worker_at, args=(sweep, 1000))
    killer.start()
    records = run_sweep(sweep, ray_backend())
    killer.join()
    assert [(t.state, t.attempts, t.lost) for t in records.trials.values()] == [(State.COMPLETED, 2, 1)] * 3
    ends = [e for e in events(tmp_path, TrialEnded) if e.attempt == 1]
    assert len(ends) == 3
    for trial in records.trials.values():
        reports = [e for e in events(tmp_path, TrialReported) if e.key == trial.key]
        reached = max(e.step for e in reports if e.attempt == 1)
        steps = [step for e in reports for step, _ in e.rows]
        assert steps == list(range(10, 3001, 10))
        assert reached >= 1000


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    here = Path.cwd()
    run_sweep(sweep, ray_backend())
    deadline = time.monotonic() + 20
    while (left := _ray_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert Path.cwd() == here


def test_the_token_is_readable_by_its_owner_alone(private_home: Path) -> None:
    from orchestrator.backends import ray

    saved = {
        name: os.environ.pop(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") if name in os.environ
    }
    try:
        ray._prepare_environment()
        token = private_home / "ray" / "auth_token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert len(token.read_text()) == 64
    finally:
        os.environ.update(saved)


def _ray_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def _trial_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "TrialWorker" in "".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _collect_workers(seen: set[int], done: threading.Event) -> None:
    while not done.wait(0.05):
        seen.update(process.pid for process in _trial_workers())


def _kill_the_worker_at(sweep: object, step: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        trials = list(sweep.records.trials.values())  # type: ignore[attr-defined]
        workers = _trial_workers()
        if trials and trials[0].step >= step and workers:
            os.kill(workers[0].pid, signal.SIGKILL)
            return
        time.sleep(0.02)
