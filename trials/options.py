"""The hyperparameters of training: what there is, what follows what, and what cannot go together.

Imports no torch, so that a study is checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from models import STRUCTURE, Param, Preset, Value
from trials import schedule

_OPTIMIZER: Mapping[str, Param] = {
    "lr": Param(kind=float, default=2e-4, low=0, low_open=True, high=10, doc="learning rate"),
    "optimizer": Param(kind=str, default="adam", choices=("adam", "rmsprop", "sgd"), doc="optimiser"),
    "beta1": Param(kind=float, default=0.5, low=0, high=1, high_open=True, doc="Adam: first moment"),
    "beta2": Param(kind=float, default=0.999, low=0, high=1, high_open=True, doc="Adam: second moment"),
    "eps": Param(
        kind=float, default=1e-7, low=0, low_open=True, high=1, doc="Adam, RMSprop: added to the root"
    ),
    "alpha": Param(kind=float, default=0.9, low=0, high=1, high_open=True, doc="RMSprop: smoothing"),
    "momentum": Param(kind=float, default=0.0, low=0, high=1, high_open=True, doc="SGD, RMSprop: momentum"),
    "dampening": Param(kind=float, default=0.0, low=0, high=1, doc="SGD: dampening of the momentum"),
    "nesterov": Param(kind=bool, default=False, doc="SGD: Nesterov's momentum"),
    "centered": Param(kind=bool, default=False, doc="RMSprop: divide by the centred second moment"),
    "amsgrad": Param(kind=bool, default=False, doc="Adam: keep the largest second moment"),
    "weight_decay": Param(
        kind=float, default=0.0, low=0, high=1, doc="the optimiser's own decay, added to the gradient"
    ),
}
_USED_BY: Mapping[str, tuple[str, ...]] = {
    "beta1": ("adam",),
    "beta2": ("adam",),
    "amsgrad": ("adam",),
    "eps": ("adam", "rmsprop"),
    "alpha": ("rmsprop",),
    "centered": ("rmsprop",),
    "momentum": ("sgd", "rmsprop"),
    "dampening": ("sgd",),
    "nesterov": ("sgd",),
}
"""Which optimisers read an option."""


def _of_net(name: str, net: str) -> Param:
    param = _OPTIMIZER[name]
    return Param(
        kind=param.kind, default=None, low=param.low, high=param.high, low_open=param.low_open,
        high_open=param.high_open, choices=param.choices, doc=f"of the {net}; default: {name}",
    )  # fmt: skip


_TARGET = "target of the cross-entropy"

TRAINING: Mapping[str, Param] = MappingProxyType(
    {
        **_OPTIMIZER,
        **{f"{name}_g": _of_net(name, "generator") for name in _OPTIMIZER},
        **{f"{name}_d": _of_net(name, "discriminator") for name in _OPTIMIZER},
        "g_factor": Param(
            kind=float, default=None, low=0, low_open=True, high=100, doc="lr_g / lr_d, in the place of lr_g",
            source="Heusel et al. 2017",
        ),
        "lr_schedule": Param(
            kind=str, default="", doc="stages in the place of lr, as 100:1e-4 300:2e-5..6e-5; stretched to the training"
        ),
        "precision": Param(
            kind=str, default="float32", choices=("float32", "tf32", "bf16"),
            doc="of products in training: bf16 by torch's autocast; tf32 on GPUs that have it, float32 elsewhere",
        ),
        "batch_size": Param(
            kind=int, default=128, low=2, high=65536, doc="real images of a D step, and as many fakes"
        ),
        "batch_size_g": Param(
            kind=int, default=None, low=2, high=65536, doc="fakes of a G step; default: batch_size"
        ),
        "sampling": Param(
            kind=str, default="shuffle", choices=("shuffle", "replacement"),
            doc="every image once an epoch, or each batch drawn with replacement",
        ),
        "n_critic": Param(kind=int, default=1, low=1, high=100, doc="D updates in a step"),
        "real_batch": Param(
            kind=str, default="same", choices=("same", "fresh"),
            doc="whether the D updates of a step see one real batch or one each",
        ),
        "d_update": Param(
            kind=str, default="joint", choices=("joint", "separate", "mixed"),
            doc="one backward on both terms, an update each, or one forward pass on a mixed batch",
        ),
        "d_reduction": Param(
            kind=str, default="mean", choices=("mean", "sum"), doc="how D's two terms make its loss"
        ),
        "label_real": Param(
            kind=float, default=1.0, low=0, high=1, doc=f"{_TARGET} of real images in the D step",
            source="Salimans et al. 2016",
        ),
        "label_real_sd": Param(
            kind=float, default=0.0, low=0, high=1,
            doc="draw label_real anew every epoch from a normal distribution of this sd, at most 1",
        ),
        "label_fake": Param(
            kind=float, default=0.0, low=0, high=1, doc=f"{_TARGET} of generated images in the D step"
        ),
        "label_generator": Param(
            kind=float, default=1.0, low=0, high=1, doc=f"{_TARGET} of generated images in the G step"
        ),
        "instance_noise": Param(
            kind=float, default=0.0, low=0, high=10, doc="sd of the noise on every image D sees, at the start",
            source="Soenderby et al. 2016",
        ),
        "instance_noise_anneal": Param(
            kind=float, default=0.5, low=0, low_open=True, high=1,
            doc="share of the training after which the noise has fallen to 0",
        ),
        "gradient_penalty": Param(
            kind=float, default=0.0, low=0, high=1e4, doc="weight of (|grad D| - gp_target)^2 between real and fake",
            source="Gulrajani et al. 2017",
        ),
        "gp_target": Param(kind=float, default=1.0, low=0, high=100, doc="the gradient norm aimed at"),
        "gp_alpha": Param(
            kind=str, default="uniform", choices=("uniform", "normal"),
            doc="how the points between real and fake are drawn",
        ),
        "drift": Param(
            kind=float, default=0.0, low=0, high=100, doc="weight of D(x)^2 on real images",
            source="Karras et al. 2017",
        ),
        "drift_reduction": Param(
            kind=str, default="mean", choices=("mean", "half_sum"), doc="mean over the batch, or half the sum"
        ),
        "ema": Param(
            kind=float, default=0.0, low=0, high=1, high_open=True,
            doc="decay of the averaged generator that makes all pictures; 0: none", source="Karras et al. 2017",
        ),
        "grad_clip": Param(
            kind=float, default=0.0, low=0, high=1e6, doc="largest global gradient norm of a net; 0: no limit"
        ),
        "l2": Param(
            kind=float, default=0.0, low=0, high=1, doc="weight of half the squared norm of a net, in its loss"
        ),
        "max_norm": Param(
            kind=float, default=0.0, low=0, high=1e3,
            doc="largest norm of a unit's incoming weights after an update; 0: no limit",
        ),
        "max_norm_layers": Param(
            kind=str, default="lstm", choices=("lstm", "all"), doc="the layers that max_norm holds"
        ),
        "train_kimg": Param(
            kind=float, default=30.0, low=0, low_open=True, high=1e6,
            doc="thousand real images each resolution is trained on",
        ),
        "fade_kimg": Param(
            kind=float, default=30.0, low=0, low_open=True, high=1e6,
            doc="thousand real images over which a new resolution fades in",
        ),
        "patience": Param(
            kind=int, default=0, low=0, high=1000,
            doc="end after so many evaluations that were not better by the objective; 0: never",
        ),
        "remove_last_epochs": Param(
            kind=int, default=0, low=0, high=100_000,
            doc="keep the checkpoint from so many epochs before the end as well, with pictures and evaluation",
        ),
        "augment": Param(kind=bool, default=False, doc="show D each real image changed at random"),
        "augment_rotation": Param(kind=float, default=25.0, low=0, high=180, doc="largest rotation, degrees"),
        "augment_shift_x": Param(kind=float, default=0.05, low=0, high=1, doc="largest shift, share of the width"),
        "augment_shift_y": Param(kind=float, default=0.1, low=0, high=1, doc="largest shift, share of the height"),
        "augment_shear": Param(kind=float, default=10.0, low=0, high=80, doc="largest shear, degrees"),
        "augment_zoom_min": Param(
            kind=float, default=0.95, low=0.1, high=10, doc="least share of an axis that is shown"
        ),
        "augment_zoom_max": Param(kind=float, default=1.2, low=0.1, high=10, doc="largest share of an axis"),
        "augment_flip": Param(kind=float, default=0.5, low=0, high=1, doc="probability of a mirror image"),
        "augment_brightness_min": Param(kind=float, default=0.8, low=0, high=10, doc="least brightness factor"),
        "augment_brightness_max": Param(kind=float, default=1.4, low=0, high=10, doc="largest brightness factor"),
        "augment_colour": Param(
            kind=float, default=0.4, low=0, high=1, doc="largest change of a colour channel's factor from 1"
        ),
    }
)  # fmt: skip
"""The hyperparameters every model takes unless it refuses them; a preset's recipe overrides the defaults."""

FOLLOWS: Mapping[str, str] = MappingProxyType(
    {f"{name}_{net}": name for net in "gd" for name in _OPTIMIZER} | {"batch_size_g": "batch_size"}
)
"""Hyperparameters that take another one's value unless given."""

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "instance_noise_anneal": "instance_noise",
        "gp_target": "gradient_penalty",
        "gp_alpha": "gradient_penalty",
        "drift_reduction": "drift",
        "max_norm_layers": "max_norm",
        "train_kimg": "progressive",
        "fade_kimg": "progressive",
        "minibatch_stddev_group": "minibatch_stddev",
        **{name: "augment" for name in TRAINING if name.startswith("augment_")},
    }
)
"""Hyperparameters that do nothing while another one is off."""

_IN_EVERY_KEY = ("lr", "lr_g", "lr_d", "optimizer", "beta1", "beta2", "eps", "alpha", "momentum", "batch_size",
                 "batch_size_g")  # fmt: skip


def resolve_training(recipe: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """All training hyperparameters: the given ones over the preset's recipe over the defaults.

    One that follows another takes its value; a given `lr` so overrides a recipe's `lr_d`. `g_factor` is
    resolved into `lr_g`.
    """
    values: dict[str, Value] = {}
    for name, param in TRAINING.items():
        base = FOLLOWS.get(name)
        overridden = base is not None and base in given
        value = given.get(name, None if overridden else recipe.get(name, param.default))
        if value is None and base is not None:
            value = values[base]
        if value is not None:
            values[name] = value
    factor = values.pop("g_factor", None)
    if factor is not None and "lr_g" not in given:
        values["lr_g"] = float(factor) * float(values["lr_d"])
    return values


def switched_on(values: Mapping[str, Value]) -> dict[str, Value]:
    """Resolved hyperparameters without those that are off or merely follow another one.

    What a trial's key and its records hold: options that are added later leave old trials' keys as they are.
    """
    defaults = {name: param.default for name, param in {**STRUCTURE, **TRAINING}.items()}
    return {
        name: value
        for name, value in values.items()
        if name in _IN_EVERY_KEY
        or value != (values.get(FOLLOWS[name]) if name in FOLLOWS else defaults.get(name))
    }


def unused(values: Mapping[str, Value], given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Given hyperparameters that do nothing in this configuration, and why."""
    for name in given:
        need = NEEDS.get(name)
        if need is not None and not values.get(need):
            yield name, f"does nothing while {need} is off; set {need} too, or remove it"
        if name == "real_batch" and values["n_critic"] == 1:
            yield name, "does nothing with one D update in a step; set n_critic too, or remove it"
        if name == "d_reduction" and values["d_update"] == "separate":
            yield name, "does nothing with d_update separate, whose terms are never joined; remove one"
        if name == "lr" and values["lr_schedule"] and not {"lr_g", "lr_d"} & set(given):
            whose = "is set" if "lr_schedule" in given else f"is the recipe's ({values['lr_schedule']})"
            yield (
                name,
                f"does nothing while lr_schedule {whose}; set lr_schedule to '' for one rate, or remove lr",
            )
        if name in _OPTIMIZER and {f"{name}_g", f"{name}_d"} <= set(given):
            yield name, f"does nothing, as {name}_g and {name}_d are given too; remove one of the three"
        option = name.removesuffix("_g").removesuffix("_d")
        if option in _USED_BY:
            nets = [name[-1]] if name != option else ["g", "d"]
            chosen = {str(values[f"optimizer_{net}"]) for net in nets}
            if not chosen & set(_USED_BY[option]):
                yield (
                    name,
                    f"is an option of {' and '.join(_USED_BY[option])}, not of {' and '.join(sorted(chosen))}",
                )


def conflicts(
    preset: Preset, values: Mapping[str, Value], given: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Given hyperparameters that cannot go with another one, and why. `values`: resolved, with the structure."""
    text = str(values["lr_schedule"])
    if text:
        try:
            schedule.parse(text)
        except ValueError as error:
            yield "lr_schedule", str(error)
    if "g_factor" in given and "lr_g" in given:
        yield "g_factor", "g_factor and lr_g both set the generator's rate; keep one"
    if values["d_update"] == "separate" and values["gradient_penalty"]:
        yield "d_update", "a gradient penalty needs real and fake images in one update; use joint or mixed"
    if values.get("equalized_lr") and values.get("spectral_norm") != "none" and "spectral_norm" in values:
        yield "equalized_lr", "spectral_norm divides out the scale that equalized_lr sets; keep one"
    if values.get("multi_scale") and values.get("progressive"):
        yield "multi_scale", "progressive shows D one resolution at a time, multi_scale all of them; keep one"
    if values.get("progressive") and values["l2"]:
        yield (
            "l2",
            "it would shrink the layers of resolutions that do not train yet; remove it, or progressive",
        )
    if values["max_norm"] and values["max_norm_layers"] == "lstm" and not preset.recurrent:
        yield "max_norm", f"{preset.name} has no LSTM for it to hold; set max_norm_layers to all"
    if values["max_norm"] and values["max_norm_layers"] == "all":
        for name in ("spectral_norm", "equalized_lr"):
            if values.get(name, "none") not in ("none", False):
                yield "max_norm_layers", f"{name} sets the norms of the layers that all holds; keep one"
    group = int(values.get("minibatch_stddev_group", 0))
    if values.get("minibatch_stddev") and group:
        for name in ("batch_size", "batch_size_g"):
            if int(values[name]) % group:
                yield (
                    "minibatch_stddev_group",
                    f"{name} {values[name]} is not a multiple of the group {group}",
                )
    for net in "gd":
        if values[f"nesterov_{net}"] and (not values[f"momentum_{net}"] or values[f"dampening_{net}"]):
            yield (
                (f"nesterov_{net}" if f"nesterov_{net}" in given else "nesterov"),
                "Nesterov's momentum needs a momentum > 0 and no dampening",
            )
    for low, high in (
        ("augment_zoom_min", "augment_zoom_max"),
        ("augment_brightness_min", "augment_brightness_max"),
    ):
        if float(values[low]) > float(values[high]):
            yield low, f"is above {high} ({values[low]} and {values[high]})"
    if float(values["label_real"]) <= float(values["label_fake"]) and preset.loss == "bce":
        yield (
            "label_real",
            "real images need a higher target than generated ones "
            f"(got {values['label_real']} and {values['label_fake']})",
        )
