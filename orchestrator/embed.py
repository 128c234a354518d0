"""Pictures inside a page, as data addresses, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trials.pictures import MAX_FRAMES, Picture, cells, evenly, grid

LOSSLESS_SIDE = 200
"""Up to this size WebP without loss is small too."""
QUALITY = 84


@dataclass(slots=True)
class Embedder:
    """Turns picture files into addresses for `<img src>`; counts what was left out when `budget` bytes of
    the page are used up.

    `problems`: pictures that could not be read, in words.
    """

    budget: int = 9_000_000
    used: int = 0
    left_out: int = 0
    problems: list[str] = field(default_factory=list)

    def picture(self, path: Path | None, side: int, first: int | None = None) -> str:
        """The picture as WebP, at most `side` pixels a side; empty when it is missing, damaged or over the budget.

        `first`: only so many images of a grid of samples, laid out anew.
        """
        if path is None:
            return ""
        try:
            with Image.open(path) as image:
                animated = getattr(image, "n_frames", 1) > 1
                data = _animation(image, side) if animated else _still(image, side, first)
        except (OSError, SyntaxError, ValueError) as error:
            self.problems.append(f"{path.name}: {error}")
            return ""
        address = "data:image/webp;base64," + base64.b64encode(data).decode()
        if self.used + len(address) > self.budget:
            self.left_out += 1
            return ""
        self.used += len(address)
        return address


def _still(image: Image.Image, side: int, first: int | None) -> bytes:
    pixels = np.asarray(image.convert("RGB"))
    if first is not None:
        found = cells(pixels, first)
        if len(found) > 1:
            pixels = grid(np.stack(found).transpose(0, 3, 1, 2), padding=_repeats(found[0]), min_side=1)
    fitted = _fitted(Image.fromarray(_native(pixels)), side)
    buffer = io.BytesIO()
    fitted.save(buffer, format="WEBP", lossless=max(fitted.size) <= LOSSLESS_SIDE, quality=QUALITY, method=4)
    return buffer.getvalue()


def _native(pixels: Picture) -> Picture:
    """The picture without pixels that are repeated a whole number of times: the browser repeats them again."""
    factor = _repeats(pixels)
    return np.ascontiguousarray(pixels[::factor, ::factor])


def _repeats(pixels: Picture) -> int:
    """How often each pixel is repeated, in both directions."""
    height, width = pixels.shape[:2]
    for factor in range(8, 1, -1):
        if height % factor == 0 and width % factor == 0:
            small = pixels[::factor, ::factor]
            if np.array_equal(small.repeat(factor, axis=0).repeat(factor, axis=1), pixels):
                return factor
    return 1


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """In RGB, no larger than `side`; small pictures keep their pixels."""
    image = image.convert("RGB")
    return (
        ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS) if max(image.size) > side else image
    )


def _animation(image: Image.Image, side: int) -> bytes:
    """The animation; of more than MAX_FRAMES an even choice."""
    shown, durations = [], []
    for i in evenly(range(int(getattr(image, "n_frames", 1))), MAX_FRAMES):
        image.seek(i)
        shown.append(np.asarray(image.convert("RGB")))
        durations.append(int(image.info.get("duration", 0)) or 120)
    factor = min(map(_repeats, shown))  # a frame of one colour could be made smaller than the others
    frames = [_fitted(Image.fromarray(np.ascontiguousarray(f[::factor, ::factor])), side) for f in shown]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0,
        quality=60, method=2,
    )  # fmt: skip
    return buffer.getvalue()
