"""What a plan says before anything runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator import execution, plan
from orchestrator.costs import Between, Kind, Prediction
from orchestrator.execution import Packing
from orchestrator.machine import Machine
from orchestrator.plan import make_plan, plan_table
from orchestrator.study import StudySpec
from orchestrator.testing import tiny_study
from trials.calibrate import Calibration, Rest

ROOMY = Machine(cpus=2, gpus=0, memory_mb=24_000)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "this_machine", lambda: ROOMY)
    monkeypatch.setattr(plan, "free_space_mb", lambda: 50_000.0)


def words(study: StudySpec, **how: Any) -> str:
    console = Console(file=io.StringIO(), width=1000)
    console.print(plan_table(make_plan(study, **how)))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 100 ms, an evaluation 2 s; a checkpoint weighs 10 MB."""
    found = Calibration(
        alone_ms=100.0, packed_ms={}, memory_mb={1: 64.0}, checkpoint_mb=10.0, checkpoint_s=0.1
    )
    monkeypatch.setattr(execution, "calibrate", lambda *_, **__: found)
    monkeypatch.setattr(
        execution, "measure_rest", lambda *_, **__: Rest(evaluation_s=2.0, grid_s=0.5, grid_mb=1.0)
    )


def test_a_plan_without_measuring_imports_no_torch() -> None:
    code = (
        "import sys\nfrom orchestrator.plan import make_plan\nfrom orchestrator._fields import StudySpec\n"
        f"made = make_plan(StudySpec.model_validate({tiny_study().model_dump(mode='json', by_alias=True)!r}))\n"
        "assert made.n_trials == 4 and made.prediction is None\n"
        "assert 'torch' not in sys.modules and 'optuna' not in sys.modules and 'scipy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_was_measured_is_said_part_by_part(measured: None) -> None:
    made = make_plan(tiny_study(), measure=True)
    assert made.prediction is not None
    assert made.prediction.seconds["training steps"] == pytest.approx((2.4, 2.4))
    said = words(tiny_study(), measure=True)
    for part in (
        "training steps 2 s",
        "evaluations 8 s",
        "start-up 12 s",
        "checkpoints between 40 MB and 80 MB",
    ):
        assert part in said
    assert "GB at once (this machine has 23.4 GB): a worker 86" in said
    assert "MB, of which a trial 64 MB" in said
    assert "can never run" not in said


def test_a_plan_is_plain_json(measured: None) -> None:
    study = tiny_study(prune={"method": "asha", "rungs": [6]}, limits={"hours": 1e-3})
    made = json.loads(json.dumps(make_plan(study, measure=True).to_json(), allow_nan=False))
    assert Prediction.from_json(made["prediction"]) == make_plan(study, measure=True).prediction
    assert made["share"] == [0.75, 1.0]
    assert made["limit"].startswith("limits.hours will end it after 0.001 hours")
    assert (made["impossible"], made["space"], made["problem"], made["free_mb"]) == ([], None, None, 50_000)
    assert "seconds" in made["prediction"]


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"method": "halving", "rungs": [6]}, "leaves 75% of all steps"),
        ({"method": "asha", "rungs": [3]}, "leaves between 62% and 100% of all steps"),
    ],
)
def test_pruning_is_said_without_measuring(prune: dict[str, Any], said: str) -> None:
    assert said in words(tiny_study(prune=prune))


def test_a_limit_that_ends_the_study_first_is_said() -> None:
    assert "limits.trials will end it after 3 trials of 4 trials" in words(tiny_study(limits={"trials": 3}))
    assert make_plan(tiny_study(limits={"trials": 4})).limit is None


def test_at_once_is_the_study_s_where_it_has_a_say() -> None:
    assert make_plan(tiny_study()).at_once == 2
    assert make_plan(tiny_study(resources={"at_once": 1})).at_once == 1


def test_a_trial_that_needs_more_than_the_machine_has_is_named_for_every_arm() -> None:
    study = tiny_study(arms={"a": {}, "b": {"model": "obs_dcgan"}}, space={}, resources={"gpu": 1})
    made = make_plan(study, measure=True)
    assert made.problem is not None
    assert made.problem.startswith("resources.gpu: a trial needs 1 GPUs, this machine has 0")
    assert [one["arm"] for one in made.impossible] == ["a", "b"]
    assert {one["reason"] for one in made.impossible} == {made.problem}
    assert (made.at_once, made.prediction) == (0, None)


def test_images_larger_than_the_memory_stop_only_their_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "this_machine", lambda: replace(ROOMY, memory_mb=820))
    photos = {"model": "obs_dcgan", "dataset": "photo_patches"}  # 23 MB
    some = make_plan(tiny_study(arms={"digits": {}, "photos": photos}, space={}))
    assert some.impossible == [
        {
            "arm": "photos",
            "reason": "a worker with the images of photo_patches takes 823 MB, this machine has 820 MB",
        }
    ]
    assert (some.problem, some.at_once) == (None, 2)
    every = make_plan(tiny_study(**photos, space={}))
    assert every.problem == some.impossible[0]["reason"]
    assert "can never run, as" in words(tiny_study(**photos, space={}))


@pytest.mark.parametrize(("fits", "stops"), [(False, True), (True, False)])
def test_what_trying_shows_stops_the_study_only_when_nothing_can_run(
    monkeypatch: pytest.MonkeyPatch, fits: bool, stops: bool
) -> None:
    from orchestrator.arms import trial_spec

    spec = trial_spec(tiny_study(), {"lr": 1e-3}, 0, "0")
    kind = Kind(spec=spec, arm="lr=0.001", n_trials=4, problem="it is too large", fits=fits)
    packing = Packing(sizes={}, words=("alone",), kinds=(kind,), complete=True)
    monkeypatch.setattr(execution, "choose_packs", lambda *_, **__: packing)
    made = make_plan(tiny_study(), measure=True)
    assert made.impossible == [{"arm": "lr=0.001", "reason": "it is too large"}]
    assert made.problem == ("it is too large" if stops else None)


def test_a_disk_and_a_memory_that_are_too_small_are_said(
    monkeypatch: pytest.MonkeyPatch, measured: None
) -> None:
    monkeypatch.setattr(plan, "free_space_mb", lambda: 30.0)
    monkeypatch.setattr(plan, "this_machine", lambda: replace(ROOMY, memory_mb=2000))
    said = words(tiny_study(), measure=True)
    assert "the study will not fit on the disk of" in said
    assert "too much: let fewer run with resources.at_once" in said


def test_the_share_of_steps_counts_arms_of_every_length() -> None:
    arms: dict[str, Any] = {"short": {"train": {"steps": 10}}, "long": {"train": {"steps": 30}}}
    study = tiny_study(arms=arms, space={}, prune={"method": "halving", "rungs": [5]})
    assert make_plan(study).share == Between(*[(2 * 5 + 0.5 * (5 + 25)) / 40] * 2)
