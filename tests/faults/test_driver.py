"""The driver dies or is interrupted in the middle; the same command again finishes the study."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.ray

STEPS = 3000
STUDY = """\
version: 1
name: victim
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 3000, batch_size: 8, log_every: 20, checkpoint_every: 200}
fixed: {width: 8, latent_dim: 4}
space: {lr: {choices: [1e-3, 1e-4, 1e-5]}}
pictures: {count: 3, samples: 4}
evaluate: {samples: 16, features: random}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "victim.yaml"
    path.write_text(STUDY)
    return path


def start(study: Path) -> subprocess.Popen[str]:
    """`gan-sweep submit` as a process group of its own."""
    command = [
        sys.executable,
        "-c",
        "from orchestrator.cli import main; main()",
        "submit",
        str(study),
        "--json",
    ]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(study: Path) -> dict[str, Any]:
    process = start(study)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return dict(json.loads(stdout))


def journal(home: Path) -> list[dict[str, Any]]:
    path = home / "studies" / "victim" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_ended(home: Path, n: int, process: subprocess.Popen[str]) -> None:
    """Until `n` trials are finished and another one reports but is not half-way, so that what comes meets it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        events = journal(home)
        ended = {event["key"] for event in events if event["event"] == "trial_ended"}
        reached = {
            e["key"]: e["step"] for e in events if e["event"] == "trial_reported" and e["key"] not in ended
        }
        if len(ended) >= n and any(step < STEPS / 2 for step in reached.values()):
            return
        time.sleep(0.05)
    raise AssertionError("no trial ended in time")


def assert_each_trial_once(home: Path) -> None:
    """The invariants of a finished study, in the journal and in MLflow's tables."""
    events = journal(home)
    completed = [e["key"] for e in events if e["event"] == "trial_ended" and e["state"] == "completed"]
    assert len(completed) == len(set(completed)) == 6
    for i, event in enumerate(events):
        if event["event"] == "trial_started":
            assert not any(e["event"] == "trial_ended" and e["key"] == event["key"] and e["state"] == "completed"
                           for e in events[:i]), "a finished trial was started again"  # fmt: skip
    rows = Counter(
        (e["key"], step) for e in events if e["event"] == "trial_reported" for step, _ in e["rows"]
    )
    assert set(rows.values()) == {1}
    assert len(rows) == 6 * 150
    database = sqlite3.connect(home / "mlflow" / "mlflow.db")
    try:
        runs = database.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall()
        assert runs == [("FINISHED", 7)]
        doubled = database.execute(
            "SELECT run_uuid, key, step, count(*) FROM metrics GROUP BY 1, 2, 3 HAVING count(*) > 1"
        ).fetchall()
        assert doubled == []
        (losses,) = database.execute("SELECT count(*) FROM metrics WHERE key = 'train/g_loss'").fetchone()
        assert losses == 6 * 150
    finally:
        database.close()
    for key in completed:
        (last,) = sorted((home / "studies" / "victim" / "trials" / key / "checkpoints").glob("step_*"))[-1:]
        assert json.loads((last / "manifest.json").read_text())["step"] == STEPS
        assert not list(last.parent.glob("*.tmp-*"))


@pytest.mark.parametrize("ended", [1, 3])
def test_a_driver_killed_in_the_middle_loses_and_doubles_nothing(
    ended: int, study: Path, private_home: Path
) -> None:
    process = start(study)
    wait_for_ended(private_home, ended, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    result = finish(study)
    assert result["state"] == "completed"
    assert result["mlflow"]["pending_events"] == 0
    assert_each_trial_once(private_home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_cleanly_and_says_how_to_go_on(
    number: signal.Signals, study: Path, private_home: Path
) -> None:
    process = start(study)
    wait_for_ended(private_home, 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal signals the whole group
    else:
        os.kill(process.pid, number)  # `kill PID`; signalled itself, Ray would abort the driver at once
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command: gan-sweep submit" in stderr
    ends = {e["key"]: e for e in journal(private_home) if e["event"] == "trial_ended"}
    stopped = [e for e in ends.values() if e["state"] == "stopped"]
    begun = [e for e in stopped if e["step"]]
    assert begun
    for event in begun:  # each saved a checkpoint of the very step at which it stopped
        directory = private_home / "studies" / "victim" / "trials" / event["key"] / "checkpoints"
        assert (directory / f"step_{event['step']:09d}" / "manifest.json").exists()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    finish(study)
    assert_each_trial_once(private_home)
