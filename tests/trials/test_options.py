"""Training options: what follows what, what is refused, and what a trial's key holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import models
from models import STRUCTURE
from tests.trials.helpers import small_spec
from trials.options import FOLLOWS, NEEDS, TRAINING, conflicts, resolve_training, switched_on, unused


def values(model: str = "obs_dcgan", **given: Any) -> dict[str, Any]:
    preset = models.preset(model)
    build = {name: param.default for name, param in preset.build_params.items()}
    training = {name: value for name, value in given.items() if name not in build}
    return {**build, **given, **resolve_training(preset.recipe, training)}


def complaints(model: str = "obs_dcgan", **given: Any) -> dict[str, str]:
    return dict(conflicts(models.preset(model), values(model, **given), given))


def idle(**given: Any) -> dict[str, str]:
    return dict(unused(values(**given), given))


@pytest.mark.parametrize("name", TRAINING)
def test_every_option_takes_its_own_default(name: str) -> None:
    param = TRAINING[name]
    assert param.default is None or param.problem(param.default) is None


@pytest.mark.parametrize("name", models.names())
def test_every_recipe_is_made_of_known_options_with_allowed_values(name: str) -> None:
    preset = models.preset(name)
    for option, value in preset.recipe.items():
        if option not in ("epochs", "steps"):
            param = TRAINING.get(option) or preset.build_params[option]
            assert param.problem(value) is None
    resolved = {
        **{n: p.default for n, p in preset.build_params.items()},
        **resolve_training(preset.recipe, {}),
    }
    assert list(conflicts(preset, resolved, set(preset.recipe))) == []  # type: ignore[arg-type]


def test_each_net_follows_the_common_value_unless_it_has_its_own() -> None:
    given = resolve_training(
        {}, {"lr": 1e-3, "lr_d": 4e-3, "optimizer": "sgd", "optimizer_g": "adam", "beta1": 0.3}
    )
    assert (given["lr_g"], given["lr_d"]) == (1e-3, 4e-3)
    assert (given["optimizer_g"], given["optimizer_d"]) == ("adam", "sgd")
    assert given["beta1_g"] == given["beta1_d"] == 0.3
    assert set(FOLLOWS) <= set(given)


def test_a_given_rate_overrides_the_recipe_s_rates_of_the_nets() -> None:
    recipe: dict[str, Any] = {"lr": 2e-4, "lr_d": 4e-4}
    assert resolve_training(recipe, {})["lr_d"] == 4e-4
    assert resolve_training(recipe, {"lr": 1e-3})["lr_d"] == 1e-3


def test_g_factor_sets_the_generator_s_rate_from_the_discriminator_s() -> None:
    recipe: dict[str, Any] = {"lr": 4e-4, "g_factor": 0.25}
    assert resolve_training(recipe, {})["lr_g"] == pytest.approx(1e-4)
    assert resolve_training(recipe, {"lr_d": 2e-4})["lr_g"] == pytest.approx(5e-5)
    assert resolve_training(recipe, {"lr_g": 7e-4})["lr_g"] == 7e-4


def test_options_that_are_off_are_no_part_of_a_key_and_those_that_are_on_are() -> None:
    spec = small_spec()
    bare = dataclasses.replace(
        spec, training=switched_on(spec.training), model_params=switched_on(spec.model_params)
    )
    assert spec.key == bare.key
    keys = {spec.key}
    on: dict[str, Any] = {
        name: ("d" if name == "spectral_norm" else "after" if name == "pixel_norm" else 1 if param.kind is int else 0.5
               if param.kind is float else True)
        for name, param in STRUCTURE.items() if name in models.preset("obs_mlp").build_params
    }  # fmt: skip
    on |= {"ema": 0.5, "label_real": 0.9, "n_critic": 2, "d_update": "mixed", "l2": 0.1, "momentum_g": 0.5,
           "augment": True, "lr_schedule": "1:1e-4", "optimizer_d": "sgd", "patience": 2}  # fmt: skip
    for name, value in on.items():
        keys.add(small_spec(**{name: value}).key)
    assert len(keys) == 1 + len(on)


@pytest.mark.parametrize(
    ("given", "option", "words"),
    [
        ({"d_update": "separate", "gradient_penalty": 1.0}, "d_update", "real and fake images in one update"),
        ({"equalized_lr": True, "spectral_norm": "d"}, "equalized_lr", "keep one"),
        ({"minibatch_stddev": True, "minibatch_stddev_group": 3}, "minibatch_stddev_group", "not a multiple"),
        ({"optimizer": "sgd", "nesterov": True}, "nesterov", "needs a momentum"),
        ({"optimizer_d": "sgd", "nesterov_d": True}, "nesterov_d", "needs a momentum"),
        ({"lr_g": 1e-4, "g_factor": 0.5}, "g_factor", "keep one"),
        ({"lr_schedule": "100"}, "lr_schedule", "stage 1"),
        ({"label_real": 0.1, "label_fake": 0.9}, "label_real", "higher target"),
        ({"max_norm": 1.0}, "max_norm", "obs_dcgan has no LSTM"),
        ({"max_norm": 1.0, "max_norm_layers": "all", "spectral_norm": "d"}, "max_norm_layers", "keep one"),
        ({"augment": True, "augment_zoom_min": 2.0}, "augment_zoom_min", "above augment_zoom_max"),
    ],
)
def test_what_cannot_go_together_is_refused_with_the_reason(
    given: dict[str, Any], option: str, words: str
) -> None:
    assert words in complaints(**given)[option]


@pytest.mark.parametrize("option", NEEDS)
def test_an_option_of_something_that_is_off_does_nothing_and_says_so(option: str) -> None:
    param = TRAINING.get(option) or STRUCTURE[option]
    assert param.default is not None
    assert f"while {NEEDS[option]} is off" in idle(**{option: param.default})[option]


def test_options_that_need_another_choice_do_nothing_and_say_so() -> None:
    assert "one D update" in idle(real_batch="fresh")["real_batch"]
    assert idle(real_batch="fresh", n_critic=2) == {}
    assert "never joined" in idle(d_update="separate", d_reduction="sum")["d_reduction"]
    assert idle(d_update="mixed", d_reduction="sum") == {}


def test_a_rate_that_a_schedule_replaces_or_both_nets_override_does_nothing_and_says_so() -> None:
    assert "lr_schedule is set" in idle(lr=1e-3, lr_schedule="1:1e-4")["lr"]
    assert idle(lr=1e-3, lr_d=2e-3, lr_schedule="1:1e-4") == {}  # the nets' ratio counts
    assert "lr_g and lr_d are given" in idle(lr=1e-3, lr_g=1e-3, lr_d=1e-3)["lr"]


def test_options_of_another_optimizer_do_nothing_and_say_so() -> None:
    assert "is an option of sgd and rmsprop, not of adam" in idle(momentum=0.5)["momentum"]
    assert idle(momentum=0.5, optimizer_d="sgd") == {}
    assert "alpha_g" in idle(alpha_g=0.5, optimizer_d="rmsprop")
    assert idle(beta1=0.1, optimizer_g="sgd") == {}


def test_l2_cannot_go_with_layers_that_wait_for_their_turn() -> None:
    assert "do not train yet" in complaints("wgan_gp_32", progressive=True, l2=1e-5)["l2"]
