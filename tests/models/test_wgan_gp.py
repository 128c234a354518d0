"""The family `wgan_gp` against its specification."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

import models
from models import Gan, Value
from models._layers import JoinImage, MinibatchStddev, PixelNorm
from models._progressive import ProgressiveCritic, ProgressiveGenerator
from models.wgan_gp import same_conv

NONE: Mapping[str, Value] = MappingProxyType({})


def tiny(params: Mapping[str, Value] = NONE, side: int = 32) -> Gan:
    """The model at its smallest, for colour images."""
    name = f"wgan_gp_{side}"
    torch.manual_seed(0)
    return models.build(name, (3, side, side), {**models.preset(name).tiny, **params})


def noise(gan: Gan, n: int = 4) -> Tensor:
    return gan.latent(n, torch.Generator().manual_seed(1))


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(module: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """The shapes without N that the layers which compute or reshape give, in the order they run."""
    seen: list[tuple[int, ...]] = []

    def note(layer: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(tuple(output.shape[1:]))

    kinds = (nn.Linear, nn.Unflatten, nn.Conv2d, nn.ConvTranspose2d, nn.Upsample, MinibatchStddev, nn.Flatten)
    for layer in module.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(note)
    module(x)
    return seen


@pytest.mark.parametrize(
    ("side", "generator", "critic"),
    [(32, 3_606_403, 2_701_841), (64, 4_425_859, 3_111_697), (128, 4_625_923, 3_238_033)],
)
def test_parameter_counts_are_those_of_the_specification(side: int, generator: int, critic: int) -> None:
    gan = models.build(f"wgan_gp_{side}", (3, side, side))
    assert (parameter_count(gan.generator), parameter_count(gan.discriminator)) == (generator, critic)


def test_the_64_preset_s_shapes_are_those_of_the_specification() -> None:
    gan = models.build("wgan_gp_64", (3, 64, 64))
    assert shapes(gan.generator, noise(gan, 2)) == [
        (8192,), (128, 8, 8), (128, 8, 8), (128, 8, 8),
        (128, 16, 16), (128, 16, 16),
        (128, 32, 32), (128, 32, 32), (128, 32, 32),
        (128, 64, 64), (128, 64, 64),
        (3, 64, 64),
    ]  # fmt: skip
    assert shapes(gan.discriminator, torch.zeros(2, 3, 64, 64)) == [
        (128, 64, 64), (128, 32, 32), (128, 16, 16), (128, 16, 16), (128, 8, 8), (256, 4, 4),
        (256, 4, 4), (256, 4, 4), (257, 4, 4), (4112,), (1,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("side", "generator", "critic"),
    [
        (
            32,
            [(8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 16, 16), (8, 16, 16), (8, 32, 32), (8, 32, 32), (3, 32, 32)],
            [(8, 32, 32), (8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 4, 4), (16, 4, 4)],
        ),
        (
            128,
            [
                (8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 16, 16), (8, 16, 16), (8, 32, 32), (8, 32, 32),
                (8, 32, 32), (8, 64, 64), (8, 64, 64), (8, 128, 128), (4, 128, 128), (3, 128, 128),
            ],
            [
                (4, 128, 128), (8, 64, 64), (8, 32, 32), (8, 16, 16), (8, 16, 16), (8, 8, 8), (16, 4, 4),
                (16, 4, 4), (16, 4, 4),
            ],
        ),
    ],
)  # fmt: skip
def test_the_other_presets_go_through_the_resolutions_of_the_specification(
    side: int, generator: list[tuple[int, ...]], critic: list[tuple[int, ...]]
) -> None:
    gan = tiny(side=side)
    assert shapes(gan.generator, noise(gan))[1:] == generator
    assert shapes(gan.discriminator, torch.zeros(2, 3, side, side))[:-3] == critic


@pytest.mark.parametrize("name", [name for name in models.names() if name.startswith("wgan_gp_")])
def test_the_recipe_s_rates_fill_its_epochs_and_targets_are_refused(name: str) -> None:
    preset = models.preset(name)
    stages = str(preset.recipe["lr_schedule"]).split()
    assert sum(int(stage.split(":")[0]) for stage in stages) == preset.recipe["epochs"]
    assert set(preset.refuses) == {"label_real", "label_real_sd", "label_fake", "label_generator"}


def kinds(module: nn.Module) -> list[str]:
    """The names of the layers in their order."""
    leaves = [layer for layer in module.modules() if not list(layer.children())]
    return [type(layer).__name__ for layer in leaves if not isinstance(layer, nn.ModuleList | nn.ZeroPad2d)]


def test_pixel_norm_comes_between_convolution_and_activation_and_never_in_the_critic() -> None:
    gan = tiny()
    layers = kinds(gan.generator)
    after_convolutions = [
        layers[i + 1 : i + 3]
        for i, name in enumerate(layers)
        if name == "Conv2d"  # not ToImage
    ]
    assert after_convolutions == [["PixelNorm", "LeakyReLU"]] * 4
    assert "PixelNorm" not in kinds(gan.discriminator)
    slopes = [m.negative_slope for net in (gan.generator, gan.discriminator) for m in net.modules()
              if isinstance(m, nn.LeakyReLU)]  # fmt: skip
    assert set(slopes) == {0.2}


def test_the_critic_drops_out_after_every_convolution_but_the_last() -> None:
    layers = kinds(tiny().discriminator)
    assert layers[:18] == ["Conv2d", "LeakyReLU", "Dropout"] * 5 + ["Conv2d", "LeakyReLU", "MinibatchStddev"]
    rates = {m.p for m in tiny().discriminator.modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.5}


@pytest.mark.parametrize("progressive", [False, True])
def test_what_the_recipe_adds_can_be_turned_off(progressive: bool) -> None:
    off = tiny({"pixel_norm": "none", "minibatch_stddev": False, "dropout": 0.0, "progressive": progressive})
    for net in (off.generator, off.discriminator):
        assert not [m for m in net.modules() if isinstance(m, PixelNorm | MinibatchStddev | nn.Dropout)]
    assert off.discriminator(off.generator(noise(off))).shape == (4,)
    on = tiny({"pixel_norm": "after", "minibatch_stddev_group": 2, "progressive": progressive})
    layers = kinds(on.generator)
    assert layers[layers.index("PixelNorm") - 1] == "LeakyReLU"
    assert [m.group for m in on.discriminator.modules() if isinstance(m, MinibatchStddev)] == [2]


@pytest.mark.parametrize("progressive", [False, True])
def test_transposed_convolutions_take_the_place_of_upsampling_and_its_convolution(progressive: bool) -> None:
    nearest = tiny({"progressive": progressive})
    transposed = tiny({"progressive": progressive, "upsample": "transposed"})
    doublings = 3 if progressive else 2
    assert kinds(nearest.generator).count("Upsample") == doublings
    assert "ConvTranspose2d" not in kinds(nearest.generator)
    assert kinds(transposed.generator).count("ConvTranspose2d") == doublings
    assert "Upsample" not in kinds(transposed.generator)
    assert kinds(transposed.generator).count("Conv2d") == kinds(nearest.generator).count("Conv2d") - doublings
    assert transposed.generator(noise(transposed)).shape == (4, 3, 32, 32)


def test_critic_width_widens_the_critic_alone() -> None:
    wide = tiny({"critic_width": 1.5})
    assert parameter_count(wide.generator) == parameter_count(tiny().generator)
    assert shapes(wide.discriminator, torch.zeros(2, 3, 32, 32))[:6] == [
        (12, 32, 32), (12, 16, 16), (12, 8, 8), (24, 4, 4), (24, 4, 4), (24, 4, 4),
    ]  # fmt: skip
    grown = tiny({"critic_width": 1.5, "progressive": True})
    assert shapes(grown.discriminator, torch.zeros(2, 3, 32, 32))[0] == (12, 32, 32)


@pytest.mark.parametrize("extra", [1, 2])
def test_critic_extra_adds_layers_at_every_resolution(extra: int) -> None:
    more = shapes(tiny({"critic_extra": extra}).discriminator, torch.zeros(2, 3, 32, 32))
    assert [more.count(shape) for shape in ((8, 32, 32), (8, 16, 16), (8, 8, 8), (16, 4, 4))] == [
        1 + extra, 1 + extra, 1 + extra, 3 + extra,
    ]  # fmt: skip
    grown = tiny({"critic_extra": extra, "progressive": True}).discriminator
    assert kinds(grown).count("Conv2d") == 4 * (1 + 2 + extra)


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_a_same_convolution_keeps_the_side_and_an_even_one_pads_one_before_and_two_after(kernel: int) -> None:
    layers = nn.Sequential(*same_conv(1, 1, kernel))
    convolution = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    covered = layers(torch.ones(1, 1, 7, 7))[0, 0]
    assert covered.shape == (7, 7)
    before = (kernel - 1) // 2
    assert covered[0, 0].item() == (kernel - before) ** 2
    assert covered[-1, -1].item() == (before + 1) ** 2
    assert covered[3, 3].item() == kernel**2


@pytest.mark.parametrize("progressive", [False, True])
def test_generated_images_lie_within_tanh_s_range(progressive: bool) -> None:
    gan = tiny({"progressive": progressive})
    with torch.no_grad():
        for parameter in gan.generator.parameters():
            parameter.mul_(10)
    images = gan.generator(noise(gan))
    assert 0.9 < images.abs().max().item() <= 1


def test_weights_are_glorot_uniform_and_biases_zero() -> None:
    for gan in (tiny(), tiny({"progressive": True}), tiny({"multi_scale": True, "upsample": "transposed"})):
        for net in (gan.generator, gan.discriminator):
            for layer in net.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    outer = layer.weight[0, 0].numel()
                    bound = (6 / (outer * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5
                    largest = layer.weight.abs().max().item()
                    assert largest <= bound
                    assert largest > 0.5 * bound
                    assert layer.bias is not None
                    assert not layer.bias.any()


def test_multi_scale_has_an_image_for_every_resolution_and_the_critic_s_gradient_reaches_each() -> None:
    gan = tiny({"multi_scale": True}, side=64)
    assert gan.scales == (8, 16, 32, 64)
    images = gan.generator(noise(gan))
    assert [image.shape for image in images] == [(4, 3, side, side) for side in gan.scales]
    assert all(image.abs().max().item() <= 1 for image in images)
    assert sum(isinstance(m, JoinImage) for m in gan.discriminator.modules()) == len(gan.scales) - 1
    scores = gan.discriminator(images)
    assert scores.shape == (4,)
    for slope in torch.autograd.grad(scores.sum(), images):
        assert slope.abs().amax(dim=(1, 2, 3)).min().item() > 0


def test_every_resolution_of_a_multi_scale_generator_learns() -> None:
    gan = tiny({"multi_scale": True})
    gan.discriminator(gan.generator(noise(gan))).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in gan.generator.parameters())


def test_multi_scale_and_progressive_together_are_refused() -> None:
    with pytest.raises(ValueError, match="progressive shows the critic one resolution at a time"):
        tiny({"multi_scale": True, "progressive": True})


# Progressive growing


def grown(level: int, alpha: float) -> tuple[Gan, ProgressiveGenerator, ProgressiveCritic]:
    """Both nets at a level, without dropout's randomness."""
    gan = tiny({"progressive": True})
    generator, critic = gan.generator.eval(), gan.discriminator.eval()
    assert isinstance(generator, ProgressiveGenerator)
    assert isinstance(critic, ProgressiveCritic)
    generator.grow(level, alpha)
    critic.grow(level, alpha)
    return gan, generator, critic


def with_gradient(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def test_progressive_nets_start_full_grown() -> None:
    gan = tiny({"progressive": True})
    assert gan.levels == (4, 8, 16, 32)
    for net in (gan.generator, gan.discriminator):
        assert isinstance(net, ProgressiveGenerator | ProgressiveCritic)
        assert (net.level, net.alpha) == (3, 1.0)
        assert not {"level", "alpha"} & set(net.state_dict())


@pytest.mark.parametrize("level", [1, 2, 3])
def test_at_alpha_0_both_nets_equal_the_path_of_the_level_below(level: int) -> None:
    gan, generator, critic = grown(level, 0.0)
    z, images = noise(gan), torch.randn(4, 3, 32, 32)
    made, scores = generator(z), critic(images)
    generator.grow(level - 1, 1.0)
    critic.grow(level - 1, 1.0)
    assert torch.equal(made, generator(z))
    assert torch.equal(scores, critic(images))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_at_alpha_1_the_path_of_the_level_below_is_not_used(level: int) -> None:
    gan, generator, critic = grown(level, 1.0)
    critic(generator(noise(gan))).sum().backward()
    for name, net in (("to_images", generator), ("from_images", critic)):
        used = {parameter.split(".")[1] for parameter in with_gradient(net) if parameter.startswith(name)}
        assert used == {str(level)}


def test_in_between_the_two_paths_are_mixed_by_alpha() -> None:
    gan, generator, critic = grown(3, 0.0)
    z, images = noise(gan), torch.randn(4, 3, 32, 32)
    made = {}
    for alpha in (0.0, 0.25, 1.0):
        generator.grow(3, alpha)
        made[alpha] = generator(z)
    assert torch.allclose(made[0.25], 0.75 * made[0.0] + 0.25 * made[1.0], atol=1e-6)
    critic.grow(3, 0.25)
    critic(images).sum().backward()
    assert {"from_images.2.0.weight", "from_images.3.0.weight"} <= with_gradient(critic)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_every_level_makes_and_takes_full_size_images_whose_detail_is_the_level_s(
    level: int, alpha: float
) -> None:
    gan, generator, critic = grown(level, alpha)
    images = generator(noise(gan))
    assert images.shape == (4, 3, 32, 32)
    repeated = 32 // gan.levels[level]
    blocks = images.unfold(2, repeated, repeated).unfold(3, repeated, repeated)
    assert torch.equal(blocks.amax(dim=(4, 5)), blocks.amin(dim=(4, 5)))
    assert critic(images).shape == (4,)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_parameters_of_levels_not_yet_reached_get_no_gradient(level: int) -> None:
    gan, generator, critic = grown(level, 0.5)
    critic(generator(noise(gan))).sum().backward()
    for net in (generator, critic):
        for name, parameter in net.named_parameters():
            group, number, *_ = name.split(".")
            if group != "head" and int(number) > level:
                assert parameter.grad is None, name
            elif group == "stages":
                assert parameter.grad is not None, name


def test_levels_that_do_not_exist_are_refused() -> None:
    _, generator, _ = grown(0, 1.0)
    for level, alpha in ((4, 1.0), (-1, 1.0), (2, 1.5)):
        with pytest.raises(ValueError, match=r"level must be in 0\.\.3 and alpha in 0\.\.1"):
            generator.grow(level, alpha)


# Gradient penalty


@pytest.mark.parametrize(
    "params",
    [
        NONE,
        {"minibatch_stddev_group": 2},
        {"multi_scale": True},
        {"progressive": True},
        {"spectral_norm": "d"},
        {"equalized_lr": True},
    ],
    ids=lambda params: "+".join(params) or "recipe",
)
def test_the_gradient_penalty_s_second_derivative_is_finite(params: Mapping[str, Value]) -> None:
    gan = tiny(params)
    if gan.levels:
        gan.discriminator.grow(2, 0.5)  # type: ignore[operator]
    sides = gan.scales or (32,)
    inputs = [torch.rand(6, 3, side, side, requires_grad=True) for side in sides]
    scores = gan.discriminator(tuple(inputs) if gan.scales else inputs[0])
    slopes = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    penalty = torch.stack([(slope.flatten(1).norm(dim=1) - 1).square().mean() for slope in slopes]).mean()
    assert penalty.item() > 0
    penalty.backward()
    gradients = [p.grad for p in gan.discriminator.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_the_minibatch_spread_takes_part_in_the_gradient_penalty() -> None:
    gan = tiny({"dropout": 0.0})
    images = torch.rand(4, 3, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(gan.discriminator(images)[0], images)
    assert slope[1:].any()  # an image's score depends on the other images of its batch
