"""The family `obs` against its specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import models
from models._losses import bce, fake_term, generator_term, real_term


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [("obs_mlp", 1_489_936, 533_505), ("obs_dcgan", 1_164_289, 40_705)],
)
def test_parameter_counts_are_those_of_the_specification(
    name: str, generator: int, discriminator: int
) -> None:
    gan = models.build(name, (1, 28, 28))
    assert (parameter_count(gan.generator), parameter_count(gan.discriminator)) == (generator, discriminator)


def test_the_mlp_s_layers_are_those_of_the_specification() -> None:
    gan = models.build("obs_mlp", (1, 28, 28))
    linears = [(m.in_features, m.out_features) for m in gan.generator.modules() if isinstance(m, nn.Linear)]
    assert linears == [(100, 256), (256, 512), (512, 1024), (1024, 784)]
    norms = [m for m in gan.generator.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [(m.num_features, m.momentum, m.eps) for m in norms] == [
        (256, 0.2, 1e-3), (512, 0.2, 1e-3), (1024, 0.2, 1e-3),
    ]  # fmt: skip
    slopes = {m.negative_slope for m in gan.discriminator.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_weights_are_glorot_uniform_and_biases_zero() -> None:
    torch.manual_seed(1)
    for module in (
        models.build("obs_mlp", (1, 28, 28)).generator,
        models.build("obs_dcgan", (1, 28, 28)).generator,
    ):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                bound = math.sqrt(6 / (layer.in_features + layer.out_features))
                assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
                assert layer.bias.abs().max().item() == 0


def test_losses_are_ln_2_at_equilibrium() -> None:
    zeros = torch.zeros(7)
    losses = [real_term("bce", zeros, 1.0), fake_term("bce", zeros, 0.0), generator_term("bce", zeros, 1.0)]
    assert [loss.item() for loss in losses] == pytest.approx([math.log(2)] * 3)


@pytest.mark.parametrize("target", [0.0, 0.1, 0.9, 1.0])
def test_bce_on_logits_is_the_cross_entropy_of_probabilities(target: float) -> None:
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert bce(logits, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_losses_stay_finite_for_logits_at_which_probabilities_would_round_to_one() -> None:
    far = torch.tensor([200.0])
    assert real_term("bce", -far, 1.0).item() == pytest.approx(200.0)
    assert generator_term("bce", -far, 1.0).item() == pytest.approx(200.0)
