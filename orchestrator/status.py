"""What is known of submitted studies, from their journals: rows for tables and JSON."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.arms import arm_count, trial_spec
from orchestrator.costs import PREDICTION, Prediction, compare_with_facts, disk_usage
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, all_studies
from orchestrator.journal import read
from orchestrator.leaderboard import Standing, leaderboard
from orchestrator.machine import this_machine
from orchestrator.records import Records, TrialRecord, replay
from orchestrator.study import Objective, StudySpec
from orchestrator.turns import waiting_words
from trials.kept import best_checkpoint, checkpoints
from trials.reports import AT_THE_END, State

Cells = dict[str, object]
LEAST_OF_KEY = 6
"""Characters that a beginning of a key must have."""
NEAR = 5
"""Trials that a message names."""


def load_definition(files: StudyFiles) -> StudySpec:
    """The study as it was submitted. Raises UsageError when this version cannot read it."""
    try:
        return StudySpec.model_validate_json(files.definition.read_bytes())
    except ValueError as error:
        raise UsageError(
            f"study {files.name} was written by another version of gan-sweep, or damaged: {files.definition}"
        ) from error


def load_records(files: StudyFiles) -> Records:
    """The study's records, from its journal."""
    return replay(event for event, _ in read(files.journal))


def find_study(name: str | None) -> StudyFiles:
    """The study called `name` or the only one whose name starts with it; the newest for None.

    Raises UsageError that lists near names.
    """
    studies = all_studies()
    if not studies:
        raise UsageError("no study was submitted yet; try: gan-sweep submit studies/quickstart.yaml")
    if name is None:
        return studies[0]
    exact = [s for s in studies if s.name == name]
    found = exact or [s for s in studies if s.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the beginning of several studies: {', '.join(s.name for s in found)}")
    names = [s.name for s in studies]
    near = difflib.get_close_matches(name, names, n=3) or names[:10]
    raise UsageError(f"no study is called {name!r}; there are: {', '.join(near)}")


def find_trial(records: Records, wanted: str, study: str) -> TrialRecord:
    """The trial called by its number, its key or a beginning of it, or a part of its name that no other one has.

    Raises UsageError that lists near ones. `study`: its name, for that message.
    """
    trials = list(records.trials.values())
    if not trials:
        raise UsageError(f"study {study} has no trials yet")
    if wanted.isdecimal() and len(wanted) < 10 and int(wanted) < len(trials):
        return next(trial for trial in trials if trial.number == int(wanted))
    found = [t for t in trials if wanted in t.keys]
    if not found and len(wanted) >= LEAST_OF_KEY:
        found = [t for t in trials if any(key.startswith(wanted) for key in t.keys)]
    if not found and wanted and not wanted.isdecimal():  # a number that there is not must mean no other trial
        found = [t for t in trials if wanted.casefold() in t.name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{wanted!r} may be several trials of {study}: {_some_names(found)}")
    near = difflib.get_close_matches(wanted, [t.name for t in trials], n=NEAR, cutoff=0.3)
    listed = [t for t in trials if t.name in near] or trials
    raise UsageError(
        f"study {study} has no trial {wanted!r}; it has numbers 0 to {len(trials) - 1}, such as: {_some_names(listed)}"
    )


def _some_names(trials: Sequence[TrialRecord]) -> str:
    more = f" and {len(trials) - NEAR} more" if len(trials) > NEAR else ""
    return ", ".join(repr(t.name) for t in trials[:NEAR]) + more


def is_running(files: StudyFiles) -> bool:
    """Whether a submit of the study is at work on this machine."""
    if not files.lock.exists():
        return False
    try:
        with FileLock(files.lock).acquire(timeout=0):
            return False
    except Timeout:
        return True


def study_row(files: StudyFiles, records: Records) -> Cells:
    """One study in a line."""
    study = load_definition(files)
    standings = leaderboard(records, *study.objectives)
    best = standings[0] if standings and standings[0].mean is not None else None
    running = is_running(files)
    waiting = waiting_words(study.name, this_machine()) if running else None
    state = "running" if running else "stopped" if records.state == "running" else records.state
    return {
        "study": study.name,
        "state": "waiting" if waiting else state,
        "reason": waiting or ("" if running else records.reason),
        "done": sum(t.state.is_final for t in records.trials.values()),
        "trials": records.n_trials(arm_count(study), len(study.seeds)),
        "failed": records.count(State.FAILED),
        "diverged": records.count(State.DIVERGED),
        "objective": study.objective.metric,
        "best": best.mean if best else None,
        "best_arm": best.arm.label if best else None,
        "updated": datetime.fromtimestamp(records.updated_ms / 1000, UTC).isoformat(timespec="seconds"),
    }


def prediction_rows(files: StudyFiles, records: Records) -> list[tuple[str, str, str]]:
    """(what, predicted, fact) of a study that was measured when it was submitted; nothing for others."""
    known = records.provenance.get(PREDICTION)
    if known is None:
        return []
    prediction = Prediction.from_json(json.loads(known))
    if prediction is None:  # of another version
        return []
    return compare_with_facts(prediction, records, disk_usage(files), int(time.time() * 1000))


def trial_rows(files: StudyFiles, records: Records) -> list[Cells]:
    """Every trial of a study in a line."""
    study = load_definition(files)
    running = is_running(files)
    return [
        {
            "trial": trial.name,
            "number": trial.number,
            "arm": trial.label,
            "seed": trial.seed,
            "state": State.STOPPED.value
            if trial.state is State.RUNNING and not running
            else trial.state.value,
            "step": trial.step,
            "steps": trial.steps,
            "attempts": trial.attempts,
            "g_loss": trial.latest.get("train/g_loss"),
            "d_loss": trial.latest.get("train/d_loss_mean"),
            "d_acc": trial.latest.get("train/d_acc"),
            study.objective.metric: trial.value(study.objective),
            "flags": ", ".join(trial.flags),
            "reason": trial.reason,
            "key": trial.key,
        }
        for trial in records.trials.values()
    ]


def best_files(files: StudyFiles, standings: list[Standing]) -> dict[str, Path]:
    """Plots of the study, and the best trial's grid and checkpoint at the value it counts with, those that exist.

    `last_checkpoint`: the newest one, where it is another; `earlier_checkpoint`: the one of `remove_last_epochs`.
    """
    found = {path.stem: path for path in sorted(files.pictures.glob("*.png"))}
    trial = standings[0].best_trial if standings else None
    if trial is not None:
        study = load_definition(files)
        spec, objective = trial_spec(study, standings[0].values, trial.seed, ""), study.objective
        directory = files.trial(trial.folder)
        if picture := trial.picture_at(objective):
            found["best_samples"] = directory / picture
        newest_first = checkpoints(directory / "checkpoints")
        for best in checkpoints_of(files, trial, objective)[:1]:
            found["best_checkpoint"] = best
            if newest_first[0] != best:
                found["last_checkpoint"] = newest_first[0]
        for path in newest_first[1:]:
            if int(path.name.removeprefix("step_")) in spec.keep_steps:
                found["earlier_checkpoint"] = path
    return found


def checkpoints_of(files: StudyFiles, trial: TrialRecord, objective: Objective | None = None) -> list[Path]:
    """The trial's checkpoints, unchecked: first the one that its value of `objective` is of, then the newest ones.

    That is the best one; of an objective that is measured at the end (of the last evaluation, of training) the newest.
    """
    directory = files.trial(trial.folder) / "checkpoints"
    best = None if objective is not None and _is_of_the_end(objective) else best_checkpoint(directory)
    return [*([best] if best else []), *(path for path in checkpoints(directory) if path != best)]


def _is_of_the_end(objective: Objective) -> bool:
    section, _, name = objective.metric.partition("/")
    return section != "eval" or objective.at == "last" or name in AT_THE_END
