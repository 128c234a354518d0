"""The layers that families share, against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from models._layers import (
    JoinImage,
    MinibatchStddev,
    PixelNorm,
    ReadLabel,
    ToImage,
    activate,
    add_equalized_lr,
    add_spectral_norm,
    doubling,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 7), (3, 7, 5), (3, 7, 4, 5)])
def test_after_pixel_norm_the_mean_square_over_the_channels_is_1(shape: tuple[int, ...]) -> None:
    a = 5 * normal(*shape)
    b = PixelNorm()(a)
    assert torch.allclose(b.square().mean(dim=1), torch.ones(3, *shape[2:]), atol=1e-5)
    assert torch.allclose(b / a, (b / a)[:, :1].expand_as(a), rtol=1e-4)  # one factor a position


def test_pixel_norm_of_zeros_is_zero() -> None:
    assert not PixelNorm()(torch.zeros(2, 3, 4, 4)).any()


@pytest.mark.parametrize(
    ("pixel_norm", "order"),
    [("none", [nn.ReLU]), ("before", [PixelNorm, nn.ReLU]), ("after", [nn.ReLU, PixelNorm])],
)
def test_pixel_norm_comes_before_or_after_the_activation(
    pixel_norm: str, order: list[type[nn.Module]]
) -> None:
    assert [type(layer) for layer in activate(nn.ReLU(), pixel_norm)] == order


def spread(x: npt.NDArray[np.float64], group: int) -> list[float]:
    """For every image the mean, over channels and positions, of the standard deviation in its group."""
    values = []
    for i in range(len(x)):
        first = i // group * group
        members = x[first : first + group]
        total = 0.0
        places = list(np.ndindex(*x.shape[1:]))
        for place in places:
            column = [float(member[place]) for member in members]
            mean = sum(column) / group
            total += math.sqrt(sum((value - mean) ** 2 for value in column) / group + 1e-8)
        values.append(total / len(places))
    return values


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 2, 5)])
@pytest.mark.parametrize("group", [0, 1, 2, 3])
def test_minibatch_stddev_appends_the_average_spread_of_each_group(
    shape: tuple[int, ...], group: int
) -> None:
    x = normal(*shape).double()
    y = MinibatchStddev(group)(x)
    assert y.shape == (shape[0], shape[1] + 1, *shape[2:])
    assert torch.equal(y[:, :-1], x)
    for image, value in zip(y[:, -1], spread(x.numpy(), group or len(x)), strict=True):
        assert torch.allclose(image, torch.full_like(image, value), rtol=1e-10)


def test_minibatch_stddev_of_equal_images_has_finite_first_and_second_derivatives() -> None:
    x = torch.ones(4, 3, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(MinibatchStddev()(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("side", [4, 8, 16])
def test_an_image_of_any_side_joins_a_feature_map_behind_its_channels(side: int) -> None:
    join = JoinImage(3, 5)
    features, image = normal(2, 7, 8, 8), normal(2, 3, side, side)
    joined = join(features, image)
    assert joined.shape == (2, 12, 8, 8)
    assert torch.equal(joined[:, :7], features)
    as_large = {
        4: lambda: image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
        8: lambda: image,
        16: lambda: image.reshape(2, 3, 8, 2, 8, 2).mean(dim=(3, 5)),
    }[side]()
    assert torch.allclose(joined[:, 7:], join.from_image(as_large), atol=1e-6)


def test_doubling_repeats_pixels_and_convolves_or_is_one_transposed_convolution() -> None:
    x = normal(2, 3, 4, 4)
    nearest = nn.Sequential(*doubling(3, 5, 3, transposed=False))
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(nearest(x), nearest[1](repeated))
    transposed = nn.Sequential(*doubling(3, 5, 3, transposed=True))
    assert nearest(x).shape == transposed(x).shape == (2, 5, 8, 8)
    assert [type(layer) for layer in transposed] == [nn.ConvTranspose2d]


def as_matrix(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The layer's weight as it is used, (out, in * kernel)."""
    weight = layer.weight.detach()
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(12, 20), (4, 12)),
        (lambda: nn.Conv2d(6, 10, 3, padding=1), (4, 6, 5, 5)),
        (lambda: nn.ConvTranspose2d(6, 10, 4, stride=2, padding=1), (4, 6, 5, 5)),
        (lambda: ToImage(6, 3, 1), (4, 6, 5, 5)),
    ],
    ids=["Linear", "Conv2d", "ConvTranspose2d", "ToImage"],
)
def test_spectral_norm_holds_the_largest_singular_value_near_1(
    make: Callable[[], nn.Linear | nn.Conv2d | nn.ConvTranspose2d], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(7)
    net = nn.Sequential(layer)
    add_spectral_norm(net)
    with torch.no_grad():
        for _ in range(200):
            net(torch.zeros(shape))
    net.eval()
    before = as_matrix(layer)
    assert torch.linalg.matrix_norm(before, 2).item() == pytest.approx(1, rel=0.05)
    x = normal(*shape)
    assert torch.equal(net(x), net(x))
    assert torch.equal(before, as_matrix(layer))


def test_spectral_norm_leaves_labels_recurrent_layers_and_biases_alone() -> None:
    net = nn.ModuleDict(
        {"label": ReadLabel(10, 4), "lstm": nn.LSTM(3, 4), "linear": nn.Linear(3, 4), "conv": nn.Conv1d(2, 3, 3)}
    )  # fmt: skip
    add_spectral_norm(net)
    kept = {name for name, _ in net.named_parameters() if "parametrizations" not in name}
    assert kept == {
        "label.weight", "label.bias", "linear.bias", "conv.bias",
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "fan_in", "gain"),
    [
        (nn.Linear(300, 200), 300, math.sqrt(2)),
        (nn.Conv1d(60, 200, 3), 60 * 3, math.sqrt(2)),
        (nn.Conv2d(60, 100, 3), 60 * 9, math.sqrt(2)),
        (nn.ConvTranspose2d(60, 90, 4, stride=2), 60 * 16, math.sqrt(2)),
        (nn.ConvTranspose2d(1, 900, 4, stride=2), 16, math.sqrt(2)),
        (ToImage(3000, 3, 1), 3000, 1),
        (nn.Linear(9000, 1), 9000, 1),
        (nn.ConvTranspose2d(900, 1, 4, stride=2), 900 * 16, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_equalised_weights_are_stored_as_standard_normal_and_used_with_std_gain_over_root_fan_in(
    layer: nn.Linear, fan_in: int, gain: float
) -> None:
    torch.manual_seed(0)
    nn.init.ones_(layer.bias)
    net = nn.Sequential(layer)
    add_equalized_lr(net)
    (stored,) = [parameter for name, parameter in net.named_parameters() if name.endswith("original")]
    assert stored.requires_grad
    assert stored.mean().item() == pytest.approx(0, abs=0.05)
    assert stored.std().item() == pytest.approx(1, rel=0.04)
    assert torch.allclose(layer.weight, stored * gain / math.sqrt(fan_in))
    assert not layer.bias.any()


def test_equalised_learning_rates_leave_recurrent_weights_alone() -> None:
    lstm = nn.LSTM(3, 4)
    before = [parameter.clone() for parameter in lstm.parameters()]
    add_equalized_lr(nn.Sequential(lstm))
    assert all(torch.equal(a, b) for a, b in zip(before, lstm.parameters(), strict=True))
