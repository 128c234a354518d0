"""Checks a study from outside: journal, trials, checkpoints, MLflow and the search against each other.

Each check reads what is on the disk or in the store now, and trusts no mark that another part has set.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from orchestrator.arms import arm_count
from orchestrator.home import StudyFiles
from orchestrator.journal import ArmExtended, Event, TrialEnded, TrialReported, TrialsReopened, read
from orchestrator.records import ArmRecord, Records, TrialRecord
from orchestrator.samplers import SAMPLERS
from orchestrator.status import is_running, load_definition
from orchestrator.study import StudySpec
from orchestrator.sync import pending_events
from orchestrator.tidy import collected, half_written, stop_files
from trials.kept import checkpoints
from trials.reports import State

Rows = Counter[tuple[str, int, float]]
"""(metric, step, value), as often as it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`what` was looked at, how much of it, and what is wrong, a line each; nothing when all is well."""

    what: str
    seen: str
    problems: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, object]:
        return {"check": self.what, "ok": self.good, "seen": self.seen, "problems": list(self.problems)}


def verify(files: StudyFiles) -> Iterator[Check]:
    """The checks of a study, one after the other. Raises UnreachableError when MLflow's store does not answer."""
    study = load_definition(files)
    events, problems = read_all(files.journal)
    records = Records()
    for event in events:
        records.apply(event)
    yield Check(what="journal", seen=_count(len(events), "event"), problems=tuple(problems))
    yield Check(
        what="trials",
        seen=f"{_count(len(records.trials), 'trial')}, study {records.state}",
        problems=tuple(of_trials(study, records, events)),
    )
    kept = [path for trial in records.trials.values() for path in _directories(files, trial)]
    yield Check(
        what="checkpoints",
        seen=_count(len(kept), "checkpoint"),
        problems=tuple(p for trial in records.trials.values() for p in of_checkpoints(files, trial)),
    )
    yield _mlflow(files, records, events)
    yield _search(files, study, records)
    left = list(of_leftovers(files))
    yield Check(what="leftovers", seen="locks, stop files, half-written files", problems=tuple(left))


def read_all(journal: Path) -> tuple[list[Event], list[str]]:
    """The journal's events up to the first line that cannot be read, and what is wrong with it."""
    events: list[Event] = []
    offset = 0
    if not journal.exists():
        return [], [f"{journal} is not there"]
    try:
        for event, after in read(journal):
            events.append(event)
            offset = after
    except (ValueError, KeyError, TypeError) as error:
        return events, [f"line {len(events) + 1} cannot be read: {type(error).__name__}: {error}"]
    torn = journal.stat().st_size - offset
    return events, [f"the last line is torn ({torn} bytes)"] if torn else []


def of_trials(study: StudySpec, records: Records, events: Sequence[Event]) -> Iterator[str]:
    """Every trial ended exactly once, and of a finished study all arms and seeds are there."""
    ends = Counter[int]()
    for event in events:
        match event:
            case TrialEnded():
                ends[records.trial(event.key).number] += State(event.state).is_final
            case TrialsReopened():
                ends.subtract({n: ends[n] for n in {records.trial(key).number for key in event.keys}})
            case ArmExtended():
                ends.subtract({n: ends[n] for n in {records.trial(key).number for key in event.continues}})
    for trial in records.trials.values():
        if ends[trial.number] > 1:
            yield f"trial {trial.name} ended {ends[trial.number]} times"
    if records.state == "running":
        yield "the study has not ended: a submit is at work, or its process is gone"
    if records.state not in ("completed", "failed"):
        return
    if records.state == "completed" or records.reason == "":
        for trial in records.trials.values():
            if not trial.state.is_final:
                yield f"trial {trial.name} is {trial.state.value}, though the study is {records.state}"
        if (missing := arm_count(study) - len(records.arms)) > 0:
            yield f"{_count(missing, 'arm')} of {arm_count(study)} never began"
    for arm in records.arms:
        if lacking := sorted(set(study.seeds) - {trial.seed for trial in arm.trials}):
            yield f"arm {arm.label} lacks seeds {', '.join(map(str, lacking))}"


def of_checkpoints(files: StudyFiles, trial: TrialRecord) -> Iterator[str]:
    """The trial's checkpoints are whole, and one of a completed trial is of its last step."""
    steps = []
    for path in _directories(files, trial):
        problem, step = checkpoint_problem(path, trial.keys)
        if problem:
            yield f"trial {trial.name}: {path.name}: {problem}"
        else:
            steps.append(step)
    last = f"step_{trial.step:09d}"
    if trial.state is not State.COMPLETED or last in collected(files).get(trial.folder, ()):
        return
    if not _directories(files, trial):
        yield f"trial {trial.name}: completed, and has no checkpoint"
    elif steps and max(steps) != trial.step:
        yield f"trial {trial.name}: its newest checkpoint is of step {max(steps)}, it ended at step {trial.step}"


def checkpoint_problem(path: Path, keys: Sequence[str]) -> tuple[str, int]:
    """What is wrong with a checkpoint, or nothing; and its step."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        step, owner, listed = int(manifest["step"]), str(manifest["key"]), dict(manifest["files"])
    except FileNotFoundError:
        return "has no manifest", 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})", 0
    if owner not in keys:
        return f"belongs to trial {owner}", step
    if path.name != f"step_{step:09d}":
        return f"its manifest says step {step}", step
    for name, facts in listed.items():
        try:
            with open(path / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{name}: {error.strerror}", step
        if found != facts["sha256"]:
            return f"{name} is damaged: its SHA-256 differs from the manifest's", step
    return "", step


def _directories(files: StudyFiles, trial: TrialRecord) -> list[Path]:
    return checkpoints(files.trial(trial.folder) / "checkpoints")


def of_runs(
    records: Records,
    rows: Mapping[str, Rows],
    runs: Sequence[tuple[str, str, Rows]],
    expected_status: Mapping[State, str],
    study_status: str,
    is_of_journal: Callable[[str], bool] = lambda _: True,
) -> Iterator[str]:
    """MLflow holds each trial once, with the journal's rows and nothing more.

    `rows`: by trial key what the journal has. `runs`: (key or "study", status, rows) of each run. `expected_status`,
    `study_status`: what MLflow calls a trial's state, and the study's. `is_of_journal`: whether a metric is the
    journal's.
    """
    found: dict[str, list[tuple[str, Rows]]] = {}
    for key, status, has in runs:
        found.setdefault(key, []).append((status, has))
    ended = records.state != "running"
    if len(found.get("study", ())) != 1:
        yield f"the study has {len(found.get('study', ()))} runs of its own instead of 1"
    for status, _ in found.pop("study", []):
        if ended and status != study_status:
            yield f"the study's run is {status} instead of {study_status}"
    for trial in records.trials.values():
        mine = found.pop(trial.key, [])
        wanted = 1 if trial.attempts else 0
        if len(mine) != wanted:
            yield f"trial {trial.name} has {len(mine)} runs instead of {wanted}"
        for status, has in mine:
            right = expected_status.get(trial.state, "RUNNING")
            if status != right and (ended or trial.state.is_final):
                yield f"trial {trial.name}: its run is {status} instead of {right}"
            there = Counter({row: n for row, n in has.items() if is_of_journal(row[0])})
            asked = rows.get(trial.key, Counter())
            if missing := asked - there:
                yield f"trial {trial.name}: {_rows(missing)} of the journal are missing"
            if more := there - asked:
                yield f"trial {trial.name}: {_rows(more)} too many"
    for key in found:
        yield f"a run of a trial that the journal does not know: {key}"


def _rows(rows: Rows) -> str:
    name, step, value = min(rows)
    return f"{_count(rows.total(), 'metric row')} ({name} {value:g} at step {step}, ...)"


def journal_rows(records: Records, events: Sequence[Event]) -> dict[str, Rows]:
    """By trial key: the metric rows that the journal has."""
    found: dict[str, Rows] = {}
    for event in events:
        if isinstance(event, TrialReported):
            mine = found.setdefault(records.trial(event.key).key, Counter())
            mine.update((name, step, value) for step, row in event.rows for name, value in row.items())
    return found


def _mlflow(files: StudyFiles, records: Records, events: Sequence[Event]) -> Check:
    from orchestrator.tracking import RUN_STATUS, is_of_journal, reachable, tracked_runs

    with reachable():
        pending = pending_events(files)
        runs = tracked_runs(files.name, records.uid)
    rows = journal_rows(records, events)
    problems = (
        [f"{_count(pending, 'event')} pending; send with: gan-sweep sync {files.name}"] if pending else []
    )
    study_status = {"completed": "FINISHED", "failed": "FAILED"}.get(records.state, "KILLED")
    problems += of_runs(
        records, rows, [(run.key, run.status, run.rows) for run in runs], RUN_STATUS, study_status,
        is_of_journal,
    )  # fmt: skip
    n = sum(run.rows.total() for run in runs)
    return Check(
        what="MLflow", seen=f"{_count(len(runs), 'run')}, {_count(n, 'metric row')}", problems=tuple(problems)
    )


def _search(files: StudyFiles, study: StudySpec, records: Records) -> Check:
    from orchestrator.search import told

    try:
        if not files.optuna.exists():
            raise FileNotFoundError(f"{files.optuna.name} is not there")
        known = told(files.optuna)
    except (OSError, ValueError, KeyError) as error:
        words = f"the search's store cannot be read: {error}"
        return Check(what="search", seen="no store", problems=(words,))
    return Check(
        what="search",
        seen=f"{_count(len(known), 'trial')} of Optuna",
        problems=tuple(of_search(study, records, known)),
    )


def of_search(
    study: StudySpec, records: Records, known: Sequence[tuple[int, str, list[float] | None]]
) -> Iterator[str]:
    """The search learned each finished arm's value once, and waits for none. `known`: (number, state, values)."""
    by_number = {number: (state, values) for number, state, values in known}
    ended = records.state in ("completed", "failed")
    for arm in records.arms:
        if arm.proposal not in by_number:
            yield f"arm {arm.label}: Optuna has no trial {arm.proposal}"
            continue
        state, values = by_number[arm.proposal]
        wanted = _values(study, arm) if arm.is_final else None
        if not arm.is_final:
            if state in ("COMPLETE", "PRUNED", "FAIL") and not arm.trials[0].was:
                yield f"arm {arm.label}: told as {state}, and is not finished"
        elif state == "RUNNING":
            yield f"arm {arm.label}: finished, and never told"
        elif wanted is None:
            if state == "COMPLETE" and not any(trial.was for trial in arm.trials):
                yield f"arm {arm.label}: told as COMPLETE, though a seed has no value"
        elif state == "FAIL" and not SAMPLERS[study.search.sampler].adaptive:
            continue  # retried since; what a sampler that does not learn was told stands
        elif not arm.extended and not any(_same(wanted, told) for _, told in by_number.values()):
            yield f"arm {arm.label}: told {_shown(values)} instead of {_shown(wanted)}"
    mine = {arm.proposal for arm in records.arms}
    for number, (state, _) in by_number.items():
        if ended and state == "RUNNING" and number not in mine:
            yield f"Optuna's trial {number} is RUNNING, and no arm of the study"


def _values(study: StudySpec, arm: ArmRecord) -> list[float] | None:
    """The arm's mean of each objective over its seeds; None when one has no value."""
    means = []
    for objective in study.objectives:
        values = [t.value(objective) if t.state is State.COMPLETED else None for t in arm.trials]
        known = [value for value in values if value is not None]
        if len(known) != len(values):
            return None
        means.append(fmean(known))
    return means


def _same(wanted: Sequence[float], told: Sequence[float] | None) -> bool:
    return (
        told is not None
        and len(told) == len(wanted)
        and all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(wanted, told, strict=True))
    )


def _shown(values: Sequence[float] | None) -> str:
    return "nothing" if values is None else ", ".join(f"{value:.6g}" for value in values)


def of_leftovers(files: StudyFiles) -> Iterator[str]:
    """What a process leaves behind that did not end in order."""
    if is_running(files):
        yield "a submit holds the study's lock"
    for path in stop_files(files):
        yield f"a stop file is left: {path}"
    for path in half_written(files.root):
        yield f"half-written: {path}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
