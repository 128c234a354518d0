"""Warm starts: the finished arms of an earlier study that a search learns from before its first proposal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from models import Value
from orchestrator.arms import identity, trial_spec
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, all_studies
from orchestrator.records import ArmRecord
from orchestrator.status import load_definition, load_records
from orchestrator.study import (
    Choices,
    Objective,
    Range,
    StudySpec,
    allowing,
    axes,
    each_arm,
    facts,
    holds,
    hyperparameters,
    nearest,
    ordered,
)
from trials.reports import State

FROZEN = "warm_start.json"
LEAST_FOR_CMAES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What a search learns before its first proposal: arms of another study, with their value of each objective."""

    study: str
    arms: tuple[tuple[Mapping[str, Value], tuple[float, ...]], ...]
    words: str


def warm_start(study: StudySpec, files: StudyFiles) -> Earlier | None:
    """The finished arms that the study's search learns from first; None when it asks for none.

    What was taken at the first submit is taken for ever. `files`: of the study itself; nothing is written.
    Raises UsageError when there is no such study, its objectives are others, or none of its arms fits the space.
    """
    name = study.search.warm_start
    if name is None:
        return None
    if (frozen := files.optuna.with_name(FROZEN)).exists():
        return _thaw(frozen)
    submitted = {found.name: found for found in all_studies() if found.name != study.name}
    if name not in submitted:
        hint = nearest(name, submitted) or f"there is {', '.join(list(submitted)[:10]) or 'none'}"
        raise UsageError(f"search.warm_start: no study is called {name!r}; {hint}")
    old, records = load_definition(submitted[name]), load_records(submitted[name])
    asked, had = ([f"{o.metric} ({o.mode})" for o in s.objectives] for s in (study, old))
    if asked != had:
        raise UsageError(
            f"search.warm_start: {name} has another objective: {', '.join(had)}, and this study {', '.join(asked)}"
        )
    finished = [(arm, results) for arm in records.arms if (results := _results(arm, study.objectives))]
    taken = [
        (values, results) for arm, results in finished if (values := _fitting(study, old, arm)) is not None
    ]
    if not taken:
        has = (
            f"none of its {len(finished)} finished arms fits this space"
            if finished
            else "has no finished arm"
        )
        raise UsageError(f"search.warm_start: {name}: {has}; remove warm_start, or widen the space")
    if study.search.sampler == "cmaes" and len(taken) < LEAST_FOR_CMAES:
        raise UsageError(
            f"search.warm_start: {name}: cmaes learns from the best tenth of at least {LEAST_FOR_CMAES} arms, and "
            f"{len(taken)} fit this space; use sampler tpe or gp, or remove warm_start"
        )
    ours, theirs = identity(study), identity(old)
    differ = [part for part in ("dataset", "train", "evaluate", "seeds") if ours[part] != theirs[part]]
    note = f" (its {', '.join(differ)} differ: its values may not compare)" if differ else ""
    words = f"the search learns first from {len(taken)} of {len(finished)} finished arms of {name}{note}"
    return Earlier(study=name, arms=tuple(taken), words=words)


def _results(arm: ArmRecord, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """The arm's mean of each objective over all of its seeds; None when it did not come to its end with every one."""
    if any(trial.state is not State.COMPLETED for trial in arm.trials):
        return None
    each = [[trial.value(objective) for trial in arm.trials] for objective in objectives]
    known = [fmean(v for v in values if v is not None) for values in each if None not in values]
    return tuple(known) if len(known) == len(each) and arm.trials else None


def _fitting(study: StudySpec, old: StudySpec, arm: ArmRecord) -> dict[str, Value] | None:
    """The point of this study's space at which its arm is what the old study's arm is; None when there is none."""
    if study.arms and arm.values.get("arm") not in study.arms:
        return None
    name = str(arm.values["arm"]) if study.arms else ""
    mine, space, before = each_arm(study)[name], axes(study), _everything(old, arm.values)
    known = hyperparameters(mine)
    values: dict[str, Value] = {"arm": name} if name else {}
    for axis in ordered(study.space):
        if holds(space[axis], {**values, **facts(mine, name)}):
            value = _nearest_on(space[axis], known[axis].kind, before.get(axis))
            if value is None:
                return None
            values[axis] = value
    values = {axis: values[axis] for axis in space if axis in values}
    after = _everything(study, values)
    same = all(before[name] == after.get(name) for name in ("model", *arm.values) if name in before)
    return values if same and allowing(study)(values) else None


def _nearest_on(axis: Choices | Range, kind: type, value: Value | None) -> Value | None:
    """The value as the axis has it; None when it lies beside it."""
    if isinstance(axis, Choices):
        alike = (one for one in axis.choices if isinstance(one, bool) == isinstance(value, bool))
        return next((one for one in alike if one == value), None)
    if value is None or isinstance(value, bool | str) or not axis.low <= value <= axis.high:
        return None
    steps = 0.0 if axis.step is None else (value - axis.low) / axis.step
    is_whole = kind is not int or float(value).is_integer()
    return value if is_whole and abs(steps - round(steps)) < 1e-6 else None


def _everything(study: StudySpec, values: Mapping[str, Value]) -> dict[str, Value]:
    """The arm's model and all of its hyperparameters."""
    spec = trial_spec(study, values, study.seeds[0], "")
    chosen = {name: value for name, value in values.items() if name != "arm"}
    return {**chosen, "model": spec.model, **spec.training, **spec.model_params}


def freeze(store: Path, earlier: Earlier) -> None:
    """Keep what was taken beside the search's store, once."""
    path = store.with_name(FROZEN)
    if path.exists():
        return
    arms = [{"values": dict(values), "results": list(results)} for values, results in earlier.arms]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"study": earlier.study, "words": earlier.words, "arms": arms}, indent=1))
    os.replace(temporary, path)


def _thaw(path: Path) -> Earlier:
    try:
        found = json.loads(path.read_text())
        arms = tuple((dict(arm["values"]), tuple(map(float, arm["results"]))) for arm in found["arms"])
        return Earlier(study=str(found["study"]), arms=arms, words=str(found["words"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged, and the numbers of the search's arms depend on it; choose a new name for the study: "
            "--set name=NEW_NAME"
        ) from error
