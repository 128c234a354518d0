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
    ArmAdvanced,
    ArmExtended,
    ArmProposed,
    Event,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialPaused,
    TrialReported,
    TrialsReopened,
    TrialStarted,
)
from trials.reports import FINAL_SHARE, Cause, State


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
    folder: str
    """The name of its directory: its key, or the key that it was begun under before it was extended."""
    was: tuple[str, ...] = ()
    """Earlier keys of a trial that was extended."""
    state: State = State.WAITING
    held: bool = False
    """It waits for what is decided about its arm, not for a worker."""
    attempts: int = 0
    lost: int = 0
    """Attempts that ended through no fault of the trial, and were followed by another."""
    together: int = 1
    """How many trials the pack of its newest attempt began with."""
    crowded: int = 0
    """Times that its pack was too large for the memory."""
    step: int = 0
    reason: str = ""
    cause: Cause = Cause.NONE
    flags: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Of each flag that was raised: the step of the first time, and words."""
    at_rungs: dict[int, Mapping[str, float | None]] = field(default_factory=dict)
    """Rung -> value of each objective there."""
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
    def keys(self) -> tuple[str, ...]:
        """Its key, and those it had while it was shorter."""
        return (self.key, *self.was)

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

    def seconds(self, now_ms: int) -> float:
        """Seconds that its attempts took, the one that runs until now included."""
        running = max(0, now_ms - self._started_ms) / 1000 if self.state is State.RUNNING else 0.0
        return self.run_s + running

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
    until: int | None = None
    """The rung that its trials may run to; None when no rung is left."""
    open_seeds: int | None = None
    """How many of the first seeds run before the last rung is passed; all when None."""
    extended: bool = False
    """It got more seeds or longer trials after the search was told of it."""

    @property
    def open_trials(self) -> list[TrialRecord]:
        """Those that may run before the last rung is passed."""
        return self.trials[: self.open_seeds]

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
    active_s: float = 0.0
    """Seconds that the submits before the newest one took."""
    submitted_ms: int = 0
    """When the newest submit began."""
    reason: str = ""
    """Why the newest submit ended before its trials did."""
    reopened: set[str] = field(default_factory=set)
    """Keys of the trials that were run again after they had ended."""
    proposals: set[int] = field(default_factory=set)
    """The proposals that became arms."""
    _renamed: dict[str, str] = field(default_factory=dict)
    """Key of a trial that was extended -> the key after that."""
    _arms_of: dict[str, list[ArmRecord]] = field(default_factory=dict)
    _counts: Counter[State] = field(default_factory=Counter)
    _queues: dict[bool, list[tuple[int, int, str]]] = field(default_factory=lambda: {True: [], False: []})
    """Heaps of the trials that waited at some time, arm by arm (True) and seed by seed."""

    def apply(self, event: Event) -> None:
        """Take one event."""
        before_ms, self.updated_ms = self.updated_ms, event.at_ms
        match event:
            case StudyStarted():
                self.state, self.provenance, self.uid = "running", event.provenance, event.uid
                self.started_ms = self.started_ms or event.at_ms
                self.active_s += max(0, before_ms - self.submitted_ms) / 1000 if self.submitted_ms else 0.0
                self.submitted_ms, self.reason = event.at_ms, ""
                for trial in self.trials.values():
                    if trial.state is State.RUNNING:  # its driver is gone
                        trial.run_s += max(0, before_ms - trial._started_ms) / 1000
                    if trial.state in (State.RUNNING, State.STOPPED):
                        self._move(trial, State.WAITING)
            case StudyEnded():
                self.state, self.reason = event.state, event.reason
            case ArmProposed():
                self._add_arm(event)
            case ArmAdvanced():
                arm = self.arms[event.arm]
                arm.until = event.until
                for trial in arm.trials if event.until is None else arm.open_trials:
                    if trial.held:
                        trial.held, trial.reason = False, ""
                        self._queue(trial)
            case ArmExtended():
                self._extend(event)
            case TrialStarted():
                trial = self.trials[event.key]
                self._move(trial, State.RUNNING)
                trial.attempts, trial._started_ms, trial.reason = event.attempt, event.at_ms, ""
                trial.together, trial.cause = event.together, Cause.NONE
            case TrialReported():
                trial = self.trials[event.key]
                # A report with nothing but notes may come from before: an older checkpoint was gone back to.
                trial.step = max(trial.step, event.step)
                trial.take(event.rows)
                trial.reason = "; ".join(event.notes) or trial.reason
                for key, step, path in event.pictures:
                    trial.pictures.setdefault(key, {})[step] = path
                for name, _, step, words in event.flags:
                    trial.flags.setdefault(name, (step, words))
            case TrialPaused():
                trial = self.trials[event.key]
                trial.held = True
                self._move(trial, State.WAITING)
                trial.step, trial.reason = max(trial.step, event.step), f"at rung {event.step}"
                trial.at_rungs[event.step] = event.values
                trial.run_s += (event.at_ms - trial._started_ms) / 1000
            case TrialEnded():
                trial = self.trials[event.key]
                if trial.state is State.RUNNING:  # not one that is pruned while it waits
                    trial.run_s += (event.at_ms - trial._started_ms) / 1000
                self._move(trial, State(event.state))
                trial.reason, trial.cause, trial.held = event.reason, Cause(event.cause), False
                trial.lost += trial.state is State.WAITING
                crowded = trial.cause is Cause.MEMORY and trial.together > 1
                trial.crowded += trial.state is State.WAITING and crowded
            case TrialsReopened():
                self.reopened.update(event.keys)
                for key in event.keys:
                    trial = self.trials[key]
                    trial.lost, trial.reason, trial.cause = trial.crowded, event.reason, Cause.NONE
                    self._move(trial, State.WAITING)
            case _:
                raise TypeError(f"unknown event {event!r}")

    def _add_arm(self, event: ArmProposed) -> None:
        """Add an arm; one that was proposed before shares its trials, which are never run twice."""
        arm = ArmRecord(
            arm=event.arm, proposal=event.proposal, values=event.values, trials=[],
            until=event.until, open_seeds=event.open_seeds,
        )  # fmt: skip
        for place, (key, seed) in enumerate(event.keys.items()):
            if key not in self.trials:
                self._add_trial(arm, key, seed, place, event.steps)
        arm.trials = [self.trials[key] for key in event.keys]
        self.arms.append(arm)
        self.proposals.add(event.proposal)
        for trial in arm.trials:
            self._arms_of.setdefault(trial.key, []).append(arm)

    def _add_trial(self, arm: ArmRecord, key: str, seed: int, place: int, steps: int) -> None:
        number = len(self.trials)
        shut = arm.open_seeds is not None and place >= arm.open_seeds and arm.until is not None
        self.trials[key] = TrialRecord(
            key=key,
            number=number,
            arm=arm.arm,
            seed=seed,
            place=place,
            steps=steps,
            label=arm.label,
            name=f"{number:03d} {short_label(arm.values)} seed {seed}",
            folder=key,
            held=shut,
        )
        self._counts[State.WAITING] += 1
        if not shut:
            self._queue(self.trials[key])

    def _extend(self, event: ArmExtended) -> None:
        """Give an arm its new trials; those that go on longer keep their number, directory and all that they said."""
        arm = self.arms[event.arm]
        for place, (key, seed) in enumerate(event.keys.items()):
            old = event.continues.get(key)
            if key in self.trials:  # also when an arm that was proposed twice is extended the second time
                continue
            if old is None:
                self._add_trial(arm, key, seed, place, event.steps)
                if any(trial.state is State.PRUNED for trial in arm.trials):
                    self._move(self.trials[key], State.PRUNED)
                    self.trials[key].reason = "its arm was pruned before this seed was added"
                continue
            trial = self.trials[old]
            self.trials = {key if k == old else k: t for k, t in self.trials.items()}
            self._arms_of[key] = self._arms_of.pop(old)
            self._renamed[old] = key
            trial.was, trial.key, trial.steps = (*trial.was, old), key, event.steps
            if trial.state not in (State.PRUNED, State.DIVERGED, State.FAILED):
                trial.lost, trial.reason, trial.cause = trial.crowded, "", Cause.NONE
                trial._tail.clear()
                self._move(trial, State.WAITING)
        arm.trials, arm.extended = [self.trials[key] for key in event.keys], True
        for trial in arm.trials:
            if not any(other is arm for other in self._arms_of.setdefault(trial.key, [])):
                self._arms_of[trial.key].append(arm)

    def _move(self, trial: TrialRecord, state: State) -> None:
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state
        if state is State.WAITING and not trial.held:
            self._queue(trial)

    def _queue(self, trial: TrialRecord) -> None:
        heapq.heappush(self._queues[True], (trial.arm, trial.place, trial.key))
        heapq.heappush(self._queues[False], (trial.place, trial.arm, trial.key))

    def first_waiting(self, *, by_arm: bool) -> TrialRecord | None:
        """The trial to start next: the first seed of the first arm, `by_arm` or seed by seed over all arms."""
        queue = self._queues[by_arm]
        while queue and not self._is_ready(queue[0][2]):
            heapq.heappop(queue)  # it has been started since, or has another key
        return self.trials[queue[0][2]] if queue else None

    def waiting(self, *, by_arm: bool) -> list[TrialRecord]:
        """All trials that wait for a worker, in the order in which they are to start."""
        found = [trial for trial in self.trials.values() if self._is_ready(trial.key)]
        return sorted(found, key=lambda t: (t.arm, t.place) if by_arm else (t.place, t.arm))

    def _is_ready(self, key: str) -> bool:
        trial = self.trials.get(key)
        return trial is not None and trial.state is State.WAITING and not trial.held

    def trial(self, key: str) -> TrialRecord:
        """The trial that has the key, or had it before it was extended."""
        while key in self._renamed:
            key = self._renamed[key]
        return self.trials[key]

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
