"""How trials share workers: by the study's word, or by measuring."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import execution
from orchestrator.arms import trial_spec
from orchestrator.execution import Packing, choose_packs
from orchestrator.machine import Slots
from orchestrator.study import StudySpec
from orchestrator.testing import tiny_study
from trials.calibrate import Calibration

TWO = Slots(cpu=1, gpu=0, count=2)


def size_of(packing: Packing, study: StudySpec, **values: Any) -> int:
    return packing.size(trial_spec(study, values or {"lr": 1e-3}, 0, "0"))


def test_a_short_study_is_not_measured() -> None:
    study = tiny_study()
    packing = choose_packs(study, TWO, "default")
    assert size_of(packing, study) == 1
    assert "alone, as the study is too short for packs to matter" in packing.words[0]
    assert packing.seconds is None


def test_on_request_every_study_is_measured_and_its_time_told() -> None:
    study = tiny_study(train={"steps": 400, "batch_size": 8})
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert "ms in packs of 2" in packing.words[0]
    assert packing.seconds is not None
    assert 0.05 < packing.seconds < 100  # 4 trials of 400 steps, two at once


def test_packs_can_be_off() -> None:
    study = tiny_study(execution={"pack": "off"})
    packing = choose_packs(study, TWO, "default")
    assert packing.words == ("alone, as execution.pack is off",)
    assert size_of(packing, study) == 1


def test_a_gpu_that_cannot_be_measured_is_said_and_trials_run_alone() -> None:
    """On a machine without one the process that measures fails."""
    study = tiny_study()
    packing = choose_packs(study, Slots(cpu=1, gpu=1, count=1), "default")
    if "measuring failed" not in packing.words[0]:
        pytest.skip("this machine has a GPU")
    assert packing.words[0].startswith("obs_mlp: alone, as measuring failed (")
    assert size_of(packing, study) == 1


def test_recorded_steps_are_chosen_by_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study()
    found = Calibration(alone_ms=10.0, packed_ms={2: 9.9}, recorded_ms={1: 3.0, 2: 2.9})
    monkeypatch.setattr(execution, "_measured", lambda *_, **__: found)
    packing = choose_packs(study, Slots(cpu=1, gpu=0.5, count=2), "default")
    spec = trial_spec(study, {"lr": 1e-3}, 0, "0")
    assert (packing.size(spec), packing.is_recorded(spec)) == (1, True)
    assert packing.words == (
        "obs_mlp: alone, recorded (10 ms a step alone, 9.9 ms in packs of 2, 3 ms a step alone recorded, "
        "2.9 ms in packs of 2 recorded)",
    )


def test_a_number_is_taken_at_its_word_but_for_what_has_no_batched_form() -> None:
    arms: dict[str, Any] = {
        "mlp": {},
        "conv": {"model": "obs_dcgan"},
        "norm": {"fixed": {"spectral_norm": "d"}},
    }
    study = tiny_study(arms=arms, space={}, fixed={"latent_dim": 4}, execution={"pack": 6})
    packing = choose_packs(study, TWO, "default")
    assert [size_of(packing, study, arm=name) for name in arms] == [6, 1, 6]
    assert packing.words == (
        "obs_mlp: packs of up to 6, as execution.pack says",
        "obs_dcgan: alone, as there is no batched form of _DcganDiscriminator, _DcganGenerator",
    )


def test_each_kind_of_trial_is_measured_by_itself_the_most_frequent_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths = [4, 8, 12, 16, 20, 24]
    arms = {f"w{w}": {"fixed": {"width": w}} for w in widths} | {
        "twice": {"fixed": {"width": 24, "lr": 1e-4}}
    }
    study = tiny_study(arms=arms, space={})
    seen: list[Any] = []

    def fake(spec: Any, *_: Any, most: int, **__: Any) -> Calibration:
        seen.append((spec.model_params["width"], most))
        return Calibration(alone_ms=10.0, packed_ms={2: 5.0})

    monkeypatch.setattr(execution, "calibrate", fake)
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert seen == [(24, 2), (4, 1), (8, 1), (12, 1)]  # two seeds over two slots
    assert size_of(packing, study, arm="twice") == 2
    assert size_of(packing, study, arm="w20") == 1
    assert packing.words[-1] == "2 more kinds of trials: alone, as they were not measured"
    assert packing.seconds is None


def test_the_arms_of_a_search_are_judged_by_the_first_point_of_its_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = tiny_study(
        search={"sampler": "tpe", "trials": 5}, space={"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    )
    monkeypatch.setattr(
        execution, "calibrate", lambda *_, most, **__: Calibration(alone_ms=most, packed_ms={2: 1.0})
    )
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert size_of(packing, study, lr=3e-3) == 2
    assert "5 ms a step alone" in packing.words[0]  # 5 arms of 2 seeds over 2 slots
