"""The study document, and what must hold between its fields.

`StudySpec` (declared in _fields.py) checks types and ranges of single fields; `problems` checks what involves
several fields, the models and the datasets. Both speak in paths; loader.py adds file, line and column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import models
from models import Param, Value
from orchestrator._fields import (
    BUDGETS,
    MAX_ARMS,
    NAME_PATTERN,
    Choices,
    KeyPath,
    Objective,
    Range,
    Resources,
    StudySpec,
    nearest,
    unknown,
)
from orchestrator.errors import Problem
from trials.datasets import DATASETS
from trials.reports import OBJECTIVES
from trials.spec import TRAINING, resolve_training

__all__ = [
    "BUDGETS",
    "MAX_ARMS",
    "NAME_PATTERN",
    "Choices",
    "KeyPath",
    "Objective",
    "Range",
    "Resources",
    "StudySpec",
    "hyperparameters",
    "n_images",
    "nearest",
    "problems",
    "related",
    "total_steps",
    "training_values",
    "unknown",
]


def problems(study: StudySpec, broken: Collection[KeyPath] = ()) -> list[Problem]:
    """Everything that is wrong with a study whose fields are each of the right type.

    `broken`: parts left out because they are wrong in themselves. What depends on them is not checked.
    """
    return [
        Problem(path=path, message=message)
        for needs, check in _CHECKS
        if not any(related(need, part) for need in needs for part in broken)
        for path, message in check(study)
        if not any(related(path, part) for part in broken)
    ]


def related(a: KeyPath, b: KeyPath) -> bool:
    """Whether one path leads to or into the other."""
    return all(x == y for x, y in zip(a, b, strict=False))


Found = Iterator[tuple[KeyPath, str]]


def _dataset_problems(study: StudySpec) -> Found:
    info = DATASETS.get(study.dataset.name)
    if info is None:
        yield ("dataset", "name"), unknown("dataset", study.dataset.name, DATASETS)
    elif study.dataset.limit is not None and study.dataset.limit > info.n_images:
        yield ("dataset", "limit"), f"{info.name} has {info.n_images} images (got {study.dataset.limit})"


def _evaluate_problems(study: StudySpec) -> Found:
    if study.dataset.name in DATASETS and (study.evaluate.samples or 0) > n_images(study) // 2:
        message = (
            f"must be at most half of the dataset, {n_images(study) // 2} (got {study.evaluate.samples})"
        )
        yield ("evaluate", "samples"), message


def _list_problems(study: StudySpec) -> Found:
    for i in _repeated(study.seeds):
        yield ("seeds", i), f"seed {study.seeds[i]} is listed twice"
    for i in _repeated([claim.id for claim in study.claims]):
        yield ("claims", i, "id"), f"claim {study.claims[i].id} is listed twice"


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
        if getattr(study.train, name) is not None and (name in study.space or name in study.fixed):
            yield ("train", name), f"{name} is given twice; keep it in one of train, fixed and space"


def _objective_problems(study: StudySpec) -> Found:
    if study.objective.metric not in OBJECTIVES:
        yield ("objective", "metric"), unknown("metric", study.objective.metric, OBJECTIVES)


def _model_problems(study: StudySpec) -> Found:
    if study.model not in models.names():
        yield ("model",), unknown("model", study.model, models.names())


def _shape_problems(study: StudySpec) -> Found:
    info = DATASETS.get(study.dataset.name)
    if info is None or study.model not in models.names():
        return
    if wrong := models.preset(study.model).shape_problem(info.image_shape):
        yield ("dataset",), wrong


def hyperparameters(study: StudySpec) -> dict[str, Param]:
    """The hyperparameters that the study may fix or search; none when its model is unknown."""
    return {**TRAINING, **models.preset(study.model).params} if study.model in models.names() else {}


def _fixed_problems(study: StudySpec) -> Found:
    known = hyperparameters(study)
    for name, value in study.fixed.items():
        if known and name not in known:
            yield ("fixed", name), unknown("hyperparameter", name, known)
        elif known and (wrong := known[name].problem(value)):
            yield ("fixed", name), wrong
        if name in study.space:
            yield ("fixed", name), f"{name} is in space too; remove one"


def _space_problems(study: StudySpec) -> Found:
    known = hyperparameters(study)
    for name, axis in study.space.items():
        if known and name not in known:
            yield ("space", name), unknown("hyperparameter", name, known)
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
        elif not study.space:
            yield ("space",), f"sampler {search.sampler} has nothing to search; add hyperparameters to space"
        elif search.trials > (n := _points(study)):
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
    n = math.prod(max(1.0, _grid_size(axis) or 1.0) for axis in study.space.values())
    if n > MAX_ARMS:
        yield ("space",), f"the grid has {n:{'.0f' if n < 1e15 else '.3g'}} arms; at most {MAX_ARMS}"


def _points(study: StudySpec) -> float:
    """How many different arms the space holds; inf when it is continuous."""
    return math.prod(_grid_size(axis) or math.inf for axis in study.space.values())


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


def _length_problems(study: StudySpec) -> Found:
    info = DATASETS.get(study.dataset.name)
    largest, where = _largest_batch(study)
    if info is None or largest < 1:  # reported elsewhere
        return
    if largest > n_images(study):
        yield where, f"a batch of {largest} is larger than the dataset ({n_images(study)} images)"
    elif study.model in models.names() and study.train.log_every > (steps := total_steps(study, largest)):
        message = f"no metric would ever be logged: training has {steps} steps (got {study.train.log_every})"
        yield ("train", "log_every"), message


def _largest_batch(study: StudySpec) -> tuple[int, KeyPath]:
    """The largest real batch of any arm and where it is set; 0 for one that is no whole number."""
    axis = study.space.get("batch_size")
    if isinstance(axis, Choices):
        return max(_whole(value) for value in axis.choices), ("space", "batch_size")
    if axis is not None:
        return _whole(axis.high), ("space", "batch_size")
    if "batch_size" in study.fixed:
        return _whole(study.fixed["batch_size"]), ("fixed", "batch_size")
    if study.train.batch_size is None and study.model not in models.names():
        return 0, ("train", "batch_size")
    return study.train.batch_size or int(training_values(study, {})["batch_size"]), ("train", "batch_size")


def _whole(value: Value) -> int:
    return value if isinstance(value, int) else 0


_CHECKS: tuple[tuple[tuple[KeyPath, ...], Callable[[StudySpec], Found]], ...] = (
    ((("dataset", "name"),), _dataset_problems),
    ((("dataset",),), _evaluate_problems),
    ((), _list_problems),
    ((), _train_problems),
    ((), _objective_problems),
    ((("model",),), _model_problems),
    ((("model",), ("dataset", "name")), _shape_problems),
    ((("model",),), _fixed_problems),
    ((("model",),), _space_problems),
    ((("search",),), _search_problems),
    ((("model",), ("search",)), _grid_problems),
    (
        (("model",), ("dataset",), ("train",), ("fixed", "batch_size"), ("space", "batch_size")),
        _length_problems,
    ),
)
"""What a check needs unbroken, and the check."""


def n_images(study: StudySpec) -> int:
    """How many images the study trains on."""
    whole = DATASETS[study.dataset.name].n_images
    return min(whole, study.dataset.limit or whole)


def training_values(study: StudySpec, arm: Mapping[str, Value]) -> dict[str, Value]:
    """All training hyperparameters of an arm."""
    given = {k: v for k in ("batch_size", "batch_size_g") if (v := getattr(study.train, k)) is not None}
    given |= {k: v for k, v in {**study.fixed, **arm}.items() if k in TRAINING}
    return resolve_training(models.preset(study.model).recipe, given)


def total_steps(study: StudySpec, batch_size: int) -> int:
    """Training length in steps; an epoch drops its last short batch."""
    if study.train.steps is not None:
        return study.train.steps
    epochs = study.train.epochs or int(models.preset(study.model).recipe.get("epochs", 1))
    return epochs * (n_images(study) // batch_size)
