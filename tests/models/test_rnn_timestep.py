"""The family `rnn_timestep` against its specification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from models import Gan, Value
from models._layers import MinibatchStddev, ReadLabel
from models.rnn_timestep import assemble, normalise_tiles, sections

NONE: Mapping[str, Value] = MappingProxyType({})


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny(params: Mapping[str, Value] = NONE, seed: int = 0) -> Gan:
    """The model at its smallest, for 8x8 pictures of 10 classes."""
    torch.manual_seed(seed)
    return models.build("rnn_timestep", (1, 8, 8), {**models.preset("rnn_timestep").tiny, **params}, 10)


def enlarge(module: nn.Module) -> None:
    """Larger weights than the initial ones, whose effects are too small to be seen through tolerances."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)


def inputs(gan: Gan, n: int = 6) -> tuple[Tensor, Tensor]:
    """z (n, Z) and labels (n,)."""
    return gan.latent(n, torch.Generator().manual_seed(0)), torch.arange(n) % 10


@pytest.mark.parametrize(
    ("params", "generator", "discriminator"),
    [
        ({"timesteps": 4}, 17_611_396, 2_245_202),
        ({"timesteps": 16}, 17_434_849, 2_010_002),
        ({"sections": "rows"}, 17_409_628, 1_976_402),  # F = 28: 38 inputs of G and 28 of D
    ],
)
def test_parameter_counts_are_those_of_the_specification(
    params: dict[str, Value], generator: int, discriminator: int
) -> None:
    with torch.device("meta"):  # counted without being filled
        gan = models.build("rnn_timestep", (1, 28, 28), params, 10)
    assert (parameter_count(gan.generator), parameter_count(gan.discriminator)) == (generator, discriminator)


@given(
    rows=st.integers(1, 5), columns=st.integers(1, 5), height=st.integers(1, 4), width=st.integers(1, 4),
    n=st.integers(1, 3),
)  # fmt: skip
def test_assembling_is_the_exact_inverse_of_cutting(
    rows: int, columns: int, height: int, width: int, n: int
) -> None:
    size = (rows * height, columns * width)
    images = torch.arange(n * size[0] * size[1], dtype=torch.float32).reshape(n, 1, *size)
    tiles = sections(images, (rows, columns))
    assert tiles.shape == (n, rows * columns, height * width)
    assert torch.equal(assemble(tiles, (rows, columns), size), images)
    assert torch.equal(sections(assemble(tiles, (rows, columns), size), (rows, columns)), tiles)


@pytest.mark.parametrize("timesteps", [1, 4, 16, 49, 196, 784])
def test_every_partition_of_the_specification_is_cut_and_put_back(timesteps: int) -> None:
    images = torch.rand(2, 1, 28, 28)
    grid = (math.isqrt(timesteps), math.isqrt(timesteps))
    tiles = sections(images, grid)
    assert tiles.shape == (2, timesteps, 784 // timesteps)
    assert torch.equal(assemble(tiles, grid, (28, 28)), images)


def test_rows_are_the_rows_of_the_picture_from_top_to_bottom() -> None:
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(sections(images, (28, 1)), images[:, 0])


def test_tiles_and_their_pixels_are_in_raster_order() -> None:
    upper_left, upper_right, lower_left, lower_right = (torch.full((14, 14), float(i)) for i in range(4))
    upper_left[0, 1] = 9.0
    picture = torch.cat((torch.cat((upper_left, upper_right), 1), torch.cat((lower_left, lower_right), 1)))
    tiles = sections(picture[None, None], (2, 2))
    assert tiles[0, :, -1].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert tiles[0, 0, :3].tolist() == [0.0, 9.0, 0.0]


@pytest.mark.parametrize(("timesteps", "side"), [(5, 28), (49, 8), (9, 8)])
def test_timesteps_that_do_not_tile_the_picture_are_refused_with_those_that_do(
    timesteps: int, side: int
) -> None:
    with pytest.raises(
        ValueError, match=rf"divides both sides of {side}x{side}: one of 1, 4, 16, .* \(got {timesteps}\)"
    ):
        models.build("rnn_timestep", (1, side, side), {"timesteps": timesteps}, 10)


def test_rows_take_no_notice_of_timesteps() -> None:
    gan = tiny({"sections": "rows", "timesteps": 5})
    z, labels = inputs(gan)
    assert gan.generator(z, labels).shape == (6, 1, 8, 8)
    assert gan.discriminator(torch.rand(6, 1, 8, 8), labels).shape == (6,)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9))
def test_a_normalised_tile_is_all_zeros_or_its_brightest_pixel_is_one(raw: list[float]) -> None:
    tile = torch.tensor(raw)
    normalised = normalise_tiles(tile)
    brightest = tile.max().item()
    assert normalised.min().item() >= 0.0
    if brightest <= 0.0:
        assert normalised.tolist() == [0.0] * len(raw)
    else:
        # 1 but for the 1e-7 under it: exactly 1 in float32 from a brightest value of 2 on.
        assert normalised.max().item() == pytest.approx(brightest / (brightest + 1e-7), rel=1e-6)
        assert normalised.max().item() == 1.0 or brightest < 2.0
        assert normalised[tile.argmax()] == normalised.max()


def test_each_tile_of_a_generated_picture_is_normalised_by_itself() -> None:
    gan = tiny()
    enlarge(gan.generator)
    z, labels = inputs(gan, 64)
    brightest = sections(gan.generator(z, labels), (2, 2)).amax(dim=2)
    assert ((brightest == 0) | ((brightest > 0.999) & (brightest <= 1))).all()
    assert (brightest > 0).any(dim=0).all()


def test_the_generator_is_the_specified_recurrence() -> None:
    gan = tiny()
    enlarge(gan.generator)
    generator: Any = gan.generator
    z, labels = inputs(gan)
    label = torch.eye(10)[labels]
    start = generator.from_latent(z)
    states = [(start, start)] * 2
    tile, tiles = torch.zeros(6, 16), []
    for _ in range(4):
        output = generator.from_tile_and_label(torch.cat((tile, label), 1)).relu()
        for i, layer in enumerate(generator.layers):
            states[i] = layer(output, states[i])
            output = states[i][0]
        tile = generator.to_tile(output)  # fed back raw: negative values and all
        tiles.append(tile.relu() / (tile.relu().max(dim=1, keepdim=True).values + 1e-7))
    expected = assemble(torch.stack(tiles, 1), (2, 2), (8, 8))
    torch.testing.assert_close(generator(z, labels), expected)


def test_every_layer_of_the_generator_starts_from_the_latent_s_layer_in_both_states() -> None:
    gan = tiny({"g_layers": 3})
    generator: Any = gan.generator
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in generator.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    z, labels = inputs(gan)
    generator(z, labels)
    start = generator.from_latent(z)
    assert len(seen) == 3 * 4
    assert all(torch.equal(state, start) for states in seen[:3] for state in states)
    assert not any(torch.equal(state, start) for states in seen[3:] for state in states)


def test_every_layer_of_the_discriminator_starts_from_the_label_s_layer_in_both_states() -> None:
    gan = tiny({"d_layers": 3})
    discriminator: Any = gan.discriminator
    assert isinstance(discriminator.from_label, ReadLabel)
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in discriminator.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    labels = torch.arange(6)
    discriminator(torch.rand(6, 1, 8, 8), labels)
    start = discriminator.from_label(torch.eye(10)[labels])[None]
    assert [torch.equal(state, start) for states in seen for state in states] == [True] * 6


def test_the_label_changes_what_both_nets_say() -> None:
    gan = tiny()
    enlarge(gan.generator)
    enlarge(gan.discriminator)
    gan.discriminator.eval()
    z, _ = inputs(gan, 1)
    z, labels = z.expand(10, -1), torch.arange(10)
    images = gan.generator(z, labels)
    assert len(images.unique(dim=0)) == 10
    assert len(gan.discriminator(images[:1].expand(10, -1, -1, -1), labels).unique()) == 10


def test_weights_and_linear_biases_are_small_and_uniform_and_lstm_biases_zero() -> None:
    gan = tiny({"g_hidden": 64, "d_hidden": 64}, seed=1)
    for net in (gan.generator, gan.discriminator):
        for layer in net.modules():
            recurrent = isinstance(layer, nn.LSTM | nn.LSTMCell)
            for name, parameter in layer.named_parameters(recurse=False):
                largest = parameter.abs().max().item()
                if recurrent and name.startswith("bias"):
                    assert largest == 0.0
                else:
                    assert 0.0 < largest <= 0.01
                if parameter.numel() > 1000:
                    # Of 1000 uniform draws the largest is below 0.99 of the bound in 4 of 100,000 cases; the
                    # deviation of their sd from bound / sqrt 3 has an sd of 1.4 %.
                    assert recurrent or largest > 0.0099
                    assert parameter.std().item() == pytest.approx(0.01 / 3**0.5, rel=0.06)


def test_layers_and_hidden_sizes_are_counted_a_net() -> None:
    gan = tiny({"g_layers": 3, "d_layers": 1, "g_hidden": 5, "d_hidden": 7})
    cells = [m for m in gan.generator.modules() if isinstance(m, nn.LSTMCell)]
    lstms = [m for m in gan.discriminator.modules() if isinstance(m, nn.LSTM)]
    assert [(m.input_size, m.hidden_size) for m in cells] == [(5, 5)] * 3
    assert [(m.input_size, m.hidden_size) for m in lstms] == [(16, 7)]


def test_the_discriminator_drops_on_every_layer_s_output_in_training_only() -> None:
    gan = tiny()
    enlarge(gan.discriminator)
    drops = [m for m in gan.discriminator.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in drops] == [0.5, 0.5]
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    trained = [gan.discriminator(images, labels) for _ in range(2)]
    assert not torch.equal(*trained)
    gan.discriminator.eval()
    evaluated = [gan.discriminator(images, labels) for _ in range(2)]
    assert torch.equal(*evaluated)


def test_without_dropout_the_discriminator_reads_as_one_stacked_lstm() -> None:
    gan = tiny({"dropout": 0.0})
    enlarge(gan.discriminator)
    discriminator: Any = gan.discriminator
    stacked = nn.LSTM(16, 8, num_layers=2, batch_first=True)
    stacked.load_state_dict(
        {
            name.replace("_l0", f"_l{i}"): value
            for i, layer in enumerate(discriminator.layers)
            for name, value in layer.state_dict().items()
        }
    )
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    start = discriminator.from_label(torch.eye(10)[labels]).expand(2, -1, -1).contiguous()
    top = stacked(sections(images, (2, 2)), (start, start))[0][:, -1]
    torch.testing.assert_close(discriminator(images, labels), discriminator.head(top))


def test_the_sigmoid_of_a_two_way_logit_is_the_softmax_s_probability_of_real() -> None:
    gan = tiny({"dropout": 0.0})
    enlarge(gan.discriminator)
    discriminator: Any = gan.discriminator
    two: list[Tensor] = []
    discriminator.head[-1].register_forward_pre_hook(lambda _, args: two.append(args[0]))
    logits = discriminator(torch.rand(6, 1, 8, 8), torch.arange(6))
    assert two[0].shape == (6, 2)
    torch.testing.assert_close(logits.sigmoid(), two[0].softmax(dim=1)[:, 0])


def test_the_options_of_the_diagram_shape_the_discriminator() -> None:
    def linears(params: Mapping[str, Value]) -> list[tuple[int, int]]:
        modules = tiny(params).discriminator.modules()
        return [(m.in_features, m.out_features) for m in modules if isinstance(m, nn.Linear)]

    assert linears(NONE) == [(10, 8), (8, 2)]
    assert linears({"head": "sigmoid"}) == [(10, 8), (8, 1)]
    assert linears({"d_input_proj": True}) == [(10, 8), (16, 8), (8, 2)]
    assert linears({"d_all_layers": True}) == [(10, 8), (16, 2)]
    assert linears({"minibatch_stddev": True, "head": "sigmoid"}) == [(10, 8), (9, 1)]


OPTIONS: tuple[dict[str, Value], ...] = (
    {},
    {"sections": "rows"},
    {"timesteps": 16},
    {"head": "sigmoid", "d_input_proj": True, "d_all_layers": True},
    {"minibatch_stddev": True, "spectral_norm": "both"},
    {"equalized_lr": True},
)


@pytest.mark.parametrize("params", OPTIONS)
def test_the_generator_s_loss_reaches_every_parameter_of_both_nets(params: dict[str, Value]) -> None:
    gan = tiny(params)
    if not {"spectral_norm", "equalized_lr"} & params.keys():
        enlarge(gan.generator)
        enlarge(gan.discriminator)
    z, labels = inputs(gan, 64)
    gan.discriminator(gan.generator(z, labels), labels).square().sum().backward()
    for net in (gan.generator, gan.discriminator):
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max().item() > 0, name


def test_sections_of_one_pixel_are_black_or_white_and_leave_the_generator_next_to_no_gradient() -> None:
    raw = torch.tensor([[-0.5], [0.5]], requires_grad=True)
    normalised = normalise_tiles(raw)
    normalised.sum().backward()
    assert normalised.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert raw.grad is not None
    assert raw.grad.abs().max().item() < 1e-6  # 1e-7 / 0.5 ** 2


@pytest.mark.parametrize("params", [{}, {"minibatch_stddev": True}])
def test_a_gradient_penalty_on_the_discriminator_can_be_differentiated(params: dict[str, Value]) -> None:
    gan = tiny({"dropout": 0.0, "d_all_layers": True, **params})
    discriminator = gan.discriminator.double()
    enlarge(discriminator)
    labels = torch.arange(3)
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def scores(x: Tensor) -> Tensor:
        logits: Tensor = discriminator(x, labels)
        return logits

    assert torch.autograd.gradgradcheck(scores, (images,))
    (slope,) = torch.autograd.grad(scores(images).sum(), images, create_graph=True)
    (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
    missed = {name for name, parameter in discriminator.named_parameters() if parameter.grad is None}
    assert {name.split(".")[0] + "." + name.split(".")[-1] for name in missed} == {
        "head.bias"
    }  # no slope has it


def test_spectral_norm_takes_one_power_iteration_a_forward_pass_and_leaves_the_label_alone() -> None:
    gan = tiny({"spectral_norm": "both"})
    generator: Any = gan.generator
    calls: list[str] = []
    for name in ("from_tile_and_label", "to_tile"):
        norm = getattr(generator, name).parametrizations.weight[0]
        norm.register_forward_hook(lambda *_, name=name: calls.append(name))
    z, labels = inputs(gan)
    generator(z, labels)
    assert calls == ["from_tile_and_label", "to_tile"]
    discriminator: Any = gan.discriminator
    assert not hasattr(discriminator.from_label, "parametrizations")


def test_the_spread_over_the_batch_is_one_feature_more_before_the_head() -> None:
    gan = tiny({"minibatch_stddev": True, "minibatch_stddev_group": 2})
    spreads = [m for m in gan.discriminator.modules() if isinstance(m, MinibatchStddev)]
    assert [m.group for m in spreads] == [2]
    seen: list[Tensor] = []
    spreads[0].register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    gan.discriminator(torch.rand(6, 1, 8, 8), torch.arange(6))
    assert [tensor.shape for tensor in seen] == [(6, 8), (6, 9)]


def test_the_latent_is_uniform_between_minus_one_and_one() -> None:
    z = tiny().latent(5000, torch.Generator().manual_seed(3))
    assert z.shape == (5000, 4)
    assert -1.0 <= z.min().item() < -0.99
    assert 0.99 < z.max().item() <= 1.0
    assert z.var().item() == pytest.approx(1 / 3, rel=0.05)  # its relative sd at 20,000 draws is 0.6 %
