"""The family `improved` against its specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import models
from models._layers import MinibatchStddev, PixelNorm


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linears(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def order(module: nn.Module) -> list[type[nn.Module]]:
    """The types of the layers in the order in which they are applied."""
    return [type(m) for m in module.modules() if not isinstance(m, nn.Sequential)]


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"), [("improved", 349_712, 332_801), ("baseline", 283_920, 267_009)]
)
def test_parameter_counts_are_those_of_the_specification(
    name: str, generator: int, discriminator: int
) -> None:
    gan = models.build(name, (1, 28, 28))
    assert (parameter_count(gan.generator), parameter_count(gan.discriminator)) == (generator, discriminator)


def test_the_layers_are_those_of_the_specification() -> None:
    gan = models.build("improved", (1, 28, 28))
    assert linears(gan.generator) == [(64, 256), (256, 256), (256, 256), (256, 784)]
    assert linears(gan.discriminator) == [(784, 256), (256, 256), (256, 256), (256, 1)]
    assert order(gan.generator) == [nn.Linear, nn.ReLU] * 3 + [nn.Linear, nn.Tanh, nn.Unflatten]
    assert order(gan.discriminator)[:7] == [nn.Flatten, *[nn.Linear, nn.LeakyReLU] * 3]
    assert {m.negative_slope for m in gan.discriminator.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_the_baseline_has_one_hidden_layer_fewer_in_each_net() -> None:
    gan = models.build("baseline", (1, 28, 28))
    assert linears(gan.generator) == [(64, 256), (256, 256), (256, 784)]
    assert linears(gan.discriminator) == [(784, 256), (256, 256), (256, 1)]


@pytest.mark.parametrize("layers", [1, 8])
def test_layers_counts_the_hidden_layers_of_each_net(layers: int) -> None:
    gan = models.build("improved", (1, 8, 8), {"layers": layers, "width": 8})
    assert len(linears(gan.generator)) == len(linears(gan.discriminator)) == layers + 1


def test_no_layer_and_more_than_eight_are_refused() -> None:
    for layers in (0, 9):
        with pytest.raises(ValueError, match="must be a whole number >= 1 and <= 8"):
            models.build("improved", (1, 8, 8), {"layers": layers})


def test_weights_and_biases_are_torch_s_own_initialisation() -> None:
    torch.manual_seed(1)
    gan = models.build("improved", (1, 28, 28))
    for module in (gan.generator, gan.discriminator):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                # The largest of many uniform draws is just below the bound; 256 weights are the fewest here.
                assert 0.95 * bound < layer.weight.abs().max().item() <= bound
                assert layer.bias.abs().max().item() <= bound


def test_only_the_improved_recipe_smooths_labels_and_trains_d_faster() -> None:
    improved, baseline = models.preset("improved").recipe, models.preset("baseline").recipe
    changed = {name for name in {*improved, *baseline} if improved.get(name) != baseline.get(name)}
    assert changed == {"lr_d", "label_real", "label_fake", "label_generator", "epochs"}
    assert improved["lr_d"] == pytest.approx(2 * float(improved["lr"]))


def test_structural_options_go_where_they_belong() -> None:
    gan = models.build(
        "improved", (1, 8, 8), {"dropout": 0.3, "pixel_norm": "before", "minibatch_stddev": True}
    )
    assert order(gan.generator)[:9] == [nn.Linear, PixelNorm, nn.ReLU] * 3
    assert order(gan.discriminator)[1:10] == [nn.Linear, nn.LeakyReLU, nn.Dropout] * 3
    assert order(gan.discriminator)[10] is MinibatchStddev
    assert linears(gan.discriminator)[-1] == (257, 1)
