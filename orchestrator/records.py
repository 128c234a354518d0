"""The records of a study: what the journal's events add up to. Changed by `apply` alone."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from models import Value
from orchestrator._fields import Objective
from orchestrator.arms import label, short_label
from orchestrator.journal import (
    ArmProposed,
    Event,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from trials.reports import FINAL_SHARE, State


@dataclass(slots=True, kw_only=True)
class TrialRecord:
    """One trial, as far as it has come."""

    key: str
    number: int
    arm: int
    seed: int
    place: int
    """Of its seed in the arm."""
    steps: int
    label: str
    name: str
    """For people: number, arm and seed."""
    state: State = State.WAITING
    attempts: int = 0
    lost: int = 0
    """Attempts that ended because a worker was lost."""
    step: int = 0
    reason: str = ""
    latest: dict[str, float] = field(default_factory=dict)
    best: dict[str, tuple[float, int, float, int]] = field(default_factory=dict)
    """Of each eval/ metric: its lowest value and the step of it, its highest and the step of that."""
    judged_step: int | None = None
    """The step of the newest evaluation."""
    steps_of: dict[str, int] = field(default_factory=dict)
    """The step of the newest value of each eval/ metric."""
    pictures: dict[str, dict[int, str]] = field(default_factory=dict)
    """Key -> step -> file below the trial's directory."""
    run_s: float = 0.0
    _started_ms: int = 0
    _tail: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and count of each train/ metric over the last FINAL_SHARE of training."""

    @property
    def picture(self) -> str | None:
        """The newest sample grid."""
        grids = self.pictures.get("samples/fixed", {})
        return grids[max(grids)] if grids else None

    def value(self, objective: Objective) -> float | None:
        """The trial's value of an objective: that of its best or last evaluation, or the mean of a train/
        metric's tail."""
        metric = objective.metric
        if metric.startswith("final/"):
            total, n = self._tail.get("train/" + metric.removeprefix("final/"), (0.0, 0))
            return total / n if n else None
        if metric not in self.best:
            return None
        if (
            objective.at == "last"
        ):  # of an evaluation that lacks it there is no value, and no older one in its place
            return self.latest[metric] if self.steps_of[metric] == self.judged_step else None
        return self.best[metric][0 if objective.mode == "min" else 2]

    def value_step(self, objective: Objective) -> int | None:
        """The step at which the trial had its value of an objective; of ties the first. None without one."""
        metric = objective.metric
        if metric.startswith("final/") or metric not in self.best:
            return None if self.value(objective) is None else self.step
        if objective.at == "last":
            return self.judged_step if self.value(objective) is not None else None
        _, low_step, _, high_step = self.best[metric]
        return low_step if objective.mode == "min" else high_step

    def grid_at(self, objective: Objective) -> tuple[int, str] | None:
        """Step and file of the sample grid at which the trial had its value of an objective, or the one before it."""
        grids, step = self.pictures.get("samples/fixed", {}), self.value_step(objective)
        before = [at for at in grids if step is not None and at <= step]
        return (max(before), grids[max(before)]) if before else None

    def picture_at(self, objective: Objective) -> str | None:
        """The file of `grid_at`."""
        grid = self.grid_at(objective)
        return grid[1] if grid else None

    def finals(self) -> dict[str, float]:
        """final/NAME for every train/ metric."""
        return {"final/" + name.removeprefix("train/"): total / n for name, (total, n) in self._tail.items()}

    def take(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        for step, metrics in rows:
            self.latest |= metrics
            for name, value in metrics.items():
                if name.startswith("eval/"):
                    self.judged_step = self.steps_of[name] = step
                    low, low_step, high, high_step = self.best.get(name, (value, step, value, step))
                    low, low_step = (value, step) if value < low else (low, low_step)
                    high, high_step = (value, step) if value > high else (high, high_step)
                    self.best[name] = low, low_step, high, high_step
            if step > (1 - FINAL_SHARE) * self.steps:
                for name, value in metrics.items():
                    if name.startswith("train/") and name != "train/epoch":
                        total, n = self._tail.get(name, (0.0, 0))
                        self._tail[name] = (total + value, n + 1)


@dataclass(slots=True, kw_only=True)
class ArmRecord:
    """One arm: its values and its trials, one a seed."""

    arm: int
    proposal: int
    values: Mapping[str, Value]
    trials: list[TrialRecord]

    @property
    def label(self) -> str:
        return label(self.values)

    @property
    def is_final(self) -> bool:
        return all(trial.state.is_final for trial in self.trials)


@dataclass(slots=True)
class Records:
    """All arms and trials of a study, in the order in which they were proposed."""

    arms: list[ArmRecord] = field(default_factory=list)
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    state: str = "waiting"
    uid: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    started_ms: int = 0
    updated_ms: int = 0
    proposals: set[int] = field(default_factory=set)
    """The proposals that became arms."""
    _arms_of: dict[str, list[ArmRecord]] = field(default_factory=dict)
    _counts: Counter[State] = field(default_factory=Counter)
    _queues: dict[bool, list[tuple[int, int, str]]] = field(default_factory=lambda: {True: [], False: []})
    """Heaps of the trials that waited at some time, arm by arm (True) and seed by seed."""

    def apply(self, event: Event) -> None:
        """Take one event."""
        self.updated_ms = event.at_ms
        match event:
            case StudyStarted():
                self.state, self.provenance, self.uid = "running", event.provenance, event.uid
                self.started_ms = self.started_ms or event.at_ms
                for trial in self.trials.values():
                    if trial.state in (State.RUNNING, State.STOPPED):  # its driver is gone
                        self._move(trial, State.WAITING)
            case StudyEnded():
                self.state = event.state
            case ArmProposed():
                self._add_arm(event)
            case TrialStarted():
                trial = self.trials[event.key]
                self._move(trial, State.RUNNING)
                trial.attempts, trial._started_ms, trial.reason = event.attempt, event.at_ms, ""
            case TrialReported():
                trial = self.trials[event.key]
                # A report with nothing but notes may come from before: an older checkpoint was gone back to.
                trial.step = max(trial.step, event.step)
                trial.take(event.rows)
                trial.reason = "; ".join(event.notes) or trial.reason
                for key, step, path in event.pictures:
                    trial.pictures.setdefault(key, {})[step] = path
            case TrialEnded():
                trial = self.trials[event.key]
                self._move(trial, State(event.state))
                trial.reason = event.reason
                trial.lost += trial.state is State.WAITING
                trial.run_s += (event.at_ms - trial._started_ms) / 1000
            case _:
                raise TypeError(f"unknown event {event!r}")

    def _add_arm(self, event: ArmProposed) -> None:
        """Add an arm; one that was proposed before shares its trials, which are never run twice."""
        for place, (key, seed) in enumerate(event.keys.items()):
            if key not in self.trials:
                number = len(self.trials)
                self.trials[key] = TrialRecord(
                    key=key,
                    number=number,
                    arm=event.arm,
                    seed=seed,
                    place=place,
                    steps=event.steps,
                    label=label(event.values),
                    name=f"{number:03d} {short_label(event.values)} seed {seed}",
                )
                self._counts[State.WAITING] += 1
                self._queue(self.trials[key])
        trials = [self.trials[key] for key in event.keys]
        arm = ArmRecord(arm=event.arm, proposal=event.proposal, values=event.values, trials=trials)
        self.arms.append(arm)
        self.proposals.add(event.proposal)
        for trial in trials:
            self._arms_of.setdefault(trial.key, []).append(arm)

    def _move(self, trial: TrialRecord, state: State) -> None:
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state
        if state is State.WAITING:
            self._queue(trial)

    def _queue(self, trial: TrialRecord) -> None:
        heapq.heappush(self._queues[True], (trial.arm, trial.place, trial.key))
        heapq.heappush(self._queues[False], (trial.place, trial.arm, trial.key))

    def first_waiting(self, *, by_arm: bool) -> TrialRecord | None:
        """The trial to start next: the first seed of the first arm, `by_arm` or seed by seed over all arms."""
        queue = self._queues[by_arm]
        while queue and self.trials[queue[0][2]].state is not State.WAITING:
            heapq.heappop(queue)  # it has been started since
        return self.trials[queue[0][2]] if queue else None

    def waiting(self, *, by_arm: bool) -> list[TrialRecord]:
        """All trials that wait, in the order in which they are to start."""
        found = [trial for trial in self.trials.values() if trial.state is State.WAITING]
        return sorted(found, key=lambda t: (t.arm, t.place) if by_arm else (t.place, t.arm))

    def arms_of(self, key: str) -> list[ArmRecord]:
        """The arms that a trial belongs to: several when one is proposed again."""
        return self._arms_of[key]

    def n_trials(self, n_arms: int, n_seeds: int) -> int:
        """How many trials there will be; arms that are proposed twice share theirs."""
        return len(self.trials) + (n_arms - len(self.arms)) * n_seeds

    def count(self, *states: State) -> int:
        """How many trials are in one of the states."""
        return sum(self._counts[state] for state in states)


def replay(events: Iterable[Event]) -> Records:
    """The records that the events add up to."""
    records = Records()
    for event in events:
        records.apply(event)
    return records
