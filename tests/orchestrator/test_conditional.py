"""Studies whose arms do not all have the same hyperparameters, from the plan to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import commands, execution
from orchestrator.arms import grid
from orchestrator.export import export
from orchestrator.home import StudyFiles
from orchestrator.testing import tiny_study
from tests.orchestrator.fabricated import fabricate

SPACE: dict[str, Any] = {
    "optimizer": {"choices": ["adam", "sgd"]},
    "momentum": {"choices": [0.5, 0.9], "when": {"optimizer": "sgd"}},
    "lr": {"choices": [1e-3, 1e-4]},
}
CLAIMS = [{"id": "high", "says": "high momentum is best", "check": "best(momentum) > 0.6"}]


@pytest.fixture
def study(private_home: Path) -> StudyFiles:
    """Six arms, the last one best: sgd with momentum 0.9."""
    points = grid(tiny_study(space=SPACE))
    arms = [(values, [0.3 - i / 100, 0.2 - i / 90]) for i, values in enumerate(points)]
    return fabricate(arms, space=SPACE, name="cond", claims=CLAIMS)


def test_a_report_has_the_axes_that_only_some_arms_have(study: StudyFiles) -> None:
    answer = commands.report("cond", None)
    page = answer.files["html"].read_text()
    assert "optimizer=sgd momentum=0.9" in page
    assert "high momentum is best" in page
    assert "supported" in answer.files["markdown"].read_text()


def test_tables_leave_empty_what_an_arm_does_not_have(study: StudyFiles, tmp_path: Path) -> None:
    files = export(study, tmp_path / "out", "csv")
    assert "momentum" in files["trials"].read_text().splitlines()[0]


def test_what_is_measured_for_packs_is_an_arm_that_there_can_be() -> None:
    study = tiny_study(space=SPACE, search={"sampler": "random", "trials": 3})
    point = execution._first_point(study, "")
    assert point == {"optimizer": "adam", "lr": 1e-3}
