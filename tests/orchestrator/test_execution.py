"""How trials share workers: by the study's word, or by measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import execution
from orchestrator.arms import trial_spec
from orchestrator.costs import Between
from orchestrator.execution import Packing, choose_packs
from orchestrator.home import features_directory, home
from orchestrator.machine import Slots
from orchestrator.study import StudySpec
from orchestrator.testing import tiny_study
from trials.calibrate import Calibration, Rest
from trials.data import prepare
from trials.features import classifier_file
from trials.spec import digest

TWO = Slots(cpu=1, gpu=0, count=2)


def size_of(packing: Packing, study: StudySpec, **values: Any) -> int:
    return packing.size(trial_spec(study, values or {"lr": 1e-3}, 0, "0"))


def test_a_short_study_is_not_measured() -> None:
    study = tiny_study()
    packing = choose_packs(study, TWO, "default")
    assert size_of(packing, study) == 1
    assert "alone, as the study is too short for packs to matter" in packing.words[0]
    assert packing.prediction is None


def test_on_request_every_study_is_measured_and_what_it_takes_is_told() -> None:
    study = tiny_study(train={"steps": 400, "batch_size": 8})
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert "ms in packs of 2" in packing.words[0]
    found = packing.prediction
    assert found is not None
    assert 0.05 < found.seconds["training steps"].high < 100  # 4 trials of 400 steps, two at once
    assert {"evaluations", "pictures and galleries", "checkpoints", "start-up"} <= set(found.seconds)
    assert (found.steps, found.left_out, found.at_once) == ((1600, 1600), (), 2)


def test_at_submit_a_long_study_is_predicted_from_what_choosing_packs_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def rest(*_: Any, most: int, **__: Any) -> Rest:
        calls.append(most)
        return Rest()

    monkeypatch.setattr(execution, "measure_rest", rest)
    study = tiny_study(train={"steps": 50_000_000, "batch_size": 8})
    packing = choose_packs(study, TWO, "default")
    assert packing.prediction is not None
    assert packing.prediction.left_out == ("evaluations", "pictures and galleries")
    assert calls == []
    assert packing.prediction.disk_mb["checkpoints"].low > 0
    with_rest = choose_packs(study, TWO, "default", evaluated=50)
    assert calls == [50]
    assert with_rest.prediction is not None
    assert with_rest.prediction.left_out == ()


def test_trials_of_one_shape_and_several_lengths_are_counted_by_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms: dict[str, Any] = {"short": {"train": {"steps": 10}}, "long": {"train": {"steps": 30}}}
    study = tiny_study(arms=arms, space={})
    seen: list[Any] = []

    def fake(spec: Any, *_: Any, **__: Any) -> Calibration:
        seen.append(spec.steps)
        return Calibration(alone_ms=100.0, packed_ms={})

    monkeypatch.setattr(execution, "calibrate", fake)
    monkeypatch.setattr(execution, "measure_rest", lambda *_, **__: Rest())
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert len(seen) == 1
    assert [(kind.spec.steps, kind.n_trials) for kind in packing.kinds] == [(10, 2), (30, 2)]
    assert packing.prediction is not None
    assert packing.prediction.steps == (80, 80)
    assert packing.prediction.seconds["training steps"].low == pytest.approx(4.0)  # two of 1 s, two of 3 s


def test_a_classifier_is_made_once_and_not_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = tiny_study(evaluate={"samples": 16, "features": "classifier"})
    monkeypatch.setattr(execution, "calibrate", lambda *_, **__: Calibration(alone_ms=1.0, packed_ms={}))
    monkeypatch.setattr(execution, "measure_rest", lambda *_, **__: Rest())
    monkeypatch.setattr(execution, "measure_classifier", lambda *_: 1e-3)

    def made_in() -> float:
        found = choose_packs(study, TWO, "default", measure_all=True).prediction
        assert found is not None
        return found.seconds.get("features of real images", Between(0, 0)).high

    assert made_in() > 1
    prepared = prepare(study.dataset.source, cache_dir=home() / "datasets", data_dir=tmp_path)
    assert made_in() > 1
    of = digest([prepared.digest, None])
    file = classifier_file(
        features_directory(), of, prepared.image_shape, prepared.n_classes, prepared.n_images
    )
    file.parent.mkdir(parents=True)
    file.touch()
    assert made_in() == 0


def test_what_takes_more_memory_than_there_is_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(total=int(800.2 * 2**20))  # a worker and 0.2 MB
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    study = tiny_study(fixed={"width": 512, "latent_dim": 4})
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert packing.prediction is None
    (kind,) = packing.kinds
    assert not kind.fits
    assert kind.problem.startswith("one trial takes more memory than there is: ")


def test_a_pack_that_is_asked_for_and_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    study = tiny_study(seeds=[0, 1, 2, 3], execution={"pack": 4})
    (kind,) = choose_packs(study, TWO, "default", measure_all=True).kinds
    assert kind.fits
    assert kind.problem.startswith("a pack of 4 does not fit")


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
    monkeypatch.setattr(execution, "_measured", lambda *_, **__: (found, None))
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
    monkeypatch.setattr(execution, "measure_rest", lambda *_, **__: Rest())
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert seen == [(24, 2), (4, 1), (8, 1), (12, 1)]  # two seeds over two slots
    assert size_of(packing, study, arm="twice") == 2
    assert size_of(packing, study, arm="w20") == 1
    assert packing.words[-1] == "2 more kinds of trials: alone, as they were not measured"
    assert packing.prediction is None


def test_the_arms_of_a_search_are_judged_by_the_first_point_of_its_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = tiny_study(
        search={"sampler": "tpe", "trials": 5}, space={"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    )
    monkeypatch.setattr(
        execution, "calibrate", lambda *_, most, **__: Calibration(alone_ms=most, packed_ms={2: 1.0})
    )
    monkeypatch.setattr(execution, "measure_rest", lambda *_, **__: Rest())
    packing = choose_packs(study, TWO, "default", measure_all=True)
    assert size_of(packing, study, lr=3e-3) == 2
    assert "2 ms a step alone" in packing.words[0]  # 5 arms of 2 seeds over 2 slots, but one arm at a time
