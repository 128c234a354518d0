"""A study on Ray that is recorded by an MLflow server, which dies in the middle and comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.journal import TrialEnded, TrialReported, read

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # MLflow's client leaves connections to the collector
]
GAN_SWEEP = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
STUDY = """\
version: 1
name: served
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 3000, batch_size: 8, log_every: 50}
fixed: {width: 8, latent_dim: 4}
space: {lr: {choices: [1e-3, 1e-4]}}
pictures: {count: 3, samples: 4}
evaluate: {samples: 16, features: random}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(port: int, home: Path, directory: Path) -> subprocess.Popen[bytes]:
    """`gan-sweep ui` on a home of its own, answering."""
    server = subprocess.Popen(
        [*GAN_SWEEP, "ui", "--port", str(port)],
        env={**os.environ, "GAN_SWEEP_HOME": str(home)}, cwd=directory, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return server
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the server did not come up")


def status_for(port: int, host: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_server_that_dies_and_comes_back_gets_everything_once(tmp_path: Path, private_home: Path) -> None:
    port, server_home = free_port(), tmp_path / "server"
    study = tmp_path / "served.yaml"
    study.write_text(STUDY)
    journal = private_home / "studies" / "served" / "journal.jsonl"
    server = serve(port, server_home, tmp_path)
    try:
        assert status_for(port, f"127.0.0.1:{port}") == 200
        assert status_for(port, "10.evil.example") == 403
        submitted = subprocess.Popen(
            [*GAN_SWEEP, "submit", str(study), "--json"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while not any(isinstance(event, TrialEnded) for event, _ in read(journal)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server = serve(port, server_home, tmp_path)
        stdout, stderr = submitted.communicate(timeout=240)
        assert submitted.returncode == 0, stderr
        result = json.loads(stdout)  # nothing but our JSON is on stdout
        assert result["mlflow"]["pending_events"] == 0
        assert result["mlflow"]["url"].startswith(f"http://127.0.0.1:{port}/#/experiments/")

        client = MlflowClient(f"http://127.0.0.1:{port}")
        runs = client.search_runs([result["mlflow"]["experiment_id"]])
        assert Counter(run.info.status for run in runs) == {"FINISHED": 5}
        trials = {
            run.data.tags["gan_sweep.trial_key"]: run
            for run in runs
            if "gan_sweep.trial_key" in run.data.tags
        }
        assert len(trials) == 4
        for key, run in trials.items():
            steps = [
                step
                for event, _ in read(journal)
                if isinstance(event, TrialReported) and event.key == key
                for step, row in event.rows
                if "train/g_loss" in row
            ]
            found = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/g_loss")]
            assert sorted(found) == steps == list(range(50, 3001, 50))
            paths = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
            images = Counter(path.split("+step+")[0] for path in paths if path.endswith(".png"))
            assert images["images/samples~fixed"] == 3
            assert images["images/best~samples"] == images["images/final~samples"] == 1
            assert 2 * images.total() == len(paths), "a picture lacks its preview"
        (model,) = client.search_logged_models([result["mlflow"]["experiment_id"]])
        assert model.status == "READY"
        assert not (tmp_path / "mlartifacts").exists()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
