"""Studies that ship run to their end on Ray, with the budget that is made for this.

One of each kind: with one axis, with two, and with named arms. tests/orchestrator runs them all without Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
STUDIES = [
    Path(__file__).parents[2] / "studies" / f"{name}.yaml"
    for name in ("quickstart", "lr_optimizer", "improved_ablation")
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_smoke_budget_of_a_shipped_study_runs_to_its_end(path: Path) -> None:
    command = ["submit", str(path), "--budget", "smoke", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from orchestrator.cli import main; main()", *command],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["state"] == "completed"
    assert result["mlflow"]["pending_events"] == 0
    assert {"losses", "accuracy", "samples", "best_samples"} <= result["files"].keys()
    assert all(Path(file).exists() for file in result["files"].values())
    assert all(arm["completed"] == arm["seeds"] for arm in result["leaderboard"])
