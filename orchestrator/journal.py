"""The journal: everything that happened in a study, one JSON line an event, synced before anyone relies on it.

It is the truth: records, MLflow and the search are brought in line with it after any crash. A line that a crash tore
is the last one; it was never acknowledged and is cut off when the journal is opened for writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from models import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `at_ms`: milliseconds since 1970, fixed when the event is made."""

    kind: ClassVar[str]
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStarted(Event):
    """A submit began to work on the study. `provenance`: versions, commit, machine.

    `uid` is drawn by the first submit and kept: a study that was deleted and submitted again is another one.
    """

    kind = "study_started"
    uid: str
    provenance: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmProposed(Event):
    """The search proposed an arm; `proposal` is its number in the search's own store."""

    kind = "arm_proposed"
    arm: int
    proposal: int
    values: Mapping[str, Value]
    keys: Mapping[str, int]
    """Trial key -> seed, in the order of the study's seeds."""
    steps: int
    until: int | None = None
    """The step of the first rung, at which its trials pause."""
    open_seeds: int | None = None
    """How many of the first seeds run before the last rung is passed; all when None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmAdvanced(Event):
    """An arm passed a rung: its trials may run on to step `until`, the next one, or to their end."""

    kind = "arm_advanced"
    arm: int
    until: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmExtended(Event):
    """An arm got more seeds, or longer trials. `keys`: all of its trials from now on, as when it was proposed.

    `continues`: the new key of a trial that goes on where it ended -> its key until now.
    """

    kind = "arm_extended"
    arm: int
    keys: Mapping[str, int]
    continues: Mapping[str, str]
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted(Event):
    """`together`: how many trials its pack began with."""

    kind = "trial_started"
    key: str
    attempt: int
    together: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPaused(Event):
    """A trial came to a rung and waits for what is decided. `values`: its value of each objective there."""

    kind = "trial_paused"
    key: str
    attempt: int
    step: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialsReopened(Event):
    """Trials that had ended are to run again, from their newest checkpoints."""

    kind = "trials_reopened"
    keys: list[str]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReported(Event):
    """`rows`: (step, metrics); `pictures`: (key, step, path below the trial's directory); `flags`: (name, since which
    step, step, words)."""

    kind = "trial_reported"
    key: str
    attempt: int
    step: int
    rows: list[tuple[int, dict[str, float]]]
    pictures: list[tuple[str, int, str]]
    notes: list[str] = field(default_factory=list)
    flags: list[tuple[str, int, int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded(Event):
    """An attempt ended. `state` is the trial's state from now on; `waiting` means that it will be retried."""

    kind = "trial_ended"
    key: str
    attempt: int
    state: str
    step: int
    reason: str = ""
    detail: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEnded(Event):
    """A submit ended; `state` is completed, failed or stopped. `reason`: the limit that ended it."""

    kind = "study_ended"
    state: str
    reason: str = ""


KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        StudyStarted,
        ArmProposed,
        ArmAdvanced,
        ArmExtended,
        TrialStarted,
        TrialReported,
        TrialPaused,
        TrialEnded,
        TrialsReopened,
        StudyEnded,
    )
}


class Journal:
    """Appends events durably. One writer at a time: hold the study's lock."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the journal
        end = max((offset for _, offset in read(path)), default=0)
        if self._file.tell() > end:
            self._file.truncate(end)

    def append(self, *events: Event) -> None:
        """Write the events; on return they survive a crash of the machine."""
        for event in events:
            line = json.dumps({"event": event.kind, **asdict(event)}, separators=(",", ":"), allow_nan=False)
            self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """The complete events from byte `offset` on, each with the offset after it. A torn last line is left out."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _event(json.loads(line)), offset


def _event(fields: dict[str, Any]) -> Event:
    return KINDS[fields.pop("event")](**fields)
