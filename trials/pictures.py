"""Pictures as uint8 arrays (H, W, 3): grids of samples, captions, PNG and GIF files.

Brightness is never rescaled, so pictures of different steps and arms compare.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

GREY = 128
PADDING = 2
MIN_SIDE = 480
MAX_FRAMES = 40
MAX_SIDE = 500
"""Of an animation, in pixels: larger frames make files of many megabytes."""

Picture = NDArray[np.uint8]
Item = TypeVar("Item")


def grid(
    images: NDArray[np.uint8], *, columns: int | None = None, padding: int = PADDING, min_side: int = MIN_SIDE
) -> Picture:
    """Lay (N, C, H, W) images out as the squarest grid, or in `columns`: (rows H', columns W', 3), grey gaps.

    Pixels are repeated by a whole number so that the longer side reaches at least `min_side`; they are never
    rescaled in brightness, so grids of different steps and arms compare.
    """
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    sheet = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, 3), GREY, dtype=np.uint8
    )
    rgb = np.broadcast_to(images.transpose(0, 2, 3, 1), (n, height, width, max(channels, 3)))
    for i in range(n):
        top, left = (i // columns) * (height + padding) + padding, (i % columns) * (width + padding) + padding
        sheet[top : top + height, left : left + width] = rgb[i]
    factor = max(1, math.ceil(min_side / max(sheet.shape[:2])))
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)


def cells(sheet: Picture, n: int) -> list[Picture]:
    """The first `n` images of a sheet that `grid` made, each with its pixels repeated as there.

    The layout is read off the grey gaps, so no more than the picture is needed. A sheet whose layout cannot be
    told (images as grey as the gaps) is taken for one image.
    """
    layout = _layout(sheet)
    if layout is None:
        return [sheet]
    (height, width), gap = layout
    corners = (
        (top, left)
        for top in range(gap, sheet.shape[0] - gap, height + gap)
        for left in range(gap, sheet.shape[1] - gap, width + gap)
    )
    return [sheet[top : top + height, left : left + width] for top, left in islice(corners, n)]


def _layout(sheet: Picture) -> tuple[tuple[int, int], int] | None:
    """(H, W) of an image and the width of a gap, in pixels of the sheet."""
    sides = sheet.shape[:2]
    grey = sheet == GREY
    lines = (grey.all(axis=(1, 2)), grey.all(axis=(0, 2)))  # of rows, of columns
    for factor in range(math.gcd(*sides), 0, -1):
        if any(side % factor for side in sides) or (
            factor > 1 and (factor - 1) * max(sides) >= MIN_SIDE * factor
        ):
            continue  # `grid` repeats pixels no more often than it must
        small = sheet[::factor, ::factor]
        if factor > 1 and not np.array_equal(small.repeat(factor, axis=0).repeat(factor, axis=1), sheet):
            continue
        gap = PADDING * factor
        found = [_side(line, gap, factor) for line in lines]
        if all(found):
            return (found[0], found[1]), gap
    return None


def _side(is_grey: NDArray[np.bool_], gap: int, factor: int) -> int:
    """The side of an image between grey gaps at equal distances; the shortest that fits, 0 if none does."""
    for side in range(4 * factor, len(is_grey) - 2 * gap + 1, factor):
        n, rest = divmod(len(is_grey) - gap, side + gap)
        if not rest and all(is_grey[i * (side + gap) : i * (side + gap) + gap].all() for i in range(n + 1)):
            return side
    return 0


def captioned(
    picture: Picture,
    *,
    title: str = "",
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    size: int = 14,
) -> Picture:
    """`picture` on white with a title above, a caption before each of its rows and above each of its columns.

    Rows and columns are taken to be of equal height and width. `size`: of the letters, in pixels.
    """
    font = ImageFont.load_default(size)
    high, wide = picture.shape[:2]
    line = round(1.5 * size)
    left = math.ceil(max((font.getlength(text) for text in rows), default=-size)) + size
    top = line * (bool(title) + bool(columns))
    full_width = max(left + wide, math.ceil(font.getlength(title)) + size)
    sheet = Image.new("RGB", (full_width, top + high), "white")
    sheet.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((left or size // 2, line / 2), title, fill="black", font=font, anchor="lm")
    for i, text in enumerate(rows):
        draw.text(
            (left - size // 2, top + (i + 0.5) * high / len(rows)), text, fill="black", font=font, anchor="rm"
        )
    for i, text in enumerate(columns):
        draw.text(
            (left + (i + 0.5) * wide / len(columns), top - line / 2),
            text,
            fill="black",
            font=font,
            anchor="mm",
        )
    return np.asarray(sheet)


def pairs(
    above: NDArray[np.uint8], below: NDArray[np.uint8], captions: Sequence[str], *,
    columns: int = 8, names: tuple[str, str] = ("generated", "nearest real"),
) -> Picture:  # fmt: skip
    """Images (N, C, H, W) one above the other, `columns` pairs a strip, each pair under its caption."""
    empty = np.full((-len(above) % columns, *above.shape[1:]), GREY, np.uint8)
    above, below = np.concatenate((above, empty)), np.concatenate((below, empty))
    strips = []
    for start in range(0, len(above), columns):
        chosen = slice(start, start + columns)
        strip = grid(np.concatenate((above[chosen], below[chosen])), columns=columns)
        labels = [*captions[chosen], *[""] * columns][:columns]
        strips.append(captioned(strip, rows=names, columns=labels))
    return np.concatenate(strips)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items at even distances, the first and the last among them; for one the last."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(last * i / (most - 1))] for i in range(most)] if most > 1 else [items[last]][:most]


def write_png(path: Path, picture: Picture) -> None:
    """Write (H, W, 3) as a PNG under a temporary name, then rename it."""
    _write(path, lambda file: Image.fromarray(picture).save(file, format="PNG"))


def write_gif(path: Path, frames: Sequence[Picture], ms: int = 125, last_ms: int = 1500) -> None:
    """Write (H, W, 3) frames of one size as a GIF that repeats for ever, under a temporary name, then rename it.

    Each frame is shown for `ms` milliseconds, the last for `last_ms`, cut to hundredths of a second. Grey frames keep
    every brightness; colour ones share a palette of 256 colours of them all, dithered (Floyd and Steinberg).
    """
    images = [Image.fromarray(frame) for frame in frames]
    if all((frame == frame[..., :1]).all() for frame in frames):
        images = [image.convert("L") for image in images]
    else:
        palette = _palette(frames)
        images = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    durations = [ms] * (len(images) - 1) + [last_ms]
    _write(
        path,
        lambda file: images[0].save(
            file, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
        ),
    )


def _palette(frames: Sequence[Picture]) -> Image.Image:
    """The 256 colours that suit all frames, chosen from at most a quarter of a million of their pixels."""
    pixels = np.concatenate([frame.reshape(-1, 3) for frame in frames])
    pixels = pixels[:: math.ceil(len(pixels) / 2**18)]
    return Image.fromarray(pixels[None]).quantize(256, method=Image.Quantize.MEDIANCUT)


def animate(path: Path, pictures: Iterable[Path], *, ms: int = 125, last_ms: int = 1500) -> bool:
    """Write the PNGs as one GIF: at most MAX_FRAMES, evenly chosen, shrunk to MAX_SIDE where larger.

    Those of another size than the last are left out, and those that cannot be read. False, and no file, with fewer
    than two.
    """
    frames = []
    for picture in evenly(list(pictures), MAX_FRAMES):
        try:
            with Image.open(picture) as image:
                shown = image.convert("RGB")
        except (OSError, ValueError):  # deleted or damaged meanwhile
            continue
        if max(shown.size) > MAX_SIDE:
            shown = ImageOps.contain(shown, (MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
        frames.append(np.asarray(shown))
    frames = [frame for frame in frames if frame.shape == frames[-1].shape]
    if len(frames) < 2:
        return False
    write_gif(path, frames, ms, last_ms)
    return True


def _write(path: Path, save: Callable[[BinaryIO], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        save(file)
        file.flush()
        os.fsync(file.fileno())  # a report will name it, and reports are synced
    os.replace(temporary, path)
