"""The gallery of a trained generator: walks between latents, a look at every class, neighbours, the best of many.

Axes: N images, Z latent dimensions, C channels, H height, W width, K classes. The latents depend on the model's
latent distribution alone, so the pictures show the same ones in every trial of every study.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import Gan
from trials.data import to_unit
from trials.pictures import GREY, animate, captioned, grid, pairs, write_gif, write_png
from trials.reports import Picture
from trials.samples import fixed_latents, quantised, score
from trials.spec import TrialSpec, stream_seed

if TYPE_CHECKING:
    from trials.features import Extractor, Features

Images = Tensor | tuple[Tensor, ...]
"""(N, C, H, W) in the range of the networks, or with multi-scale gradients a tuple of them, one for each scale."""

PATHS, COLUMNS = 8, 10
"""Rows of the pictures of paths, and images of a row."""
AXES, SWEEP = 8, 11
"""Coordinates that are swept, and images of a sweep."""
CANDIDATES, BEST = 64, 16
"""Latents that a walk's anchors may come from: drawn, and those of them that the discriminator scores best."""
MAX_POPULATION = 2000
CURATED_FROM, CURATED = 512, 64
PER_CLASS, MAX_CLASSES = 10, 20
NEIGHBOURS = 16
TILES = 4
"""Images of a frame of the animations, two by two."""
LOOP_FRAMES, CLASS_FRAMES, MAX_CLASS_FRAMES = 10, 20, 200
"""Frames from one latent to the next, from one class to the next, and of all classes together."""
BATCH = 128
"""Images that the networks see at a time. A discriminator with a minibatch standard deviation judges an image
together with its batch: among random ones here, and the images of both walks as one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """`pictures` lie below the trial's directory. `metrics`: all finite.

    path_step_ratio: largest over median pixel distance (L2) between neighbours on the paths of latent/slerp.
    walk_dip_smooth, walk_dip_rough: mean score of a leg's two ends minus the lowest score on it, averaged over the
    four legs of the walk; scores are logits, or a critic's.
    """

    pictures: list[Picture] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def draw_gallery(
    spec: TrialSpec,
    gan: Gan,
    generator: nn.Module,
    directory: Path,
    *,
    real: Tensor,
    extractor: Extractor | None,
    step: int,
    device: torch.device,
    real_features: Features | None = None,
) -> Gallery:
    """Draw all pictures that apply to this trial into `directory`/gallery, each atomically.

    `generator` is the one to show, the averaged one if there is one. `real`: uint8 (n, C, H, W) at the trained size,
    among which neighbours are looked for; `real_features` are theirs, extracted here when not given. The networks are
    in evaluation mode meanwhile, and neither they nor any random state is changed. An image with values that are not
    finite is shown black there, and metrics of such images are left out.
    """
    with _evaluating(generator, gan.discriminator):
        studio = _Studio(spec, gan, generator, extractor, directory, step, device)
        studio.paths()
        studio.axis()
        studio.walks()
        images, scores = studio.population()
        studio.curated(images, scores)
        if extractor is None:
            studio.neighbours(images, real)
        else:
            fake_features = extractor(images)
            real_features = real_features or extractor(real.to(device))
            studio.neighbours(images, real, (fake_features.vectors, real_features.vectors))
            if fake_features.probabilities is not None and real_features.probabilities is not None:
                studio.histogram(fake_features.probabilities, real_features.probabilities)
                if not gan.n_classes:
                    studio.most_confident(images, fake_features.probabilities)
        if gan.n_classes:
            studio.classes()
            if gan.n_classes <= MAX_CLASSES:
                studio.classes_animated()
        studio.training()
        studio.loop()
    return studio.gallery


class _Studio:
    """What the pictures of one generator have in common. Latents are (N, Z), classes (N,), images uint8."""

    def __init__(
        self, spec: TrialSpec, gan: Gan, generator: nn.Module, extractor: Extractor | None, directory: Path,
        step: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.gan, self.generator, self.extractor = gan, generator, extractor
        self.directory, self.step, self.device = directory, step, device
        self.n = min(MAX_POPULATION, max(CANDIDATES, spec.eval_samples))
        self.gallery = Gallery()
        self.limit, self.bounded = _limits(self.latents("range", 256))
        ends = self.latents("paths", 2 * PATHS)
        self.starts, self.ends = ends[:PATHS], ends[PATHS:]

    def latents(self, name: str, n: int) -> Tensor:
        """(n, Z) of the stream `name`, the same in every trial of every study."""
        return fixed_latents(self.gan, n, stream_seed(0, "gallery", name), self.device)

    def make(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        """(N, C, H, W) in [0, 1], possibly not finite.

        Of a conditional model image i shows class i modulo K, unless `classes` are given.
        """
        return torch.cat([self.unit(made) for made, _ in self.outputs(latents, classes)])

    def make_scored(
        self, latents: Tensor, classes: Tensor | None = None, batch: int = BATCH
    ) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), and their scores (N,) by the discriminator."""
        images, scores = [], []
        for made, labels in self.outputs(latents, classes, batch):
            images.append(quantised(self.unit(made)))
            scores.append(score(self.gan.discriminator, made, labels))
        return torch.cat(images), torch.cat(scores)

    def outputs(
        self, latents: Tensor, classes: Tensor | None, batch: int = BATCH
    ) -> Iterator[tuple[Images, tuple[Tensor, ...]]]:
        """What the generator makes, batch by batch, and the labels it was given, if it takes any."""
        inputs = [latents]
        if self.gan.n_classes:
            inputs.append(self.cycle(len(latents)) if classes is None else classes)
        for parts in zip(*(x.split(batch) for x in inputs), strict=True):
            yield self.generator(*parts), parts[1:]

    def unit(self, made: Images) -> Tensor:
        return to_unit(made if isinstance(made, Tensor) else made[-1], self.gan.pixels)

    def cycle(self, n: int) -> Tensor:
        """(n,) classes 0, 1, ... and again from 0."""
        return torch.arange(n, device=self.device) % self.gan.n_classes

    def class_rows(self, rows: int, columns: int) -> Tensor | None:
        """(rows columns,) a class for each row of a picture; None for an unconditional model."""
        return self.cycle(rows).repeat_interleave(columns) if self.gan.n_classes else None

    def row_names(self, rows: int) -> list[str]:
        return [f"class {k}" for k in self.cycle(rows).tolist()] if self.gan.n_classes else []

    def add(self, key: str, picture: NDArray[np.uint8]) -> None:
        write_png(self.file(key, "png"), picture)
        self.note(key, "png")

    def file(self, key: str, suffix: str) -> Path:
        return self.directory / "gallery" / f"{key.replace('/', '_')}.{suffix}"

    def note(self, key: str, suffix: str) -> None:
        path = self.file(key, suffix).relative_to(self.directory).as_posix()
        self.gallery.pictures.append(Picture(key=key, step=self.step, path=path))

    def paths(self) -> None:
        """Eight pairs of latents, joined by straight lines and by great circles."""
        for key, join in {"latent/lerp": lerp, "latent/slerp": slerp}.items():
            z = join(self.starts, self.ends, torch.linspace(0, 1, COLUMNS, device=self.device))
            if self.bounded:
                z = z.clamp(-self.limit, self.limit)  # a great circle may leave the cube
            images = self.make(z.flatten(0, 1), self.class_rows(PATHS, COLUMNS))
            sheet = grid(_pixels(images), columns=COLUMNS)
            self.add(key, captioned(sheet, rows=self.row_names(PATHS)))
        steps = images.flatten(1).unflatten(0, (PATHS, COLUMNS)).diff(dim=1).norm(dim=2)
        ratio = float(steps.max() / steps.median())
        if np.isfinite(ratio):
            self.gallery.metrics["path_step_ratio"] = ratio

    def axis(self) -> None:
        """One latent, and the coordinates that change its image most when swept over the latents' range."""
        z = self.starts[:1]
        n_axes = min(z.shape[1], max(AXES, self.n // 16))  # a probe costs two images
        probes = z.repeat(2, n_axes, 1)  # (2, axes, Z)
        probes[0].diagonal().fill_(-self.limit)
        probes[1].diagonal().fill_(self.limit)
        images = self.make(probes.flatten(0, 1), self.class_rows(1, 2 * n_axes))
        own = self.make(z)
        three = torch.cat(
            (images.flatten(1).unflatten(0, (2, n_axes)), own.flatten(1)[None].expand(1, n_axes, -1))
        )
        variances = three.nan_to_num().var(dim=0, correction=0).sum(1)  # (axes,)
        chosen = variances.topk(min(AXES, n_axes)).indices
        values = torch.linspace(-self.limit, self.limit, SWEEP, device=self.device)
        swept = z.repeat(len(chosen), SWEEP, 1)  # (rows, columns, Z)
        for row, k in enumerate(chosen.tolist()):
            swept[row, :, k] = values
        images = self.make(swept.flatten(0, 1), self.class_rows(1, len(chosen) * SWEEP))
        self.add(
            "latent/axis",
            captioned(
                grid(_pixels(images), columns=SWEEP),
                rows=[f"z{k}" for k in chosen.tolist()],
                columns=[f"{round(value, 2) + 0.0:g}" for value in values.tolist()],
            ),
        )

    def walks(self) -> None:
        """Round trips over four anchors: alike ones and unlike ones, among those the discriminator scores best."""
        z = self.latents("walks", CANDIDATES)
        classes = z.new_zeros(CANDIDATES, dtype=torch.int64) if self.gan.n_classes else None
        images, scores = self.make_scored(z, classes)
        best = scores.nan_to_num(-torch.inf).topk(BEST).indices
        vectors = _flat(images[best]) if self.extractor is None else self.extractor(images[best]).vectors
        tours = dict(zip(("smooth", "rough"), _tours(vectors), strict=True))
        shares = torch.linspace(0, 1, COLUMNS, device=self.device)
        anchors = z[best[torch.stack([*tours.values()])]]  # (2, 4, Z)
        path = torch.stack([lerp(a, a.roll(-1, 0), shares) for a in anchors])  # (2, 4, 10, Z)
        n = path.shape[:3].numel()
        images, scores = self.make_scored(
            path.flatten(0, 2), None if classes is None else classes.new_zeros(n), n
        )
        dips = score_dips(scores.view(path.shape[:3]))  # (2,)
        for name, walk, dip in zip(tours, images.chunk(2), dips.tolist(), strict=True):
            sheet = grid(walk.cpu().numpy(), columns=COLUMNS)
            self.add(f"walk/{name}", captioned(sheet, rows=["A to B", "B to C", "C to D", "D to A"]))
            if np.isfinite(dip):
                self.gallery.metrics[f"walk_dip_{name}"] = dip

    def population(self) -> tuple[Tensor, Tensor]:
        """Random images (n, C, H, W), and the scores of the first CURATED_FROM of them."""
        z, first = self.latents("population", self.n), min(CURATED_FROM, self.n)
        images, scores = self.make_scored(z[:first])
        if first < self.n:
            classes = self.cycle(self.n)[first:] if self.gan.n_classes else None
            others = [quantised(self.unit(made)) for made, _ in self.outputs(z[first:], classes)]
            images = torch.cat((images, *others))
        return images, scores

    def histogram(self, fake: Tensor, real: Tensor) -> None:
        """Shares of the classes, by the classifier's probabilities (N, K) and (M, K)."""
        from trials.plots import plot_classes  # matplotlib: only where there is something to plot

        if fake.shape[1] > MAX_CLASSES:
            return  # nobody could read it
        counts = [p.argmax(1).bincount(minlength=p.shape[1]).tolist() for p in (fake, real)]
        plot_classes(self.file("classes/histogram", "png"), *counts)
        self.note("classes/histogram", "png")

    def most_confident(self, images: Tensor, probabilities: Tensor) -> None:
        """For each class the images that the classifier is surest of; an empty cell where it has too few."""
        confidence, classes = probabilities.max(dim=1)
        shown = min(MAX_CLASSES, probabilities.shape[1])
        cells = images.new_full((PER_CLASS, shown, *images.shape[1:]), GREY)
        for k in range(shown):
            members = (classes == k).nonzero().flatten()
            best = members[confidence[members].argsort(descending=True)[:PER_CLASS]]
            cells[: len(best), k] = images[best]
        self._class_columns(cells.flatten(0, 1), shown)

    def classes(self) -> None:
        """Of a conditional model, each class with the same latents."""
        shown = min(MAX_CLASSES, self.gan.n_classes)
        z = self.latents("classes", PER_CLASS).repeat_interleave(shown, 0)
        images = self.make(z, torch.arange(shown, device=self.device).repeat(PER_CLASS))
        self._class_columns(quantised(images), shown)

    def _class_columns(self, images: Tensor, shown: int) -> None:
        sheet = grid(images.cpu().numpy(), columns=shown)
        self.add("classes/grid", captioned(sheet, columns=[str(k) for k in range(shown)]))

    def neighbours(self, images: Tensor, real: Tensor, vectors: tuple[Tensor, Tensor] | None = None) -> None:
        """Generated images, each above the real image nearest to it in pixels, or by `vectors` (N, F) and (n, F)."""
        kind, shown = ("pixel" if vectors is None else "feature"), images[:NEIGHBOURS]
        if vectors is None:
            fakes = _flat(shown)
            distances = torch.cat([_distances(fakes, _flat(r.to(self.device))) for r in real.split(1000)], 1)
        else:
            distances = _distances(vectors[0][:NEIGHBOURS], vectors[1])
        least, nearest = distances.min(dim=1)
        sheet = pairs(
            shown.cpu().numpy(),
            real[nearest.to(real.device)].cpu().numpy(),
            [f"{distance:.3g}" for distance in least.tolist()],
        )
        title = f"{kind} distance to the nearest of {len(real):,} real images"
        self.add("neighbours/pairs", captioned(sheet, title=title))

    def curated(self, images: Tensor, scores: Tensor) -> None:
        """The images that the discriminator scores best of many, in that order."""
        best = scores.nan_to_num(-torch.inf).topk(min(CURATED, len(scores))).indices
        self.add("samples/curated", grid(images[best].cpu().numpy()))

    def training(self) -> None:
        """The grids that were drawn while training, as an animation of 8 frames a second."""
        if animate(self.file("animation/training", "gif"), _grids(self.directory / "samples", self.step)):
            self.note("animation/training", "gif")

    def loop(self) -> None:
        """Four latents of the paths, each going on to the next three and back to itself, smoothly."""
        a, b = self.starts[:TILES], self.ends[:TILES]
        stops = torch.stack((a, b, a.roll(-1, 0), b.roll(-1, 0)))  # (4, tiles, Z)
        z = self.round_trip(stops, LOOP_FRAMES).flatten(0, 2)
        classes = self.cycle(TILES).repeat(len(z) // TILES) if self.gan.n_classes else None
        frames = [
            grid(_pixels(frame), columns=2, min_side=240) for frame in self.make(z, classes).split(TILES)
        ]
        self.add_loop("animation/latent", frames)

    def classes_animated(self) -> None:
        """Of a conditional model, class 0 to 1 to ... to 0, four latents at a time.

        The networks take whole labels, not a blend of two: from one class to the next the latents move all the way
        and the label switches halfway.
        """
        n_classes = self.gan.n_classes
        n_frames = max(2, min(CLASS_FRAMES, MAX_CLASS_FRAMES // n_classes))
        stops = self.latents("class animation", n_classes * TILES).unflatten(0, (n_classes, TILES))
        z = self.round_trip(stops, n_frames)
        first = torch.arange(n_classes, device=self.device)[:, None]
        halfway = torch.arange(n_frames, device=self.device) * 2 >= n_frames
        classes = torch.where(halfway, (first + 1) % n_classes, first).flatten()  # (K frames,)
        images = self.make(z.flatten(0, 2), classes.repeat_interleave(TILES))
        frames = [
            captioned(grid(_pixels(frame), columns=2, min_side=240), title=f"class {k}")
            for frame, k in zip(images.split(TILES), classes.tolist(), strict=True)
        ]
        self.add_loop("animation/classes", frames)

    def round_trip(self, stops: Tensor, n: int) -> Tensor:
        """(stops, tiles, Z) -> (stops, n, tiles, Z): from each stop to the next in n steps, and from the last to the
        first; on great circles, or straight where the latents have bounds."""
        join = lerp if self.bounded else slerp
        shares = torch.arange(n, device=self.device) / n
        legs = [join(a, b, shares) for a, b in zip(stops, stops.roll(-1, 0), strict=True)]
        return torch.stack(legs).transpose(1, 2)

    def add_loop(self, key: str, frames: list[NDArray[np.uint8]]) -> None:
        write_gif(self.file(key, "gif"), frames, ms=100, last_ms=100)
        self.note(key, "gif")


def lerp(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """(N, Z), (N, Z), (S,) in [0, 1] -> (N, S, Z) on straight lines."""
    return start[:, None] + shares[:, None] * (end - start)[:, None]


def slerp(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """(N, Z), (N, Z), (S,) in [0, 1] -> (N, S, Z) on great circles (Shoemake 1985), which keep normal latents' norm.

    Straight where the two point the same way or opposite ways, and the circle is none or any.
    """
    cosine = nn.functional.cosine_similarity(start, end, dim=1).clamp(-1, 1)
    angle = cosine.acos()[:, None, None]  # (N, 1, 1)
    sine = angle.sin()
    t = shares[:, None]
    curved = ((1 - t) * angle).sin() / sine * start[:, None] + (t * angle).sin() / sine * end[:, None]
    return torch.where(sine < 1e-3, lerp(start, end, shares), curved)


def score_dips(scores: Tensor) -> Tensor:
    """(..., legs, images of a leg) -> (...,): mean of the ends minus the lowest on the way, averaged over the legs."""
    ends = (scores[..., 0] + scores[..., -1]) / 2
    return (ends - scores.amin(-1)).mean(-1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, F), (M, F) -> (N, M). By differences: products would give small distances few correct digits."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _tours(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Of all round trips over four of the (N, F) vectors the shortest and the longest, as indices (4,) each."""
    distances = _distances(vectors, vectors).cpu()
    four = torch.tensor(list(itertools.combinations(range(len(vectors)), 4)))
    orders = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2], [0, 2, 1, 3]])  # the three ways round four places
    trips = four[:, orders].flatten(0, 1)  # (trips, 4)
    lengths = distances[trips, trips.roll(-1, 1)].sum(1)
    return trips[lengths.argmin()].to(vectors.device), trips[lengths.argmax()].to(vectors.device)


def _limits(latents: Tensor) -> tuple[float, bool]:
    """How far coordinates are swept, and whether latents have bounds at all, told from draws (N, Z).

    The largest of some hundred normal numbers is beyond 2.5 standard deviations; a uniform one's ends are at 1.73.
    """
    largest, sd = float(latents.abs().max()), float(latents.std())
    return (largest, True) if largest < 2 * sd else (3.0, False)


@contextmanager
def _evaluating(*nets: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and each back in its own one afterwards."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _grids(directory: Path, step: int) -> list[Path]:
    """The grids of the fixed latents up to `step`, in order."""
    found = {int(path.stem.removeprefix("step_")): path for path in directory.glob("step_*.png")}
    return [path for at, path in sorted(found.items()) if at <= step]


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    return quantised(images).cpu().numpy()


def _flat(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C H W) in [0, 1]."""
    return images.flatten(1).float() / 255
