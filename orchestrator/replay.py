"""A trial again: trained anew from its definition, and compared row by row with what the journal recorded.

It trains alone in this process, in a temporary directory, and leaves no trace in the study.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import arms
from orchestrator.errors import GanSweepError, UsageError
from orchestrator.home import StudyFiles, features_directory
from orchestrator.journal import Event, StudyStarted, TrialReported, TrialStarted, read
from orchestrator.machine import Machine
from orchestrator.records import Records, TrialRecord
from orchestrator.status import load_definition
from orchestrator.study import StudySpec
from trials.data import PreparedDataset
from trials.reports import Assignment, Report, State
from trials.spec import TrialSpec

MOST = sys.float_info.max
"""JSON knows no infinity."""
RELATIVE, ABSOLUTE = 1e-3, 1e-5
"""Two values are equal within rounding when they differ by at most ABSOLUTE + RELATIVE times the recorded one. One
rounding is 6e-8; training carries it on and lets it grow, and far apart trainings differ by much more."""
NOT_COMPARED = ("perf/",)
"""Metrics that are different each time."""
FACTS = (
    "gan_sweep.version.torch",
    "gan_sweep.version.numpy",
    "gan_sweep.version.gan-sweep",
    "gan_sweep.machine",
    "gan_sweep.processor",
)
"""What decides whether sums are rounded alike."""
MATMUL = "gan_sweep.matmul"

Rows = Mapping[int, Mapping[str, float]]
"""Step -> metric -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one metric is from what was recorded: the largest differences, the relative one of values that are not 0.

    `first`: the first step beyond rounding, None for none.
    """

    metric: str
    rows: int
    absolute: float
    relative: float
    first: int | None

    def to_row(self) -> dict[str, object]:
        return {
            "metric": self.metric, "rows": self.rows, "largest difference": self.absolute,
            "relative": self.relative, "differs from step": self.first,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a replay. `doubts`: why it cannot be the same to the last bit; empty when it should be.

    `missing`: (metric, step) that were recorded and did not come again, and `new` those that were not recorded.
    """

    trial: str
    steps: int
    compared: int
    differences: tuple[Difference, ...]
    missing: tuple[tuple[str, int], ...]
    new: tuple[tuple[str, int], ...]
    doubts: tuple[str, ...]
    ended: str

    @property
    def identical(self) -> bool:
        return (
            self.compared > 0
            and not self.missing
            and not self.new
            and all(d.absolute == 0 for d in self.differences)
        )

    @property
    def equal(self) -> bool:
        """Within rounding."""
        return (
            self.compared > 0
            and not self.missing
            and not self.new
            and all(d.first is None for d in self.differences)
        )

    @property
    def verdict(self) -> str:
        over = f"{self.compared:,} values over {self.steps:,} steps"
        if not self.compared:
            return f"nothing to compare: no step up to {self.steps:,} was recorded"
        if self.identical:
            return f"identical to the last bit: {over}"
        bound = f"{ABSOLUTE:g} + {RELATIVE:g} times the value"
        if self.equal:
            return f"equal within rounding ({bound}): {over}"
        firsts = [d.first for d in self.differences if d.first is not None]
        firsts += [step for _, step in (*self.missing, *self.new)]
        return f"different from step {min(firsts):,} on (by more than {bound}, or rows are not the same)"

    def to_json(self) -> dict[str, object]:
        return {
            "trial": self.trial,
            "verdict": "identical" if self.identical else "equal" if self.equal else "different",
            "words": self.verdict,
            "steps": self.steps,
            "values": self.compared,
            "metrics": [d.to_row() for d in self.differences],
            "missing": [list(pair) for pair in self.missing],
            "new": [list(pair) for pair in self.new],
            "doubts": list(self.doubts),
            "ended": self.ended,
        }


def replay(
    files: StudyFiles,
    records: Records,
    trial: TrialRecord,
    *,
    steps: int | None,
    prepare: Callable[[StudySpec], PreparedDataset],
    facts: Mapping[str, str],
    machine: Machine,
    show: Callable[[int, int], None] = lambda step, goal: None,
) -> Replayed:
    """Train `trial` again up to `steps`, or as far as it came, and compare.

    `prepare`: the dataset of an arm's study, on disk. `facts`: this machine's provenance. `show`: told of each report.
    Raises UsageError when there is nothing to compare or the trial would be another one, GanSweepError when it fails.
    """
    study, events = load_definition(files), [event for event, _ in read(files.journal)]
    recorded = recorded_rows(events, records, trial)
    if not recorded:
        raise UsageError(f"trial {trial.name} has recorded nothing yet")
    goal = max(recorded) if steps is None else min(steps, trial.steps)
    values = records.arms[trial.arm].values
    dataset = prepare(arms.resolved(study, values))
    spec = arms.trial_spec(study, values, trial.seed, dataset.digest)
    if spec.key != trial.key:
        raise UsageError(
            f"trial {trial.name} would be another one now: its dataset, the defaults of its model or the versions of "
            "gan-sweep have changed since"
        )
    gpu = bool(study.resources.gpu) and machine.gpus > 0
    began, together, continued = history(events, records, trial)
    doubts = doubts_of(
        began, facts, together=together, gpu=bool(study.resources.gpu), has_gpu=machine.gpus > 0,
        continued=continued,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gan-sweep-replay-") as directory:
        assignment = Assignment(
            key=spec.key,
            attempt=1,
            spec=spec,
            directory=Path(directory) / "trials" / spec.key,
            images=dataset.images,
            labels=dataset.labels,
            features=features_directory(),
            checkpoint_every=arms.checkpoint_every(study, spec.steps),
            device="cuda" if gpu else "cpu",
            threads=max(1, int(study.resources.cpu)),
            matmul="onednn" if began.get(MATMUL) == "onednn" else "default",
            until=goal if goal < spec.steps else None,
        )
        again, ended = _train(assignment, spec, goal, show)
    if trial.was:  # evaluated at the steps of two lengths
        recorded, again = _trained_or_in(recorded, again), _trained_or_in(again, recorded)
        doubts = (*doubts, "it was extended: evaluations that only one of its lengths has are not compared")
    return compared(trial.name, goal, recorded, again, doubts, ended)


def _train(
    assignment: Assignment, spec: TrialSpec, goal: int, show: Callable[[int, int], None]
) -> tuple[dict[int, dict[str, float]], str]:
    """The rows of the trial, and how it ended."""
    from trials.worker import Attempts

    rows: dict[int, dict[str, float]] = {}
    attempts = Attempts([assignment])
    try:
        while said := attempts.advance():
            for _, _, words in said:
                if isinstance(words, Report):
                    newest = max(rows, default=0)  # steps that a rollback trod again are not recorded either
                    for row in words.rows:
                        if row.step > newest:
                            rows.setdefault(row.step, {}).update(row.metrics)
                    show(words.step, goal)
                elif words.state is State.FAILED:
                    raise GanSweepError(
                        f"the replay failed at step {words.step}: {words.reason}\n{words.detail}"
                    )
                else:
                    return rows, "paused" if words.paused else words.state.value
    finally:
        attempts.close()
    return rows, ""


def recorded_rows(
    events: Sequence[Event], records: Records, trial: TrialRecord
) -> dict[int, dict[str, float]]:
    """What the journal has of a trial."""
    rows: dict[int, dict[str, float]] = {}
    for event in events:
        if isinstance(event, TrialReported) and records.trial(event.key) is trial:
            for step, metrics in event.rows:
                rows.setdefault(step, {}).update(metrics)
    return rows


def history(
    events: Sequence[Event], records: Records, trial: TrialRecord
) -> tuple[Mapping[str, str], int, bool]:
    """The provenance of the submit that began the trial, the largest pack it was in, and whether later submits or
    other provenance had a part in it."""
    began: Mapping[str, str] | None = None
    now: Mapping[str, str] = {}
    together, continued = 1, False
    for event in events:
        match event:
            case StudyStarted():
                now = event.provenance
            case TrialStarted() if records.trial(event.key) is trial:
                together = max(together, event.together)
                if began is None:
                    began = now
                elif any(began.get(name) != now.get(name) for name in (*FACTS, MATMUL)):
                    continued = True
    return began or now, together, continued


def doubts_of(
    began: Mapping[str, str],
    facts: Mapping[str, str],
    *,
    together: int,
    gpu: bool,
    has_gpu: bool,
    continued: bool,
) -> tuple[str, ...]:
    """Why a replay cannot be identical to the last bit, a line each. `began`: what the journal says of the trial's
    submit, `facts`: the same of this process."""
    found = []
    if together > 1:
        found.append(f"it was trained in a pack of {together}: sums were rounded in another order")
    if gpu and not has_gpu:
        found.append("it was trained on a GPU, and this machine has none")
    elif gpu:
        found.append("it was trained on a GPU, whose sums need not be rounded alike twice")
    for name in FACTS:
        if name in began and name in facts and began[name] != facts[name]:
            short = name.removeprefix("gan_sweep.").removeprefix("version.")
            found.append(f"{short} was {began[name]}, and is {facts[name]}")
    if continued:
        found.append("it was begun and ended with different versions or machines")
    return tuple(found)


def _trained_or_in(rows: Rows, others: Rows) -> dict[int, dict[str, float]]:
    """Of `rows` the metrics of training, and of the others those that `others` have at the same step."""
    return {
        step: {m: v for m, v in row.items() if m.startswith("train/") or m in others.get(step, {})}
        for step, row in rows.items()
    }


def compared(
    trial: str, goal: int, recorded: Rows, again: Rows, doubts: Sequence[str], ended: str
) -> Replayed:
    """Compare what was recorded up to step `goal` with what came again."""
    old = {(m, s): v for s, row in recorded.items() for m, v in row.items() if _counts(m) and s <= goal}
    new = {(m, s): v for s, row in again.items() for m, v in row.items() if _counts(m) and s <= goal}
    both = old.keys() & new.keys()
    differences = []
    for metric in sorted({metric for metric, _ in both}):
        steps = sorted(step for name, step in both if name == metric)
        pairs = [(step, old[metric, step], new[metric, step]) for step in steps]
        apart = [(step, abs(b - a), abs(a)) for step, a, b in pairs]
        differences.append(
            Difference(
                metric=metric,
                rows=len(pairs),
                absolute=max(gap for _, gap, _ in apart),
                relative=max((min(gap / size, MOST) for _, gap, size in apart if size), default=0.0),
                first=next((step for step, gap, size in apart if gap > ABSOLUTE + RELATIVE * size), None),
            )
        )
    return Replayed(
        trial=trial,
        steps=goal,
        compared=len(both),
        differences=tuple(differences),
        missing=tuple(sorted(old.keys() - new.keys())),
        new=tuple(sorted(new.keys() - old.keys())),
        doubts=tuple(doubts),
        ended=ended,
    )


def _counts(metric: str) -> bool:
    return not metric.startswith(NOT_COMPARED)
