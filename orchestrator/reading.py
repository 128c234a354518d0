"""Everything that a page about a study needs of it, read from its directory in one pass over the journal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models import Value
from orchestrator.arms import resolved
from orchestrator.home import StudyFiles
from orchestrator.journal import ArmExtended, StudyEnded, StudyStarted, TrialEnded, TrialReported, read
from orchestrator.leaderboard import Standing, leaderboard
from orchestrator.records import Records, TrialRecord
from orchestrator.status import is_running, load_definition
from orchestrator.study import StudySpec, image_shape
from trials.reports import State
from trials.spec import TrialSpec

Series = tuple[list[int], list[float]]
"""Steps and values."""


@dataclass(kw_only=True)
class Reading:
    """A study as it is now. `curves`: trial key -> metric -> series. `details`: trial key -> what its last attempt
    left behind, such as a traceback. `busy_s`: seconds that submits were at work, `submits` of them.
    """

    files: StudyFiles
    study: StudySpec
    records: Records
    curves: dict[str, dict[str, Series]]
    details: dict[str, str]
    busy_s: float
    submits: int
    running: bool

    @cached_property
    def standings(self) -> list[Standing]:
        return leaderboard(self.records, *self.study.objectives)

    @property
    def state(self) -> str:
        """waiting, running, stopped, completed or failed: a study whose driver is gone is stopped."""
        if self.running:
            return "running"
        return "stopped" if self.records.state == "running" else self.records.state

    def trial_state(self, trial: TrialRecord) -> State:
        """The trial's state; one that nobody runs any more is stopped."""
        gone = trial.state is State.RUNNING and not self.running
        return State.STOPPED if gone else trial.state

    def picture(self, trial: TrialRecord, key: str = "samples/fixed", step: int | None = None) -> Path | None:
        """A trial's picture, the newest one of its key without a step; None when its file is not there."""
        found = trial.pictures.get(key, {})
        return self._file(trial, found.get(max(found) if step is None else step) if found else None)

    def sample_grid(self, trial: TrialRecord) -> Path | None:
        """The grid of samples of the step that the trial's value is from; None when its file is not there."""
        return self._file(trial, trial.picture_at(self.study.objective))

    def _file(self, trial: TrialRecord, path: str | None) -> Path | None:
        whole = self.files.trial(trial.folder) / path if path else None
        return whole if whole is not None and whole.is_file() else None

    def recorded(self, fact: str) -> dict[str, str]:
        """A fact of the provenance that is an object; empty when it was not recorded, or cannot be read."""
        try:
            found = json.loads(self.records.provenance.get(fact, "{}"))
        except ValueError:
            return {}
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}

    def judge(self, spec: TrialSpec) -> str:
        """The network in whose features a trial's images are compared, and how good it is, as the submit recorded
        it: `classifier_1a2b3c4d, right about 98.50% of held-out images`. Empty when it was not."""
        label = spec.dataset if spec.size is None else f"{spec.dataset}, averaged to {spec.size}"
        return self.recorded("gan_sweep.features").get(label, "")


def judged_on_different_images(study: StudySpec, arms: Iterable[Mapping[str, Value]]) -> bool:
    """Whether an objective is of evaluations, and the arms of these values have different images to be judged on: their
    values do not compare then."""
    judged = any(objective.metric.startswith("eval/") for objective in study.objectives)
    return judged and len({_images(resolved(study, values)) for values in arms}) > 1


def _images(study: StudySpec) -> tuple[object, ...]:
    """What decides which images a study is judged on."""
    d = study.dataset
    averaged_from = d.stored if d.stored != d.size else None
    return d.name, d.folder, averaged_from, image_shape(study), d.limit, d.hold_out


def read_study(files: StudyFiles) -> Reading:
    """Read a submitted study. Raises UsageError when this version cannot read its definition."""
    study, running = load_definition(files), is_running(files)
    records, submits, busy_ms, since_ms, now_ms = Records(), 0, 0, 0, 0
    curves: dict[str, dict[str, Series]] = {}
    details: dict[str, str] = {}
    for event, _ in read(files.journal):
        if isinstance(event, StudyStarted):
            if since_ms:  # the last one was killed: it was at work until it last said something
                busy_ms += now_ms - since_ms
            submits, since_ms = submits + 1, event.at_ms
        elif isinstance(event, StudyEnded) and since_ms:
            busy_ms, since_ms = busy_ms + event.at_ms - since_ms, 0
        elif isinstance(event, TrialReported):
            extend(curves.setdefault(event.key, {}), event.rows)
        elif isinstance(event, ArmExtended):
            for new, old in event.continues.items():
                curves[new] = curves.pop(old, {})
                details[new] = details.pop(old, "")
        elif isinstance(event, TrialEnded):
            details[event.key] = event.detail
        now_ms = event.at_ms
        records.apply(event)
    return Reading(
        files=files,
        study=study,
        records=records,
        curves=curves,
        details={key: text for key, text in details.items() if text},
        busy_s=(busy_ms + (now_ms - since_ms if since_ms else 0)) / 1000,
        submits=submits,
        running=running,
    )


def extend(series: dict[str, Series], rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Add a report's rows to the series of a trial: metric -> steps and values."""
    for step, metrics in rows:
        for name, value in metrics.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
