"""Sample grids as uint8 pictures."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY = 128


def grid(
    images: NDArray[np.uint8], *, columns: int | None = None, padding: int = 2, min_side: int = 480
) -> NDArray[np.uint8]:
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


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) as a PNG under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        Image.fromarray(picture).save(file, format="PNG")
        file.flush()
        os.fsync(file.fileno())  # a report will name it, and reports are synced
    os.replace(temporary, path)
