"""Reading image files of any size and kind into uint8 arrays of one shape."""

from __future__ import annotations

import os
import stat
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from trials.datasets import ImageFile, class_names, printable
from trials.errors import DatasetError

Pixels = NDArray[np.uint8]
"""(C, H, W)."""
Shape = tuple[int, int, int]
Progress = Callable[[int, int], None]
"""Called with how many are done, and how many there are."""

FORMATS = ("PNG", "JPEG", "PPM", "WEBP")  # a short list: every decoder reads what strangers wrote
MAX_PIXELS = 50_000_000  # 150 MB decoded; a few bytes can claim a thousand times that
PROGRESS_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderContent:
    """What came of a folder besides the images. `labels`: (N,); `skipped`: "path: reason" of each bad file."""

    labels: NDArray[np.uint8]
    n_classes: int
    skipped: tuple[str, ...]


def read_folder(
    folder: Path,
    files: Sequence[ImageFile],
    out: NDArray[np.uint8],
    *,
    change: Callable[[Pixels], Pixels] | None = None,
    shape: Shape | None = None,
    progress: Progress | None = None,
) -> FolderContent:
    """Read `files` into the first rows of `out` (len(files), C, H, W); bad files leave rows at the end unused.

    Labels number the first-level subfolders, if those are classes (`class_names`). `shape`:
    what the files are read as before `change` makes rows of them. Raises DatasetError for more bad files than
    max(10, 5 %), and for fewer than 2 good ones.
    """
    shape = shape or (out.shape[1], out.shape[2], out.shape[3])
    tell = throttled(progress, len(files))
    good, skipped = list[str](), list[str]()
    with warnings.catch_warnings():
        # Pillow warns of sizes, which are checked here, and of odd metadata, which is not used.
        warnings.simplefilter("ignore")
        for i, file in enumerate(files):
            try:
                image = read_image(folder / file.path, shape)
            except DatasetError as error:
                skipped.append(f"{printable(file.path)}: {error}")
                _refuse_many(folder, skipped, len(files))
            else:
                out[len(good)] = change(image) if change else image
                good.append(file.path)
            tell(i + 1)
    if len(good) < 2:
        raise DatasetError(
            f"{printable(str(folder))}: needs at least 2 usable images, has {len(good)}{_listed(skipped)}"
        )
    labels, n_classes = _labels(good)
    return FolderContent(labels=labels, n_classes=n_classes, skipped=tuple(skipped))


def throttled(progress: Progress | None, total: int) -> Callable[[int], None]:
    """`progress` as a function of what is done, passed on ten times a second and at the end."""
    last = 0.0

    def tell(done: int) -> None:
        nonlocal last
        if progress is not None and (done == total or time.monotonic() - last > PROGRESS_S):
            last = time.monotonic()
            progress(done, total)

    return tell


def _refuse_many(folder: Path, skipped: list[str], n_files: int) -> None:
    limit = max(10, n_files // 20)
    if len(skipped) > limit:
        raise DatasetError(
            f"{printable(str(folder))}: more than {limit} of {n_files:,} images are unusable{_listed(skipped)}"
        )


def _listed(skipped: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in skipped[:10])


def _labels(paths: Sequence[str]) -> tuple[NDArray[np.uint8], int]:
    """Labels (N,) by first-level subfolder, and their number; 0 when there are none."""
    classes = class_names(paths)
    if not classes:
        return np.zeros(len(paths), np.uint8), 0
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[path.partition("/")[0]] for path in paths], np.uint8), len(classes)


def read_image(path: Path, shape: Shape) -> Pixels:
    """The image as (C, H, W) = `shape`, H = W. Raises DatasetError with the reason when it cannot be had."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block for ever
            raise DatasetError("not a file")
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as opened:
            return fitted(_opaque(_decoded(opened, shape[1])), shape)
    except DatasetError:
        raise
    except UnidentifiedImageError:
        empty = os.path.getsize(path) == 0
        reason = "empty" if empty else f"not an image of a known format ({', '.join(FORMATS)})"
        raise DatasetError(reason) from None
    except Image.DecompressionBombError:
        raise DatasetError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise anything on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise DatasetError(printable(reason)) from error


def _decoded(picture: Image.Image, size: int) -> Image.Image:
    """The first frame, upright. Photographs in JPEG may come reduced, to no less than twice `size`."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DatasetError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
    if picture.format == "JPEG":
        picture.draft("", (2 * size, 2 * size))
    picture.load()
    try:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture  # it copies what it does not turn
    except Exception:  # damaged metadata says nothing about the pixels
        return picture


def _opaque(picture: Image.Image) -> Image.Image:
    """Any kind of picture as 8-bit L or RGB; what is transparent becomes white."""
    if picture.mode.startswith("I"):  # 16 bits a pixel
        return Image.fromarray(np.rint(np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    if picture.mode == "F":
        raise DatasetError("floating-point pixels, whose white is not known")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def fitted(picture: Image.Image, shape: Shape) -> Pixels:
    """An L or RGB picture as (C, H, W) = `shape`: padded to a square, then resized (cubic, antialiased).

    Colour becomes grey by the luma of ITU-R 601.
    """
    channels, size, _ = shape
    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    width, height = picture.size
    if width != height:
        longest = max(width, height)
        if longest > 2 * size:  # first, so that a strip of 1x1000000 makes no square of that side
            scale = 2 * size / longest
            reduced = max(1, round(width * scale)), max(1, round(height * scale))
            picture = picture.resize(reduced, Image.Resampling.BICUBIC)
        picture = Image.fromarray(squared(np.asarray(picture)))
    if picture.width != size:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def squared(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) padded on its short sides, with the picture reflected at its border.

    The reflection fades into the mean colour of the border, which it reaches at the edge of the square, or
    where the picture is reflected whole.
    """
    if image.shape[0] > image.shape[1]:
        return squared(image.swapaxes(0, 1)).swapaxes(0, 1)
    height, side = image.shape[:2]
    before = (side - height) // 2
    row = np.arange(side) - before
    outside = np.maximum(-row, row - (height - 1)).clip(0)
    reach = max(1, min(side - height - before, height))
    fade = (outside / reach).clip(0, 1).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1))
    border = [image[0], image[-1], image[:, 0], image[:, -1]]
    mean = np.concatenate(border).mean(axis=0, dtype=np.float32)
    period = row % (2 * height)
    reflected = image[np.minimum(period, 2 * height - 1 - period)].astype(np.float32)
    faded: NDArray[np.uint8] = np.rint(reflected + fade * (mean - reflected)).astype(np.uint8)
    return faded


def resized(image: Pixels, shape: Shape) -> Pixels:
    """A square (C, H, W) in another shape, as `fitted` does it."""
    flat = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return fitted(Image.fromarray(np.ascontiguousarray(flat)), shape)


def splined(image: Pixels, size: int) -> Pixels:
    """A square (C, H, W) at another size by a cubic spline, mirrored at its border and without antialiasing.

    This is how faces of 64x64 became 28x28 in the published runs on LFWcrop.
    """
    factor = size / image.shape[1]
    zoomed = [
        scipy.ndimage.zoom(channel.astype(np.float64), factor, order=3, mode="mirror") for channel in image
    ]
    pixels: Pixels = np.rint(np.stack(zoomed).clip(0, 255)).astype(np.uint8)
    return pixels
