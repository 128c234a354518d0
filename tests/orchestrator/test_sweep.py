"""The sweep between search, backend and journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.backends.inline import InlineBackend
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles
from orchestrator.journal import ArmProposed, TrialEnded, TrialReported, TrialStarted
from orchestrator.machine import Slots
from orchestrator.records import Records
from orchestrator.search import OptunaSearch
from orchestrator.sweep import Sweep
from orchestrator.testing import BackendContract, ListSearch, events, make_sweep, run_sweep, tiny_study
from trials.data import prepare
from trials.plots import picture_sheet
from trials.reports import Assignment, Cause, Outcome, Report, Row, State

Begin = Callable[..., tuple[Sweep, ListSearch]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a sweep of the tiny study, and lets go of its journal after the test."""
    begun: list[Sweep] = []

    def start(**changes: object) -> tuple[Sweep, ListSearch]:
        sweep, search = make_sweep(tiny_study(**changes), tmp_path, BackendContract.ARMS)
        begun.append(sweep)
        sweep.start({})
        return sweep, search

    yield start
    for sweep in begun:
        sweep.end()


def report(*steps: int) -> Report:
    rows = tuple(Row(step=step, metrics={"eval/fd": 1.0 / step}) for step in steps)
    return Report(step=steps[-1], rows=rows)


def one(sweep: Sweep) -> Assignment:
    """The next assignment of a sweep without packs."""
    (assignment,) = sweep.next()
    return assignment


def test_a_step_that_is_reported_again_is_recorded_once(tmp_path: Path, begin: Begin) -> None:
    sweep, _ = begin()
    first = one(sweep)
    sweep.reported(first.key, 1, report(2, 4))
    sweep.ended(
        first.key, 1, Outcome(state=State.FAILED, step=4, reason="its worker died", cause=Cause.WORKER)
    )
    again = one(sweep)
    assert (again.key, again.attempt) == (first.key, 2)
    sweep.reported(first.key, 2, report(4, 6))
    steps = [step for event in events(tmp_path, TrialReported) for step, _ in event.rows]
    assert steps == [2, 4, 6]


def test_what_an_older_attempt_says_is_ignored(tmp_path: Path, begin: Begin) -> None:
    sweep, _ = begin()
    first = one(sweep)
    sweep.ended(
        first.key, 1, Outcome(state=State.FAILED, step=0, reason="its worker died", cause=Cause.WORKER)
    )
    sweep.next()
    sweep.reported(first.key, 1, report(8))
    sweep.ended(first.key, 1, Outcome(state=State.COMPLETED, step=12))
    assert sweep.records.trials[first.key].state is State.RUNNING
    assert events(tmp_path, TrialReported) == []


def test_an_arm_is_told_when_its_last_seed_ends_with_the_mean_of_all(tmp_path: Path, begin: Begin) -> None:
    sweep, search = begin()
    arm = [a for a in (one(sweep) for _ in range(4)) if a.spec.training["lr"] == 1e-3]
    assert [a.spec.seed for a in arm] == [0, 1]
    for a, step in zip(arm, (4, 8), strict=True):
        assert search.told == {}
        sweep.reported(a.key, 1, report(step))
        sweep.ended(a.key, 1, Outcome(state=State.COMPLETED, step=step))
    (values,) = search.told.values()
    assert values == pytest.approx([(1 / 4 + 1 / 8) / 2])


def test_an_arm_with_a_diverged_seed_is_told_without_a_value(tmp_path: Path, begin: Begin) -> None:
    sweep, search = begin(seeds=[0])
    first = one(sweep)
    sweep.reported(first.key, 1, report(4))
    sweep.ended(first.key, 1, Outcome(state=State.DIVERGED, step=4, reason="r"))
    assert search.told == {0: None}


def test_a_trial_that_never_reported_the_objective_failed_and_says_what_it_reported(
    tmp_path: Path, begin: Begin
) -> None:
    sweep, _ = begin(objective={"metric": "final/g_loss"})
    first = one(sweep)
    sweep.reported(first.key, 1, report(4))
    sweep.ended(first.key, 1, Outcome(state=State.COMPLETED, step=12))
    trial = sweep.records.trials[first.key]
    assert (trial.state, trial.reason) == (
        State.FAILED,
        "metric 'final/g_loss' was not reported; reported: eval/fd",
    )


def test_a_value_that_a_crash_kept_from_the_search_is_told_at_the_next_start(
    tmp_path: Path, begin: Begin
) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    run_sweep(sweep, InlineBackend())
    _, search = begin()
    assert sorted(search.told) == [0, 1]


def test_stops_by_the_user_do_not_count_as_lost_workers(begin: Begin) -> None:
    sweep, _ = begin()
    for _ in range(3):
        assignment = one(sweep)
        stopped = Outcome(state=State.STOPPED, step=2)
        sweep.ended(assignment.key, assignment.attempt, stopped)
        sweep.start({})
    assignment = one(sweep)
    assert assignment.attempt == 4
    sweep.ended(
        assignment.key, 4, Outcome(state=State.FAILED, step=2, reason="its worker died", cause=Cause.WORKER)
    )
    assert sweep.records.trials[assignment.key].state is State.WAITING


def test_a_driver_that_died_between_the_last_trial_and_the_end_is_ended_by_the_next(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    sweep.start({})
    InlineBackend().run(sweep)
    sweep._journal.close()
    again, search = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    assert again.finished
    assert again.records.state == "running"
    run_sweep(again, InlineBackend())
    assert again.records.state == "completed"
    assert sorted(search.told) == [0, 1]
    assert len(events(tmp_path, TrialStarted)) == 4


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    sweep.start({})
    sweep.next()
    sweep._journal.close()
    again, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    again._datasets = {k: dataclasses.replace(d, digest="other") for k, d in again._datasets.items()}
    again.start({})
    with pytest.raises(UsageError, match="its dataset or the defaults of its model have changed"):
        again.next()
    again.end()


def test_the_study_keeps_its_uid(tmp_path: Path) -> None:
    uids = []
    for _ in range(2):
        sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
        uids.append(run_sweep(sweep, InlineBackend()).uid)
    assert len(uids[0]) == 32
    assert uids[0] == uids[1]


def test_an_arm_that_is_proposed_twice_shares_its_trials(tmp_path: Path) -> None:
    study = tiny_study(search={"sampler": "random", "trials": 3})
    sweep, search = make_sweep(study, tmp_path, [{"lr": 1e-3}, {"lr": 1e-4}, {"lr": 1e-3}])
    records = run_sweep(sweep, InlineBackend())
    assert len(events(tmp_path, ArmProposed)) == 3
    assert len(records.trials) == len(events(tmp_path, TrialStarted)) == 4
    assert search.told[0] == search.told[2]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_with_optuna_runs_all_its_arms_over_an_interruption(sampler: str, tmp_path: Path) -> None:
    study = tiny_study(
        space={"lr": {"low": 1e-5, "high": 1e-2, "log": True}}, search={"sampler": sampler, "trials": 4}
    )
    files = StudyFiles(tmp_path / "tiny")
    files.root.mkdir()
    wanted = study.dataset.source
    datasets = {wanted: prepare(wanted, cache_dir=tmp_path / "datasets", data_dir=tmp_path)}

    def opened() -> Sweep:
        return Sweep(study, files, OptunaSearch(study, files.optuna), datasets, Slots(cpu=1, gpu=0, count=1))

    first, ends = opened(), []
    recorded = first.ended

    def ended(key: str, attempt: int, outcome: Outcome) -> None:
        recorded(key, attempt, outcome)
        ends.append(key)
        if len(ends) == 3:
            first.request_stop()

    first.ended = ended  # type: ignore[method-assign]
    assert run_sweep(first, InlineBackend()).state == "stopped"
    records = run_sweep(opened(), InlineBackend())
    assert records.state == "completed"
    assert len({arm.values["lr"] for arm in records.arms}) == 4
    assert len(events(tmp_path, TrialEnded)) == 8
    search = OptunaSearch(study, files.optuna)
    states = [trial.state.name for trial in search._study.get_trials()]
    assert states == ["COMPLETE"] * 4


def test_a_trial_s_picture_is_that_of_the_fixed_latents_whatever_else_is_drawn() -> None:
    records = Records()
    arm = ArmProposed(at_ms=0, arm=0, proposal=0, values={}, keys={"k": 0}, steps=10)
    pictures = [("samples/fixed", 5, "samples/step.png"), ("samples/raw", 5, "samples/raw_step.png")]
    report = TrialReported(at_ms=0, key="k", attempt=1, step=5, rows=[], pictures=pictures, notes=[])
    earlier = TrialReported(at_ms=0, key="k", attempt=2, step=3, rows=[], pictures=[], notes=["went back"])
    for event in (arm, report, earlier):
        records.apply(event)
    assert (records.trials["k"].picture, records.trials["k"].step) == ("samples/step.png", 5)


def test_a_grid_that_is_not_square_keeps_its_shape_beside_others(tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (300, 60), "black").save(wide)
    with Image.open(picture_sheet(tmp_path / "sheet.png", {"wide": wide})) as sheet:
        black = [
            (x, y)
            for x in range(sheet.width)
            for y in range(30, sheet.height)
            if sheet.getpixel((x, y)) == (0, 0, 0)
        ]
    assert max(x for x, _ in black) - min(x for x, _ in black) == pytest.approx(320, abs=2)
    assert max(y for _, y in black) - min(y for _, y in black) == pytest.approx(64, abs=2)


def packed(tmp_path: Path, size: int, slots: int, **changes: Any) -> Sweep:
    sweep, _ = make_sweep(tiny_study(**changes), tmp_path, BackendContract.ARMS, slots=slots, pack=size)
    sweep.start({})
    return sweep


@pytest.mark.parametrize(
    ("size", "slots", "sizes"), [(1, 2, [1, 1, 1, 1]), (8, 1, [4]), (8, 2, [2, 2]), (3, 1, [3, 1])]
)
def test_packs_are_as_large_as_allowed_and_leave_no_slot_idle(
    size: int, slots: int, sizes: list[int], tmp_path: Path
) -> None:
    sweep = packed(tmp_path, size, slots)
    started = [sweep.next() for _ in sizes]
    assert [len(pack) for pack in started] == sizes
    assert sweep.next() == []
    assert len({a.key for pack in started for a in pack}) == 4
    sweep.end()


def test_only_trials_of_one_shape_are_packed(tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {
        "narrow": {},
        "wide": {"fixed": {"width": 16}},
        "other": {"fixed": {"lr": 1e-2}},
    }
    study = tiny_study(arms=arms, space={})
    sweep, _ = make_sweep(study, tmp_path, [{"arm": name} for name in arms], slots=1, pack=8)
    sweep.start({})
    widths = [[a.spec.model_params["width"] for a in sweep.next()] for _ in range(2)]
    assert widths == [[8] * 4, [16] * 2]
    sweep.end()


def test_of_a_pack_every_trial_ends_by_itself(tmp_path: Path) -> None:
    sweep = packed(tmp_path, 4, 1)
    first, second, *others = sweep.next()
    sweep.heard(first.key, 1, report(4))
    sweep.heard(first.key, 1, Outcome(state=State.COMPLETED, step=12))
    sweep.heard(
        second.key, 1, Outcome(state=State.FAILED, step=0, reason="its worker died", cause=Cause.WORKER)
    )
    assert sweep.records.trials[first.key].state is State.COMPLETED
    assert [a.key for a in sweep.next()] == [second.key]
    assert all(sweep.records.trials[a.key].state is State.RUNNING for a in others)
    sweep.end()
