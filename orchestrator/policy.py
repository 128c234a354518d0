"""What to do next, as pure functions of the records. Every backend obeys the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator._fields import Limits
from orchestrator.records import Records, TrialRecord
from trials.reports import Cause, Outcome, State

FINAL = tuple(state for state in State if state.is_final)


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


def state_after(outcome: Outcome, trial: TrialRecord, retries: int) -> tuple[State, str]:
    """The trial's state after an attempt ended so, and the reason to record.

    What a worker lost or ran out of is retried, at most `retries` times: a trial that was in a pack when memory ran out
    goes on in a smaller one. What is not finite or was flagged, and errors of code, would come again. Stops by the user
    do not count.
    """
    if outcome.cause not in (Cause.WORKER, Cause.STALLED, Cause.MEMORY):
        return outcome.state, outcome.reason
    if outcome.cause is Cause.MEMORY and trial.together > 1:
        return State.WAITING, f"{outcome.reason}; will be retried in a pack of fewer than {trial.together}"
    n = trial.lost - trial.crowded + 1
    if n <= retries:
        return State.WAITING, f"{outcome.reason} ({n} of at most {retries + 1} times); will be retried"
    return State.FAILED, f"{outcome.reason}, {n} time{'' if n == 1 else 's'}"


def limit(records: Records, limits: Limits, gpu: float, now_ms: int) -> str | None:
    """The limit that the study has come to, in words, or None. `gpu`: a trial's share of a GPU."""
    ended = records.count(*FINAL)
    if limits.trials is not None and ended >= limits.trials:
        return f"limits.trials: {ended} trials have ended"
    hours = (records.active_s + max(0, now_ms - records.submitted_ms) / 1000) / 3600
    if limits.hours is not None and hours >= limits.hours:
        return f"limits.hours: the study has taken {hours:.2f} h"
    gpu_hours = gpu * sum(t.seconds(now_ms) for t in records.trials.values()) / 3600
    if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
        return f"limits.gpu_hours: trials have taken {gpu_hours:.2f} GPU-hours"
    return None


def failed_arms(records: Records) -> int:
    """How many arms have a trial that failed."""
    return sum(any(t.state is State.FAILED for t in arm.trials) for arm in records.arms)


def has_failed(records: Records, limits: Limits) -> bool:
    """Whether more arms failed than the study allows."""
    return limits.failed_arms is not None and failed_arms(records) > limits.failed_arms


def study_state(records: Records, limits: Limits, stopped: bool) -> str:
    """completed, failed (more arms failed than allowed, by default none) or stopped (trials are left)."""
    if failed_arms(records) > (limits.failed_arms or 0) and (not stopped or limits.failed_arms is not None):
        return "failed"
    return "stopped" if stopped else "completed"
