"""Families are found by their files and declare themselves without torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

import models
from models import STRUCTURE, Gan, Value
from models._layers import MinibatchStddev
from models._registry import _declared, family


@pytest.mark.parametrize("name", models.names())
def test_the_declaration_read_from_the_syntax_tree_is_the_module_s_own(name: str) -> None:
    module = importlib.import_module(f"models.{family(name)}")
    assert models.preset(name) in module.PRESETS


def test_a_declaration_that_needs_more_than_literals_is_refused_with_what_it_may_use(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import math\nWIDTH = math.pi\nPRESETS = (Preset(name=WIDTH, doc='', source='', pixels='unit'),)\n"
    )
    with pytest.raises(ValueError, match=r"x.py: PRESETS may use only literals.*'WIDTH' is not defined"):
        _declared(path)
    path.write_text("WIDTH: int = 3\n")
    with pytest.raises(ValueError, match="must declare PRESETS"):
        _declared(path)


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


def tiny(
    name: str, channels: int = 1, params: Mapping[str, Value] = MappingProxyType({})
) -> tuple[Gan, tuple[int, int, int]]:
    """The model at its smallest, and its image shape."""
    preset = models.preset(name)
    shape = (channels, preset.tiny_side, preset.tiny_side)
    torch.manual_seed(0)
    return models.build(
        name, shape, {**preset.tiny, **params}, n_classes=10 if preset.conditional else 0
    ), shape


def labels(gan: Gan, n: int) -> tuple[Tensor, ...]:
    """What a conditional net is given beside its input."""
    return (torch.arange(n) % gan.n_classes,) if gan.n_classes else ()


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_makes_images_in_its_range_and_one_logit_an_image(name: str, channels: int) -> None:
    if channels not in (models.preset(name).channels or (channels,)):
        with pytest.raises(ValueError, match="makes grey images"):
            tiny(name, channels)
        return
    gan, shape = tiny(name, channels)
    images = gan.generator(gan.latent(6, torch.Generator().manual_seed(0)), *labels(gan, 6))
    assert images.shape == (6, *shape)
    assert images.min().item() >= (-1.0 if gan.pixels == "tanh" else 0.0)
    assert images.min().item() < images.max().item()
    assert gan.discriminator(images, *labels(gan, 6)).shape == (6,)


OFF: dict[str, Any] = {name: param.default for name, param in STRUCTURE.items()}
ON: dict[str, Value] = {
    "dropout": 0.5, "spectral_norm": "both", "equalized_lr": True, "pixel_norm": "after",
    "minibatch_stddev": True, "minibatch_stddev_group": 2, "multi_scale": True, "progressive": True,
}  # fmt: skip


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("option", STRUCTURE)
def test_a_structural_option_changes_the_networks_or_is_refused_with_a_reason(name: str, option: str) -> None:
    preset = models.preset(name)
    others: dict[str, Any] = {"minibatch_stddev": True} if option == "minibatch_stddev_group" else {}
    if option in preset.refuses:
        assert len(preset.refuses[option]) > 20
        with pytest.raises(ValueError, match=f"{name} does not take {option}: "):
            tiny(name, params={option: ON[option]})
        return
    without, _ = tiny(name, params={**others, option: OFF[option]})
    with_it, _ = tiny(name, params={**others, option: ON[option]})
    assert (
        f"{without.generator} {without.discriminator}" != f"{with_it.generator} {with_it.discriminator}"
        or [module.group for module in with_it.discriminator.modules() if isinstance(module, MinibatchStddev)]
        == [2]
    )


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_of_a_model_takes_its_own_default(name: str) -> None:
    params = models.preset(name).build_params
    assert [p.problem(p.default) for p in params.values()] == [None] * len(params)
