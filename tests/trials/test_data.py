"""Datasets: real ones that ship, ones that are read from files, and the errors when they cannot be had."""

from __future__ import annotations

import errno
import gzip
import hashlib
import multiprocessing
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.datasets
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from trials import data, images
from trials.data import (
    PreparedDataset,
    downsample,
    prepare,
    resident_images,
    resident_labels,
    to_pixels,
    to_unit,
)
from trials.datasets import DATASETS, DatasetSource, count_images, find_folder
from trials.errors import DatasetError


def prepared(
    name: str | None,
    root: Path,
    *,
    folder: str | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> PreparedDataset:
    source = DatasetSource(name=name, folder=folder, size=size, channels=channels)
    return prepare(source, cache_dir=root / "cache", data_dir=root / "data")


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if info.ships])
def test_a_dataset_that_ships_needs_no_download_and_is_what_it_says(name: str, tmp_path: Path) -> None:
    info, found = DATASETS[name], prepared(name, tmp_path)
    images, labels = np.load(found.images, mmap_mode="r"), np.load(found.labels)
    assert images.shape == (info.n_images, *info.image_shape)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert len(np.unique(labels)) == max(1, info.n_classes)
    assert (found.n_images, found.n_classes) == (info.n_images, info.n_classes)
    assert (found.image_shape, found.skipped, found.name) == (info.image_shape, (), name)
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


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_downsampling_averages_areas(size: int) -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    n = 8 // size
    expected = x.reshape(2, 3, size, n, size, n).mean(dim=(3, 5))
    torch.testing.assert_close(downsample(x, size), expected)


def test_resident_labels_number_the_classes(tmp_path: Path) -> None:
    found = prepared("digits", tmp_path)
    labels = resident_labels(found.labels, torch.device("cpu"))
    assert resident_labels(found.labels, torch.device("cpu")) is labels
    assert labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), np.load(found.labels))


# Other sizes and colours of named datasets


@pytest.mark.parametrize("size", [5, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_named_dataset_comes_in_other_sizes_and_colours(size: int, channels: int, tmp_path: Path) -> None:
    found = prepared("digits", tmp_path, size=size, channels=channels)
    x, native = np.load(found.images), np.load(prepared("digits", tmp_path).images)
    assert x.shape == (1797, channels, size, size)
    assert found.image_shape == (channels, size, size)
    assert found.n_classes == 10
    assert np.array_equal(np.load(found.labels), np.load(prepared("digits", tmp_path).labels))
    assert (x == x[:, :1]).all()
    assert abs(x.mean() - native.mean()) < 4
    if size == 8:
        assert (x == native).all()


def test_the_same_shape_is_one_dataset_however_it_is_asked_for(tmp_path: Path) -> None:
    assert prepared("digits", tmp_path, size=8, channels=1) == prepared("digits", tmp_path)
    assert len(list((tmp_path / "cache").glob("*.images.npy"))) == 1


def test_patches_are_the_means_of_areas_of_the_photographs(tmp_path: Path) -> None:
    x = np.load(prepared("photo_patches", tmp_path).images)
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    for patch in x[:20]:
        photograph = photographs[rng.integers(2)]
        side = rng.integers(64, 257)
        top, left = rng.integers(427 - side + 1), rng.integers(640 - side + 1)
        crop = photograph[top : top + side, left : left + side]
        assert np.abs(patch.mean(axis=(1, 2)) - crop.mean(axis=(0, 1))).max() < 0.5
    assert len(np.unique(x.reshape(len(x), -1), axis=0)) == len(x)


@given(size=st.integers(1, 9), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_averaging_by_a_whole_factor_is_the_mean_of_blocks(size: int, factor: int, seed: int) -> None:
    side = size * factor
    image = np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)
    blocks = image.reshape(3, size, factor, size, factor).mean(axis=(2, 4))
    assert np.array_equal(data._averaged(image, size), np.floor(blocks + 0.5))


# Folders


def save(path: Path, *, seed: int = 0, width: int = 9, height: int = 6) -> Path:
    """A random colour picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def fill(folder: Path, n: int = 4) -> Path:
    for i in range(n):
        save(folder / f"{i:03}.png", seed=i)
    return folder


def test_a_folder_becomes_square_images_of_one_shape(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "fish")
    steps: list[tuple[int, int]] = []
    source = DatasetSource(folder="fish", size=8)
    found = prepare(
        source,
        cache_dir=tmp_path / "cache",
        data_dir=tmp_path / "data",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert (found.n_images, found.n_classes, found.image_shape) == (4, 0, (3, 8, 8))
    assert np.load(found.images).shape == (4, 3, 8, 8)
    assert np.load(found.labels).tolist() == [0] * 4
    assert (found.name, source.label, found.skipped) == ("fish 8x8x3", "fish 8x8x3", ())
    assert steps[-1] == (4, 4)
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".json", ".lock", ".npy", ".npy"]


def test_a_folder_is_read_once_by_ten_that_want_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "data" / "fish")
    read: list[Path] = []
    inner = images.read_image

    def count(path: Path, shape: images.Shape) -> images.Pixels:
        read.append(path)
        return inner(path, shape)

    monkeypatch.setattr(images, "read_image", count)
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: prepared(None, tmp_path, folder="fish", size=8), range(10)))
    assert len(read) == 4
    assert len({each.digest for each in found}) == 1


def _prepare_fish(root: Path) -> tuple[str, int]:
    found = prepared(None, root, folder="fish", size=8)
    return found.digest, found.images.stat().st_mtime_ns


def test_a_folder_is_written_once_by_ten_processes(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "fish")
    with multiprocessing.get_context("fork").Pool(10) as pool:
        assert len(set(pool.map(_prepare_fish, [tmp_path] * 10, chunksize=1))) == 1


def test_a_changed_folder_is_prepared_anew(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data" / "fish")

    def digest() -> str:
        return prepared(None, tmp_path, folder="fish", size=8).digest

    digests = [digest()]
    save(folder / "new.png", seed=10)
    digests.append(digest())
    save(folder / "new.png", seed=11)
    digests.append(digest())
    (folder / "000.png").unlink()
    digests.append(digest())
    assert len(set(digests)) == 4
    assert digest() == digests[-1]


def test_two_folders_with_the_same_listing_are_two_datasets(tmp_path: Path) -> None:
    found = []
    for i, name in enumerate(("a", "b")):
        for j in range(2):
            path = tmp_path / "data" / name / f"{j}.ppm"
            os.utime(save(path, seed=10 * i + j), ns=(0, 0))
        found.append(prepared(None, tmp_path, folder=name, size=8))
    assert found[0].digest != found[1].digest


def test_bad_files_are_left_out_and_told_again_by_the_cache(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data" / "fish", 3)
    (folder / "001.png").write_text("no picture")
    (folder / "empty.png").touch()
    first, again = (prepared(None, tmp_path, folder="fish", size=8) for _ in range(2))
    assert first == again
    assert [line.split(":")[0] for line in first.skipped] == ["001.png", "empty.png"]
    assert first.skipped[1] == "empty.png: empty"
    assert first.n_images == len(np.load(first.images)) == len(np.load(first.labels)) == 2
    fill(tmp_path / "data" / "good", 3)
    whole = np.load(prepared(None, tmp_path, folder="good", size=8).images)
    assert np.array_equal(np.load(first.images), whole[[0, 2]])


def test_nothing_is_left_of_a_folder_that_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "fish", 1)
    with pytest.raises(DatasetError, match="at least 2 usable images, has 1"):
        prepared(None, tmp_path, folder="fish", size=8)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_full_disk_is_an_error_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "data" / "fish")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"fish 8x8x3 cannot be prepared in .*No space left"):
        prepared(None, tmp_path, folder="fish", size=8)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_relative_folder_is_looked_for_in_order(tmp_path: Path) -> None:
    source = DatasetSource(folder="a/fish", size=8)
    where = {"data_dir": tmp_path / "data", "search_dirs": [tmp_path / "one", tmp_path / "two"]}
    with pytest.raises(DatasetError) as raised:
        find_folder(source, **where)  # type: ignore[arg-type]
    for place in ("one/a/fish", "two/a/fish", "data/a/fish"):
        assert str(tmp_path / place) in str(raised.value)
    for place in ("data", "two", "one"):
        fill(tmp_path / place / "a" / "fish", 2)
        assert find_folder(source, **where) == tmp_path / place / "a" / "fish"  # type: ignore[arg-type]


def test_absolute_folders_and_the_home_directory_are_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "home" / "fish", 2)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given_folder in (str(folder), "~/fish"):
        source = DatasetSource(folder=given_folder, size=8)
        assert find_folder(source, data_dir=tmp_path / "data", search_dirs=[tmp_path]) == folder
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file is a file"):
        find_folder(DatasetSource(folder=str(tmp_path / "file"), size=8), data_dir=tmp_path)


def test_images_are_counted_without_opening_them(tmp_path: Path) -> None:
    folder = fill(tmp_path / "fish", 3)
    (folder / "bad.JPG").touch()
    (folder / "notes.txt").touch()

    def count(**source: str) -> tuple[int, int]:
        return count_images(DatasetSource(**source), data_dir=tmp_path)  # type: ignore[arg-type]

    assert count(folder="fish") == (4, 0)
    assert count(name="mnist") == (60_000, 10)
    for absent in ({"folder": "nowhere"}, {"name": "lfwcrop"}):
        with pytest.raises(DatasetError, match="looked at"):
            count(**absent)
    fill(tmp_path / "lfwcrop64" / "faces", 3)
    assert count(name="lfwcrop") == (3, 0)
    fill(tmp_path / "sorted" / "cat", 3)
    fill(tmp_path / "sorted" / "dog" / "old", 2)
    assert count(folder="sorted") == (5, 2)


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ({"name": "mnist"}, "mnist"),
        ({"name": "mnist", "size": 28}, "mnist"),
        ({"name": "lfwcrop", "size": 28, "channels": 1}, "lfwcrop 28x28x1"),
        ({"folder": "/a/fish/", "size": 64}, "fish 64x64x3"),
        ({"folder": ".", "size": 64, "channels": 1}, ". 64x64x1"),
        ({"folder": "a/fish"}, "fish"),
        ({"name": "unknown", "size": 8}, "unknown"),
    ],
)
def test_labels_say_what_is_prepared(source: dict[str, str], label: str) -> None:
    assert DatasetSource(**source).label == label  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "reason"),
    [({}, "a name or a folder"), ({"name": "mnist", "folder": "a"}, "one of them"),
     ({"folder": "a"}, "needs size"), ({"name": "mnits"}, "no dataset mnits; there are digits")],
)  # fmt: skip
def test_sources_that_say_too_little_or_too_much_are_refused(
    source: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=reason):
        prepare(DatasetSource(**source), cache_dir=tmp_path, data_dir=tmp_path)  # type: ignore[arg-type]


# LFWcrop


@pytest.mark.parametrize(
    ("place", "suffix"), [("lfwcrop", "ppm"), ("lfwcrop_grey", "pgm"), ("lfwcrop64", "png")]
)
def test_faces_are_read_from_wherever_archives_put_them(place: str, suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 64, 64, *([] if suffix == "pgm" else [3])), dtype=np.uint8)
    folder = tmp_path / "data" / place / "faces"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "lfwcrop" / "faces").mkdir(parents=True, exist_ok=True)  # without images: not chosen
    for i, face in enumerate(pixels):
        Image.fromarray(face).save(folder / f"Some_One_{i:04}.{suffix}")
    found = prepared("lfwcrop", tmp_path)
    assert (found.n_images, found.n_classes, found.image_shape) == (3, 0, (3, 64, 64))
    rgb = np.broadcast_to(pixels[..., None], (3, 64, 64, 3)) if suffix == "pgm" else pixels
    assert np.array_equal(np.load(found.images), rgb.transpose(0, 3, 1, 2))

    small = np.load(prepared("lfwcrop", tmp_path, size=28, channels=1).images)
    grey = np.array([np.asarray(Image.fromarray(face).convert("L"), float) for face in pixels])
    expected = [
        scipy.ndimage.zoom(face, 0.4375, order=3, mode="mirror").clip(0, 255).round() for face in grey
    ]
    assert np.array_equal(small[:, 0], np.array(expected))
    assert prepared("lfwcrop", tmp_path, size=32).image_shape == (3, 32, 32)


def test_without_faces_one_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as raised:
        prepared("lfwcrop", tmp_path)
    for part in (str(tmp_path / "data" / "lfwcrop" / "faces"), "lfwcrop_color/faces", "--data-dir",
                 "conradsanderson", "photo_patches", "digits"):  # fmt: skip
        assert part in str(raised.value)
