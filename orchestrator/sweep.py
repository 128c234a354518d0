"""The sweep: a study on its way. Backends ask it what to run and tell it what happened.

It decides through policy.py, asks the search for arms, and writes every event to the journal before anyone
relies on it. It runs in the driver's main thread; other threads may read its records.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol

from models import Value
from orchestrator import arms, policy, pruning
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, features_directory
from orchestrator.journal import (
    ArmAdvanced,
    ArmExtended,
    ArmProposed,
    Event,
    Journal,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialPaused,
    TrialReported,
    TrialsReopened,
    TrialStarted,
    read,
)
from orchestrator.machine import Slots
from orchestrator.records import ArmRecord, Records, TrialRecord, replay
from orchestrator.samplers import SAMPLERS
from orchestrator.study import Objective, StudySpec
from trials.data import PreparedDataset
from trials.datasets import DatasetSource
from trials.packs import fusion_key
from trials.reports import Assignment, Outcome, Report, State
from trials.spec import TrialSpec

POLL_S = 0.5
"""Between two looks at limits and at what other processes ask for."""
MATMUL = "gan_sweep.matmul"
"""The fact of a study's provenance that says which matrix kernels its trials use."""


class Search(Protocol):
    """Where arms come from."""

    def propose(self, taken: set[int]) -> tuple[int, dict[str, Value]]:
        """A new arm with its number; never one whose number is in `taken`."""

    def tell(
        self, proposal: int, values: Sequence[float] | None, *, pruned: tuple[int, float] | None = None
    ) -> None:
        """The arm's value of each objective; None when a seed diverged or failed, or the arm was `pruned` at a step
        with a value. Idempotent."""

    def retell(self, proposal: int, values: Sequence[float]) -> None:
        """The values of an arm that was told without, and whose lost seeds were run again. Idempotent."""


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
        self._adaptive = SAMPLERS[study.search.sampler].adaptive
        self._search, self._datasets, self._clock = search, datasets, clock
        self._stopping = False
        self._polled = -math.inf
        self.stop_reason = ""
        """Why the sweep stops before its end; empty when the user asked for it."""
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
        self._judge_rungs()  # or between a last trial's pause and the verdict

    def reopen(self, keys: Sequence[str], reason: str) -> None:
        """Let trials that have ended run again, those that are still as they were. Call before `start`."""
        there = (self.records.trials.get(key) for key in keys)
        ended = [t.key for t in there if t is not None and t.state in (State.FAILED, State.DIVERGED)]
        if ended:
            self._write(TrialsReopened(at_ms=self._now(), keys=ended, reason=reason))

    def extend(self) -> int:
        """Bring the arms in line with a definition that has more seeds or longer trials; returns how many go on.

        Call before `start`. Doing it again changes nothing.
        """
        for arm in list(self.records.arms):
            specs = self._specs(arm.values)
            before = {trial.seed: trial for trial in arm.trials}
            keys = {spec.key: spec.seed for spec in specs}
            if list(keys) == [trial.key for trial in arm.trials]:
                continue
            continues = {
                spec.key: before[spec.seed].key
                for spec in specs
                if spec.seed in before and before[spec.seed].key != spec.key
            }
            event = ArmExtended(
                at_ms=self._now(), arm=arm.arm, keys=keys, continues=continues, steps=specs[0].steps
            )
            self._write(event)
        return sum(not arm.is_final for arm in self.records.arms)

    def end(self) -> str:
        """Record the end, unless it is recorded already, and let go of the journal; returns the study's state."""
        if self.records.state == "running":
            left = any(not trial.state.is_final for trial in self.records.trials.values())
            left = left or len(self.records.arms) < self.n_arms
            state = policy.study_state(self.records, self.study.limits, stopped=left)
            self._write(StudyEnded(at_ms=self._now(), state=state, reason=self.stop_reason))
        self.files.stop.unlink(missing_ok=True)
        self.files.stop_request.unlink(missing_ok=True)
        self._journal.close()
        return self.records.state

    def request_stop(self, reason: str = "") -> None:
        """Start nothing more and ask running trials to save a checkpoint and end. `reason`: the limit, if any."""
        self._stopping = True
        self.stop_reason = self.stop_reason or reason
        self.files.stop.touch()

    def poll(self, *, every_s: float = 0.0) -> None:
        """Stop at a limit, or when another process asked for it; looks again after `every_s` at the earliest."""
        now = self._clock()
        if self._stopping or now - self._polled < every_s:
            return
        self._polled = now
        if self.files.stop_request.exists():
            self.request_stop("stopped on request")
        elif policy.has_failed(self.records, self.study.limits):
            self.request_stop(f"limits.failed_arms: {policy.failed_arms(self.records)} arms have failed")
        elif words := policy.limit(self.records, self.study.limits, self.slots.gpu, self._now()):
            self.request_stop(words)

    def next(self) -> list[Assignment]:
        """The attempts to start now in one worker, a trial or a pack; none: `finished` says whether to ask again."""
        while True:
            self.poll()
            match self._decide():
                case policy.Propose():
                    self._propose()
                case policy.Start(trial) if self.files.stop_of(trial.folder).exists():
                    self._put_aside(trial)
                case policy.Start(trial):
                    keys = self._companions(trial.key)
                    return [self._start_trial(key, len(keys)) for key in keys]
                case policy.Wait() | policy.Done():
                    return []

    def heard(self, key: str, attempt: int, said: Report | Outcome) -> None:
        """Record what an attempt said."""
        if isinstance(said, Report):
            self.reported(key, attempt, said)
        elif said.paused:
            self.paused(key, attempt, said.step)
        else:
            self.ended(key, attempt, said)
        self.poll(every_s=POLL_S)

    def reported(self, key: str, attempt: int, report: Report) -> None:
        """Record a report. Steps that an earlier attempt reported already are not recorded again."""
        trial = self.records.trials[key]
        if attempt != trial.attempts:
            return
        rows = [(row.step, dict(row.metrics)) for row in report.rows if row.step > trial.step]
        pictures = [(p.key, p.step, p.path) for p in report.pictures if p.step > trial.step]
        if rows or pictures or report.notes or report.flags:
            self._write(
                TrialReported(
                    at_ms=self._now(),
                    key=key,
                    attempt=attempt,
                    step=report.step,
                    rows=rows,
                    pictures=pictures,
                    notes=list(report.notes),
                    flags=[(flag.name, flag.since, flag.step, flag.words) for flag in report.flags],
                )
            )

    def paused(self, key: str, attempt: int, step: int) -> None:
        """Record that a trial came to a rung, and decide what can be decided."""
        trial = self.records.trials[key]
        if attempt != trial.attempts or trial.state is not State.RUNNING:
            return
        values = {o.metric: trial.value(o) for o in self.study.objectives}
        self._write(TrialPaused(at_ms=self._now(), key=key, attempt=attempt, step=step, values=values))
        self._judge_rungs(self.records.arms_of(key))

    def ended(self, key: str, attempt: int, outcome: Outcome) -> None:
        """Record an attempt's end and, with the last seed of an arm, tell the search."""
        trial = self.records.trials[key]
        if attempt != trial.attempts or trial.state is not State.RUNNING:
            return
        state, reason = policy.state_after(outcome, trial, self.study.limits.retries)
        lacking = [o.metric for o in self.study.objectives if trial.value(o) is None]
        if state is State.COMPLETED and lacking:
            reported = ", ".join(sorted(trial.latest)) or "nothing"
            state, reason = State.FAILED, f"metric {lacking[0]!r} was not reported; reported: {reported}"
        self._write(
            TrialEnded(
                at_ms=self._now(), key=key, attempt=attempt, state=state, step=max(outcome.step, trial.step),
                reason=reason, detail=outcome.detail, cause=outcome.cause,
            )
        )  # fmt: skip
        if state is not State.WAITING:  # else what was asked for is still to be done
            self.files.stop_of(trial.folder).unlink(missing_ok=True)
        self._tell(self.records.arms_of(key))
        self._judge_rungs(self.records.arms_of(key))

    def _decide(self) -> policy.Decision:
        return policy.decide(
            self.records,
            n_arms=self.n_arms,
            adaptive=self._adaptive,
            stopping=self._stopping,
        )

    def _propose(self) -> None:
        proposal, values = self._search.propose(self.records.proposals)
        specs, arm, prune = self._specs(values), len(self.records.arms), self.study.prune
        self._write(
            ArmProposed(
                at_ms=self._now(),
                arm=arm,
                proposal=proposal,
                values=values,
                keys={spec.key: spec.seed for spec in specs},
                steps=specs[0].steps,
                until=pruning.brackets(prune, arm)[0] if prune else None,
                open_seeds=prune.seeds if prune else None,
            )
        )
        self._tell(self.records.arms[-1:])  # an arm proposed before may be finished already
        if arm + 1 == self.n_arms:  # the others may have waited for one that brings no trial of its own
            self._judge_rungs()

    def _specs(self, values: Mapping[str, Value]) -> list[TrialSpec]:
        """The arm's trials, one a seed."""
        digest = self._dataset(values).digest
        return [arms.trial_spec(self.study, values, seed, digest) for seed in self.study.seeds]

    def _judge_rungs(self, changed: Iterable[ArmRecord] | None = None) -> None:
        """Let arms that passed their rung go on, and end the others. `changed`: the arms of which a trial came to its
        rung or ended; all when absent."""
        prune, records = self.study.prune, self.records
        if prune is None:
            return
        rungs = None
        if changed is not None:
            rungs = {arm.until for arm in changed if arm.until is not None and pruning.has_arrived(arm)}
            if not rungs:
                return
        complete = len(records.arms) >= self.n_arms
        while verdicts := pruning.judge(records, prune, self.study.objective, complete=complete, rungs=rungs):
            rungs = None  # an arm may have lost all seeds that come before its next rung
            for verdict in verdicts:
                self._obey(verdict)

    def _obey(self, verdict: pruning.Verdict) -> None:
        if isinstance(verdict, pruning.Advance):
            self._write(ArmAdvanced(at_ms=self._now(), arm=verdict.arm.arm, until=verdict.until))
            return
        for trial in verdict.arm.trials:
            if not trial.state.is_final:
                self.files.stop_of(trial.folder).unlink(missing_ok=True)
                self._write(
                    TrialEnded(
                        at_ms=self._now(), key=trial.key, attempt=trial.attempts, state=State.PRUNED,
                        step=trial.step, reason=verdict.reason,
                    )
                )  # fmt: skip
        self._tell([verdict.arm])

    def _put_aside(self, trial: TrialRecord) -> None:
        """End a trial that waits, as the user asked to stop it."""
        self.files.stop_of(trial.folder).unlink(missing_ok=True)
        self._write(
            TrialEnded(
                at_ms=self._now(), key=trial.key, attempt=trial.attempts, state=State.STOPPED,
                step=trial.step, reason="stopped on request",
            )
        )  # fmt: skip

    def _companions(self, key: str) -> list[str]:
        """The trial and those that wait and fit into one pack with it, shared out evenly over the slots."""
        crowded = self.records.trials[key].crowded  # its packs were too large for the memory so often
        largest = max(1, self.pack_size(self._spec(key)) // 2**crowded)
        if largest == 1:
            return [key]
        fusion = self._fusion(key)
        waiting = self.records.waiting(by_arm=self._adaptive)
        fitting = [
            trial.key for trial in waiting if trial.crowded == crowded and self._fusion(trial.key) == fusion
        ]
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

    def _start_trial(self, key: str, together: int) -> Assignment:
        trial = self.records.trials[key]
        attempt = trial.attempts + 1
        dataset, spec = self._dataset(self.records.arms[trial.arm].values), self._spec(key)
        if spec.key != key:
            raise UsageError(
                f"trial {trial.name} would not be the one that was begun: its dataset or the defaults of its model "
                "have changed since; choose a new name for the study: --set name=NEW_NAME"
            )
        self._write(TrialStarted(at_ms=self._now(), key=key, attempt=attempt, together=together))
        return Assignment(
            key=key,
            attempt=attempt,
            spec=spec,
            directory=self.files.trial(trial.folder),
            images=dataset.images,
            labels=dataset.labels,
            features=features_directory(),
            checkpoint_every=arms.checkpoint_every(self.study, spec.steps),
            device="cuda" if self.slots.gpu else "cpu",
            threads=self.slots.threads,
            matmul="onednn" if self.records.provenance.get(MATMUL) == "onednn" else "default",
            recorded=self.recorded(spec),
            until=self.records.arms[trial.arm].until,
            flags=tuple(self.study.health.flags),
            stall_s=60 * self.study.limits.stall_minutes,
            was=trial.was,
        )

    def _dataset(self, values: Mapping[str, Value]) -> PreparedDataset:
        return self._datasets[arms.resolved(self.study, values).dataset.source]

    def _tell(self, finished: Iterable[ArmRecord]) -> None:
        for arm in finished:
            if not arm.is_final:
                continue
            means = [self._mean(arm, objective) for objective in self.study.objectives]
            known = [mean for mean in means if mean is not None]
            whole = known if len(known) == len(means) else None
            self._search.tell(arm.proposal, whole, pruned=None if whole else self._pruned_at(arm))
            if whole and any(trial.key in self.records.reopened for trial in arm.trials):
                self._search.retell(arm.proposal, whole)

    def _pruned_at(self, arm: ArmRecord) -> tuple[int, float] | None:
        """The rung at which an arm was pruned and its mean there; None for one that was not, or lost a seed."""
        if arm.until is None or not any(trial.state is State.PRUNED for trial in arm.trials):
            return None
        metric = self.study.objective.metric
        values = [trial.at_rungs.get(arm.until, {}).get(metric) for trial in arm.open_trials]
        known = [value for value in values if value is not None]
        return (arm.until, fmean(known)) if known and len(known) == len(values) else None

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
