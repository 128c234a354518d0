"""The study document, and what must hold between its fields.

`StudySpec` (declared in _fields.py) checks types and ranges of single fields; `problems` checks what involves
several fields, the models and the datasets. Both speak in paths; loader.py adds file, line and column.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal

import models
from models import Param, Value
from orchestrator._fields import (
    BUDGETS,
    LEAST_EVALUATED,
    MAX_ARMS,
    NAME_PATTERN,
    Choices,
    Dataset,
    KeyPath,
    Objective,
    Range,
    Resources,
    StudySpec,
    nearest,
    unknown,
)
from orchestrator.claims import CheckError, parse
from orchestrator.constraints import ConstraintError, Name
from orchestrator.constraints import parse as parse_constraint
from orchestrator.errors import Problem
from orchestrator.samplers import SAMPLERS, numbers, option_problems
from trials import schedule
from trials.datasets import DATASETS
from trials.options import TRAINING, conflicts, resolve_training, unused
from trials.reports import AT_THE_END, OBJECTIVES, OF_CLASSES, OF_GALLERY, OF_HELD_OUT
from trials.spec import batches_per_epoch

MOST_CORNERS = 3000
Found = Iterator[tuple[KeyPath, str]]
Checks = tuple[tuple[tuple[KeyPath, ...], Callable[[StudySpec], Found]], ...]
"""What a check needs unbroken, and the check."""

__all__ = [
    "BUDGETS",
    "MAX_ARMS",
    "NAME_PATTERN",
    "Choices",
    "Dataset",
    "KeyPath",
    "Objective",
    "Range",
    "Resources",
    "StudySpec",
    "all_points",
    "allowing",
    "axes",
    "build_values",
    "each_arm",
    "evaluations",
    "facts",
    "features",
    "grid_points",
    "holds",
    "hyperparameters",
    "image_shape",
    "n_classes",
    "n_images",
    "nearest",
    "of_arm",
    "ordered",
    "problems",
    "related",
    "steps_per_epoch",
    "total_steps",
    "training_values",
    "unknown",
    "with_datasets",
]


def problems(study: StudySpec, broken: Collection[KeyPath] = ()) -> list[Problem]:
    """Everything that is wrong with a study whose fields are each of the right type.

    `broken`: parts left out because they are wrong in themselves. What depends on them is not checked.
    """
    found = {(path, message): [""] for check in _run_checks(_WHOLE, study, broken) for path, message in check}
    for name, resolved in each_arm(study).items():
        for check in _run_checks(_EACH_ARM, resolved, broken):
            for path, message in check:
                found.setdefault((_written(study, name, path), message), []).append(name)
    everywhere = max(1, len(study.arms))
    return [
        Problem(
            path=path,
            message=message
            if len(arms) == everywhere or path[0] == "arms" or not arms[0]
            else f"{message} (arm {arms[0]}){_meant_for_some(study, path, arms)}",
        )
        for (path, message), arms in found.items()
        if not any(related(path, part) for part in broken)
    ]


def _meant_for_some(study: StudySpec, path: KeyPath, arms: Sequence[str]) -> str:
    """How to write a hyperparameter that the models of these arms do not take, and that of another one does."""
    if len(path) != 2 or path[0] not in ("space", "fixed"):
        return ""
    name = str(path[1])
    takes = {
        mine.model: name in hyperparameters(mine)
        for mine in (of_arm(study, arm) for arm in study.arms)
        if hyperparameters(mine)
    }
    if takes.get(of_arm(study, arms[0]).model, True) or not any(takes.values()):
        return ""
    them = ", ".join(model for model, does in takes.items() if does)
    when = f"when: {{model: {f'[{them}]' if ', ' in them else them}}}"
    if path[0] == "space":
        return f"; for the models that take it write {when}"
    return f"; for the models that take it write in space {name}: {{choices: [VALUE], {when}}}"


def _run_checks(checks: Checks, study: StudySpec, broken: Collection[KeyPath]) -> Iterator[Found]:
    for needs, check in checks:
        if not any(related(need, part) for need in needs for part in broken):
            yield check(study)


def _written(study: StudySpec, arm: str, path: KeyPath) -> KeyPath:
    """Where what `path` leads to in the arm's own study is written."""
    if not arm:
        return path
    changes = study.arms[arm]
    there = {
        "model": changes.model is not None,
        "dataset": changes.dataset is not None,
        "train": len(path) > 1 and getattr(changes.train, str(path[1]), None) is not None,
        "fixed": len(path) > 1 and path[1] in changes.fixed,
    }
    return ("arms", arm, *path) if there.get(str(path[0])) else path


def of_arm(study: StudySpec, name: str) -> StudySpec:
    """The study that a named arm makes of `study`: the arm's settings over the study's, without other arms.

    Its space is what arms of that name have.
    """
    arm = study.arms[name]
    changes = arm.train.model_dump(exclude_none=True)
    length = {"epochs": None, "steps": None} if changes.keys() & {"epochs", "steps"} else {}
    alone = study.model_copy(
        update={
            "model": arm.model or study.model,
            "dataset": arm.dataset or study.dataset,
            "train": study.train.model_copy(update={**length, **changes}),
            "fixed": {**study.fixed, **arm.fixed},
            "arms": {},
        }
    )
    return _decided(alone, name)


def each_arm(study: StudySpec) -> dict[str, StudySpec]:
    """The study that each named arm makes of it; itself under the name "" when there are none."""
    return {name: of_arm(study, name) for name in study.arms} or {"": _decided(study, "")}


def _decided(study: StudySpec, arm: str) -> StudySpec:
    """The study of one arm without the axes it has not, and without conditions on what is the same in all of it."""
    if not any(axis.when for axis in study.space.values()):
        return study
    same = facts(study, arm)
    space = dict(study.space)
    while gone := [name for name, axis in space.items() if not _may_hold(axis, same, space)]:
        for name in gone:
            del space[name]
    for name, axis in space.items():
        left = {other: wanted for other, wanted in axis.when.items() if other not in same}
        space[name] = axis.model_copy(update={"when": left})
    return study.model_copy(update={"space": space})


def facts(study: StudySpec, arm: str) -> dict[str, Value]:
    """What a condition can ask of a study of one arm."""
    named: dict[str, Value] = {"arm": arm} if arm else {}
    return {"model": study.model, "dataset": _dataset_name(study.dataset), **named}


def _dataset_name(dataset: Dataset) -> str:
    return dataset.name or dataset.folder or ""


def _may_hold(axis: Choices | Range, same: Mapping[str, Value], space: Mapping[str, Choices | Range]) -> bool:
    return all(
        _among(same[other], wanted) if other in same else other in space
        for other, wanted in axis.when.items()
    )


def holds(axis: Choices | Range, values: Mapping[str, Value]) -> bool:
    """Whether an arm with these values has the axis. Conditions on an axis that the arm has not do not hold."""
    return all(other in values and _among(values[other], wanted) for other, wanted in axis.when.items())


def _among(value: Value, wanted: Sequence[Value]) -> bool:
    return any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in wanted)


def ordered(space: Mapping[str, Choices | Range]) -> list[str]:
    """The axes in the order written, each after those that its conditions are on."""
    found: dict[str, None] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        for other in space[name].when:
            if other in space and other not in above:
                add(other, (*above, other))
        found.setdefault(name)

    for name in space:
        if name not in found:
            add(name, (name,))
    return list(found)


def _expand(
    space: Mapping[str, Choices | Range], values: Mapping[str, Sequence[Value]]
) -> Iterator[dict[str, Value]]:
    """Every point of the space of one arm, the last axis varying fastest; an axis whose conditions fail is absent."""
    if not any(axis.when for axis in space.values()):
        yield from (dict(zip(space, point, strict=True)) for point in itertools.product(*values.values()))
        return
    names = ordered(space)

    def rest(i: int, chosen: dict[str, Value]) -> Iterator[dict[str, Value]]:
        if i == len(names):
            yield {name: chosen[name] for name in space if name in chosen}
        elif holds(space[names[i]], chosen):
            for value in values[names[i]]:
                yield from rest(i + 1, {**chosen, names[i]: value})
        else:
            yield from rest(i + 1, chosen)

    yield from rest(0, {})


def grid_points(study: StudySpec) -> Iterator[dict[str, Value]]:
    """Every named arm at every point of its space, whether or not constraints allow it."""
    for arm, mine in each_arm(study).items():
        named: dict[str, Value] = {"arm": arm} if arm else {}
        values = {name: axis.values() or [] for name, axis in mine.space.items()}
        yield from ({**named, **point} for point in _expand(mine.space, values))


def all_points(study: StudySpec) -> Iterator[dict[str, Value]] | None:
    """Every arm that a sampler can propose; None when they are too many to list, or the space is continuous."""
    each = each_arm(study)
    if sum(_most(mine) for mine in each.values()) > MAX_ARMS:
        return None
    allowed = allowing(study)

    def listed() -> Iterator[dict[str, Value]]:
        for arm, mine in each.items():
            named: dict[str, Value] = {"arm": arm} if arm else {}
            known = hyperparameters(mine)
            values = {name: _drawn(axis, known[name].kind) for name, axis in mine.space.items()}
            yield from filter(allowed, ({**named, **point} for point in _expand(mine.space, values)))

    return listed()


def _most(study: StudySpec) -> float:
    """How many points the space of one arm has, were there no conditions; inf when it is continuous."""
    known = hyperparameters(study)
    return math.prod(
        _n_drawn(axis, known[name].kind if name in known else str) for name, axis in study.space.items()
    )


def _n_drawn(axis: Choices | Range, kind: type) -> float:
    """How many values a sampler can draw; inf for a continuous range."""
    if isinstance(axis, Choices):
        return len(axis.choices)
    if axis.step is None:
        return max(1.0, float(axis.high) - axis.low + 1) if kind is int else math.inf
    return axis.size or math.inf


def _drawn(axis: Choices | Range, kind: type) -> Sequence[Value]:
    if isinstance(axis, Range) and axis.step is None and kind is int:
        return range(int(axis.low), int(axis.high) + 1)
    return axis.values() or []


def allowing(study: StudySpec) -> Callable[[Mapping[str, Value]], bool]:
    """Whether an arm's values meet all constraints. Raises ConstraintError when one cannot be read."""
    if not study.constraints:
        return lambda values: True
    names = _names(study)
    constraints = [parse_constraint(text, names) for text in study.constraints]
    each = each_arm(study)

    def allowed(values: Mapping[str, Value]) -> bool:
        arm = str(values.get("arm", ""))
        in_full = _in_full(each[arm], arm, values)
        return all(constraint.holds(in_full) for constraint in constraints)

    return allowed


def _in_full(study: StudySpec, arm: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """All that a constraint can name of an arm: its own values over what is fixed over the recipe's."""
    given = {**study.fixed, **values}
    return {**given, **build_values(study, values), **training_values(study, values), **facts(study, arm)}


def _names(study: StudySpec) -> dict[str, Name]:
    """What constraints can name."""
    found: dict[str, Name] = {}
    each = each_arm(study).values()
    for mine in each:
        for name, param in hyperparameters(mine).items():
            kind = float if param.kind is int else param.kind
            found.setdefault(name, Name(kind, param.choices or None))
    arms = {"arm": Name(str, tuple(study.arms))} if study.arms else {}
    return {
        **found,
        "model": Name(str, tuple(dict.fromkeys(mine.model for mine in each))),
        "dataset": Name(str, tuple(dict.fromkeys(_dataset_name(mine.dataset) for mine in each))),
        **arms,
    }


def with_datasets(study: StudySpec, change: Callable[[Dataset], Dataset]) -> StudySpec:
    """The study with `change` made to its dataset and to those of its arms."""
    arms = {
        name: arm.model_copy(update={"dataset": arm.dataset and change(arm.dataset)})
        for name, arm in study.arms.items()
    }
    return study.model_copy(update={"dataset": change(study.dataset), "arms": arms})


def axes(study: StudySpec) -> dict[str, Choices | Range]:
    """What an arm chooses: the name of a named arm, and a value of every axis of the space."""
    named: dict[str, Choices | Range] = {"arm": Choices(choices=list(study.arms))} if study.arms else {}
    return {**named, **study.space}


def related(a: KeyPath, b: KeyPath) -> bool:
    """Whether one path leads to or into the other."""
    return all(x == y for x, y in zip(a, b, strict=False))


def _dataset_problems(study: StudySpec) -> Found:
    dataset = study.dataset
    if (dataset.name is None) == (dataset.folder is None):
        given = "both" if dataset.name is not None else "neither"
        yield ("dataset",), f"give a name or a folder (got {given}); names: {', '.join(DATASETS)}"
        return
    info = DATASETS.get(dataset.name or "")
    if dataset.name is not None and info is None:
        yield ("dataset", "name"), unknown("dataset", dataset.name, DATASETS)
    if dataset.folder is not None and dataset.size is None:
        yield ("dataset",), "a folder needs size, the side of the square images to train on"
    if dataset.folder is not None and not dataset.folder.strip():
        yield ("dataset", "folder"), "must name a folder"
    if dataset.stored is not None and dataset.size is None and dataset.folder is None:
        yield ("dataset", "stored"), "needs size too, the side that images are averaged down to for training"
    elif dataset.stored is not None and dataset.size is not None and dataset.stored % dataset.size:
        yield ("dataset", "stored"), f"must be a multiple of size (got {dataset.stored} and {dataset.size})"
    whole = dataset.n_images if info is None else dataset.n_images or info.n_images
    if dataset.limit is not None and whole is not None and dataset.limit > whole:
        yield ("dataset", "limit"), f"{dataset.source.label} has {whole} images (got {dataset.limit})"


def _evaluate_problems(study: StudySpec) -> Found:
    n, dataset = n_images(study), study.dataset
    info = DATASETS.get(dataset.name or "")
    whole = dataset.limit or dataset.n_images or (info.n_images if info else None)
    if whole is not None and dataset.hold_out > whole // 2:
        yield (
            ("dataset", "hold_out"),
            f"must be at most half of the images, {whole // 2} (got {dataset.hold_out})",
        )
        return
    unseen = dataset.folder is not None and dataset.n_classes is None
    if study.evaluate.features == "classifier" and not unseen and n_classes(study) < 2:
        yield (
            ("evaluate", "features"),
            f"{dataset.source.label} has no labels to train a classifier on; use imagenet, or random to try a run",
        )
    if n is not None and evaluations(study) and n < 2 * LEAST_EVALUATED:
        yield (
            ("dataset",),
            f"{n} images are too few to judge by, at least {2 * LEAST_EVALUATED} are needed; "
            "or set evaluate.count to 0",
        )
    elif n is not None and (study.evaluate.samples or 0) > n // 2:
        yield (
            ("evaluate", "samples"),
            f"must be at most half of the dataset, {n // 2} (got {study.evaluate.samples})",
        )


def _list_problems(study: StudySpec) -> Found:
    for i in _repeated(study.seeds):
        yield ("seeds", i), f"seed {study.seeds[i]} is listed twice"
    for i in _repeated([claim.id for claim in study.claims]):
        yield ("claims", i, "id"), f"claim {study.claims[i].id} is listed twice"


def _arm_problems(study: StudySpec) -> Found:
    """Arms that come to the same: they would be one, under the first one's name."""
    seen: dict[str, str] = {}
    for name in study.arms:
        arm = of_arm(study, name)
        if arm.model not in models.names() or any(True for _ in _fixed_problems(arm)):
            continue
        values = {**build_values(arm, {}), **training_values(arm, {})}
        length = (arm.train.epochs, arm.train.steps)
        same = repr((arm.model, arm.dataset, length, sorted(values.items()), sorted(arm.space.items())))
        if same in seen:
            message = f"is the same as arm {seen[same]}: model, dataset, length and hyperparameters are equal"
            yield ("arms", name), message
        seen.setdefault(same, name)


def _claim_problems(study: StudySpec) -> Found:
    for i, claim in enumerate(study.claims):
        try:
            if claim.check:
                parse(claim.check, axes(study))
        except CheckError as error:
            yield ("claims", i, "check"), str(error)


def _repeated(values: Sequence[Value]) -> Iterator[int]:
    """The positions of values that came before."""
    seen: set[Value] = set()
    for i, value in enumerate(values):
        if value in seen:
            yield i
        seen.add(value)


def _train_problems(study: StudySpec) -> Found:
    if study.train.epochs is not None and study.train.steps is not None:
        yield ("train", "steps"), "give either epochs or steps, not both"
    for name in ("batch_size", "batch_size_g"):
        if getattr(study.train, name) is not None and name in study.fixed:
            yield ("train", name), f"{name} is given twice; keep it in one of train, fixed and space"


def _twice_problems(study: StudySpec) -> Found:
    """What has a value of its own in arms that choose another one."""
    always = [name for name, axis in study.space.items() if not axis.when]
    for arm, mine in each_arm(study).items():
        for name in always:
            if name in mine.fixed:
                yield _written(study, arm, ("fixed", name)), f"{name} is in space too; remove one"
            if getattr(mine.train, name, None) is not None and name in ("batch_size", "batch_size_g"):
                message = f"{name} is given twice; keep it in one of train, fixed and space"
                yield _written(study, arm, ("train", name)), message


def _when_problems(study: StudySpec) -> Found:
    """Conditions on what there is not, in a circle, or that hold for no arm."""
    if any(mine.model not in models.names() for mine in _with_all_axes(study)):
        return
    known: dict[str, Sequence[Value]] = {
        "model": [mine.model for mine in _with_all_axes(study)],
        "dataset": [_dataset_name(mine.dataset) for mine in _with_all_axes(study)],
        **({"arm": list(study.arms)} if study.arms else {}),
        **{name: axis.choices for name, axis in study.space.items() if isinstance(axis, Choices)},
    }
    for name, axis in study.space.items():
        path: KeyPath = ("space", name, "when")
        wrong = False
        for other, wanted in axis.when.items():
            message = None
            if other in study.space and other not in known:
                message = f"{other} is a range; a condition is on choices"
            elif other not in known:
                message = unknown("condition", other, known)
            if message:
                wrong = True
                yield (*path, other), message
                continue
            for i, value in enumerate(wanted):
                if not _among(value, known[other]):
                    wrong = True
                    there = ", ".join(map(_as_written, dict.fromkeys(known[other])))
                    yield (*path, other, i), f"{_as_written(value)} is no value of {other}; there is {there}"
        if circle := _circle(study.space, name):
            wrong = True
            yield path, f"goes round in a circle: {' -> '.join(circle)}"
        if axis.when and not wrong and not any(name in mine.space for mine in each_arm(study).values()):
            yield path, "holds for no arm"


def _with_all_axes(study: StudySpec) -> list[StudySpec]:
    bare = study.model_copy(update={"space": {}})
    return list(each_arm(bare).values())


def _as_written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:80]


def _circle(space: Mapping[str, Choices | Range], name: str) -> list[str]:
    """The conditions that lead from an axis to itself, if they do."""
    ways = [[name]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for other in space[way[-1]].when:
            if other == name:
                return [*way, name]
            if other in space and other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def _constraint_problems(study: StudySpec) -> Found:
    if any(not hyperparameters(mine) for mine in each_arm(study).values()):
        return
    names, wrong = _names(study), False
    for i, text in enumerate(study.constraints):
        try:
            parse_constraint(text, names)
        except ConstraintError as error:
            wrong = True
            yield ("constraints", i), str(error)
    is_small = study.search.sampler == "grid" and _grid_arms(study) <= MAX_ARMS
    if study.constraints and not wrong and is_small and _is_sound(study):
        allowed = allowing(study)
        if not any(allowed(point) for point in grid_points(study)):
            yield ("constraints",), "leave no point of the grid"


def _is_sound(study: StudySpec) -> bool:
    """Whether every arm's model and hyperparameters are right by themselves."""
    checks = (_model_problems, _fixed_problems, _space_problems)
    return not any(True for mine in each_arm(study).values() for check in checks for _ in check(mine))


def _objective_problems(study: StudySpec) -> Found:
    for i, objective in enumerate(study.objectives):
        path: KeyPath = ("objective", i) if len(study.objectives) > 1 else ("objective",)
        if objective.metric not in OBJECTIVES:
            yield (*path, "metric"), unknown("metric", objective.metric, OBJECTIVES)
        elif objective.metric.startswith("eval/") and study.evaluate.count == 0:
            yield (*path, "metric"), f"{objective.metric} is never measured: evaluate.count is 0"
    for i in _repeated([objective.metric for objective in study.objectives]):
        yield ("objective", i, "metric"), f"{study.objectives[i].metric} is listed twice"


def _measured_problems(study: StudySpec) -> Found:
    """Objectives that an arm does not measure."""
    if study.model not in models.names():
        return
    for i, objective in enumerate(study.objectives):
        if lack := _lack(study, objective.metric.removeprefix("eval/")):
            path: KeyPath = ("objective", i) if len(study.objectives) > 1 else ("objective",)
            yield (*path, "metric"), f"{objective.metric} is not measured {lack}"


def _lack(study: StudySpec, metric: str) -> str | None:
    """What a metric of evaluations would need, in words; None when there it is."""
    unseen = study.dataset.folder is not None and study.dataset.n_classes is None
    if metric in OF_CLASSES and features(study) != "classifier" and not unseen:
        return f"in features of kind {features(study)}: it needs a classifier, so a dataset with labels"
    if metric == "class_fidelity" and not models.preset(study.model).conditional:
        return f"of {study.model}, which cannot be asked for a class"
    if metric in OF_HELD_OUT and not study.dataset.hold_out:
        return "without images that are held out; set dataset.hold_out"
    if metric in OF_GALLERY and not study.pictures.gallery:
        return "without pictures.gallery"
    if not metric.endswith("_raw") or any(
        True for check in (_fixed_problems, _space_problems) for _ in check(study)
    ):
        return None
    averaged = all(training_values(study, point)["ema"] for point in _corners(study))
    return None if averaged else "where ema is 0: there is no other generator beside it"


def _prune_problems(study: StudySpec) -> Found:
    """Rungs at which nothing could be judged."""
    prune, metric = study.prune, study.objective.metric
    if prune is None:
        return
    if not metric.startswith("eval/") or metric.removeprefix("eval/") in AT_THE_END:
        yield (
            ("prune",),
            f"{metric} is known at the end only; prune by a metric of evaluations, such as eval/fd",
        )
    for i in _repeated(prune.rungs):
        yield ("prune", "rungs", i), f"step {prune.rungs[i]} is listed twice"
    if prune.method == "paired" and (prune.seeds or len(study.seeds)) < 2:
        yield ("prune", "method"), "a paired test needs at least two seeds"
    if prune.seeds is not None and prune.seeds >= len(study.seeds):
        message = f"must be fewer than the study's {len(study.seeds)} seeds; leave it out to judge by all"
        yield ("prune", "seeds"), message
    if any(True for check in (_model_problems, _fixed_problems, _space_problems) for _ in check(study)):
        return
    known = (total_steps(study, training_values(study, point)) for point in _corners(study))
    shortest = min((steps for steps in known if steps is not None), default=None)
    if shortest is not None and max(prune.rungs) >= shortest:
        message = f"must come before the end of every trial, step {shortest} (got {max(prune.rungs)})"
        yield ("prune", "rungs", prune.rungs.index(max(prune.rungs))), message


def _model_problems(study: StudySpec) -> Found:
    if study.model not in models.names():
        yield ("model",), unknown("model", study.model, models.names())


def _shape_problems(study: StudySpec) -> Found:
    shape = image_shape(study)
    if shape is None or study.model not in models.names():
        return
    preset = models.preset(study.model)
    if wrong := preset.shape_problem(shape):
        yield ("dataset",), wrong
    elif not any(True for check in (_fixed_problems, _space_problems) for _ in check(study)):
        fits = (models.problem(study.model, shape, build_values(study, point)) for point in _corners(study))
        for wrong in dict.fromkeys(filter(None, fits)):
            yield ("model",), wrong
    unseen = study.dataset.folder is not None and study.dataset.n_classes is None
    if preset.conditional and not unseen and n_classes(study) < 2:
        yield (
            ("dataset",),
            f"{study.model} makes images of a class; {study.dataset.source.label} has no classes"
            + (" (a folder has them when every image lies in a subfolder)" if study.dataset.folder else ""),
        )


def hyperparameters(study: StudySpec) -> dict[str, Param]:
    """The hyperparameters that the study may fix or search; none when its model is unknown."""
    if study.model not in models.names():
        return {}
    preset = models.preset(study.model)
    training = {name: param for name, param in TRAINING.items() if name not in preset.refuses}
    return {**training, **preset.build_params}


def _unknown_hyperparameter(study: StudySpec, name: str) -> str:
    refused = models.preset(study.model).refuses.get(name)
    if refused is not None:
        return f"{study.model} does not take {name}: {refused}"
    hint = nearest(name, hyperparameters(study))
    return f"unknown hyperparameter {name[:80]!r}; {hint}{' ' if hint else ''}see: gan-sweep models {study.model}"


def _fixed_problems(study: StudySpec) -> Found:
    known = hyperparameters(study)
    for name, value in study.fixed.items():
        if known and name not in known:
            yield ("fixed", name), _unknown_hyperparameter(study, name)
        elif known and (wrong := known[name].problem(value)):
            yield ("fixed", name), wrong


def _space_problems(study: StudySpec) -> Found:
    known = hyperparameters(study)
    for name, axis in study.space.items():
        if known and name not in known:
            yield ("space", name), _unknown_hyperparameter(study, name)
        elif known and isinstance(axis, Choices):
            yield from _choices_problems(("space", name), axis, known[name])
        elif known and isinstance(axis, Range):
            yield from _range_problems(("space", name), axis, known[name])


def _choices_problems(path: KeyPath, axis: Choices, param: Param) -> Found:
    repeated = set(_repeated(axis.choices))
    for i, value in enumerate(axis.choices):
        if wrong := param.problem(value):
            yield (*path, "choices", i), wrong
        elif i in repeated:
            yield (*path, "choices", i), f"{value!r} is listed twice"
    if len({_kind(value) for value in axis.choices}) > 1:
        yield (*path, "choices"), "mixes numbers, text and true/false; use one kind"


def _kind(value: Value) -> str:
    return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def _range_problems(path: KeyPath, axis: Range, param: Param) -> Found:
    if param.kind not in (int, float):
        yield path, f"{path[-1]} is {param.range}; write choices: [...]"
        return
    for end in ("low", "high"):
        value = getattr(axis, end)
        if axis.log and value <= 0:
            yield (*path, end), f"must be > 0 for log scale (got {value!r})"
        elif wrong := param.problem(value):
            yield (*path, end), wrong
    if axis.low >= axis.high:
        yield (*path, "low"), f"low must be below high (got {axis.low!r} and {axis.high!r})"
    if axis.step is not None and (wrong := _step_problem(axis, axis.step, param)):
        yield (*path, "step"), wrong


def _step_problem(axis: Range, step: float, param: Param) -> str | None:
    if axis.log:
        return "step and log cannot be combined"
    if step <= 0:
        return f"must be > 0 (got {step!r})"
    if param.kind is int and not isinstance(step, int):
        return f"must be a whole number (got {step!r})"
    n = (axis.high - axis.low) / step
    if n > MAX_ARMS:
        return f"makes more than {MAX_ARMS} values of {axis.low!r}..{axis.high!r}; use a larger step"
    if n > 0 and abs(n - round(n)) > 1e-9 * max(1.0, n):
        return f"does not divide {axis.low!r}..{axis.high!r} into equal parts (got {step!r})"
    return None


def _search_problems(study: StudySpec) -> Found:
    search = study.search
    if search.sampler != "grid":
        if search.trials is None:
            yield ("search",), f"sampler {search.sampler} needs trials, the number of arms to try"
        elif not axes(study):
            yield ("space",), f"sampler {search.sampler} has nothing to search; add hyperparameters to space"
        elif search.trials > (n := _points(study, search.trials)):
            yield (
                ("search", "trials"),
                f"the space has only {n:.0f} points (got {search.trials}); a grid runs them all",
            )
        return
    if search.trials is not None:
        yield (
            ("search", "trials"),
            "a grid runs every point once; remove trials, or use sampler random or tpe",
        )
    n = _grid_arms(study)
    if n > MAX_ARMS:
        yield ("space",), f"the grid has {n:{'.0f' if n < 1e15 else '.3g'}} arms; at most {MAX_ARMS}"


def _sampler_problems(study: StudySpec) -> Found:
    search, sampler = study.search, SAMPLERS[study.search.sampler]
    for name, message in option_problems(search):
        yield ("search", "options", name), message
    if len(study.objectives) > sampler.objectives:
        message = f"{search.sampler} takes one objective (got {len(study.objectives)}); use tpe, gp or nsga2"
        yield ("search", "sampler"), message
    if search.sampler == "cmaes" and len(ranges := numbers(study.space)) < 2:
        message = (
            f"cmaes needs two ranges or more that every arm has (got {', '.join(ranges) or 'none'}); use tpe"
        )
        yield ("search", "sampler"), message
    if search.warm_start is not None and not sampler.adaptive:
        learning = ", ".join(name for name, one in SAMPLERS.items() if one.adaptive)
        message = f"{search.sampler} learns from nothing; use one of {learning}, or remove it"
        yield ("search", "warm_start"), message
    elif search.warm_start == study.name:
        yield ("search", "warm_start"), "is this study itself; name an earlier one"


def _grid_arms(study: StudySpec) -> float:
    """How many arms a grid has before constraints: exactly, but of a huge one with conditions at most."""
    total = 0.0
    for mine in each_arm(study).values():
        most = math.prod(max(1.0, _grid_size(axis) or 1.0) for axis in mine.space.values())
        sizes = [_grid_size(axis) or 1.0 for axis in mine.space.values()]
        if any(axis.when for axis in mine.space.values()) and max(sizes) <= MAX_ARMS:
            values = {name: axis.values() or [0] for name, axis in mine.space.items()}
            counted = sum(1 for _ in itertools.islice(_expand(mine.space, values), MAX_ARMS + 1))
            most = counted if counted <= MAX_ARMS else most
        total += most
    return total


def _points(study: StudySpec, wanted: int) -> float:
    """How many different arms the space holds, or `wanted` if it holds more; inf when it is continuous."""
    sizes = [_most(mine) for mine in each_arm(study).values()]
    if sum(sizes) > MAX_ARMS or not _is_sound(study):
        return sum(sizes)
    try:
        points = all_points(study)
    except ConstraintError:  # reported by itself
        points = all_points(study.model_copy(update={"constraints": []}))
    return sum(1 for _ in itertools.islice(points or (), wanted))


def _grid_problems(study: StudySpec) -> Found:
    known = hyperparameters(study)
    for name, axis in study.space.items():
        if study.search.sampler != "grid" or name not in known or isinstance(axis, Choices):
            continue
        # Whole bounds alone make a range of whole numbers only for a hyperparameter that is one.
        if axis.size is None or (axis.step is None and known[name].kind is float):
            message = "a grid needs choices or a step; else use sampler random or tpe"
            yield ("space", name), message


def _grid_size(axis: Choices | Range) -> float | None:
    size = len(axis.choices) if isinstance(axis, Choices) else axis.size
    return size if size != math.inf else None  # reported at its step


def _option_problems(study: StudySpec) -> Found:
    """What cannot go together in some arm, and what does nothing in any."""
    if any(True for check in (_model_problems, _fixed_problems, _space_problems) for _ in check(study)):
        return
    preset = models.preset(study.model)
    given = {*study.fixed, *study.space}
    found: dict[str, str] = {}
    for point in _corners(study):
        values = {**build_values(study, point), **training_values(study, point)}
        here = {*study.fixed, *point}
        for name, message in (*conflicts(preset, values, here), *_growth_problems(study, values)):
            found.setdefault(name, message)
        n_evaluations = evaluations(study)
        if 0 < int(values["patience"]) >= n_evaluations:
            found.setdefault("patience", f"is never used up by {n_evaluations} evaluations of evaluate.count")
        finals = [o.metric for o in study.objectives if o.metric.startswith("final/")]
        if values["patience"] and finals:
            found.setdefault("patience", f"a trial that ends early has no {finals[0]}; choose eval/fd")
        at_end = [o.metric for o in study.objectives if o.metric.removeprefix("eval/") in AT_THE_END]
        if values["patience"] and at_end:
            found.setdefault("patience", f"{at_end[0]} is measured at the end only; choose eval/fd")
    for name, message in found.items():
        section = "space" if name in study.space else "fixed"
        yield (
            (section, name) if name in given else (("model",)),
            message if name in given else f"{name}: {message}",
        )


def _idle_problems(study: StudySpec) -> Found:
    """Settings that do nothing in any arm that they are meant for."""
    idle: dict[KeyPath, str | None] = {}
    for arm, resolved in each_arm(study).items():
        if any(
            True for check in (_model_problems, _fixed_problems, _space_problems) for _ in check(resolved)
        ):
            return
        for point in _corners(resolved):
            values = {**build_values(resolved, point), **training_values(resolved, point)}
            here = dict(unused(values, {*resolved.fixed, *point}))
            for name in {*resolved.fixed, *point}:
                path = ("space", name) if name in point else _written(study, arm, ("fixed", name))
                idle[path] = here.get(name) if path not in idle or idle[path] else None
    yield from ((path, why) for path, why in idle.items() if why)


def _corners(study: StudySpec) -> Iterator[dict[str, Value]]:
    """The points of the space with ranges at their ends that conditions and constraints leave; of more than a few
    thousand, a sample with every value."""
    sides = {n: a.choices if isinstance(a, Choices) else [a.low, a.high] for n, a in study.space.items()}
    try:
        allowed = allowing(study)
    except ConstraintError:  # reported by itself
        allowed = lambda _: True  # noqa: E731
    yield from filter(allowed, _all_corners(study.space, sides))


def _all_corners(
    space: Mapping[str, Choices | Range], sides: Mapping[str, Sequence[Value]]
) -> Iterator[dict[str, Value]]:
    if math.prod(map(len, sides.values())) <= MOST_CORNERS:
        yield from _expand(space, sides)
        return
    drawn, names = random.Random(0), ordered(space)
    for i in range(max(MOST_CORNERS, *map(len, sides.values()))):
        point = {name: side[i] if i < len(side) else drawn.choice(side) for name, side in sides.items()}
        for name in names:
            if not holds(space[name], point):
                del point[name]
        yield point


def _growth_problems(study: StudySpec, values: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    shape, steps = image_shape(study), total_steps(study, values)
    if not values.get("progressive") or shape is None or steps is None:
        return
    n_levels = max(1, shape[1].bit_length() - 2)  # 4, 8, ... up to the side
    needed = 1000 * schedule.grown_after(n_levels, float(values["train_kimg"]), float(values["fade_kimg"]))
    updates = int(values["n_critic"]) if values["real_batch"] == "fresh" else 1
    shown = steps * int(values["batch_size"]) * updates
    if shown < needed:
        message = (
            f"{needed:,.0f} images are needed to grow to {shape[1]}x{shape[1]}, but training shows {shown:,}; "
            "lower train_kimg and fade_kimg, or train longer"
        )
        yield "progressive", message


def _length_problems(study: StudySpec) -> Found:
    n = n_images(study)
    largest, where = _largest_batch(study)
    if n is None or largest < 1:  # reported elsewhere, or known only when the files are there
        return
    if largest > n:
        yield where, f"a batch of {largest} is larger than the dataset ({n} images)"
        return
    if any(True for check in (_model_problems, _fixed_problems, _space_problems) for _ in check(study)):
        return
    values = training_values(study, {}) | {"batch_size": largest}
    steps = total_steps(study, values)
    if steps is None:
        return
    if study.train.log_every > steps:
        message = f"no metric would ever be logged: training has {steps} steps (got {study.train.log_every})"
        yield ("train", "log_every"), message
    removed = max(
        (int(training_values(study, point)["remove_last_epochs"]) for point in _corners(study)), default=0
    )
    if removed and removed * steps_per_epoch(study, values) >= steps:
        section = "space" if "remove_last_epochs" in study.space else "fixed"
        given = "remove_last_epochs" in {**study.fixed, **study.space}
        yield (
            (section, "remove_last_epochs") if given else ("train",),
            f"remove_last_epochs {removed} leaves nothing: training has {steps} steps",
        )


def _largest_batch(study: StudySpec) -> tuple[int, KeyPath]:
    """The largest real batch of any arm and where it is set; 0 for one that is no whole number."""
    axis = study.space.get("batch_size")
    if axis is not None and axis.when:
        always = axis.model_copy(update={"when": {}})
        rest = {name: other for name, other in study.space.items() if name != "batch_size"}
        each = (study.model_copy(update={"space": space}) for space in ({"batch_size": always}, rest))
        return max(_largest_batch(one) for one in each)
    if isinstance(axis, Choices):
        return max(_whole(value) for value in axis.choices), ("space", "batch_size")
    if axis is not None:
        return _whole(axis.high), ("space", "batch_size")
    if "batch_size" in study.fixed:
        return _whole(study.fixed["batch_size"]), ("fixed", "batch_size")
    if study.train.batch_size is not None:
        return study.train.batch_size, ("train", "batch_size")
    if study.model not in models.names():
        return 0, ("train", "batch_size")
    # Of the recipe alone: what is fixed may be wrong.
    return int(resolve_training(models.preset(study.model).recipe, {})["batch_size"]), ("train", "batch_size")


def _whole(value: Value) -> int:
    return value if isinstance(value, int) else 0


_WHOLE: Checks = (
    ((), _list_problems),
    ((("arms",), ("space",)), _claim_problems),
    ((), _objective_problems),
    ((), _twice_problems),
    ((("model",), ("arms",), ("dataset",), ("space",)), _when_problems),
    ((("model",), ("arms",), ("dataset",), ("fixed",), ("space",), ("search",)), _constraint_problems),
    ((("search",),), _search_problems),
    ((("search",), ("space",), ("objective",)), _sampler_problems),
    ((("model",), ("arms",), ("dataset",), ("train",), ("fixed",), ("space",)), _arm_problems),
    ((("model",), ("arms",), ("fixed",), ("space",)), _idle_problems),
)
"""Checks of the study as a whole."""

_EACH_ARM: Checks = (
    ((("dataset", "name"),), _dataset_problems),
    ((("dataset",),), _evaluate_problems),
    ((), _train_problems),
    ((("model",),), _model_problems),
    ((("model",), ("dataset",), ("evaluate",), ("fixed",), ("space",)), _measured_problems),
    ((("model",), ("dataset",)), _shape_problems),
    ((("model",),), _fixed_problems),
    ((("model",),), _space_problems),
    (
        (("model",), ("dataset",), ("train",), ("fixed",), ("space",), ("seeds",), ("objective",)),
        _prune_problems,
    ),
    ((("model",), ("search",)), _grid_problems),
    ((("model",), ("dataset",), ("train",), ("fixed",), ("space",)), _option_problems),
    (
        (("model",), ("dataset",), ("train",), ("fixed", "batch_size"), ("space", "batch_size")),
        _length_problems,
    ),
)
"""Checks of the study that each named arm makes of it."""


def n_images(study: StudySpec) -> int | None:
    """How many images the study trains on; None for a folder that nobody has looked at yet."""
    info = DATASETS.get(study.dataset.name or "")
    whole = study.dataset.n_images or (info.n_images if info else None)
    if whole is None:
        return None
    return max(0, min(whole, study.dataset.limit or whole) - study.dataset.hold_out)


def evaluations(study: StudySpec) -> int:
    """How many evaluations a trial has at most."""
    return study.pictures.count if study.evaluate.count is None else study.evaluate.count


def features(study: StudySpec) -> Literal["classifier", "imagenet", "random"]:
    """What images are compared in. Of a dataset that is not known yet it may change once it is."""
    if study.evaluate.features != "auto":
        return study.evaluate.features
    shape = image_shape(study)
    return "classifier" if n_classes(study) > 1 and shape is not None and shape[0] == 1 else "imagenet"


def n_classes(study: StudySpec) -> int:
    """The classes of the study's dataset; 0 when it has none, or nobody has looked yet."""
    info = DATASETS.get(study.dataset.name or "")
    return info.n_classes if info else study.dataset.n_classes or 0


def image_shape(study: StudySpec) -> tuple[int, int, int] | None:
    """(C, H, W) of the images trained on; None when the dataset is not known."""
    dataset = study.dataset
    both_or_neither = (dataset.name is None) == (dataset.folder is None)
    known = dataset.name in DATASETS if dataset.folder is None else dataset.size is not None
    if both_or_neither or not known:
        return None
    channels, height, width = dataset.source.image_shape
    return (channels, dataset.size, dataset.size) if dataset.size else (channels, height, width)


def training_values(study: StudySpec, arm: Mapping[str, Value]) -> dict[str, Value]:
    """All training hyperparameters of a point of the space."""
    given = {k: v for k in ("batch_size", "batch_size_g") if (v := getattr(study.train, k)) is not None}
    given |= {k: v for k, v in {**study.fixed, **arm}.items() if k in TRAINING}
    return resolve_training(models.preset(study.model).recipe, given)


def build_values(study: StudySpec, arm: Mapping[str, Value]) -> dict[str, Value]:
    """All parameters of the networks at a point of the space."""
    given = {**study.fixed, **arm}
    params = models.preset(study.model).build_params
    values = {name: given.get(name, param.default) for name, param in params.items()}
    return {name: value for name, value in values.items() if value is not None}


def steps_per_epoch(study: StudySpec, values: Mapping[str, Value]) -> float:
    """Steps in an epoch of the study's images, whose number must be known."""
    n = n_images(study)
    assert n is not None
    batches = batches_per_epoch(n, int(values["batch_size"]), str(values["sampling"]))
    return batches / (int(values["n_critic"]) if values["real_batch"] == "fresh" else 1)


def total_steps(study: StudySpec, values: Mapping[str, Value]) -> int | None:
    """Training length in steps; None when it is counted in epochs of a dataset of unknown size.

    `values`: the resolved training hyperparameters.
    """
    recipe = models.preset(study.model).recipe
    if study.train.steps is not None:
        return study.train.steps
    if study.train.epochs is None and "steps" in recipe:
        return int(recipe["steps"])
    if n_images(study) is None:
        return None
    epochs = study.train.epochs or int(recipe.get("epochs", 1))
    return max(1, int(epochs * steps_per_epoch(study, values)))
