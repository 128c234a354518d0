"""Decisions as a pure machine: every trial that starts ends in exactly one final state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal import (
    ArmProposed,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from orchestrator.policy import (
    MAX_LOSSES,
    Done,
    Propose,
    Start,
    Wait,
    decide,
    state_after,
    study_state,
)
from orchestrator.records import Records
from trials.reports import Outcome, State

ENDS = (State.COMPLETED, State.DIVERGED, State.FAILED, "lost")


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
            lost = end == "lost"
            outcome = Outcome(state=State.FAILED if lost else State(str(end)), step=10, lost=lost)
            attempts = records.trials[key].attempts
            state, reason = state_after(outcome, records.trials[key].lost)
            records.apply(TrialEnded(at_ms=0, key=key, attempt=attempts, state=state, step=10, reason=reason))
            finals[key] = finals.get(key, 0) + state.is_final
        else:
            assert isinstance(decision, Done)
            break
    else:
        raise AssertionError("never done")
    assert len(records.trials) == n_arms * n_seeds
    assert all(trial.state.is_final and trial.attempts <= MAX_LOSSES for trial in records.trials.values())
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


@pytest.mark.parametrize("before", range(MAX_LOSSES))
def test_a_lost_worker_is_retried_until_the_limit(before: int) -> None:
    state, reason = state_after(Outcome(state=State.FAILED, step=1, reason="worker died", lost=True), before)
    assert state is (State.WAITING if before + 1 < MAX_LOSSES else State.FAILED)
    assert "worker died" in reason


@pytest.mark.parametrize("state", [State.COMPLETED, State.DIVERGED, State.FAILED, State.STOPPED])
def test_the_trial_s_own_end_is_final_at_once(state: State) -> None:
    assert state_after(Outcome(state=state, step=1, reason="r"), 1) == (state, "r")


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
    assert study_state(records, stopped=False) == "completed"
    records.apply(TrialEnded(at_ms=0, key="0.0", attempt=1, state="failed", step=1))
    assert study_state(records, stopped=False) == "failed"
    assert study_state(records, stopped=True) == "stopped"
    records.apply(StudyEnded(at_ms=9, state="failed"))
    assert (records.state, records.updated_ms) == ("failed", 9)
