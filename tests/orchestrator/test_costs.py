"""What a study will take: shares under pruning against simulations, disk against a real trial's directory."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator import costs
from orchestrator._fields import Limits, Objective, Prune
from orchestrator.arms import trial_spec
from orchestrator.backends.inline import InlineBackend
from orchestrator.costs import (
    DATABASE,
    Between,
    Kind,
    Prediction,
    between,
    compare_with_facts,
    disk_usage,
    duration,
    first_limit,
    megabytes,
    predict,
    space_problem,
    span,
    stretches,
)
from orchestrator.execution import choose_packs
from orchestrator.home import StudyFiles
from orchestrator.machine import Slots
from orchestrator.records import Records
from orchestrator.study import StudySpec
from orchestrator.testing import make_sweep, run_sweep, simulate_pruning, tiny_study
from trials.calibrate import Calibration, Rest

STEPS = 100
TWO = Slots(cpu=1, gpu=0, count=2)
REST = Rest(evaluation_s=2.0, grid_s=0.5, grid_mb=1.0, end_s=3.0, gallery_mb=4.0, feature_s=0.0)


def kind_of(study: StudySpec, n_trials: int, **facts: Any) -> Kind:
    spec = trial_spec(study, {"lr": 1e-3}, 0, "0")
    values: dict[str, Any] = {"step_s": 0.1, "checkpoint_mb": 10.0, "rest": REST}
    return Kind(spec=spec, arm="lr=0.001", n_trials=n_trials, **{**values, **facts})


def prediction_of(study: StudySpec, n_arms: int = 2, slots: Slots = TWO, **facts: Any) -> Prediction:
    found = predict(study, [kind_of(study, n_arms * len(study.seeds), **facts)], slots, n_arms)
    assert found is not None
    return found


prunes = st.builds(
    Prune,
    method=st.sampled_from(["halving", "hyperband", "asha", "median", "paired"]),
    rungs=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=4).map(sorted),
    keep=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9]),
    least=st.integers(2, 6),
    seeds=st.sampled_from([None, 1, 2]),
)


@given(prune=prunes, n_arms=st.integers(1, 12), n_seeds=st.integers(1, 4), order=st.integers(0, 10**6))
def test_the_share_of_steps_is_that_of_a_simulated_study(
    prune: Prune, n_arms: int, n_seeds: int, order: int
) -> None:
    draw = random.Random(order)
    quality = [draw.random() for _ in range(n_arms)]
    records = simulate_pruning(
        prune, Objective(), n_arms, n_seeds,
        lambda arm, seed, step: quality[arm] + 0.01 * random.Random(f"{arm} {seed} {step}").random(),
        steps=STEPS, order=order,
    )  # fmt: skip
    taken = sum(trial.step for trial in records.trials.values())
    share = [0.0, 0.0]
    for part in stretches(prune, n_arms, n_seeds):
        length = (STEPS if part.end is None else part.end) - part.start
        share = [x + y * length * n_arms * n_seeds for x, y in zip(share, part.share, strict=True)]
    assert share[0] - 1e-6 <= taken <= share[1] + 1e-6
    if prune.method in ("halving", "hyperband"):
        assert share == pytest.approx([taken, taken])


def test_without_pruning_every_step_is_taken() -> None:
    (whole,) = stretches(None, 7, 3)
    assert (whole.start, whole.end, whole.share) == (0, None, (1.0, 1.0))


@given(st.lists(st.tuples(st.floats(0.1, 50), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 8))
def test_trials_side_by_side_take_at_least_their_share_and_at_most_one_trial_more(
    units: list[tuple[float, int]], slots: int
) -> None:
    found, work = span(units, slots), sum(length * n for length, n in units)
    longest = max(length for length, _ in units)
    assert max(longest, work / slots) - 1e-9 <= found <= work / slots + longest + 1e-9


def test_too_many_trials_to_schedule_one_by_one_take_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = span([(2.0, 40)], 4)
    monkeypatch.setattr(costs, "MOST_SCHEDULED", 10)
    assert span([(2.0, 40)], 4) == exact == 20.0
    assert span([(100.0, 1), (0.5, 20)], 4) == 100.0


def test_parts_of_the_time_add_up_and_are_named() -> None:
    """4 trials of 12 steps on two slots: each trial 1.2 s of steps, 2 evaluations, 2 grids and its end."""
    found = prediction_of(tiny_study())
    assert found.seconds["training steps"] == pytest.approx((2.4, 2.4))
    assert found.seconds["evaluations"] == pytest.approx((8.0, 8.0))
    assert found.seconds["pictures and galleries"] == pytest.approx((8.0, 8.0))
    assert found.time_s.low == pytest.approx(2.4 + 8 + 8 + costs.START_S + 2 * costs.TRIAL_S)
    assert (found.at_once, found.packs, found.left_out) == (2, (1,), ())


def test_packs_are_no_larger_than_leaves_a_trial_to_every_slot() -> None:
    study = tiny_study()
    assert prediction_of(study, pack=8).seconds == prediction_of(study, pack=2).seconds
    uneven = prediction_of(study, n_arms=1, pack=2, slots=replace(TWO, count=2))
    assert uneven.seconds["training steps"] == pytest.approx((1.2, 1.2))


def test_early_stopping_makes_the_length_uncertain() -> None:
    fixed = {"width": 8, "latent_dim": 4, "patience": 1}
    study = tiny_study(fixed=fixed, evaluate={"count": 6, "samples": 16, "features": "random"})
    found = prediction_of(study)
    assert found.steps == (4 * 4, 4 * 12)  # the second of six evaluations is at step 4
    assert found.all_steps == 48
    assert found.seconds["training steps"] == pytest.approx((0.8, 2.4))


def test_pruning_shortens_the_study_but_not_below_its_longest_trial() -> None:
    pruned = {"prune": {"method": "halving", "rungs": [6], "keep": 0.5}}
    found = prediction_of(tiny_study(**pruned), n_arms=8)
    assert found.steps == (16 * 6 + 8 * 6,) * 2
    whole = prediction_of(tiny_study(), n_arms=8)
    assert found.time_s.high < whole.time_s.low
    many_slots = prediction_of(tiny_study(**pruned), n_arms=8, slots=Slots(cpu=1, gpu=0, count=64))
    longest = 12 * 0.1 + 2 * 2.0 + 2 * 0.5 + 3.0
    busy = sum(s.high for what, s in many_slots.seconds.items() if what != "start-up")
    assert busy == pytest.approx(longest, rel=0.05)


def test_nothing_is_predicted_when_some_steps_were_not_measured() -> None:
    study = tiny_study()
    kinds = [kind_of(study, 2), kind_of(study, 2, step_s=None)]
    assert predict(study, kinds, TWO, 2) is None
    assert predict(study, [], TWO, 2) is None
    assert prediction_of(study, rest=None).left_out == ("evaluations", "pictures and galleries")


def test_memory_is_that_of_all_workers_on_the_device_they_use() -> None:
    study = tiny_study()
    facts: dict[str, Any] = {"trial_mb": 100.0, "trials_mb": 300.0, "dataset_mb": 50.0}
    cpu = prediction_of(study, **facts)
    assert (cpu.worker_mb, cpu.gpu_mb) == (costs.WORKER_MB + 350, None)
    assert cpu.memory_mb == costs.DRIVER_MB + 2 * cpu.worker_mb
    gpu = prediction_of(study, slots=Slots(cpu=1, gpu=0.5, count=2), **facts)
    assert gpu.worker_mb == costs.WORKER_MB + 50
    assert gpu.gpu_mb == 2 * (costs.CONTEXT_MB + 350)


@pytest.mark.parametrize("keep_steps", [0, 1])
def test_the_predicted_disk_is_that_of_a_real_study(tmp_path: Path, keep_steps: int) -> None:
    study = tiny_study(
        seeds=[0],
        space={"lr": {"choices": [1e-3]}},
        train={"steps": 40, "batch_size": 64, "log_every": 2, "checkpoint_every": 10},
        fixed={"width": 64, "latent_dim": 16, "remove_last_epochs": keep_steps},
        pictures={"count": 4, "samples": 16, "gallery": not keep_steps},
        evaluate={"count": 1, "samples": 64, "features": "random"},  # so that the last checkpoint is the best
    )
    packing = choose_packs(study, TWO, "default", measure_all=True)
    found = predict(study, packing.kinds, TWO, 1, copies=False)
    assert found is not None
    sweep, _ = make_sweep(study, tmp_path, [{"lr": 1e-3}], slots=1)
    run_sweep(sweep, InlineBackend())
    there = {"checkpoints": 0, "pictures": 0, "journal": sweep.files.journal.stat().st_size}
    for path in (sweep.files.root / "trials").rglob("*"):
        if path.is_file():
            there["checkpoints" if "checkpoints" in path.parts else "pictures"] += path.stat().st_size
    mb = {what: size / 2**20 for what, size in there.items()}
    assert found.disk_mb["checkpoints"].low <= mb["checkpoints"] * 1.01
    assert found.disk_mb["checkpoints"].high == pytest.approx(mb["checkpoints"], rel=0.1)
    assert found.disk_mb["pictures"].high == pytest.approx(
        mb["pictures"], rel=0.35
    )  # of an untrained generator
    assert found.disk_mb["journal"].high == pytest.approx(mb["journal"], rel=0.5)
    whole = sum(found.disk_mb[what].high for what in there)
    assert whole == pytest.approx(sum(mb.values()), rel=0.1)
    assert disk_usage(sweep.files) == pytest.approx(sum(there.values()), rel=0.01)


def test_the_best_checkpoint_may_be_one_more_and_copies_double_what_is_kept() -> None:
    study = tiny_study()  # two evaluations
    found = prediction_of(study)
    assert found.disk_mb["checkpoints"] == (40, 80)
    copies = found.disk_mb["MLflow's copies of checkpoints and pictures"]
    assert 40 < copies.low < copies.high == pytest.approx(copies.low + 40)
    without = predict(study, [kind_of(study, 4)], TWO, 2, copies=False)
    assert without is not None
    assert set(without.disk_mb) == {"checkpoints", "pictures", "journal", "plots of the study"}
    assert found.most_disk_mb > found.disk.high + 2 * 2 * 10


def test_a_disk_that_is_too_small_is_named_with_the_figures() -> None:
    found = prediction_of(tiny_study())
    assert space_problem(found, 10_000) is None
    for free, says in ((found.disk.low - 1, "will not fit"), (found.disk.low + 1, "may not fit")):
        words = space_problem(found, free)
        assert words is not None
        assert says in words
        assert f"up to {megabytes(found.most_disk_mb)}" in words
        assert f"{megabytes(free)} are free" in words


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, None),
        ({"trials": 10, "hours": 3.0}, None),
        ({"trials": 5}, "limits.trials will end it after 5 trials of 10 trials"),
        (
            {"trials": 9, "hours": 0.5},
            "limits.hours will end it after 0.5 hours of between 1 hours and 2 hours",
        ),
        ({"hours": 1.5}, "limits.hours may end it after 1.5 hours of between 1 hours and 2 hours"),
        ({"gpu_hours": 0.1}, "limits.gpu_hours will end it after 0.1 GPU-hours of 4 GPU-hours"),
    ],
)
def test_the_limit_that_comes_first_is_named(limits: dict[str, Any], words: str | None) -> None:
    found = first_limit(Limits(**limits), 10, Between(3600, 7200), Between(4, 4))
    assert found == words


@given(n=st.integers(1, 20), limit=st.integers(1, 20))
def test_without_measuring_only_trials_are_known(n: int, limit: int) -> None:
    assert (first_limit(Limits(trials=limit, hours=1e-3), n) is None) == (limit >= n)


def test_a_prediction_survives_json_and_another_version_s_is_none() -> None:
    found = prediction_of(tiny_study())
    text = json.dumps(found.to_json())
    assert Prediction.from_json(text) == found
    assert Prediction.from_json(found.to_json()) == found
    assert Prediction.from_json("") is None
    assert Prediction.from_json("[1]") is None
    assert Prediction.from_json(json.dumps({"seconds": {}})) is None


def test_a_running_study_is_compared_so_far_and_a_finished_one_at_its_end() -> None:
    found = prediction_of(tiny_study())
    records = Records(state="running", active_s=10.0, submitted_ms=1000, updated_ms=4000)
    rows = {
        what: (predicted, fact) for what, predicted, fact in compare_with_facts(found, records, 2**20, 21_000)
    }
    assert rows["time"] == (duration(found.time_s.low), "30 s so far")
    assert rows["steps"] == ("48", "0 so far")
    assert rows["disk"] == (between(found.disk, megabytes), "1.0 MB so far")
    records.state = "completed"
    rows = {
        what: (predicted, fact) for what, predicted, fact in compare_with_facts(found, records, 2**20, 21_000)
    }
    assert rows["time"][1] == "13 s"
    assert DATABASE in found.disk_mb  # which is no part of what is compared


def test_the_disk_of_a_study_is_its_own_and_that_of_its_copies(private_home: Path) -> None:
    files = StudyFiles.of("mine")
    assert disk_usage(files) == 0
    for place, size in (
        (files.root / "trials" / "k", 100), (private_home / "mlflow" / "artifacts" / "mine" / "r", 20),
        (private_home / "mlflow" / "artifacts" / "other", 3), (private_home / "studies" / "mine2", 7),
    ):  # fmt: skip
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"x" * size)
    assert disk_usage(files) == 120


def test_a_kind_is_what_calibration_found_at_the_size_that_is_used() -> None:
    spec = trial_spec(tiny_study(), {"lr": 1e-3}, 0, "0")
    found = Calibration(alone_ms=10.0, packed_ms={2: 6.0, 4: 3.0}, memory_mb={1: 5.0, 2: 9.0, 4: 17.0})
    chosen = Kind.measured(found, None, spec=spec, arm="a", n_trials=4)
    assert (chosen.pack, chosen.step_s, chosen.trial_mb, chosen.trials_mb) == (4, 0.003, 5.0, 17.0)
    asked = Kind.measured(found, 2, spec=spec, arm="a", n_trials=4)
    assert (asked.pack, asked.step_s, asked.problem) == (2, 0.006, "")
    large = Kind.measured(found, 8, spec=spec, arm="a", n_trials=9)
    assert large.step_s is None
    assert large.problem.startswith("a pack of 8 does not fit")
    assert large.fits  # alone it can


@pytest.mark.parametrize(
    ("mb", "words"),
    [(0.25, "0.2 MB"), (12.4, "12 MB"), (999, "999 MB"), (2048, "2.0 GB"), (3 * 2**20, "3.0 TB")],
)
def test_sizes_read_well(mb: float, words: str) -> None:
    assert megabytes(mb) == words


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_two_numbers_that_read_the_same_are_one(a: float, b: float) -> None:
    assume(a <= b)
    words = between(Between(a, b), duration)
    assert words == duration(a) if duration(a) == duration(b) else words.startswith("between ")
