"""Judging generators: what known generators are found to be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from models import Gan
from tests.trials.helpers import small_spec
from trials.data import Images, resident
from trials.evaluation import Evaluator, evaluator, extractor_of
from trials.samples import FIXED_NOISE_SEED
from trials.spec import TrialSpec

N = 60


def blobs(n: int, seed: int) -> Images:
    """(n, 1, 8, 8): a bright quarter, one of four classes, on noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=draw)
    pixels = torch.randint(0, 60, (n, 1, 8, 8), generator=draw)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 180
    return Images(pixels.to(torch.uint8), labels)


REAL = blobs(400, 1)


class Player(nn.Module):
    """Plays back given images (n, C, H, W) in [0, 1], whatever the latents are."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.shown = 0

    def forward(self, z: Tensor, *_: Tensor) -> Tensor:
        first = self.shown % len(self.images)
        self.shown += len(z)
        return self.images[first : first + len(z)]


class Scorer(nn.Module):
    """D(x): the mean of the image, plus `bonus` for images that it knows."""

    def __init__(self, known: Tensor | None = None, bonus: float = 0.0) -> None:
        super().__init__()
        self.known, self.bonus = known, bonus

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        scores = x.flatten(1).mean(1) - 0.5
        if self.known is not None:
            nearest = torch.cdist(x.flatten(1), self.known.flatten(1)).amin(1)
            scores = scores + self.bonus * (nearest < 0.1)
        return scores


def gan_of(images: Tensor, discriminator: nn.Module | None = None, n_classes: int = 0) -> Gan:
    return Gan(
        generator=Player(images.float() / 255),
        discriminator=discriminator or Scorer(),
        pixels="unit",
        latent=lambda n, generator: torch.randn(n, 3, generator=generator),
        n_classes=n_classes,
    )


def spec_of(features: str = "random", **changes: object) -> TrialSpec:
    facts = {"features": features, "eval_samples": N, "dataset_digest": "blobs", **changes}
    return dataclasses.replace(small_spec(), **facts)  # type: ignore[arg-type]


def judge(directory: Path, features: str = "random", held_out: Images | None = None) -> Evaluator:
    spec = spec_of(features)
    return Evaluator(spec, REAL, extractor_of(spec, REAL, directory), directory, held_out)


def measured(judged: Evaluator, gan: Gan, *, first: bool = False) -> dict[str, float]:
    return judged.measure(gan, gan.generator, first=first)


def test_copies_of_the_real_images_are_at_no_distance_and_have_everything(tmp_path: Path) -> None:
    judged = judge(tmp_path)
    gan = gan_of(judged.real.images)
    found = measured(judged, gan) | judged.neighbours(gan, gan.generator).metrics
    assert found["eval/fd"] == pytest.approx(0, abs=1e-6)
    assert found["eval/swd"] == pytest.approx(0, abs=1e-6)
    for name in (
        "precision",
        "recall",
        "coverage",
        "diversity",
        "row_jaggedness",
        "checkerboard",
        "nn_fake_fake",
    ):
        assert found[f"eval/{name}"] == pytest.approx(1, rel=1e-4), name
    for name in ("nn_train_ratio", "nn_real_fake", "spectrum_distance"):
        assert found[f"eval/{name}"] == pytest.approx(0, abs=1e-4), name


def test_copies_of_any_training_images_are_found_and_new_ones_are_not(tmp_path: Path) -> None:
    judged = judge(tmp_path)
    chosen = torch.randperm(len(REAL.pixels), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))
    unseen = REAL.pixels[chosen[2 * N : 3 * N]]  # neither the reference nor the other real images
    for copies, expected in ((unseen, 0.0), (judged.real.images, 0.0), (blobs(N, 2).pixels, 1.0)):
        gan = gan_of(copies)
        found = judged.neighbours(gan, gan.generator)
        assert found.metrics["eval/nn_train_ratio"] == pytest.approx(expected, abs=0.1)
        assert (found.metrics["eval/nn_real_fake"] < 1e-6) == (expected == 0)
        assert {len(distances) for distances in found.distances.values()} == {N}


def test_other_real_images_are_at_the_floor_and_one_image_is_a_collapse(tmp_path: Path) -> None:
    judged = judge(tmp_path)
    others = measured(judged, gan_of(blobs(N, 2).pixels), first=True)
    one = measured(judged, gan_of(REAL.pixels[:1].expand(N, -1, -1, -1)))
    assert others["eval/fd"] < 3 * others["eval/fd_floor"]
    assert one["eval/fd"] > 10 * others["eval/fd"]
    assert one["eval/diversity"] < 0.05
    assert one["eval/recall"] < 0.1 < others["eval/recall"]
    assert {name for name in others if name not in one} == {
        "eval/fd_floor",
        "eval/kid_floor",
        "eval/swd_floor",
    }


def test_a_classifier_counts_classes_and_sees_whether_it_is_given_what_was_asked_for(tmp_path: Path) -> None:
    judged = judge(tmp_path, "classifier")
    assert judged.extractor.accuracy is not None
    assert judged.extractor.accuracy > 0.95
    of_class = [REAL.pixels[REAL.labels == k][: N // 4] for k in range(4)]
    as_asked = torch.stack(of_class, dim=1).flatten(
        0, 1
    )  # classes 0 1 2 3 0 1 2 3 ..., as they are asked for
    right = measured(judged, gan_of(as_asked, n_classes=4))
    wrong = measured(judged, gan_of(as_asked.roll(1, dims=0), n_classes=4))
    assert right["eval/class_fidelity"] > 0.95
    assert wrong["eval/class_fidelity"] < 0.05
    assert right["classes/fidelity_2"] > 0.9
    assert [right[f"classes/share_{k}"] for k in range(4)] == pytest.approx([0.25] * 4, abs=0.05)
    assert right["eval/modes"] == wrong["eval/modes"] == 4
    half = measured(judged, gan_of(torch.cat([of_class[0], of_class[1]] * 2)))
    assert half["eval/modes"] == 2
    assert half["eval/class_tv"] == pytest.approx(0.5, abs=0.15)
    assert "eval/class_fidelity" not in half


def test_a_discriminator_that_knows_its_training_images_is_found_out(tmp_path: Path) -> None:
    held_out = blobs(N, 3)
    judged = judge(tmp_path, held_out=held_out)
    knows = Scorer(REAL.pixels.float() / 255, bonus=2.0)
    fair = measured(judged, gan_of(blobs(N, 2).pixels))
    memory = measured(judged, gan_of(blobs(N, 2).pixels, knows))
    assert fair["eval/d_holdout_gap"] == pytest.approx(0, abs=0.02)
    assert memory["eval/d_holdout_gap"] - fair["eval/d_holdout_gap"] == pytest.approx(2, abs=1e-4)
    assert memory["eval/memorisation"] == pytest.approx(1, abs=0.05)
    assert fair["eval/memorisation"] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("group", [4, 8])
def test_a_discriminator_that_looks_at_groups_judges_held_out_images_too(group: int, tmp_path: Path) -> None:
    judged = judge(tmp_path, held_out=blobs(30, 3))  # 30 is no multiple of either
    spec = small_spec("obs_mlp", minibatch_stddev=True, minibatch_stddev_group=group)
    gan = models.build(spec.model, (1, 8, 8), spec.model_params)
    assert math.isfinite(measured(judged, gan)["eval/d_holdout_gap"])


def test_a_generator_beside_the_averaged_one_is_judged_as_raw(tmp_path: Path) -> None:
    judged = judge(tmp_path)
    gan = gan_of(REAL.pixels[:1].expand(N, -1, -1, -1))
    found = judged.measure(gan, Player(judged.real.images.float() / 255), first=False)
    assert found["eval/fd"] < found["eval/fd_raw"]
    assert found["eval/swd"] < found["eval/swd_raw"]


def test_values_that_are_not_finite_are_a_distance_that_is_not_a_number(tmp_path: Path) -> None:
    gan = gan_of(REAL.pixels[:N])
    assert isinstance(gan.generator, Player)
    gan.generator.images[3, 0, 0, 0] = math.nan
    found = measured(judge(tmp_path), gan, first=True)
    assert set(found) == {"eval/fd", "eval/swd"}
    assert all(math.isnan(value) for value in found.values())


def test_judging_draws_nothing_from_the_global_generator_and_is_the_same_every_time(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = [measured(judge(tmp_path / str(i)), gan_of(blobs(N, 2).pixels), first=True) for i in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert found[0] == found[1]


def test_the_floor_is_of_images_that_are_not_the_reference(tmp_path: Path) -> None:
    judged = judge(tmp_path)
    chosen = torch.randperm(len(REAL.pixels), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))
    assert torch.equal(judged.real.images, REAL.pixels[chosen[:N]])
    assert all(floor != 0 for floor in judged.floors.values())
    spec = spec_of(eval_samples=201)
    with pytest.raises(ValueError, match="more than half"):
        Evaluator(spec, REAL, judged.extractor, tmp_path)


@pytest.mark.parametrize("features", ["random", "classifier", "imagenet"])
def test_images_are_judged_at_the_size_that_is_trained_on(features: str, tmp_path: Path) -> None:
    stored = Images(REAL.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3), REAL.labels)  # 16x16
    spec = spec_of(features, size=8)
    judged = evaluator(spec, stored, stored, None, tmp_path)
    assert judged.real.images.shape == (N, 1, 8, 8)
    assert measured(judged, gan_of(judged.real.images))["eval/fd"] == pytest.approx(0, abs=1e-5)


def test_trials_of_one_dataset_share_an_evaluator_and_others_do_not(tmp_path: Path) -> None:
    one = evaluator(spec_of(), REAL, REAL, None, tmp_path)
    assert evaluator(spec_of(seed=3, steps=99), REAL, REAL, None, tmp_path) is one
    assert evaluator(spec_of(eval_samples=N - 1), REAL, REAL, None, tmp_path) is not one
    assert evaluator(spec_of(), REAL, blobs(400, 9), None, tmp_path) is not one


def test_held_out_images_are_not_trained_on_and_are_the_same_ones_everywhere(tmp_path: Path) -> None:
    import numpy as np

    images, labels = tmp_path / "images.npy", tmp_path / "labels.npy"
    np.save(images, np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1))
    np.save(labels, np.arange(20, dtype=np.uint8))
    cpu = torch.device("cpu")
    whole, used, held_out = resident(images, labels, cpu, 16, 5)
    assert held_out is not None
    assert len(whole.pixels) == 20
    assert sorted([*used.pixels.flatten().tolist(), *held_out.pixels.flatten().tolist()]) == list(range(16))
    assert used.pixels.flatten().tolist() == used.labels.tolist()  # type: ignore[union-attr]
    resident.cache_clear()
    again = resident(images, None, cpu, 16, 5)[2]
    assert again is not None
    assert torch.equal(again.pixels, held_out.pixels)
    assert resident(images, labels, cpu, None, 0)[2] is None
