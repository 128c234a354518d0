"""Datasets: real ones that ship, ones that are read from files, and the errors when they cannot be had."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from trials import data
from trials.data import PreparedDataset, prepare, resident_images, to_pixels, to_unit
from trials.datasets import DATASETS
from trials.errors import DatasetError


def prepared(name: str, root: Path) -> PreparedDataset:
    return prepare(name, cache_dir=root / "cache", data_dir=root / "data")


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if info.ships])
def test_a_dataset_that_ships_needs_no_download_and_is_what_it_says(name: str, tmp_path: Path) -> None:
    info, found = DATASETS[name], prepared(name, tmp_path)
    images, labels = np.load(found.images, mmap_mode="r"), np.load(found.labels)
    assert images.shape == (info.n_images, *info.image_shape)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert len(np.unique(labels)) == info.n_classes
    assert not (tmp_path / "data").exists()


def test_mnist5k_is_shuffled_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = prepared("mnist5k", tmp_path / "a"), prepared("mnist5k", tmp_path / "b")
    labels = np.load(first.labels)
    assert first.digest == second.digest
    assert len(set(labels[:50].tolist())) == 10
    assert np.bincount(labels).tolist() == [500] * 10


def test_a_prepared_dataset_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared("digits", tmp_path)
    monkeypatch.setattr(data, "_digits", lambda _: pytest.fail("read twice"))
    assert prepared("digits", tmp_path) == first


def _prepare_digits(root: Path) -> str:
    return prepared("digits", root).digest


def test_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert len(set(pool.map(_prepare_digits, [tmp_path] * 3))) == 1


def write_idx(raw: Path, n: int) -> None:
    """Files in MNIST's format with `n` random training images, and the test files beside them."""
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", n), ("t10k", 1)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes()
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_files_in_the_data_directory_are_read_as_torchvision_lays_them_out(
    name: str, folder: str, tmp_path: Path
) -> None:
    write_idx(tmp_path / "data" / folder / "raw", DATASETS[name].n_images)
    found = prepared(name, tmp_path)
    reference = getattr(torchvision.datasets, folder)(str(tmp_path / "data"), train=True, download=False)
    assert np.array_equal(np.load(found.images)[:, 0], reference.data.numpy())
    assert np.array_equal(np.load(found.labels), reference.targets.numpy())


def test_files_with_another_number_of_images_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "data" / "MNIST" / "raw", 10)
    with pytest.raises(
        DatasetError, match=r"expected images of shape \(60000, 1, 28, 28\), found \(10, 1, 28, 28\)"
    ):
        prepared("mnist", tmp_path)
    assert list((tmp_path / "cache").glob("*.npy")) == []


def test_without_files_and_network_one_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DatasetError) as raised:
        prepared("mnist", tmp_path)
    message = str(raised.value)
    for part in (
        str(tmp_path / "data" / "MNIST" / "raw"),
        "train-images-idx3-ubyte.gz",
        "--data-dir",
        "mnist5k",
    ):
        assert part in message


def test_a_damaged_download_is_refused_by_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    bad = gzip.compress(b"not an idx file")
    (raw / "train-images-idx3-ubyte.gz").write_bytes(bad)
    assert hashlib.md5(bad).hexdigest() not in dict(torchvision.datasets.MNIST.resources).values()
    with pytest.raises(DatasetError, match="nor downloaded"):
        prepared("mnist", tmp_path)


def test_resident_images_are_a_copy_shared_by_the_process(tmp_path: Path) -> None:
    found = prepared("digits", tmp_path)
    first = resident_images(found.images, torch.device("cpu"))
    assert resident_images(found.images, torch.device("cpu")) is first
    assert first.dtype == torch.uint8
    assert np.array_equal(first.numpy(), np.load(found.images))


@pytest.mark.parametrize(("pixels", "low"), [("tanh", -1.0), ("unit", 0.0)])
def test_pixels_span_the_range_and_come_back(pixels: str, low: float) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_pixels(levels, pixels)
    assert (x.min().item(), x.max().item()) == (low, 1.0)
    assert torch.equal(to_unit(x, pixels).mul(255).round().to(torch.uint8), levels)
