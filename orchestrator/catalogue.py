"""Models, hyperparameters and datasets as rows for tables and JSON. Imports torch only to draw layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import models
from models import STRUCTURE, Param, Preset, Value
from orchestrator._scalars import resolve
from orchestrator.errors import UsageError
from trials.datasets import DATASETS, DatasetInfo
from trials.options import FOLLOWS, TRAINING, conflicts, resolve_training, unused

if TYPE_CHECKING:
    from trials.layers import Network

Cells = dict[str, object]
ImageShape = tuple[int, int, int]

NETWORKS = "networks"
"""The group of a family's own parameters."""

GROUPS: Mapping[str, Sequence[str]] = {
    "structure": (
        "dropout", "spectral_norm", "equalized_lr", "pixel_norm", "minibatch_stddev", "minibatch_stddev_group",
        "multi_scale",
    ),
    "optimiser": (
        "lr", "optimizer", "beta1", "beta2", "eps", "alpha", "momentum", "dampening", "nesterov", "centered",
        "amsgrad", "weight_decay", "g_factor", "lr_schedule",
    ),
    "steps and batches": ("batch_size", "batch_size_g", "sampling", "n_critic", "real_batch"),
    "discriminator step": ("d_update", "d_reduction"),
    "targets and noise": (
        "label_real", "label_real_sd", "label_fake", "label_generator", "instance_noise", "instance_noise_anneal",
    ),
    "penalties": ("gradient_penalty", "gp_target", "gp_alpha", "drift", "drift_reduction", "l2"),
    "averages and limits": ("ema", "grad_clip", "max_norm", "max_norm_layers"),
    "growing": ("progressive", "train_kimg", "fade_kimg"),
    "augmentation": tuple(name for name in TRAINING if name.startswith("augment")),
    "arithmetic": ("precision",),
    "early end": ("patience", "remove_last_epochs"),
}  # fmt: skip
"""The options of every model by subject, in the order they are shown."""

BASIC = (
    "optimiser", "steps and batches", "discriminator step", "label_real", "label_fake", "label_generator",
)  # fmt: skip
"""Groups and options that no training is without."""

PER_NET = frozenset(FOLLOWS) - {"batch_size_g"}
"""`lr_g`, `lr_d` and the like: an option of the optimiser for one net."""

SHOWN_CLASSES = 10
"""Classes of the dataset for which a conditional model's layers are shown."""

TYPES: Mapping[type, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


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


def find_model(name: str) -> Preset:
    """The preset `name`; raises UsageError with the nearest name."""
    try:
        return models.preset(name)
    except models.UnknownModelError as error:
        raise UsageError(str(error)) from error


def model_facts(name: str) -> Cells:
    """What a model is and makes, how long its recipe trains it, and what it refuses."""
    preset = find_model(name)
    return {
        "model": name,
        "what": preset.doc,
        "source": preset.source,
        "pixels": [-1, 1] if preset.pixels == "tanh" else [0, 1],
        "loss": preset.loss,
        "conditional": preset.conditional,
        "channels": list(preset.channels),
        "sizes": list(preset.sizes),
        "size_multiple": preset.size_multiple,
        "min_size": preset.min_size,
        "recipe": dict(preset.recipe),
        "refuses": dict(preset.refuses),
    }


def hyperparameter_rows(name: str) -> list[Cells]:
    """Every hyperparameter that `fixed` and `space` of a study may name for the model, group after group.

    `recipe`: the default comes from the model's recipe. `idle`: off or not read unless something is set.
    """
    preset = find_model(name)
    values = {**resolve_training(preset.recipe, {}), **_structure(preset)}
    idle = {option for option in values if any(True for _ in unused(values, [option]))}
    rows: list[Cells] = []
    for group, option, param in _grouped(preset):
        recipe = option in preset.recipe
        default = preset.recipe.get(option, f"= {FOLLOWS[option]}" if option in FOLLOWS else param.default)
        # What training is never without is on; the rest is on when the recipe switches it on.
        basic = group in (NETWORKS, *BASIC) or option in BASIC
        rows.append(
            {
                "group": group,
                "hyperparameter": option,
                "type": TYPES[param.kind],
                "default": default,
                "recipe": recipe,
                "allowed": param.range,
                "what": param.doc,
                "source": param.source,
                "idle": option in idle
                or (not recipe and (option in PER_NET or default in ("", None) or not basic)),
            }
        )
    return rows


def _grouped(preset: Preset) -> Iterator[tuple[str, str, Param]]:
    """(group, name, parameter): the family's own, then the options that it takes."""
    known = {**TRAINING, **STRUCTURE}
    for name, param in preset.params.items():
        yield NETWORKS, name, param
    for group, names in GROUPS.items():
        each = [n for name in names for n in (name, *(f"{name}_{net}" for net in "gd")) if n in known]
        for name in dict.fromkeys(each):
            if name not in preset.refuses:
                yield group, name, known[name]


def _structure(preset: Preset) -> dict[str, Value]:
    return {name: p.default for name, p in preset.build_params.items() if p.default is not None}


def drawn_shape(preset: Preset, image: str | None = None) -> ImageShape:
    """(C, H, W) of the images for which the layers are shown: as asked, or what the model is for.

    A model of no particular size is shown at 28x28 in grey; one with sizes of its own at the smallest of them.
    """
    if image is None:
        fitting = -(-max(28, preset.min_size) // preset.size_multiple) * preset.size_multiple
        side = min(preset.sizes) if preset.sizes else fitting
        return ((preset.channels or (3 if preset.sizes else 1,))[0], side, side)
    if not re.fullmatch(r"[0-9]{1,2}x[0-9]{1,4}x[0-9]{1,4}", image):
        raise UsageError(f"--image must be channels x height x width, as 3x64x64 (got {image!r})")
    channels, height, width = map(int, image.split("x"))
    return channels, height, width


def chosen_parameters(preset: Preset, settings: Sequence[str]) -> dict[str, Value]:
    """The `--set NAME=VALUE` of the networks' parameters and structural options."""
    chosen: dict[str, Value] = {}
    for text in settings:
        name, equals, written = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: write NAME=VALUE, as --set width=64")
        if name in preset.refuses:
            raise UsageError(f"--set {text}: {preset.name} does not take {name}: {preset.refuses[name]}")
        if name not in preset.build_params:
            near = difflib.get_close_matches(name, preset.build_params, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            why = f"{name} is an option of training, which changes no layer; " if name in TRAINING else hint
            raise UsageError(f"--set {text}: {why}layers depend on: {', '.join(preset.build_params)}")
        try:
            value = resolve(written)
        except ValueError as error:
            raise UsageError(f"--set {text}: {error}") from None
        if value is None or (wrong := preset.build_params[name].problem(value)):
            raise UsageError(f"--set {text}: {wrong if value is not None else 'a value is missing'}")
        chosen[name] = value
    values = {**resolve_training(preset.recipe, {}), **_structure(preset), **chosen}
    if group := int(values.get("minibatch_stddev_group", 0)):  # any batch will do to look at layers
        values |= {"batch_size": group, "batch_size_g": group}
    for name, message in conflicts(preset, values, chosen):
        raise UsageError(f"{preset.name} cannot be built so: {name}: {message}")
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """All there is to say of a model. `drawn`: what its networks were built with to see their layers."""

    preset: Preset
    facts: Cells
    rows: list[Cells]
    image_shape: ImageShape
    n_classes: int
    drawn: Mapping[str, Value]
    networks: Mapping[str, Network]

    def to_json(self) -> Cells:
        return {
            **self.facts,
            "hyperparameters": self.rows,
            "image_shape": list(self.image_shape),
            "n_classes": self.n_classes,
            "set": dict(self.drawn),
            "networks": {name: network.to_json() for name, network in self.networks.items()},
        }


def describe(name: str, image: str | None = None, settings: Sequence[str] = ()) -> Described:
    """The model `name`, its layers for images of `image` ("3x64x64") and with `settings` (NAME=VALUE).

    Raises UsageError for a name, a shape or a setting that does not fit. Imports torch.
    """
    preset = find_model(name)
    shape, chosen = drawn_shape(preset, image), chosen_parameters(preset, settings)
    n_classes = SHOWN_CLASSES if preset.conditional else 0
    from trials.layers import networks

    try:
        gan = models.build(name, shape, chosen, n_classes)
    except ValueError as error:
        raise UsageError(str(error)) from None
    group = int({**_structure(preset), **chosen}.get("minibatch_stddev_group", 0)) or 1
    nets = networks(gan, group)
    titles = ("generator", "critic" if gan.loss == "wasserstein" else "discriminator")
    return Described(
        preset=preset,
        facts=model_facts(name),
        rows=hyperparameter_rows(name),
        image_shape=shape,
        n_classes=n_classes,
        drawn=chosen,
        networks=dict(zip(titles, nets, strict=True)),
    )


def _files(info: DatasetInfo) -> str:
    return "" if info.ships else f"DIR/{info.downloaded or info.folders[0]}"


def dataset_rows() -> list[Cells]:
    """Every dataset in a line, and a last one for folders of images."""
    rows: list[Cells] = [
        {
            "dataset": info.name,
            "what": info.doc,
            "images": info.n_images,
            "shape": "x".join(map(str, info.image_shape)),
            "classes": info.n_classes,
            "ships": info.ships,
            "files": _files(info),
            "licence": info.licence,
        }
        for info in DATASETS.values()
    ]
    folder: Cells = {
        "dataset": "{folder: PATH, size: 64, channels: 3}",
        "what": "a folder of pictures of any sizes, made square",
        "images": None,
        "shape": "channels x size x size",
        "classes": None,
        "ships": False,
        "files": "PATH beside the study file, or DIR/PATH",
        "licence": "yours to know",
    }
    return [*rows, folder]
