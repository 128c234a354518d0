"""Families are found by their files and declare themselves without torch."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import models
from models._registry import family


@pytest.mark.parametrize("name", models.names())
def test_the_declaration_read_from_the_syntax_tree_is_the_module_s_own(name: str) -> None:
    module = importlib.import_module(f"models.{family(name)}")
    assert models.preset(name) in module.PRESETS


def test_looking_at_presets_imports_no_torch() -> None:
    code = "import models, sys; [models.preset(n) for n in models.names()]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(models.UnknownModelError, match=r"unknown model 'obs_mpl'; did you mean obs_mlp\?"):
        models.preset("obs_mpl")


def test_unknown_parameters_bad_values_and_bad_shapes_are_refused_together() -> None:
    with pytest.raises(
        ValueError, match=r"multiples of 4 .* no parameter 'heads'.*must be a whole number >= 2"
    ) as e:
        models.build("obs_dcgan", (1, 30, 30), {"heads": 2, "width": 0})
    assert str(e.value).count(";") == 2


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 12)])
def test_every_model_makes_images_in_its_range_and_one_logit_an_image(
    name: str, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    gan = models.build(name, shape, {"width": 8})
    z = gan.latent(5, torch.Generator().manual_seed(0))
    images = gan.generator(z)
    low = -1.0 if gan.pixels == "tanh" else 0.0
    assert images.shape == (5, *shape)
    assert low <= images.min().item() < images.max().item() <= 1.0
    assert gan.discriminator(images).shape == (5,)


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_of_a_model_takes_its_own_default(name: str) -> None:
    preset = models.preset(name)
    assert [p.problem(p.default) for p in preset.params.values()] == [None] * len(preset.params)
