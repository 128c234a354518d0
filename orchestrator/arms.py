"""From a study to its arms and trials: pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import models
from models import Param, Value
from orchestrator.study import StudySpec, n_images, total_steps, training_values
from trials.spec import TRAINING, TrialSpec, evenly_spaced_steps

IDENTITY = (
    "model",
    "dataset",
    "seeds",
    "train",
    "fixed",
    "space",
    "search",
    "objective",
    "pictures",
    "evaluate",
)
"""The fields that decide a study's results; the others may change under the same name."""

DEFAULT_EVAL_SAMPLES = 2000


def grid(study: StudySpec) -> list[dict[str, Value]]:
    """Every point of the space once, the last hyperparameter varying fastest; one empty arm for no space."""
    axes = [axis.values() or [] for axis in study.space.values()]
    return [dict(zip(study.space, point, strict=True)) for point in itertools.product(*axes)]


def arm_count(study: StudySpec) -> int:
    """How many arms the study will run."""
    return len(grid(study)) if study.search.sampler == "grid" else study.search.trials or 0


def label(values: Mapping[str, Value]) -> str:
    """`lr=0.0002 optimizer=adam`, or `baseline` for an arm without choices."""
    return " ".join(f"{k}={show(v)}" for k, v in values.items()) or "baseline"


def short_label(values: Mapping[str, Value]) -> str:
    """`lr=0.0002 adam`: text speaks for itself, and names of runs must stay short to fit over pictures."""
    return " ".join(v if isinstance(v, str) else f"{k}={show(v)}" for k, v in values.items()) or "baseline"


def show(value: Value) -> str:
    """A hyperparameter as people write it."""
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def identity(study: StudySpec) -> dict[str, object]:
    """The part of the definition that decides results, as plain values."""
    whole = study.model_dump(mode="json")
    return {name: whole[name] for name in IDENTITY}


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


def trial_spec(study: StudySpec, values: Mapping[str, Value], seed: int, dataset_digest: str) -> TrialSpec:
    """The trial of one arm with one seed, every default resolved."""
    training = training_values(study, values)
    given = {**study.fixed, **values}
    known = models.preset(study.model).params
    params = {name: given.get(name, param.default) for name, param in known.items()}
    steps = total_steps(study, int(training["batch_size"]))
    return TrialSpec(
        model=study.model,
        model_params=_exact(params, known),
        training=_exact(training, TRAINING),
        dataset=study.dataset.name,
        dataset_digest=dataset_digest,
        limit=study.dataset.limit,
        seed=seed,
        steps=steps,
        log_every=study.train.log_every,
        picture_steps=evenly_spaced_steps(steps, study.pictures.count),
        picture_samples=study.pictures.samples,
        eval_samples=study.evaluate.samples or min(DEFAULT_EVAL_SAMPLES, n_images(study) // 2),
    )


def _exact(values: Mapping[str, Value | None], params: Mapping[str, Param]) -> dict[str, Value]:
    """Values with their parameter's own type: `lr: 1` and `lr: 1.0` are the same trial."""
    return {k: float(v) if params[k].kind is float else v for k, v in values.items() if v is not None}


def checkpoint_every(study: StudySpec, steps: int) -> int:
    """Steps between checkpoints, a multiple of the logging interval, so that none falls inside one."""
    wanted = study.train.checkpoint_every or max(1, steps // 10)
    log_every = study.train.log_every
    return -(-wanted // log_every) * log_every


def hyperparameters(spec: TrialSpec) -> dict[str, Value]:
    """Every hyperparameter of a trial, flat, as recorded in MLflow."""
    return {**{name: spec.training[name] for name in TRAINING}, **spec.model_params}
