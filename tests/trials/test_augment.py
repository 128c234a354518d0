"""Augmentation: every transform by its definition, and what it draws."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trials.augment import Augment, augment, warp

NEUTRAL = Augment(
    rotation=0, shift_x=0, shift_y=0, shear=0, zoom_min=1, zoom_max=1, flip=0, brightness_min=1, brightness_max=1,
    colour=0,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 4, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(n, channels, height, width, generator=generator(99))


def warped(x: Tensor, **changes: float) -> Tensor:
    """All images of x changed alike."""
    values = dict.fromkeys(("rotation", "shear", "shift_x", "shift_y", "flip"), 0.0) | {
        "zoom_x": 1.0,
        "zoom_y": 1.0,
    }
    tensors = {name: torch.full((len(x),), float(v)) for name, v in (values | changes).items()}
    return warp(x, **tensors | {"flip": tensors["flip"] > 0})


def blob(row: float, column: float, side: int = 33) -> Tensor:
    """A bright spot (1, 1, side, side)."""
    at = torch.arange(side, dtype=torch.float32)
    return torch.exp(-((at[:, None] - row) ** 2 + (at[None] - column) ** 2) / 4)[None, None]


def centre(x: Tensor) -> tuple[float, float]:
    """Row and column of the centre of brightness."""
    weight = x[0, 0] / x[0, 0].sum()
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in weight.shape)
    return float((weight.sum(1) * rows).sum()), float((weight.sum(0) * columns).sum())


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (4, 3, 64, 64), (2, 1, 8, 8)])
def test_neutral_ranges_change_nothing(shape: tuple[int, int, int, int]) -> None:
    x = torch.rand(shape, generator=generator())
    torch.testing.assert_close(augment(x, NEUTRAL, generator()), x, atol=1e-5, rtol=0)


def test_a_seed_gives_the_same_images_and_another_gives_others() -> None:
    x = noise()
    a, b, c = (augment(x, Augment(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_each_image_has_its_own_draw_and_each_batch_a_new_one() -> None:
    x, stream = noise(1).expand(8, -1, -1, -1), generator()
    first, second = augment(x, Augment(), stream), augment(x, Augment(), stream)
    different = torch.cat([first, second])
    assert len(torch.unique(different.flatten(1), dim=0)) == 16


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    x = noise()
    changed = x.clone()
    changed[1:] = 0
    assert torch.equal(augment(x, Augment(), generator())[0], augment(changed, Augment(), generator())[0])


@given(
    n=st.integers(1, 3), channels=st.sampled_from([1, 3]), side=st.integers(2, 24), seed=st.integers(0, 2**31)
)
def test_any_batch_stays_in_shape_and_range_and_is_not_written_to(
    n: int, channels: int, side: int, seed: int
) -> None:
    x = torch.rand(n, channels, side, side, generator=generator(seed))
    before = x.clone()
    out = augment(x, Augment(rotation=180, shear=45, zoom_max=3, brightness_max=3), generator(seed))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(x, before)


def test_other_ranges_leave_the_draws_of_the_rest_alone() -> None:
    x = noise()
    bright = dataclasses.replace(NEUTRAL, brightness_min=0.2, brightness_max=0.9)
    also_flip = dataclasses.replace(bright, flip=1.0)
    plain, flipped = augment(x, bright, generator()), augment(x, also_flip, generator())
    torch.testing.assert_close(flipped, plain.flip(3), atol=1e-5, rtol=0)


# The warp


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 2), (-1, -5), (0, 0)])
def test_shifts_move_the_picture_and_repeat_the_border(right: int, down: int) -> None:
    x = noise(height=20, width=10)
    out = warped(x, shift_x=right / 10, shift_y=down / 20)
    rows = (torch.arange(20) - down).clamp(0, 19)
    columns = (torch.arange(10) - right).clamp(0, 9)
    torch.testing.assert_close(out, x[:, :, rows][:, :, :, columns], atol=1e-5, rtol=0)


def test_flips_mirror_left_and_right() -> None:
    x = noise()
    torch.testing.assert_close(warped(x, flip=1), x.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (180, 2), (-90, -1)])
def test_rotation_is_anticlockwise(degrees: float, quarters: int) -> None:
    x = noise()
    torch.testing.assert_close(warped(x, rotation=degrees), x.rot90(quarters, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("wide", [False, True])
def test_rotation_keeps_lengths_in_pixels(wide: bool) -> None:
    x = blob(16, 24 if wide else 22)
    middle = 32 if wide else 16
    x = torch.nn.functional.pad(x, (0, 32)) if wide else x
    row, column = centre(warped(x, rotation=30))
    right, angle = (24 if wide else 22) - middle, math.radians(30)
    assert column - middle == pytest.approx(right * math.cos(angle), abs=0.1)
    assert row - 16 == pytest.approx(-right * math.sin(angle), abs=0.1)


@pytest.mark.parametrize(("zoom_x", "zoom_y"), [(1.25, 1.0), (1.0, 1.25), (0.8, 1.5)])
def test_zoom_shows_more_of_the_picture_in_each_axis(zoom_x: float, zoom_y: float) -> None:
    row, column = centre(warped(blob(20, 10), zoom_x=zoom_x, zoom_y=zoom_y))
    assert row - 16 == pytest.approx(4 / zoom_y, abs=0.1)
    assert column - 16 == pytest.approx(-6 / zoom_x, abs=0.1)


def test_shear_leans_upright_lines_and_keeps_level_ones() -> None:
    for row in (8, 16, 24):
        found_row, found_column = centre(warped(blob(row, 16), shear=20))
        assert found_row == pytest.approx(row, abs=0.1)
        assert found_column - 16 == pytest.approx((16 - row) * math.tan(math.radians(20)), abs=0.1)


def test_shift_is_a_share_of_the_result_whatever_else_is_done() -> None:
    x = blob(14, 18)
    plain, moved = (
        centre(warped(x, rotation=20, zoom_x=1.1, zoom_y=1.2, shear=5, flip=1, shift_x=s))
        for s in (0, 4 / 33)
    )
    assert moved[1] - plain[1] == pytest.approx(4, abs=0.05)
    assert moved[0] == pytest.approx(plain[0], abs=0.05)


# What is drawn


def test_flips_come_with_their_probability() -> None:
    x = torch.zeros(2000, 1, 2, 2)
    x[..., 0] = 1
    out = augment(x, dataclasses.replace(NEUTRAL, flip=0.3), generator())
    share = (out[:, 0, 0, 1] > 0.5).float().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize(
    ("changes", "axis", "low", "high"),
    [({"shift_x": 0.2}, 1, -0.2 * 33, 0.2 * 33), ({"shift_y": 0.1}, 0, -0.1 * 33, 0.1 * 33)],
)
def test_shifts_are_uniform_over_their_range(
    changes: dict[str, float], axis: int, low: float, high: float
) -> None:
    out = augment(blob(16, 16).expand(1000, -1, -1, -1), dataclasses.replace(NEUTRAL, **changes), generator())
    moved = torch.tensor([centre(image[None])[axis] - 16 for image in out])
    other = torch.tensor([centre(image[None])[1 - axis] - 16 for image in out])
    assert other.abs().max() < 0.01
    assert moved.min() > low - 0.01
    assert moved.max() < high + 0.01
    assert moved.min() < 0.95 * low
    assert moved.max() > 0.95 * high
    assert abs(moved.mean().item()) < 4 * high / math.sqrt(3 * 1000)


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_is_one_uniform_factor_for_all_channels(channels: int) -> None:
    x = torch.full((2000, channels, 2, 2), 0.5)
    out = augment(x, dataclasses.replace(NEUTRAL, brightness_min=0.8, brightness_max=1.4), generator())
    factor = out[:, 0, 0, 0] / 0.5
    torch.testing.assert_close(out, (0.5 * factor)[:, None, None, None].expand_as(out))
    assert factor.min() >= 0.8
    assert factor.max() <= 1.4
    assert factor.mean().item() == pytest.approx(1.1, abs=4 * 0.6 / math.sqrt(12 * 2000))
    assert factor.var().item() == pytest.approx(0.36 / 12, rel=0.15)


def test_colour_factors_are_triangular_and_of_each_channel() -> None:
    n, colour = 20_000, 0.4
    out = augment(torch.full((n, 3, 1, 1), 0.5), dataclasses.replace(NEUTRAL, colour=colour), generator())
    factor = out[:, :, 0, 0] / 0.5
    assert factor.min() >= 1 - colour - 1e-6
    assert factor.max() <= 1 + colour + 1e-6
    assert (factor.mean(0) - 1).abs().max() < 0.01
    torch.testing.assert_close(factor.var(0), torch.full((3,), colour**2 / 6), rtol=0.05, atol=0)
    inner = ((factor - 1).abs() < colour / 2).float().mean().item()
    assert inner == pytest.approx(0.75, abs=0.01)  # a triangle's inner half; of a uniform draw, 0.5
    correlation = torch.corrcoef(factor.T) - torch.eye(3)
    assert correlation.abs().max() < 0.04


def test_grey_images_have_no_colour() -> None:
    x = noise(channels=1)
    out = augment(x, dataclasses.replace(NEUTRAL, colour=0.4), generator())
    torch.testing.assert_close(out, x, atol=1e-5, rtol=0)


def test_what_is_too_bright_is_white() -> None:
    out = augment(noise(), dataclasses.replace(NEUTRAL, brightness_min=100, brightness_max=100), generator())
    assert out.max() == 1
