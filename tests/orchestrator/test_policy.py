"""Decisions as a pure machine: every trial that starts ends in exactly one final state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator._fields import Limits
from orchestrator.journal import (
    ArmProposed,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from orchestrator.policy import (
    Done,
    Propose,
    Start,
    Wait,
    decide,
    has_failed,
    limit,
    state_after,
    study_state,
)
from orchestrator.records import Records, TrialRecord
from trials.reports import Cause, Outcome, State

RETRIES = 2
ENDS = (State.COMPLETED, State.DIVERGED, State.FAILED, Cause.WORKER, Cause.STALLED, Cause.MEMORY)


def propose(records: Records, n_seeds: int) -> None:
    arm = len(records.arms)
    keys = {f"{arm}.{seed}": seed for seed in range(n_seeds)}
    records.apply(ArmProposed(at_ms=0, arm=arm, proposal=arm, values={"lr": float(arm)}, keys=keys, steps=10))


@given(
    n_arms=st.integers(1, 4),
    n_seeds=st.integers(1, 3),
    slots=st.integers(1, 4),
    adaptive=st.booleans(),
    ends=st.lists(st.sampled_from(ENDS), max_size=60),
    picks=st.lists(st.integers(0, 100), max_size=60),
)
def test_every_trial_ends_in_exactly_one_final_state(
    n_arms: int, n_seeds: int, slots: int, adaptive: bool, ends: list[object], picks: list[int]
) -> None:
    records, running, finals = Records(), list[str](), dict[str, int]()
    ends_, picks_ = iter(ends), iter(picks)
    for _ in range(10_000):
        decision = decide(records, n_arms=n_arms, adaptive=adaptive, stopping=False)
        if isinstance(decision, Propose):
            propose(records, n_seeds)
        elif isinstance(decision, Start) and len(running) < slots:
            trial = decision.trial
            assert not trial.state.is_final
            records.apply(TrialStarted(at_ms=0, key=trial.key, attempt=trial.attempts + 1))
            running.append(trial.key)
        elif running:
            key = running.pop(next(picks_, 0) % len(running))
            end = next(ends_, State.COMPLETED)
            outcome = (
                Outcome(state=State.FAILED, step=10, cause=end)
                if isinstance(end, Cause)
                else Outcome(state=State(str(end)), step=10)
            )
            trial = records.trials[key]
            state, reason = state_after(outcome, trial, RETRIES)
            records.apply(
                TrialEnded(
                    at_ms=0, key=key, attempt=trial.attempts, state=state, step=10, reason=reason,
                    cause=outcome.cause,
                )
            )  # fmt: skip
            finals[key] = finals.get(key, 0) + state.is_final
        else:
            assert isinstance(decision, Done)
            break
    else:
        raise AssertionError("never done")
    assert len(records.trials) == n_arms * n_seeds
    assert all(trial.state.is_final and trial.attempts <= RETRIES + 1 for trial in records.trials.values())
    assert set(finals.values()) == {1}


def test_a_search_that_does_not_learn_gives_every_arm_one_seed_first() -> None:
    records, order = Records(), []
    for _ in range(2):
        propose(records, 2)
    while isinstance(decision := decide(records, n_arms=2, adaptive=False, stopping=False), Start):
        order.append(decision.trial.key)
        records.apply(TrialStarted(at_ms=0, key=decision.trial.key, attempt=1))
    assert order == ["0.0", "1.0", "0.1", "1.1"]
    assert isinstance(decision, Wait)


def test_a_search_that_learns_finishes_an_arm_s_seeds_before_it_proposes_another() -> None:
    records = Records()
    assert isinstance(decide(records, n_arms=2, adaptive=True, stopping=False), Propose)
    propose(records, 2)
    for key in ("0.0", "0.1"):
        decision = decide(records, n_arms=2, adaptive=True, stopping=False)
        assert isinstance(decision, Start)
        assert decision.trial.key == key
        records.apply(TrialStarted(at_ms=0, key=key, attempt=1))
    assert isinstance(decide(records, n_arms=2, adaptive=True, stopping=False), Propose)


def test_nothing_starts_while_stopping() -> None:
    records = Records()
    propose(records, 1)
    assert isinstance(decide(records, n_arms=1, adaptive=False, stopping=True), Done)
    records.apply(TrialStarted(at_ms=0, key="0.0", attempt=1))
    assert isinstance(decide(records, n_arms=1, adaptive=False, stopping=True), Wait)


def began(*, together: int = 1, lost: int = 0, crowded: int = 0) -> TrialRecord:
    records = Records()
    propose(records, 1)
    records.apply(TrialStarted(at_ms=0, key="0.0", attempt=1, together=together))
    trial = records.trials["0.0"]
    trial.lost, trial.crowded = lost, crowded
    return trial


@pytest.mark.parametrize("cause", [Cause.WORKER, Cause.STALLED, Cause.MEMORY])
@pytest.mark.parametrize("before", range(RETRIES + 1))
def test_a_lost_worker_is_retried_until_the_limit(before: int, cause: Cause) -> None:
    outcome = Outcome(state=State.FAILED, step=1, reason="worker died", cause=cause)
    state, reason = state_after(outcome, began(lost=before), RETRIES)
    assert state is (State.WAITING if before < RETRIES else State.FAILED)
    assert "worker died" in reason


def test_a_pack_that_does_not_fit_the_memory_costs_its_trials_no_retry() -> None:
    outcome = Outcome(state=State.FAILED, step=1, reason="out of memory", cause=Cause.MEMORY)
    state, reason = state_after(outcome, began(together=8), 0)
    assert state is State.WAITING
    assert "pack of fewer than 8" in reason
    assert state_after(outcome, began(lost=3, crowded=3), 0)[0] is State.FAILED
    assert state_after(outcome, began(lost=3, crowded=3), 1)[0] is State.WAITING


@pytest.mark.parametrize("cause", [Cause.NONE, Cause.NAN, Cause.UNHEALTHY, Cause.ERROR])
@pytest.mark.parametrize("state", [State.COMPLETED, State.DIVERGED, State.FAILED, State.STOPPED])
def test_the_trial_s_own_end_is_final_at_once(state: State, cause: Cause) -> None:
    outcome = Outcome(state=state, step=1, reason="r", cause=cause)
    assert state_after(outcome, began(), RETRIES) == (state, "r")


def test_a_driver_that_died_leaves_its_trials_waiting_for_the_next() -> None:
    records = Records()
    propose(records, 2)
    records.apply(TrialStarted(at_ms=0, key="0.0", attempt=1))
    records.apply(TrialReported(at_ms=0, key="0.0", attempt=1, step=5, rows=[(5, {"a": 1.0})], pictures=[]))
    records.apply(StudyStarted(at_ms=0, uid="u", provenance={}))
    assert (records.trials["0.0"].state, records.trials["0.0"].step) == (State.WAITING, 5)


def test_the_study_s_state_names_failure_only_when_a_trial_failed() -> None:
    records = Records()
    propose(records, 1)
    records.apply(TrialEnded(at_ms=0, key="0.0", attempt=1, state="diverged", step=1))
    assert study_state(records, Limits(), stopped=False) == "completed"
    records.apply(TrialEnded(at_ms=0, key="0.0", attempt=1, state="failed", step=1))
    assert study_state(records, Limits(), stopped=False) == "failed"
    assert study_state(records, Limits(), stopped=True) == "stopped"
    assert study_state(records, Limits(failed_arms=1), stopped=False) == "completed"
    assert study_state(records, Limits(failed_arms=0), stopped=True) == "failed"
    assert (has_failed(records, Limits(failed_arms=1)), has_failed(records, Limits(failed_arms=0))) == (
        False,
        True,
    )
    assert not has_failed(records, Limits())
    records.apply(StudyEnded(at_ms=9, state="failed"))
    assert (records.state, records.updated_ms) == ("failed", 9)


def test_limits_count_all_submits_together_and_no_time_between_them() -> None:
    records, hour = Records(), 3_600_000
    records.apply(StudyStarted(at_ms=hour, uid="u", provenance={}))
    propose(records, 2)  # its time is 0: events of one submit need not be in order
    records.apply(TrialStarted(at_ms=hour, key="0.0", attempt=1))
    records.apply(TrialEnded(at_ms=2 * hour, key="0.0", attempt=1, state="completed", step=10))
    records.apply(StudyEnded(at_ms=2 * hour, state="stopped"))
    records.apply(StudyStarted(at_ms=9 * hour, uid="u", provenance={}))
    records.apply(TrialStarted(at_ms=9 * hour, key="0.1", attempt=1))
    now = 9 * hour + hour // 2
    assert limit(records, Limits(hours=1.51), 0, now) is None
    assert "1.50 h" in str(limit(records, Limits(hours=1.5), 0, now))
    assert limit(records, Limits(gpu_hours=0.4), 0.25, now) is None
    assert "0.38 GPU-hours" in str(limit(records, Limits(gpu_hours=0.375), 0.25, now))
    assert limit(records, Limits(trials=2), 0, now) is None
    assert "1 trials have ended" in str(limit(records, Limits(trials=1), 0, now))
