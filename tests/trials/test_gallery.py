"""The gallery: what is drawn for which model, and that drawing changes nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import models
from models import Gan
from models._layers import NormalLatent, UniformLatent
from tests.trials.helpers import same, some_images
from trials import gallery
from trials.features import Extractor
from trials.gallery import Gallery, draw_gallery, lerp, score_dips, slerp
from trials.pictures import GREY, cells, grid, write_png
from trials.spec import TrialSpec

PATHS = {"latent/lerp", "latent/slerp", "latent/axis", "walk/smooth", "walk/rough"}
ALWAYS = {*PATHS, "neighbours/pairs", "samples/curated", "animation/latent"}
METRICS = {"path_step_ratio", "walk_dip_smooth", "walk_dip_rough"}
LARGE = ("wgan_gp_64", "wgan_gp_128")
CASES: dict[str, dict[str, Any]] = {
    **{name: {"model": name} for name in models.names() if name not in LARGE},
    "multi-scale": {"model": "obs_dcgan", "multi_scale": True, "spectral_norm": "both"},
    "progressive": {"model": "wgan_gp_32", "progressive": True},
    "groups of five": {"model": "wgan_gp_32", "minibatch_stddev": True, "minibatch_stddev_group": 5},
}


@dataclass
class Found:
    vectors: Tensor
    probabilities: Tensor


def by_brightness(images: Tensor) -> Found:
    """Three classes, dark, middle and bright; of the outer two the surer the darker and the brighter."""
    brightness = images.float().mean((1, 2, 3)) / 255
    distances = (brightness[:, None] - torch.tensor([1 / 6, 0.5, 5 / 6])).square()
    return Found(images.flatten(1).float() / 255, (-15 * distances).softmax(1))


CLASSIFIER = cast(Extractor, by_brightness)


def spec(eval_samples: int = 64) -> TrialSpec:
    """Of which a gallery reads how many images an evaluation has."""
    return TrialSpec(
        model="obs_mlp", model_params={}, training={}, dataset="noise", dataset_digest="0", limit=None, seed=0,
        steps=10, log_every=1, picture_steps=(10,), picture_samples=4, eval_steps=(10,), features="random",
        eval_samples=eval_samples,
    )  # fmt: skip


def draw(
    gan: Gan,
    directory: Path,
    *,
    real: Tensor | None = None,
    extractor: Extractor | None = None,
    samples: int = 64,
) -> Gallery:
    return draw_gallery(
        spec(samples), gan, gan.generator, directory,
        real=some_images() if real is None else real, extractor=extractor, step=10, device=torch.device("cpu"),
    )  # fmt: skip


class Shades(nn.Module):
    """An image is as bright as its first latent says, or as its class over 10."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.side = side
        self.seen: list[Tensor] = []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(z)
        shade = z[:, 0] if labels is None else labels / 10
        return shade[:, None, None, None].expand(-1, 1, self.side, self.side).contiguous()


class Brightness(nn.Module):
    """The score of an image is how bright it is."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images.mean((1, 2, 3))


class UnitLatent(NormalLatent):
    """Draws z ~ U(0, 1)."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, self.dim, generator=generator)


def shades(n_classes: int = 0) -> Gan:
    return Gan(
        generator=Shades(),
        discriminator=Brightness(),
        pixels="unit",
        latent=UnitLatent(3),
        n_classes=n_classes,
    )


def shown(directory: Path, key: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(directory / "gallery" / f"{key.replace('/', '_')}.png") as image:
        return np.asarray(image.convert("RGB"))


def build(case: dict[str, Any]) -> tuple[Gan, Tensor]:
    """Small networks, and real images of their size."""
    options = dict(case)
    preset = models.preset(options.pop("model"))
    shape = ((preset.channels or (1,))[0], preset.tiny_side, preset.tiny_side)
    torch.manual_seed(0)
    n_classes = 3 if preset.conditional else 0
    return models.build(preset.name, shape, {**preset.tiny, **options}, n_classes), some_images(shape=shape)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(pytest.param({"model": name}, id=name, marks=pytest.mark.slow) for name in LARGE),
    ],
)
def test_every_model_gets_what_applies_and_is_left_as_it_was(case: dict[str, Any], tmp_path: Path) -> None:
    gan, real = build(case)
    nets = (gan.generator, gan.discriminator)
    gan.discriminator.train()
    gan.generator.eval()  # as an averaged generator is
    modes = [[module.training for module in net.modules()] for net in nets]
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in nets]
    random_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for i in (1, 2):
        write_png(tmp_path / f"samples/step_{i:09d}.png", grid(real[i : i + 4].numpy()))

    drawn = draw(gan, tmp_path, real=real, extractor=CLASSIFIER)

    keys = {*ALWAYS, "classes/grid", "classes/histogram", "animation/training"}
    keys |= {"animation/classes"} if gan.n_classes else set()
    assert {picture.key for picture in drawn.pictures} == keys
    assert {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "gallery").iterdir()} == {
        picture.path for picture in drawn.pictures
    }  # and nothing temporary is left
    for picture in drawn.pictures:
        assert picture.step == 10
        with Image.open(tmp_path / picture.path) as image:
            image.load()
            assert image.format == ("GIF" if picture.key.startswith("animation/") else "PNG")
    assert drawn.metrics.keys() == METRICS
    assert np.isfinite([*drawn.metrics.values()]).all()
    assert all(same(old, dict(net.state_dict())) for old, net in zip(before, nets, strict=True))
    assert modes == [[module.training for module in net.modules()] for net in nets]
    assert torch.equal(random_state[0], torch.get_rng_state())
    assert np.array_equal(random_state[1], np.random.get_state()[1])  # type: ignore[index]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


def test_without_a_classifier_there_are_no_classes_and_without_grids_no_training(tmp_path: Path) -> None:
    gan, real = build({"model": "obs_mlp"})
    assert {picture.key for picture in draw(gan, tmp_path, real=real).pictures} == ALWAYS


def test_a_generator_of_numbers_that_are_not_finite_gets_black_pictures_and_no_metrics(
    tmp_path: Path,
) -> None:
    gan, real = build({"model": "obs_mlp"})
    with torch.no_grad():
        for parameter in gan.generator.parameters():
            parameter.fill_(float("nan"))
    drawn = draw(gan, tmp_path, real=real, extractor=CLASSIFIER)
    assert drawn.metrics == {}
    assert {*ALWAYS, "classes/grid"} <= {picture.key for picture in drawn.pictures}
    assert set(np.unique(shown(tmp_path, "samples/curated"))) == {0, GREY}


def test_a_generator_that_has_collapsed_has_no_step_ratio(tmp_path: Path) -> None:
    gan, real = build({"model": "obs_mlp"})
    with torch.no_grad():
        for parameter in gan.generator.parameters():
            parameter.zero_()
    metrics = draw(gan, tmp_path, real=real).metrics
    assert metrics.keys() == METRICS - {"path_step_ratio"}
    assert metrics["walk_dip_smooth"] == pytest.approx(0, abs=1e-6)  # one image all the way


def test_latents_are_the_same_whatever_the_weights_and_for_both_kinds_of_paths(tmp_path: Path) -> None:
    seen: list[list[Tensor]] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        gan = shades()
        draw(gan, tmp_path / str(seed))
        seen.append(cast(Shades, gan.generator).seen)
    straight, curved = ([z.view(8, 10, 3) for z in zs[:2]] for zs in seen)
    assert all(torch.equal(a, b) for a, b in zip(straight, curved, strict=True))
    for end in (0, -1):
        assert torch.allclose(straight[0][:, end], straight[1][:, end], atol=1e-6)
    assert not torch.allclose(straight[0], straight[1])


def test_the_curated_are_the_best_of_the_discriminator_in_its_order(tmp_path: Path) -> None:
    draw(shades(), tmp_path, samples=600)
    brightness = [cell.mean() for cell in cells(shown(tmp_path, "samples/curated"), 64)]
    assert len(brightness) == 64
    assert brightness == sorted(brightness, reverse=True)
    # The best eighth of uniform brightness: the worst of them is at 1 - 1/8, give or take 4 standard deviations.
    assert 0.875 - 0.06 < brightness[-1] / 255 < 0.875 + 0.06


def test_a_copied_image_stands_above_the_one_it_was_copied_from(tmp_path: Path) -> None:
    gan = shades()
    real = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    for extractor in (None, CLASSIFIER):
        draw(gan, tmp_path, real=real, extractor=extractor)
        sheet = shown(tmp_path, "neighbours/pairs")
        for top in (42, 195):  # below title and captions: 8 x 2 images of 8x8, six times as large
            found = cells(sheet[top : top + 132, -492:], 16)
            brightness = [cell.mean() for cell in found]
            assert brightness[:8] == brightness[8:]
            assert len(set(brightness)) >= 7


def test_a_conditional_model_has_a_column_for_each_class(tmp_path: Path) -> None:
    draw(shades(10), tmp_path, extractor=CLASSIFIER)
    sheet = shown(tmp_path, "classes/grid")
    found = cells(sheet[21:], 30)  # below the captions
    assert [round(float(cell.mean()) / 25.5) for cell in found] == [*range(10)] * 3


def test_a_label_switches_halfway_to_the_next_class_and_the_last_goes_to_the_first(tmp_path: Path) -> None:
    draw(shades(10), tmp_path)
    with Image.open(tmp_path / "gallery/animation_classes.gif") as image:
        # Equal frames are merged, so that what is left are the classes and how long each is shown.
        shown_classes = []
        for i in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(i)
            pixel = np.asarray(image.convert("L"))[-40, 40]
            shown_classes.append((round(float(pixel) / 25.5), image.info["duration"]))
    assert shown_classes == [(0, 1000), *((k, 2000) for k in range(1, 10)), (0, 1000)]


def test_the_surest_images_of_a_class_come_first_and_empty_cells_are_grey(tmp_path: Path) -> None:
    class Dim(Shades):
        def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
            return super().forward(z) / 2  # never bright

    gan = shades()
    gan = Gan(generator=Dim(), discriminator=gan.discriminator, pixels="unit", latent=gan.latent)
    draw(gan, tmp_path, extractor=CLASSIFIER)
    found = [round(float(cell.mean())) for cell in cells(shown(tmp_path, "classes/grid")[21:], 30)]
    confidence = by_brightness(torch.tensor(found)[:, None, None, None]).probabilities
    for k in (0, 1):
        column = confidence[k::3, k]
        assert (column.diff() <= 1e-6).all()
        assert column[0] > column[-1]
    assert found[2::3] == [GREY] * 10


vectors = st.integers(0, 10_000).map(
    lambda seed: torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed))
)


@given(pair=vectors)
def test_both_kinds_of_paths_go_from_end_to_end(pair: Tensor) -> None:
    a, b = pair
    for path in (lerp, slerp):
        z = path(a, b, torch.linspace(0, 1, 5))
        assert z.shape == (3, 5, 16)
        assert torch.allclose(z[:, 0], a, atol=1e-5)
        assert torch.allclose(z[:, -1], b, atol=1e-5)


@given(pair=vectors)
def test_a_great_circle_keeps_the_norm_and_turns_evenly(pair: Tensor) -> None:
    a, b = nn.functional.normalize(pair, dim=2)
    z = slerp(a, b, torch.linspace(0, 1, 7))
    assert torch.allclose(z.norm(dim=2), torch.ones(3, 7), atol=1e-5)
    angles = (z[:, 1:] * z[:, :-1]).sum(2).clamp(-1, 1).acos()
    assert torch.allclose(angles, angles.mean(1, keepdim=True).expand_as(angles), atol=2e-3)  # acos near 1
    middle = lerp(a, b, torch.tensor([0.5])).norm(dim=2)
    assert (middle < 1).all()


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_a_great_circle_between_vectors_on_one_line_is_straight(factor: float) -> None:
    a = torch.tensor([[3.0, 4.0]])
    shares = torch.linspace(0, 1, 5)
    assert torch.allclose(slerp(a, factor * a, shares), lerp(a, factor * a, shares), atol=1e-5)


def test_the_dip_of_a_leg_is_from_its_ends_to_its_lowest() -> None:
    legs = torch.tensor([[2.0, 1.0, 4.0], [0.0, 0.0, 0.0], [1.0, 5.0, 1.0], [-1.0, -9.0, -3.0]])
    # (2 + 4)/2 - 1, nothing, nothing, (-1 - 3)/2 + 9
    assert float(score_dips(legs)) == pytest.approx((2 + 0 + 0 + 7) / 4)
    assert score_dips(torch.stack((legs, 2 * legs))).tolist() == pytest.approx([2.25, 4.5])


@given(seed=st.integers(0, 10_000))
def test_the_smooth_tour_is_the_shortest_round_trip_and_the_rough_one_the_longest(seed: int) -> None:
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))

    def length(trip: list[int]) -> float:
        return sum(
            float((points[a] - points[b]).norm()) for a, b in zip(trip, trip[1:] + trip[:1], strict=True)
        )

    lengths = [length(list(trip)) for trip in itertools.permutations(range(6), 4)]
    smooth, rough = (tour.tolist() for tour in gallery._tours(points))
    assert length(smooth) == pytest.approx(min(lengths), rel=1e-5)
    assert length(rough) == pytest.approx(max(lengths), rel=1e-5)


@pytest.mark.parametrize("dim", [1, 4, 256])
def test_bounds_are_told_from_draws(dim: int) -> None:
    noise = torch.Generator().manual_seed(3)
    assert gallery._limits(NormalLatent(dim)(256, noise)) == (3.0, False)
    limit, bounded = gallery._limits(UniformLatent(dim)(256, noise))
    assert bounded
    assert 0.97 < limit <= 1  # the largest of 256 or more: below 0.97 once in 2,400 draws
