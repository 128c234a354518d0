"""Random changes of real images before D sees them: one affine warp, then brightness and colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Ranges that each image's own changes are drawn from, uniformly unless said otherwise.

    `rotation`, `shear`: up to so many degrees either way. `shift_x`, `shift_y`: up to this share of width and
    height either way. `zoom_min` to `zoom_max`: for each axis, how much of the picture is seen: 1.2 is 20 % more,
    and smaller. `flip`: the probability of a mirror image. `brightness_min` to `brightness_max`: a factor.
    `colour`: a factor for each channel, triangular on [1 - colour, 1 + colour] with its mode at 1.
    """

    rotation: float = 25.0
    shift_x: float = 0.05
    shift_y: float = 0.1
    shear: float = 10.0
    zoom_min: float = 0.95
    zoom_max: float = 1.2
    flip: float = 0.5
    brightness_min: float = 0.8
    brightness_max: float = 1.4
    colour: float = 0.4


def augment(x: Tensor, ranges: Augment, generator: torch.Generator) -> Tensor:
    """Each image of (N, C, H, W) in [0, 1] changed by its own draw; grey images keep their one channel's colour.

    `generator` is on the images' device. Every call draws the same amount of numbers, whatever the ranges.
    """
    n, channels = x.shape[:2]
    drawn = torch.rand(n, 8 + 2 * channels, generator=generator, device=x.device)
    around = drawn * 2 - 1  # [-1, 1]
    zoom = ranges.zoom_min + (ranges.zoom_max - ranges.zoom_min) * drawn[:, 2:4]
    x = warp(
        x,
        rotation=ranges.rotation * around[:, 0],
        shear=ranges.shear * around[:, 1],
        zoom_x=zoom[:, 0],
        zoom_y=zoom[:, 1],
        shift_x=ranges.shift_x * around[:, 4],
        shift_y=ranges.shift_y * around[:, 5],
        flip=drawn[:, 6] < ranges.flip,
    )
    factor = ranges.brightness_min + (ranges.brightness_max - ranges.brightness_min) * drawn[:, 7:8]
    if channels > 1:
        triangular = drawn[:, 8 : 8 + channels] + drawn[:, 8 + channels :] - 1  # the sum of two uniforms
        factor = factor * (1 + ranges.colour * triangular)
    return (x * factor[:, :, None, None]).clamp(0, 1)


def warp(
    x: Tensor,
    *,
    rotation: Tensor,
    shear: Tensor,
    zoom_x: Tensor,
    zoom_y: Tensor,
    shift_x: Tensor,
    shift_y: Tensor,
    flip: Tensor,
) -> Tensor:
    """Images (N, C, H, W) sampled once, bilinearly; beyond the border its nearest pixel is repeated.

    The other arguments are (N,). `rotation`: degrees anticlockwise. `shear`: degrees that upright lines lean to
    the right. `zoom_x`, `zoom_y`: how much is seen. `shift_x`, `shift_y`: the picture moves right and down by this
    share. `flip`: bool.
    """
    height, width = x.shape[2:]
    angle, lean = torch.deg2rad(rotation), torch.tan(torch.deg2rad(shear))
    cos, sin = torch.cos(angle), torch.sin(angle)
    zoom_x = torch.where(flip, -zoom_x, zoom_x)
    aspect = height / width  # the grid's unit is half a side
    # From a place in the result to one in the image: shift back, zoom and flip, shear, rotate.
    xx, xy = cos * zoom_x, (cos * lean - sin) * zoom_y * aspect
    yx, yy = sin * zoom_x / aspect, (sin * lean + cos) * zoom_y
    offset_x, offset_y = -2 * shift_x, -2 * shift_y
    rows = [xx, xy, xx * offset_x + xy * offset_y, yx, yy, yx * offset_x + yy * offset_y]
    matrix = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    grid = affine_grid(matrix, list(x.shape), align_corners=False)  # (N, H, W, 2)
    return grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
