"""From a study to its arms and trials: pure."""

from __future__ import annotations

from collections.abc import Mapping

import models
from models import Param, Value
from orchestrator._fields import Health
from orchestrator.study import (
    Choices,
    Objective,
    Range,
    StudySpec,
    allowing,
    build_values,
    evaluations,
    features,
    grid_points,
    n_classes,
    n_images,
    of_arm,
    steps_per_epoch,
    total_steps,
    training_values,
)
from trials.options import TRAINING, switched_on
from trials.reports import AT_THE_END, FLAGS
from trials.spec import TrialSpec, evenly_spaced_steps

IDENTITY = (
    "model",
    "dataset",
    "seeds",
    "train",
    "fixed",
    "arms",
    "space",
    "constraints",
    "search",
    "objective",
    "pictures",
    "evaluate",
    "prune",
    "health",
)
"""The fields that decide a study's results; the others may change under the same name."""

OFF: Mapping[str, object] = {"prune": None, "health": Health().model_dump(mode="json")}
"""Fields of the identity as they are when nobody asks for them."""
DEFAULT_EVAL_SAMPLES = 2000


def grid(study: StudySpec) -> list[dict[str, Value]]:
    """Every named arm at every point of its space that conditions and constraints leave, the last hyperparameter
    varying fastest; one empty arm for none."""
    return list(filter(allowing(study), grid_points(study)))


def arm_count(study: StudySpec) -> int:
    """How many arms the study will run."""
    return len(grid(study)) if study.search.sampler == "grid" else study.search.trials or 0


def label(values: Mapping[str, Value]) -> str:
    """`ttur lr=0.0002 optimizer=adam`, or `default` for an arm without choices."""
    return " ".join(str(v) if k == "arm" else f"{k}={show(v)}" for k, v in values.items()) or "default"


def short_label(values: Mapping[str, Value]) -> str:
    """`lr=0.0002 adam`: text speaks for itself, and names of runs must stay short to fit over pictures."""
    return " ".join(v if isinstance(v, str) else f"{k}={show(v)}" for k, v in values.items()) or "default"


def show(value: Value) -> str:
    """A hyperparameter as people write it."""
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def axis_words(axis: Choices | Range) -> str:
    """`0.001, 0.01`, or `1e-05 to 0.01, by magnitude`."""
    if isinstance(axis, Choices):
        return ", ".join(show(value) for value in axis.choices)
    step = "" if axis.step is None else f", in steps of {show(axis.step)}"
    return f"{show(axis.low)} to {show(axis.high)}{step}{', by magnitude' if axis.log else ''}"


def identity(study: StudySpec) -> dict[str, object]:
    """The part of the definition that decides results, as plain values."""
    whole = study.model_dump(mode="json")
    if len(study.objectives) == 1:
        whole["objective"] = whole["objective"][0]
    # What is off is no part of it: studies that were submitted before it existed are the same.
    return {name: whole[name] for name in IDENTITY if name not in OFF or whole[name] != OFF[name]}


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """`path: old -> new` for every leaf in which two definitions differ."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    paths = [*before, *(path for path in after if path not in before)]
    return [
        f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in paths
        if before.get(path, ...) != after.get(path, ...)
    ]


def _leaves(value: object, path: str = "") -> list[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        return [leaf for k, v in value.items() for leaf in _leaves(v, f"{path}.{k}" if path else str(k))]
    return [(path, value)]


def resolved(study: StudySpec, values: Mapping[str, Value]) -> StudySpec:
    """The study as the arm's named settings make it; itself when it has no named arms."""
    return of_arm(study, str(values["arm"])) if study.arms else study


def trial_spec(study: StudySpec, values: Mapping[str, Value], seed: int, dataset_digest: str) -> TrialSpec:
    """The trial of one arm with one seed, every default resolved.

    Raises ValueError when its length depends on the number of images of a folder that nobody has looked at.
    """
    study = resolved(study, values)
    preset, dataset = models.preset(study.model), study.dataset
    training = training_values(study, values)
    steps, n_real = total_steps(study, training), n_images(study)
    if steps is None or n_real is None:
        raise ValueError(f"the images of {dataset.source.label} are not counted yet")
    removed = int(training["remove_last_epochs"])
    an_epoch = steps_per_epoch(study, training)
    keep = (max(1, round(steps - removed * an_epoch)),) if removed else ()
    drawn = {step for epoch in study.pictures.at if 1 <= (step := round(epoch * an_epoch)) <= steps}
    judged = {*evenly_spaced_steps(steps, n), *keep} if (n := evaluations(study)) else set[int]()
    judged |= set(study.prune.rungs) if study.prune else set()
    by = next((o for o in study.objectives if _is_judged_on_the_way(o)), Objective())
    return TrialSpec(
        model=study.model,
        model_params=_exact(build_values(study, values), preset.build_params),
        training=_exact(training, TRAINING),
        dataset=dataset.source.label,
        dataset_digest=dataset_digest,
        limit=dataset.limit,
        seed=seed,
        steps=steps,
        log_every=study.train.log_every,
        picture_steps=tuple(
            sorted({*evenly_spaced_steps(steps, study.pictures.count), *drawn, *judged, *keep})
        ),
        picture_samples=study.pictures.samples,
        eval_steps=tuple(sorted(judged)),
        eval_samples=eval_samples(study, n_real),
        features=features(study),
        judged_by=(by.metric, by.mode),
        gallery=study.pictures.gallery,
        hold_out=dataset.hold_out,
        n_classes=n_classes(study) if preset.conditional else 0,
        size=dataset.size if dataset.stored not in (None, dataset.size) else None,
        keep_steps=keep,
        stops=tuple(name for name in FLAGS if name in study.health.stop),
        confirm=study.health.confirm,
        rollback=(back.times, back.lr_factor) if (back := study.health.rollback) else None,
    )


def _is_judged_on_the_way(objective: Objective) -> bool:
    section, _, name = objective.metric.partition("/")
    return section == "eval" and name not in AT_THE_END


def eval_samples(study: StudySpec, n_real: int) -> int:
    """Images of an evaluation, of a study with so many real ones."""
    return study.evaluate.samples or min(DEFAULT_EVAL_SAMPLES, n_real // 2)


def _exact(values: Mapping[str, Value], params: Mapping[str, Param]) -> dict[str, Value]:
    """Values with their parameter's own type: `lr: 1` and `lr: 1.0` are the same trial."""
    return {k: float(v) if params[k].kind is float else v for k, v in values.items()}


def checkpoint_every(study: StudySpec, steps: int) -> int:
    """Steps between checkpoints, a multiple of the logging interval, so that none falls inside one."""
    wanted = study.train.checkpoint_every or max(1, steps // 10)
    log_every = study.train.log_every
    return -(-wanted // log_every) * log_every


def hyperparameters(spec: TrialSpec, values: Mapping[str, Value]) -> dict[str, Value]:
    """A trial's hyperparameters as recorded in MLflow: what its arm chose, and all that are not off."""
    return {**switched_on(spec.training), **switched_on(spec.model_params), **values}
