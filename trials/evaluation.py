"""Judges a generator: N generated images against N real ones, in features and in pixels.

The latents, the real images and the held-out real ones that give the floor are the same in every trial, and nothing
here draws from a generator of random numbers that training uses. The features of real images are computed once a
machine, and most of what is of real images alone once a process.

Axes: N images of an evaluation, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models import Gan
from trials import metrics
from trials.data import Images, resident, resident_images, to_pixels
from trials.features import Extractor, Features, cached_features, load_extractor
from trials.samples import FIXED_NOISE_SEED, generate, quantised, score
from trials.spec import TrialSpec, digest
from trials.step import pyramid

MOST_SHARES = 20
"""Of a dataset with more classes, single classes are not logged."""
MOST_SEARCHED = 60_000
"""Training images among which neighbours are looked for."""
MOST_LOOKED_UP, MOST_PIXELS = 2000, 1000
"""Images whose neighbours are looked for, in features and in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Real:
    """Real images and what is known of them."""

    images: Tensor  # (N, C, H, W) uint8
    classes: Tensor | None  # (N,) int64, of the dataset
    features: Features
    moments: metrics.Moments
    projected: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """`metrics`: eval/ metrics by name. `distances`: to the nearest image in pixels, by kind, for a histogram."""

    metrics: dict[str, float]
    distances: dict[str, list[float]]


class Evaluator:
    """What the generators of one dataset are judged against."""

    def __init__(
        self,
        spec: TrialSpec,
        images: Images,
        extractor: Extractor,
        directory: Path,
        held_out: Images | None = None,
    ) -> None:
        """`images`: those trained on; `held_out`: others. `directory`: where features of real images are kept.

        Raises ValueError when there are fewer than 2 N images.
        """
        n, device = spec.eval_samples, images.pixels.device
        if 2 * n > len(images.pixels):
            raise ValueError(f"eval_samples {n} is more than half of the {len(images.pixels)} images")
        self.n, self.extractor, self._directory = n, extractor, directory
        self._trained_on, self._size = images, spec.size
        self._searched: tuple[Tensor, Features] | None = None
        self._lookups: dict[str, Tensor] = {}
        self._held_out = None if held_out is None else held_out.sized(spec.size)
        self._facts = (spec.dataset_digest, spec.limit, spec.hold_out, spec.size, n, extractor.name)
        chosen = torch.randperm(len(images.pixels), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))
        first, second = chosen[: 2 * n].to(device).split(n)
        self.real = self._known(images.some(first).sized(spec.size), "real")
        other = self._other = self._known(images.some(second).sized(spec.size), "held out")
        self._rest = torch.ones(min(len(images.pixels), MOST_SEARCHED), dtype=torch.bool, device=device)
        self._rest[second[second < len(self._rest)]] = False
        self._texture = metrics.texture(_unit(self.real.images))
        self._radii = metrics.radii(self.real.features.vectors)
        self.floors = {
            "fd_floor": metrics.frechet_distance(other.moments, self.real.moments),
            "kid_floor": metrics.kernel_distance(other.features.vectors, self.real.features.vectors)[0],
            "swd_floor": metrics.projected_distance(other.projected, self.real.projected),
        }

    def _known(self, images: Images, which: str) -> _Real:
        features = cached_features(
            self.extractor, images.pixels, key=digest([*self._facts, which]), directory=self._directory
        )
        return _Real(
            images=images.pixels,
            classes=images.labels,
            features=features,
            moments=metrics.moments(features.vectors),
            projected=metrics.projections(_unit(images.pixels).flatten(1)),
        )

    @torch.no_grad()
    def measure(self, gan: Gan, shown: nn.Module, *, first: bool) -> dict[str, float]:
        """Judge the generator `shown`, and beside it `gan.generator` where that is another one.

        Returns eval/ and classes/ metrics by name. `first` adds the floors. A generator that makes values that are
        not finite has distances that are not a number, and nothing else.
        """
        device = self.real.images.device
        made = generate(gan, shown, self.n, FIXED_NOISE_SEED + 1, device)
        if not torch.isfinite(made).all():
            return {"eval/fd": float("nan"), "eval/swd": float("nan")}
        fake = quantised(made)
        features = self.extractor(fake)
        found = self._distances(fake, features)
        if shown is not gan.generator:
            raw = generate(gan, gan.generator, self.n, FIXED_NOISE_SEED + 1, device)
            if torch.isfinite(raw).all():
                found |= self._raw_distances(quantised(raw))
        texture = metrics.texture(_unit(fake))
        found["row_jaggedness"] = metrics.row_jaggedness(texture, self._texture)
        found["checkerboard"] = metrics.checkerboard(texture, self._texture)
        found["spectrum_distance"] = metrics.spectrum_distance(texture, self._texture)
        per_class: dict[str, float] = {}
        if features.probabilities is not None:
            asked = torch.arange(self.n, device=device) % gan.n_classes if gan.n_classes else None
            classes, per_class = self._classes(fake, features.probabilities, asked)
            found |= classes
        if self._held_out is not None:
            found |= self._memory(gan)
        if first:
            found |= self.floors
        return {f"eval/{name}": value for name, value in found.items()} | per_class

    def _distances(self, fake: Tensor, features: Features) -> dict[str, float]:
        vectors, real = features.vectors, self.real.features.vectors
        kid, kid_sd = metrics.kernel_distance(vectors, real)
        manifold = metrics.manifold(real, vectors, real_radii=self._radii)
        projected = metrics.projections(_unit(fake).flatten(1))
        return {
            "fd": metrics.frechet_distance(metrics.moments(vectors), self.real.moments),
            "kid": kid,
            "kid_sd": kid_sd,
            "precision": manifold.precision,
            "recall": manifold.recall,
            "density": manifold.density,
            "coverage": manifold.coverage,
            "diversity": metrics.diversity(vectors, real),
            "swd": metrics.projected_distance(projected, self.real.projected),
        }

    def _raw_distances(self, raw: Tensor) -> dict[str, float]:
        vectors = self.extractor(raw).vectors
        projected = metrics.projections(_unit(raw).flatten(1))
        return {
            "fd_raw": metrics.frechet_distance(metrics.moments(vectors), self.real.moments),
            "swd_raw": metrics.projected_distance(projected, self.real.projected),
        }

    @property
    def searched(self) -> tuple[Tensor, Features]:
        """All images trained on, at most MOST_SEARCHED, (n, C, H, W) uint8 at the size trained on; their features."""
        if self._searched is None:
            some = Images(self._trained_on.pixels[:MOST_SEARCHED]).sized(self._size).pixels
            key = digest([*self._facts, "all"])
            self._searched = some, cached_features(self.extractor, some, key=key, directory=self._directory)
        return self._searched

    @torch.no_grad()
    def neighbours(self, gan: Gan, shown: nn.Module) -> Neighbours:
        """How near images of `shown` come to each other and to the images that it was trained on.

        Compared with other real images, which too are looked for among the rest of the training images.
        """
        fake = quantised(generate(gan, shown, self.n, FIXED_NOISE_SEED + 1, self.real.images.device))
        trained, features = self.searched
        known = features.vectors[self._rest]
        some = _unit(trained[self._rest]).flatten(1)
        some = some[: max(MOST_PIXELS, int(2e8) // some.shape[1])]
        if not self._lookups:
            other, reference = (
                _unit(found.images[:MOST_PIXELS]).flatten(1) for found in (self._other, self.real)
            )
            self._lookups = {
                "features": metrics.nearest(self._other.features.vectors[:MOST_LOOKED_UP], known),
                "pixels": metrics.nearest(other, some),
                "among": metrics.nearest(reference, reference, same=True),
            }
        vectors, mine = self.extractor(fake[:MOST_LOOKED_UP]).vectors, _unit(fake[:MOST_PIXELS]).flatten(1)
        to_real, among = metrics.nearest(mine, some), metrics.nearest(mine, mine, same=True)
        typical = {name: float(found.median().clamp_min(1e-12)) for name, found in self._lookups.items()}
        return Neighbours(
            metrics={
                "eval/nn_train_ratio": float(metrics.nearest(vectors, known).median()) / typical["features"],
                "eval/nn_fake_fake": float(among.median()) / typical["among"],
                "eval/nn_real_fake": float(to_real.min()) / typical["pixels"],
            },
            distances={
                "real to training image": self._lookups["pixels"].tolist(),
                "generated to training image": to_real.tolist(),
                "real to real": self._lookups["among"].tolist(),
                "generated to generated": among.tolist(),
            },
        )

    def _classes(
        self, fake: Tensor, probabilities: Tensor, asked: Tensor | None
    ) -> tuple[Mapping[str, float], dict[str, float]]:
        """Metrics of the classes, and by full name those of single classes."""
        real = self.real.features.probabilities
        assert real is not None
        found = metrics.class_metrics(probabilities, real)
        called = probabilities.argmax(1)
        pixels = [_unit(images[:MOST_LOOKED_UP]).flatten(1) for images in (fake, self.real.images)]
        real_classes = real.argmax(1) if self.real.classes is None else self.real.classes
        theirs = (called if asked is None else asked)[:MOST_LOOKED_UP]
        spread = metrics.intra_class_diversity(pixels[0], theirs, pixels[1], real_classes[:MOST_LOOKED_UP])
        if spread is not None:  # there is a class with two images of either kind
            found["intra_class_diversity"] = spread
        n_classes = probabilities.shape[1]
        per_class: dict[str, float] = {}
        if n_classes <= MOST_SHARES:
            shares = metrics.class_shares(probabilities).tolist()
            per_class = {f"classes/share_{k}": share for k, share in enumerate(shares)}
        if asked is not None:
            found["class_fidelity"] = metrics.class_fidelity(probabilities, asked)
            if per_class:
                of_each = metrics.class_fidelities(probabilities, asked)
                per_class |= {f"classes/fidelity_{k}": value for k, value in of_each.items()}
        return found, per_class

    def _memory(self, gan: Gan) -> dict[str, float]:
        """How much better D knows the images it was trained on than others."""
        assert self._held_out is not None
        m = min(len(self._held_out.pixels), self.n)
        labels = self._held_out.labels
        seen = _judged(
            gan, self.real.images[:m], None if self.real.classes is None else self.real.classes[:m]
        )
        unseen = _judged(gan, self._held_out.pixels[:m], None if labels is None else labels[:m])
        return {
            "d_holdout_gap": float(seen.mean() - unseen.mean()),
            "memorisation": float((seen > 0).double().mean() - (unseen > 0).double().mean()),
        }


def _judged(gan: Gan, images: Tensor, labels: Tensor | None) -> Tensor:
    """D's scores (N,) of uint8 images, in evaluation mode."""
    net = gan.discriminator
    was_training = net.training
    net.eval()
    scores = []
    for i in range(0, len(images), 500):
        x = to_pixels(images[i : i + 500], gan.pixels)
        asked = (labels[i : i + 500],) if gan.n_classes and labels is not None else ()
        scores.append(score(net, pyramid(x, gan.scales) if gan.scales else x, asked))
    net.train(was_training)
    return torch.cat(scores)


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255


_KEPT: dict[Hashable, Evaluator] = {}
MOST_KEPT = 4


def evaluator(
    spec: TrialSpec, whole: Images, trained_on: Images, held_out: Images | None, directory: Path
) -> Evaluator:
    """The evaluator of a trial; trials of one dataset and one size of evaluation share theirs in a process.

    `whole`: all images of the dataset, which a classifier is trained on, so that studies of a part of them share it.
    """
    facts = (spec.dataset_digest, spec.limit, spec.hold_out, spec.size, spec.eval_samples, spec.features)
    key = (*facts, directory, trained_on.pixels.data_ptr(), trained_on.pixels.shape)
    if key not in _KEPT:
        extractor = extractor_of(spec, whole, directory)
        while len(_KEPT) >= MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = Evaluator(spec, trained_on, extractor, directory, held_out)
    return _KEPT[key]


def prepare_extractor(
    spec: TrialSpec,
    images: Path,
    labels: Path,
    directory: Path,
    progress: Callable[[str], None] | None = None,
) -> Extractor:
    """Make the network whose features trials like this one are judged in, from a prepared dataset.

    For whoever starts the trials: their workers then find a classifier that is trained already.
    """
    cpu = torch.device("cpu")
    whole = resident(images, labels if spec.features == "classifier" else None, cpu, None, 0)[0]
    extractor = extractor_of(spec, whole, directory, progress)
    resident.cache_clear()
    resident_images.cache_clear()  # this process has no further use for them
    return extractor


def extractor_of(
    spec: TrialSpec, whole: Images, directory: Path, progress: Callable[[str], None] | None = None
) -> Extractor:
    """The network whose features the trial is judged in; a classifier is trained first where there is none yet."""
    # The others need but the shape.
    images = (whole if spec.features == "classifier" else Images(whole.pixels[:1])).sized(spec.size)
    return load_extractor(
        spec.features, images.pixels, images.labels, digest=digest([spec.dataset_digest, spec.size]),
        directory=directory, device=whole.pixels.device, progress=progress, dataset=spec.dataset,
    )  # fmt: skip
