"""A study's journal told for people, and as JSON for programs: one line an event."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from orchestrator._words import one_line
from orchestrator.home import StudyFiles
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
    read,
)
from orchestrator.records import Records, TrialRecord
from orchestrator.status import is_running
from trials.reports import State

LOSSES = (("G", "train/g_loss"), ("D", "train/d_loss_mean"), ("D acc", "train/d_acc"))
QUIET_MS = 5000
"""Between two lines about the losses of one trial."""
POLL_S = 0.5
HEADLINES = ("eval/fd", "eval/kid", "eval/precision", "eval/recall", "eval/coverage", "eval/class_tv")
"""Values of evaluations that are told of every trial, beside the objectives."""
VERSIONS = ("gan-sweep", "torch", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Something that happened. `trial`: its name, empty for what concerns the whole study. All text is printable."""

    at_ms: int
    trial: str
    words: str

    @property
    def text(self) -> str:
        """In this machine's time."""
        at = f"{datetime.fromtimestamp(self.at_ms / 1000):%b %d %H:%M:%S}"
        return "  ".join(part for part in (at, self.trial, self.words) if part)


class Teller:
    """Tells the events of one study in their order. `number`: of the only trial that is told of, in full.

    `objectives`: metrics that are told in any case.
    """

    def __init__(self, name: str, number: int | None = None, objectives: Collection[str] = ()) -> None:
        self._name, self._number, self._told = name, number, {*HEADLINES, *objectives}
        self._records = Records()
        self._said_ms: dict[int, int] = {}
        """By trial: when its losses were told the last time."""

    def tell(self, event: Event) -> list[Line]:
        """The lines about the next event, none for one that does not matter."""
        started_before = bool(self._records.started_ms)
        self._records.apply(event)
        trial = self._trial_of(event)
        if self._number is not None and (trial is None or trial.number != self._number):
            return []
        name = one_line(trial.name) if trial else ""
        found = self._of_trial(event, trial) if trial else [self._of_study(event, going_on=started_before)]
        return [Line(at_ms=event.at_ms, trial=name, words=one_line(words)) for words in found if words]

    def to_json(self, event: Event) -> dict[str, object] | None:
        """The event with the trial's number and name; None for one of another trial."""
        self._records.apply(event)
        trial = self._trial_of(event)
        if self._number is not None and (trial is None or trial.number != self._number):
            return None
        about = {"trial": trial.number, "name": trial.name} if trial else {}
        at = datetime.fromtimestamp(event.at_ms / 1000).astimezone().isoformat(timespec="milliseconds")
        return {"at": at, "event": event.kind, **about, **asdict(event)}

    def _trial_of(self, event: Event) -> TrialRecord | None:
        key = getattr(event, "key", None)
        return None if key is None else self._records.trial(key)

    def _of_study(self, event: Event, *, going_on: bool) -> str:
        records = self._records
        match event:
            case StudyStarted():
                facts = event.provenance
                versions = [
                    f"{name} {facts[f'gan_sweep.version.{name}']}"
                    for name in VERSIONS
                    if f"gan_sweep.version.{name}" in facts
                ]
                versions += [facts["gan_sweep.machine"]] if "gan_sweep.machine" in facts else []
                return f"study {self._name} {'goes on' if going_on else 'begins'}: {', '.join(versions)}"
            case ArmProposed():
                arm = records.arms[event.arm]
                numbers = ", ".join(str(trial.number) for trial in arm.trials)
                goal = f"to rung {event.until} first" if event.until is not None else f"{event.steps:,} steps"
                return f"arm {arm.arm} {arm.label}: trials {numbers}, {goal}"
            case ArmAdvanced():
                arm = records.arms[event.arm]
                goal = "to the end" if event.until is None else f"to rung {event.until}"
                return f"arm {arm.arm} {arm.label} goes on {goal}" + _because(event.reason)
            case ArmExtended():
                arm = records.arms[event.arm]
                n = len(event.continues)
                longer = f", {n} of them from where they ended" if n else ""
                return (
                    f"arm {arm.arm} {arm.label} is extended: "
                    f"{_count(len(event.keys), 'trial')} of {event.steps:,} steps{longer}"
                )
            case TrialsReopened():
                numbers = ", ".join(str(records.trial(key).number) for key in event.keys)
                return f"to run again: trials {numbers}" + _because(event.reason)
            case StudyEnded():
                done = records.count(State.COMPLETED)
                return (
                    f"study {self._name} ends, {event.state}: {done} of {len(records.trials)} trials completed"
                    + (_because(event.reason))
                )
        return event.kind

    def _of_trial(self, event: Event, trial: TrialRecord) -> list[str]:
        match event:
            case TrialStarted():
                others = f", in a pack of {event.together}" if event.together > 1 else ""
                return [f"starts, attempt {event.attempt}{others}"]
            case TrialReported():
                return self._report(event, trial)
            case TrialPaused():
                values = " ".join(_value(name, value) for name, value in event.values.items())
                return [f"waits at rung {event.step}: {values}"]
            case TrialEnded():
                return self._end(event, trial)
        return [event.kind]

    def _report(self, event: TrialReported, trial: TrialRecord) -> list[str]:
        found = []
        for step, metrics in event.rows:
            judged = [_value(name, value) for name, value in metrics.items() if self._is_told(name)]
            if judged:
                found.append(f"evaluation at step {step:,}: {' '.join(judged)}")
        losses = next((words for _, m in reversed(event.rows) if (words := loss_words(m))), "")
        quiet = event.at_ms - self._said_ms.get(trial.number, -QUIET_MS) < QUIET_MS
        if losses and (self._number is not None or not quiet):
            self._said_ms[trial.number] = event.at_ms
            found.insert(0, f"step {event.step:,}/{trial.steps:,}  {losses}")
        found += [f"flag at step {step:,}: {words}" for _, _, step, words in event.flags]
        return found + [f"note: {note}" for note in event.notes]

    def _is_told(self, metric: str) -> bool:
        return metric.startswith("eval/") and (self._number is not None or metric in self._told)

    def _end(self, event: TrialEnded, trial: TrialRecord) -> list[str]:
        ended = f"{event.state} at step {event.step:,}"
        if event.state == State.WAITING:
            ended = f"attempt {event.attempt} ended at step {event.step:,}"
        elif event.state == State.COMPLETED:
            ended += f", {trial.run_s:.0f} s"
        detail = event.detail.rstrip().splitlines() if self._number is not None else []
        return [ended + (f": {event.reason}" if event.reason else ""), *(f"  {line}" for line in detail)]


def loss_words(metrics: Mapping[str, float]) -> str:
    """The main losses, those that there are."""
    return "  ".join(f"{name} {metrics[metric]:.3f}" for name, metric in LOSSES if metric in metrics)


def follow(files: StudyFiles, sleep: Callable[[float], None] = time.sleep) -> Iterator[Event]:
    """The journal's events, those to come included, until the study ends or the submit that ran it is gone."""
    offset, is_past = 0, True
    while True:
        at_work = is_running(files)  # before reading: what was written before it went is read
        last = None
        for event, after in read(files.journal, offset):
            last, offset = event, after
            yield event
        if not at_work or (isinstance(last, StudyEnded) and not is_past):
            return
        is_past = False  # an end that stood there before may be an earlier submit's
        sleep(POLL_S)


def _value(name: str, value: float | None) -> str:
    return f"{name.removeprefix('eval/')} {'-' if value is None else f'{value:.4g}'}"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
