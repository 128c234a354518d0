"""What to do next, as pure functions of the records. Every backend obeys the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.records import Records, TrialRecord
from trials.reports import Outcome, State

MAX_LOSSES = 3
"""A trial whose worker was lost this many times has failed."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this trial."""

    trial: TrialRecord


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask the search for another arm."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start until a running trial ends."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing will ever have to be started again."""


Decision = Start | Propose | Wait | Done


def decide(records: Records, *, n_arms: int, adaptive: bool, stopping: bool) -> Decision:
    """What to do with a free slot.

    Arms of a search that learns (`adaptive`) are proposed one at a time, when no trial waits. Otherwise all
    are proposed first and the trials run seed by seed: after the first round every arm has a result.
    """
    running = records.count(State.RUNNING)
    if stopping:
        return Wait() if running else Done()
    first = records.first_waiting(by_arm=adaptive)
    more_arms = len(records.arms) < n_arms
    if more_arms and (not adaptive or first is None):
        return Propose()
    if first is None:
        return Wait() if running else Done()
    return Start(first)


def state_after(outcome: Outcome, lost_before: int) -> tuple[State, str]:
    """The trial's state after an attempt ended so, and the reason to record.

    `lost_before`: earlier attempts of the trial that lost their worker. Stops by the user do not count.
    """
    if not outcome.lost:
        return outcome.state, outcome.reason
    lost = lost_before + 1
    if lost < MAX_LOSSES:
        return State.WAITING, f"{outcome.reason} ({lost} of at most {MAX_LOSSES} times); will be retried"
    return State.FAILED, f"{outcome.reason}, {lost} times"


def study_state(records: Records, stopped: bool) -> str:
    """completed, failed (a trial failed) or stopped (trials are left)."""
    if stopped:
        return "stopped"
    return "failed" if records.count(State.FAILED) else "completed"
