"""The sweep: a study on its way. Backends ask it what to run and tell it what happened.

It decides through policy.py, asks the search for arms, and writes every event to the journal before anyone
relies on it. It runs in the driver's main thread; other threads may read its records.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol

from models import Value
from orchestrator import arms, policy
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, features_directory
from orchestrator.journal import (
    ArmProposed,
    Event,
    Journal,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
    read,
)
from orchestrator.machine import Slots
from orchestrator.records import ArmRecord, Records, replay
from orchestrator.study import Objective, StudySpec
from trials.data import PreparedDataset
from trials.datasets import DatasetSource
from trials.packs import fusion_key
from trials.reports import Assignment, Outcome, Report, State
from trials.spec import TrialSpec

MATMUL = "gan_sweep.matmul"
"""The fact of a study's provenance that says which matrix kernels its trials use."""


class Search(Protocol):
    """Where arms come from."""

    def propose(self, taken: set[int]) -> tuple[int, dict[str, Value]]:
        """A new arm with its number; never one whose number is in `taken`."""

    def tell(self, proposal: int, values: Sequence[float] | None) -> None:
        """The arm's value of each objective; None when a seed diverged or failed. Idempotent."""


class Backend(Protocol):
    """Runs trials somewhere."""

    def run(self, sweep: Sweep) -> None:
        """Run assignments from `sweep.next()` until `sweep.finished`, reporting every report and every end.

        Must call `reported` before the attempt goes on, and `ended` exactly once for each assignment.
        """


class Sweep:
    """One submit of one study, from its journal to its end."""

    def __init__(
        self,
        study: StudySpec,
        files: StudyFiles,
        search: Search,
        datasets: Mapping[DatasetSource, PreparedDataset],
        slots: Slots,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.study, self.files, self.slots = study, files, slots
        self.pack_size: Callable[[TrialSpec], int] = lambda _: 1
        """How many trials like this one may be one pack."""
        self.recorded: Callable[[TrialSpec], bool] = lambda _: False
        """Whether trials like this one take their steps from a recording."""
        self._adaptive = study.search.sampler == "tpe"
        self._search, self._datasets, self._clock = search, datasets, clock
        self._stopping = False
        self._fusions: dict[str, Hashable] = {}
        self.records: Records = replay(event for event, _ in read(files.journal))
        self._journal = Journal(files.journal)
        self.n_arms = arms.arm_count(study)

    @property
    def finished(self) -> bool:
        """True when nothing runs and nothing will be started any more."""
        return isinstance(self._decide(), policy.Done)

    @property
    def n_trials(self) -> int:
        """How many trials the study has; arms that are proposed twice share theirs."""
        return self.records.n_trials(self.n_arms, len(self.study.seeds))

    @property
    def stopping(self) -> bool:
        return self._stopping

    def start(self, provenance: Mapping[str, str]) -> None:
        """Begin, or go on where the journal ends."""
        self.files.stop.unlink(missing_ok=True)
        uid = self.records.uid or uuid.uuid4().hex
        self._write(StudyStarted(at_ms=self._now(), uid=uid, provenance=provenance))
        self._tell(self.records.arms)  # a crash may have come between a last trial's end and the tell

    def end(self) -> str:
        """Record the end, unless it is recorded already, and let go of the journal; returns the study's state."""
        if self.records.state == "running":
            left = any(not trial.state.is_final for trial in self.records.trials.values())
            state = policy.study_state(self.records, stopped=left or len(self.records.arms) < self.n_arms)
            self._write(StudyEnded(at_ms=self._now(), state=state))
        self.files.stop.unlink(missing_ok=True)
        self._journal.close()
        return self.records.state

    def request_stop(self) -> None:
        """Start nothing more and ask running trials to save a checkpoint and end."""
        self._stopping = True
        self.files.stop.touch()

    def next(self) -> list[Assignment]:
        """The attempts to start now in one worker, a trial or a pack; none: `finished` says whether to ask again."""
        while True:
            match self._decide():
                case policy.Propose():
                    self._propose()
                case policy.Start(trial):
                    return [self._start_trial(key) for key in self._companions(trial.key)]
                case policy.Wait() | policy.Done():
                    return []

    def heard(self, key: str, attempt: int, said: Report | Outcome) -> None:
        """Record what an attempt said."""
        if isinstance(said, Outcome):
            self.ended(key, attempt, said)
        else:
            self.reported(key, attempt, said)

    def reported(self, key: str, attempt: int, report: Report) -> None:
        """Record a report. Steps that an earlier attempt reported already are not recorded again."""
        trial = self.records.trials[key]
        if attempt != trial.attempts:
            return
        rows = [(row.step, dict(row.metrics)) for row in report.rows if row.step > trial.step]
        pictures = [(p.key, p.step, p.path) for p in report.pictures if p.step > trial.step]
        if rows or pictures or report.notes:
            self._write(
                TrialReported(
                    at_ms=self._now(),
                    key=key,
                    attempt=attempt,
                    step=report.step,
                    rows=rows,
                    pictures=pictures,
                    notes=list(report.notes),
                )
            )

    def ended(self, key: str, attempt: int, outcome: Outcome) -> None:
        """Record an attempt's end and, with the last seed of an arm, tell the search."""
        trial = self.records.trials[key]
        if attempt != trial.attempts or trial.state is not State.RUNNING:
            return
        state, reason = policy.state_after(outcome, trial.lost)
        lacking = [o.metric for o in self.study.objectives if trial.value(o) is None]
        if state is State.COMPLETED and lacking:
            reported = ", ".join(sorted(trial.latest)) or "nothing"
            state, reason = State.FAILED, f"metric {lacking[0]!r} was not reported; reported: {reported}"
        self._write(
            TrialEnded(
                at_ms=self._now(), key=key, attempt=attempt, state=state, step=max(outcome.step, trial.step),
                reason=reason, detail=outcome.detail,
            )
        )  # fmt: skip
        self._tell(self.records.arms_of(key))

    def _decide(self) -> policy.Decision:
        return policy.decide(
            self.records,
            n_arms=self.n_arms,
            adaptive=self._adaptive,
            stopping=self._stopping,
        )

    def _propose(self) -> None:
        proposal, values = self._search.propose(self.records.proposals)
        digest = self._dataset(values).digest
        specs = [arms.trial_spec(self.study, values, seed, digest) for seed in self.study.seeds]
        self._write(
            ArmProposed(
                at_ms=self._now(),
                arm=len(self.records.arms),
                proposal=proposal,
                values=values,
                keys={spec.key: spec.seed for spec in specs},
                steps=specs[0].steps,
            )
        )
        self._tell(self.records.arms[-1:])  # an arm proposed before may be finished already

    def _companions(self, key: str) -> list[str]:
        """The trial and those that wait and fit into one pack with it, shared out evenly over the slots."""
        largest = self.pack_size(self._spec(key))
        if largest == 1:
            return [key]
        fusion = self._fusion(key)
        waiting = self.records.waiting(by_arm=self._adaptive)
        fitting = [trial.key for trial in waiting if self._fusion(trial.key) == fusion]
        running = [t for t in self.records.trials.values() if t.state is State.RUNNING]
        share = len(fitting) + sum(self._fusion(trial.key) == fusion for trial in running)
        return fitting[: min(largest, -(-share // self.slots.count))]

    def _fusion(self, key: str) -> Hashable:
        if key not in self._fusions:
            self._fusions[key] = fusion_key(self._spec(key))
        return self._fusions[key]

    def _spec(self, key: str) -> TrialSpec:
        trial = self.records.trials[key]
        values = self.records.arms[trial.arm].values
        return arms.trial_spec(self.study, values, trial.seed, self._dataset(values).digest)

    def _start_trial(self, key: str) -> Assignment:
        trial = self.records.trials[key]
        attempt = trial.attempts + 1
        dataset, spec = self._dataset(self.records.arms[trial.arm].values), self._spec(key)
        if spec.key != key:
            raise UsageError(
                f"trial {trial.name} would not be the one that was begun: its dataset or the defaults of its model "
                "have changed since; choose a new name for the study: --set name=NEW_NAME"
            )
        self._write(TrialStarted(at_ms=self._now(), key=key, attempt=attempt))
        return Assignment(
            key=key,
            attempt=attempt,
            spec=spec,
            directory=self.files.trial(key),
            images=dataset.images,
            labels=dataset.labels,
            features=features_directory(),
            checkpoint_every=arms.checkpoint_every(self.study, spec.steps),
            device="cuda" if self.slots.gpu else "cpu",
            threads=self.slots.threads,
            matmul="onednn" if self.records.provenance.get(MATMUL) == "onednn" else "default",
            recorded=self.recorded(spec),
        )

    def _dataset(self, values: Mapping[str, Value]) -> PreparedDataset:
        return self._datasets[arms.resolved(self.study, values).dataset.source]

    def _tell(self, finished: Iterable[ArmRecord]) -> None:
        for arm in finished:
            if arm.is_final:
                means = [self._mean(arm, objective) for objective in self.study.objectives]
                known = [mean for mean in means if mean is not None]
                self._search.tell(arm.proposal, known if len(known) == len(means) else None)

    @staticmethod
    def _mean(arm: ArmRecord, objective: Objective) -> float | None:
        """The arm's mean over all of its seeds; None when one has no value."""
        values = [t.value(objective) if t.state is State.COMPLETED else None for t in arm.trials]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    def _write(self, event: Event) -> None:
        self._journal.append(event)
        self.records.apply(event)

    def _now(self) -> int:
        return int(self._clock() * 1000)
