"""`gan-sweep models` and `datasets`: every option is described, and the layers are those that are built."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from rich.console import Console

import models
from models import STRUCTURE, Value
from orchestrator import catalogue
from orchestrator.catalogue import GROUPS, PER_NET, describe, drawn_shape, hyperparameter_rows
from orchestrator.errors import UsageError
from orchestrator.model_page import WIDTH, page
from trials.datasets import DATASETS
from trials.layers import networks
from trials.options import TRAINING

NONE: Mapping[str, Value] = MappingProxyType({})
OPTIONS: tuple[Mapping[str, Value], ...] = (
    NONE,
    {"spectral_norm": "both"},
    {"equalized_lr": True},
    {"multi_scale": True},
    {"progressive": True},
    {"minibatch_stddev": True, "minibatch_stddev_group": 3},
)


def test_every_option_belongs_to_exactly_one_subject() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == ({*TRAINING, *STRUCTURE} - PER_NET)


@pytest.mark.parametrize("name", models.names())
def test_a_model_s_rows_are_all_that_it_takes_with_the_recipe_s_defaults(name: str) -> None:
    preset = models.preset(name)
    rows = {str(row["hyperparameter"]): row for row in hyperparameter_rows(name)}
    assert rows.keys() == {*TRAINING, *preset.build_params} - preset.refuses.keys()
    for option, value in preset.recipe.items():
        if option not in ("epochs", "steps"):
            assert (rows[option]["default"], rows[option]["recipe"]) == (value, True)
            assert rows[option]["allowed"]


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o) or "plain")
def test_the_layers_hold_every_parameter_of_the_networks_once(
    name: str, options: Mapping[str, Value]
) -> None:
    preset = models.preset(name)
    if set(options) & set(preset.refuses):
        pytest.skip("refused")
    side = preset.tiny_side
    shape = ((preset.channels or (3,))[0], side, side)
    # The recipe of a model may hold what the option excludes.
    rivals = (
        {"spectral_norm": "none"} if "equalized_lr" in options and "spectral_norm" in preset.recipe else {}
    )
    params = {**preset.tiny, **rivals, **options}
    gan = models.build(name, shape, params, n_classes=5 if preset.conditional else 0)
    for net, drawn in zip((gan.generator, gan.discriminator), networks(gan, group=3), strict=True):
        assert sum(p.numel() for p in net.parameters()) == drawn.parameters
        assert sum(layer.parameters for layer in drawn.layers) == drawn.parameters
        assert all(shape.startswith("N") for layer in drawn.layers for shape in layer.shapes)
    generator, discriminator = networks(gan, group=3)
    assert generator.outputs[-1] == f"N x {shape[0]} x {side} x {side}"
    assert generator.outputs == discriminator.inputs[: len(generator.outputs)]
    assert discriminator.outputs == ("N",)


def test_the_layers_of_a_known_network_are_counted_by_hand() -> None:
    described = describe("obs_mlp", "1x8x8", ["width=4", "latent_dim=2", "spectral_norm=d"])
    generator, discriminator = described.networks.values()
    assert [(row.layer, row.shapes, row.parameters) for row in generator.layers if row.parameters][:2] == [
        ("Linear 2 -> 4", ("N x 4",), 12),
        ("BatchNorm1d 4", ("N x 4",), 8),
    ]
    assert discriminator.layers[1].layer == "Linear 64 -> 8, spectral norm"
    assert discriminator.parameters == (64 + 1) * 8 + (8 + 1) * 4 + (4 + 1)


def test_looking_at_layers_changes_no_random_numbers_of_the_networks() -> None:
    torch.manual_seed(0)
    gan = models.build("obs_mlp", (1, 8, 8), {"width": 4})
    before = [p.clone() for p in gan.generator.parameters()]
    networks(gan)
    assert all(torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True))


@pytest.mark.parametrize("name", ["obs_mlp", "rnn_timestep", "wgan_gp_32", "rgan_v1"])
def test_the_page_fits_its_width_and_names_everything(name: str) -> None:
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    preset = models.preset(name)
    small = [f"{k}={v}" for k, v in preset.tiny.items()]
    console.print(page(describe(name, None, small)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= WIDTH
    for option in {*preset.params, *preset.refuses, *TRAINING, *STRUCTURE} - PER_NET:
        assert option in text
    assert ("score" if preset.loss == "wasserstein" else "logit") in text


def test_models_are_drawn_for_the_images_they_are_for() -> None:
    assert drawn_shape(models.preset("obs_mlp")) == (1, 28, 28)
    assert drawn_shape(models.preset("wgan_gp_64")) == (3, 64, 64)
    assert drawn_shape(models.preset("obs_mlp"), "3x64x32") == (3, 64, 32)


@pytest.mark.parametrize(
    ("image", "setting", "words"),
    [
        ("64x64", "", "--image must be channels x height x width, as 3x64x64"),
        ("1x30x30", "", "multiples of 4"),
        (None, "widht=3", "did you mean width"),
        (None, "lr=3", "changes no layer"),
        (None, "width=0", ">= 2"),
        (None, "width=", "a value is missing"),
        (None, "width", "write NAME=VALUE"),
        (None, "progressive=true", "obs_dcgan does not take progressive: "),
    ],
)
def test_what_cannot_be_drawn_is_said(image: str | None, setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        describe("obs_dcgan", image, [setting] if setting else [])


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean obs_mlp\?"):
        describe("obs_mpl")


def test_a_description_is_json() -> None:
    described = json.loads(json.dumps(describe("obs_mlp", "1x8x8", ["width=4"]).to_json(), allow_nan=False))
    assert described["set"] == {"width": 4}
    assert described["refuses"].keys() == {"multi_scale", "progressive"}
    layer = described["networks"]["generator"]["layers"][0]
    assert layer == {
        "name": "0",
        "layer": "Linear 100 -> 4",
        "shapes": ["N x 4"],
        "calls": 1,
        "parameters": 404,
    }


def test_every_dataset_is_described_and_folders_come_last() -> None:
    rows = catalogue.dataset_rows()
    assert [row["dataset"] for row in rows[:-1]] == list(DATASETS)
    assert "folder" in str(rows[-1]["dataset"])
    for row, info in zip(rows, DATASETS.values(), strict=False):
        assert row["licence"]
        assert bool(row["files"]) != info.ships
