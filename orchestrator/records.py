"""The records of a study: what the journal's events add up to. Changed by `apply` alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from models import Value
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
    picture: str | None = None
    """The newest sample grid, below the trial's directory."""
    run_s: float = 0.0
    _started_ms: int = 0
    _tail: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and count of each train/ metric over the last FINAL_SHARE of training."""

    def value(self, metric: str) -> float | None:
        """The trial's value of an objective: the latest eval/ value, or the mean of a train/ metric's tail."""
        if metric.startswith("final/"):
            total, n = self._tail.get("train/" + metric.removeprefix("final/"), (0.0, 0))
            return total / n if n else None
        return self.latest.get(metric)

    def finals(self) -> dict[str, float]:
        """final/NAME for every train/ metric."""
        return {"final/" + name.removeprefix("train/"): total / n for name, (total, n) in self._tail.items()}

    def take(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        for step, metrics in rows:
            self.latest |= metrics
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

    def apply(self, event: Event) -> None:
        """Take one event."""
        self.updated_ms = event.at_ms
        match event:
            case StudyStarted():
                self.state, self.provenance, self.uid = "running", event.provenance, event.uid
                self.started_ms = self.started_ms or event.at_ms
                for trial in self.trials.values():
                    if trial.state in (State.RUNNING, State.STOPPED):  # its driver is gone
                        trial.state = State.WAITING
            case StudyEnded():
                self.state = event.state
            case ArmProposed():
                self._add_arm(event)
            case TrialStarted():
                trial = self.trials[event.key]
                trial.state, trial.attempts, trial._started_ms = State.RUNNING, event.attempt, event.at_ms
                trial.reason = ""
            case TrialReported():
                trial = self.trials[event.key]
                # A report with nothing but notes may come from before: an older checkpoint was gone back to.
                trial.step = max(trial.step, event.step)
                trial.take(event.rows)
                trial.reason = "; ".join(event.notes) or trial.reason
                for key, _, path in event.pictures:
                    if key == "samples/fixed":
                        trial.picture = path
            case TrialEnded():
                trial = self.trials[event.key]
                trial.state, trial.reason = State(event.state), event.reason
                trial.lost += trial.state is State.WAITING
                trial.run_s += (event.at_ms - trial._started_ms) / 1000
            case _:
                raise TypeError(f"unknown event {event!r}")

    def _add_arm(self, event: ArmProposed) -> None:
        """Add an arm; one that was proposed before shares its trials, which are never run twice."""
        for key, seed in event.keys.items():
            if key not in self.trials:
                number = len(self.trials)
                self.trials[key] = TrialRecord(
                    key=key,
                    number=number,
                    arm=event.arm,
                    seed=seed,
                    steps=event.steps,
                    label=label(event.values),
                    name=f"{number:03d} {short_label(event.values)} seed {seed}",
                )
        trials = [self.trials[key] for key in event.keys]
        self.arms.append(
            ArmRecord(arm=event.arm, proposal=event.proposal, values=event.values, trials=trials)
        )

    def n_trials(self, n_arms: int, n_seeds: int) -> int:
        """How many trials there will be; arms that are proposed twice share theirs."""
        return len(self.trials) + (n_arms - len(self.arms)) * n_seeds

    def count(self, *states: State) -> int:
        """How many trials are in one of the states."""
        return sum(trial.state in states for trial in list(self.trials.values()))


def replay(events: Iterable[Event]) -> Records:
    """The records that the events add up to."""
    records = Records()
    for event in events:
        records.apply(event)
    return records
