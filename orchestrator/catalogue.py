"""Models, hyperparameters and datasets as rows for tables and JSON. Imports no torch."""

from __future__ import annotations

import models
from orchestrator.errors import UsageError
from trials.datasets import DATASETS
from trials.spec import FOLLOWS, TRAINING, resolve_training

Cells = dict[str, object]


def model_rows() -> list[Cells]:
    """Every model in a line."""
    return [
        {
            "model": name,
            "what": models.preset(name).doc,
            "recipe": ", ".join(f"{k} {v}" for k, v in models.preset(name).recipe.items()),
            "source": models.preset(name).source,
        }
        for name in models.names()
    ]


def hyperparameter_rows(model: str) -> list[Cells]:
    """Every hyperparameter that `fixed` and `space` of a study may name for the model."""
    try:
        preset = models.preset(model)
    except models.UnknownModelError as error:
        raise UsageError(str(error)) from error
    training = resolve_training(preset.recipe, {})
    return [
        {
            "hyperparameter": name,
            "default": f"= {FOLLOWS[name]}" if name in FOLLOWS else training.get(name, param.default),
            "allowed": param.range,
            "what": param.doc,
        }
        for name, param in {**TRAINING, **preset.params}.items()
    ]


def dataset_rows() -> list[Cells]:
    """Every dataset in a line."""
    return [
        {
            "dataset": info.name,
            "what": info.doc,
            "images": info.n_images,
            "shape": "x".join(map(str, info.image_shape)),
            "ships": "yes" if info.ships else "downloaded, or --data-dir",
            "licence": info.licence,
        }
        for info in DATASETS.values()
    ]
