"""The family `rgan` against its specification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import models
from models import Gan, Value
from models._layers import PixelNorm, Unnormalised

VERSIONS = ("rgan_v1", "rgan_v2", "rgan_v3", "rgan_v4", "rgan_v5")


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def lstms(module: nn.Module) -> list[nn.LSTM]:
    return [layer for layer in module.modules() if isinstance(layer, nn.LSTM)]


def shapes_after(module: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """The output shape of every layer without layers inside, in the order they run."""
    shapes: list[tuple[int, ...]] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        shapes.append(tuple((output[0] if isinstance(output, tuple) else output).shape))

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(note)
    module(x)
    return shapes


def read_by(lstm: nn.LSTM, module: nn.Module, x: Tensor) -> Tensor:
    """What the LSTM is given when `module` is given x."""
    read: list[Tensor] = []
    handle = lstm.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    module(x)
    handle.remove()
    return read[0]


def tiny(
    name: str, params: Mapping[str, Value] = MappingProxyType({}), side: int | None = None
) -> tuple[Gan, int]:
    preset = models.preset(name)
    side = side or preset.tiny_side
    torch.manual_seed(0)
    return models.build(name, (1, side, side), {**preset.tiny, **params}), side


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [("rgan_v1", 905_711, 241_633), ("rgan_v2", 1_058_512, 357_085), ("rgan_v3", 1_387_171, 377_057)],
)
def test_parameter_counts_are_those_of_the_specification(
    name: str, generator: int, discriminator: int
) -> None:
    gan = models.build(name, (1, 28, 28))
    assert (parameter_count(gan.generator), parameter_count(gan.discriminator)) == (generator, discriminator)


def test_the_two_lstms_of_v2_hold_182336_and_12992_parameters() -> None:
    gan = models.build("rgan_v2", (1, 28, 28))
    assert [parameter_count(lstm) for lstm in lstms(gan.generator)] == [182_336]
    assert [parameter_count(lstm) for lstm in lstms(gan.discriminator)] == [12_992]


def test_v4_and_v5_add_a_convolution_of_one_channel_to_v3_s_discriminator() -> None:
    for name in ("rgan_v4", "rgan_v5"):
        gan = models.build(name, (1, 28, 28))
        assert parameter_count(gan.generator) == 1_387_171
        assert parameter_count(gan.discriminator) == 377_057 + (9 + 1) + 2


def in_order(rows: list[tuple[int, ...]], shapes: list[tuple[int, ...]]) -> bool:
    """Whether the rows are among the shapes, in their order."""
    rest = iter(shapes)
    return all(row in rest for row in rows)


def test_v2_s_generator_has_the_shapes_of_every_row_of_its_table() -> None:
    gan = models.build("rgan_v2", (1, 28, 28))
    shapes = shapes_after(gan.generator, torch.randn(2, 100))
    rows = [
        (2, 6272), (2, 128, 7, 7), (2, 128, 14, 14), (2, 64, 28, 28), (2, 28, 28, 28),
        (2, 28, 784), (2, 28, 56), (2, 28, 28), (2, 1, 28, 28),
    ]  # fmt: skip
    assert in_order(rows, shapes)


def test_v2_s_discriminator_has_the_shapes_of_every_row_of_its_table() -> None:
    gan = models.build("rgan_v2", (1, 28, 28))
    shapes = shapes_after(gan.discriminator, torch.rand(2, 1, 28, 28))
    rows = [
        (2, 28, 56), (2, 28, 28), (2, 1, 28, 28), (2, 256, 22, 22), (2, 128, 18, 18), (2, 64, 16, 16),
        (2, 32, 14, 14), (2, 32), (2, 1), (2,),
    ]  # fmt: skip
    assert in_order(rows, shapes)


def test_v1_s_strings_have_the_lengths_of_the_specification() -> None:
    gan = models.build("rgan_v1", (1, 28, 28))
    generated = [
        (2, 128, 49), (2, 128, 98), (2, 64, 196), (2, 32, 392), (2, 16, 784), (2, 784, 2), (2, 1, 784),
        (2, 1, 28, 28),
    ]  # fmt: skip
    assert in_order(generated, shapes_after(gan.generator, torch.randn(2, 100)))
    read = [(2, 784, 1), (2, 784, 2), (2, 256, 390), (2, 128, 193), (2, 64, 95), (2, 32, 46), (2, 32), (2,)]
    assert in_order(read, shapes_after(gan.discriminator, torch.rand(2, 1, 28, 28)))


def test_v3_s_strings_have_784_and_16_steps() -> None:
    gan = models.build("rgan_v3", (1, 28, 28))
    generated = [
        (2, 128, 7, 7), (2, 256, 7, 7), (2, 128, 14, 14), (2, 64, 28, 28), (2, 784, 64), (2, 784, 32),
        (2, 32, 28, 28), (2, 1, 28, 28),
    ]  # fmt: skip
    assert in_order(generated, shapes_after(gan.generator, torch.randn(2, 100)))
    read = [
        (2, 784, 1), (2, 784, 1), (2, 1, 28, 28), (2, 256, 13, 13), (2, 128, 6, 6), (2, 64, 4, 4),
        (2, 16, 64), (2, 16, 16), (2, 16), (2,),
    ]  # fmt: skip
    assert in_order(read, shapes_after(gan.discriminator, torch.rand(2, 1, 28, 28)))


@pytest.mark.parametrize("name", ["rgan_v1", "rgan_v3"])
def test_a_string_reads_the_pixels_of_a_picture_in_raster_order(name: str) -> None:
    gan, side = tiny(name)
    images = torch.arange(2.0 * side * side).reshape(2, 1, side, side)
    string = read_by(lstms(gan.discriminator)[0], gan.discriminator, images)
    assert torch.equal(string, images.reshape(2, side * side, 1))


def test_v3_s_generator_writes_its_string_in_raster_order() -> None:
    gan, side = tiny("rgan_v3")
    lstm = lstms(gan.generator)[0]
    maps: list[Tensor] = []
    for layer in gan.generator.modules():
        if isinstance(layer, nn.Flatten):
            layer.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
        if isinstance(layer, nn.Unflatten) and layer.dim == 2:
            layer.register_forward_hook(lambda _, __, output: maps.append(output))
    outputs: list[Tensor] = []
    lstm.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    string = read_by(lstm, gan.generator, torch.randn(2, 4))
    row, column = 3, 5
    assert torch.equal(string[:, row * side + column], maps[0][:, :, row, column])
    assert torch.equal(outputs[0][:, row * side + column], maps[1][:, :, row, column])


def test_v2_s_discriminator_reads_a_row_as_a_time_step() -> None:
    gan, side = tiny("rgan_v2")
    images = torch.rand(2, 1, side, side)
    assert torch.equal(
        read_by(lstms(gan.discriminator)[0], gan.discriminator, images), images.reshape(2, side, side)
    )


def test_v2_s_generator_reads_rows_whose_features_are_column_times_channels_plus_channel() -> None:
    gan, side = tiny("rgan_v2")
    maps: list[Tensor] = []
    for layer in gan.generator.modules():
        if isinstance(layer, nn.Tanh):
            layer.register_forward_hook(lambda _, __, output: maps.append(output))
    rows = read_by(lstms(gan.generator)[0], gan.generator, torch.randn(2, 4))
    channels, row, column, channel = side, 3, 5, 7
    assert torch.equal(rows[:, row, column * channels + channel], maps[0][:, channel, row, column])


def test_the_last_lstm_of_v3_is_read_where_each_direction_ends() -> None:
    gan, side = tiny("rgan_v3", side=28)
    lstm = lstms(gan.discriminator)[-1]
    ends: list[tuple[Tensor, Tensor]] = []
    lstm.register_forward_hook(lambda _, __, output: ends.append((output[0], output[1][0])))
    read: list[Tensor] = []
    linear = next(layer for layer in gan.discriminator.modules() if isinstance(layer, nn.Linear))
    linear.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    gan.discriminator(torch.rand(2, 1, side, side))
    forward, backward = ends[0][1]  # the final hidden states
    assert torch.equal(read[0], torch.cat((forward, backward), dim=1))


@pytest.mark.parametrize("name", ["rgan_v1", "rgan_v2", "rgan_v3", "rgan_v4"])
def test_a_relu_keeps_generated_pixels_at_zero_or_above(name: str) -> None:
    gan, _ = tiny(name)
    assert gan.generator(torch.randn(8, 4)).min().item() == 0


def test_v5_has_leaky_relus_only_and_pixels_below_zero() -> None:
    gan, _ = tiny("rgan_v5")
    assert not any(isinstance(layer, nn.ReLU) for layer in gan.generator.modules())
    assert gan.generator(torch.randn(8, 4)).min().item() < 0


@pytest.mark.parametrize("name", VERSIONS)
def test_sides_below_the_smallest_are_refused_and_the_smallest_works(name: str) -> None:
    smallest = models.preset(name).min_size
    gan, side = tiny(name)
    assert side == smallest
    assert gan.discriminator(gan.generator(torch.randn(3, 4))).shape == (3,)
    with pytest.raises(ValueError, match=f"{name} needs images of at least {smallest}x{smallest}"):
        tiny(name, side=smallest - 4)


@pytest.mark.parametrize("name", VERSIONS)
def test_batch_norm_has_keras_momentum_of_0_8_and_epsilon(name: str) -> None:
    gan, _ = tiny(name)
    for net in (gan.generator, gan.discriminator):
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert {(m.momentum, m.eps) for m in norms} == {(0.2, 1e-3)}


@pytest.mark.parametrize("name", VERSIONS)
def test_every_convolution_of_the_discriminator_has_dropout_of_a_quarter(name: str) -> None:
    gan, _ = tiny(name)
    blocks = 3 if name == "rgan_v3" else 4
    assert [m.p for m in gan.discriminator.modules() if isinstance(m, nn.Dropout)] == [0.25] * blocks
    assert not [m for m in gan.generator.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize("name", VERSIONS)
def test_an_lstm_starts_with_forget_bias_1_an_orthogonal_recurrent_matrix_and_glorot_inputs(
    name: str,
) -> None:
    torch.manual_seed(0)
    gan = models.build(name, (1, 28, 28))
    for lstm in (*lstms(gan.generator), *lstms(gan.discriminator)):
        units = lstm.hidden_size
        for suffix in ("_l0", "_l0_reverse") if lstm.bidirectional else ("_l0",):
            bias = getattr(lstm, f"bias_ih{suffix}") + getattr(lstm, f"bias_hh{suffix}")
            assert bias.tolist() == [0.0] * units + [1.0] * units + [0.0] * 2 * units
            assert getattr(lstm, f"bias_hh{suffix}").abs().max().item() == 0
            recurrent = getattr(lstm, f"weight_hh{suffix}")  # (4 units, units), orthonormal columns
            assert torch.allclose(recurrent.T @ recurrent, torch.eye(units), atol=1e-5)
            kernel = getattr(lstm, f"weight_ih{suffix}")
            bound = math.sqrt(6 / sum(kernel.shape))
            assert kernel.abs().max().item() <= bound
            if kernel.numel() > 1000:
                assert kernel.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_convolutions_start_glorot_uniform_with_zero_biases() -> None:
    torch.manual_seed(0)
    gan = models.build("rgan_v3", (1, 28, 28))
    convolutions = [m for m in gan.generator.modules() if isinstance(m, nn.Conv2d)]
    for layer in convolutions:
        fans = (layer.in_channels + layer.out_channels) * math.prod(layer.kernel_size)
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / fans), rel=0.05)
        assert layer.bias is not None
        assert layer.bias.abs().max().item() == 0


def largest_singular_value(layer: nn.Linear | nn.Conv2d) -> float:
    return float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2))


def test_after_200_forward_passes_v4_s_largest_singular_values_are_within_5_percent_of_1() -> None:
    gan, side = tiny("rgan_v4")
    images = torch.rand(2, 1, side, side)
    with torch.no_grad():
        for _ in range(200):
            gan.generator(torch.randn(2, 4))
            gan.discriminator(images)
    gan.generator.eval()
    gan.discriminator.eval()
    for net, expected in ((gan.generator, 7), (gan.discriminator, 4)):
        layers = [
            m
            for m in net.modules()
            if isinstance(m, nn.Linear | nn.Conv2d) and not isinstance(m, Unnormalised)
        ]
        assert len(layers) == expected
        assert [largest_singular_value(layer) for layer in layers] == pytest.approx(
            [1.0] * len(layers), rel=0.05
        )


@pytest.mark.parametrize("name", ["rgan_v4", "rgan_v5"])
def test_spectral_norm_leaves_the_lstms_and_the_discriminator_s_last_linear_alone(name: str) -> None:
    gan, _ = tiny(name)
    for layer in (*lstms(gan.generator), *lstms(gan.discriminator)):
        assert not is_parametrized(layer)
    linears = [layer for layer in gan.discriminator.modules() if isinstance(layer, nn.Linear)]
    assert [is_parametrized(layer) for layer in linears] == [False]


@pytest.mark.parametrize("name", ["rgan_v2", "rgan_v3", "rgan_v4", "rgan_v5"])
def test_the_discriminator_s_gradient_is_non_zero_at_every_scale(name: str) -> None:
    gan, side = tiny(name, {"multi_scale": True})
    assert gan.scales == (side // 4, side // 2, side)
    images = gan.generator(torch.randn(8, 4))
    assert [image.shape for image in images] == [(8, 1, s, s) for s in gan.scales]
    leaves = tuple(image.detach().requires_grad_() for image in images)
    for gradient in torch.autograd.grad(gan.discriminator(leaves).square().sum(), leaves):
        assert gradient.abs().sum().item() > 0


def test_multi_scale_images_join_v2_s_maps_of_18_and_16_and_v3_s_of_13_and_6() -> None:
    for name, sides in (("rgan_v2", [18, 16]), ("rgan_v3", [13, 6])):
        gan, _ = tiny(name, {"multi_scale": True}, side=28)
        joined: list[int] = []
        for join in gan.discriminator.get_submodule("joins").children():
            join.register_forward_hook(lambda _, __, output, joined=joined: joined.append(output.shape[-1]))
        gan.discriminator(tuple(torch.rand(2, 1, s, s) for s in gan.scales))
        assert joined == sides


@pytest.mark.parametrize(("name", "layers"), [("rgan_v1", 5), ("rgan_v2", 4), ("rgan_v3", 4)])
def test_pixel_norm_follows_every_activation_of_a_hidden_layer_of_the_generator(
    name: str, layers: int
) -> None:
    gan, _ = tiny(name, {"pixel_norm": "after"})
    assert len([m for m in gan.generator.modules() if isinstance(m, PixelNorm)]) == layers


@pytest.mark.parametrize("name", VERSIONS)
def test_the_minibatch_s_spread_is_one_more_input_of_the_last_linear(name: str) -> None:
    inputs = []
    for on in (False, True):
        gan, _ = tiny(name, {"minibatch_stddev": on})
        inputs += [layer.in_features for layer in gan.discriminator.modules() if isinstance(layer, nn.Linear)]
    assert inputs[1] == inputs[0] + 1


@pytest.mark.parametrize("name", VERSIONS)
def test_a_few_updates_lower_the_discriminator_s_loss(name: str) -> None:
    gan, side = tiny(name, {"dropout": 0.0})
    torch.manual_seed(1)
    real = torch.rand(16, 1, side, side)
    fake = gan.generator(torch.randn(16, 4))
    optimizer = torch.optim.Adam(gan.discriminator.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        logits = gan.discriminator(torch.cat((real, fake.detach())))
        targets = torch.cat((torch.ones(16), torch.zeros(16)))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    gan.discriminator(gan.generator(torch.randn(16, 4))).mean().backward()
    assert all(p.grad is not None for p in gan.generator.parameters())
