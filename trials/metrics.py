"""Distances between sets of images, and what else judges generated ones: pure functions of tensors.

Sets are features (N, F), class probabilities (N, K) or images (N, C, H, W) with pixels in [0, 1], on any device.
The arithmetic is in float64 unless said otherwise: with float32 means, a Frechet distance of 35 between features
near 10,000 came out as 28. A value that is not finite is refused (ValueError) before anything is computed, since
eigen-solvers may crash the process on one. Chance comes from a generator of the function's own, never from the
global one, so an evaluation does not change the training around it.

What is expensive of the real images can be computed once: moments, radii, mean_distance, projections, texture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MANIFOLD_LIMIT = 5_000
"""manifold and radii look at this many rows of a set, its first: their cost grows with the square."""

PAIRS_LIMIT = 1_000
"""Mean distances are those of all pairs among this many rows of a set, drawn without replacement."""

CONFIDENT = 0.9
"""An image whose largest class probability is below this is ambiguous."""

MODE_SHARE = 0.005
"""A class is a mode that the generator has when its share of the generated images is larger than this."""

_BLOCK = 2_048  # rows of a block of distances: 32 MB in float64
_IMAGES = 128  # images of a block of spectra
_SLACK = 1e-12  # of the squared norms; what a matrix product may lose is about 1e-15 of them
_CANDIDATES = 4
_ROUNDING = 1 / (12 * 255**2)  # power, at every frequency, of rounding pixels in [0, 1] to 8 bits


# Frechet and kernel distance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Mean (F,) and unbiased covariance (F, F) of `n` rows of features, float64."""

    mean: Tensor
    cov: Tensor
    n: int


def moments(features: Tensor) -> Moments:
    """Of features (N, F), N >= 2. Constant features are allowed: their covariance is 0."""
    x = _rows(features, "features", at_least=2).double()
    mean = x.mean(dim=0)
    x = x - mean
    return Moments(mean=mean, cov=x.T @ x / (len(x) - 1), n=len(x))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians of two sets (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^1/2 S_b S_a^1/2)^1/2), at least 0. It is biased upwards by about
    1/N, so only values of the same N compare. Raises ValueError when the dimensions differ.
    """
    for which, of in (("first", a), ("second", b)):
        if of.mean.ndim != 1 or of.cov.shape != (len(of.mean), len(of.mean)):
            raise ValueError(
                f"the {which} moments must be of shape (F,) and (F, F), got {tuple(of.cov.shape)}"
            )
        _finite(of.mean, f"means of the {which} set")
        _finite(of.cov, f"covariances of the {which} set")
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features must have one dimension (got {len(a.mean)} and {len(b.mean)})")
    values, vectors = _eigh(a.cov.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b.cov.double() @ root
    # Rounding leaves the product a little asymmetric, and small eigenvalues a little negative.
    overlap = _eigh((product + product.T) / 2)[0].clamp(min=0).sqrt().sum()
    gap = (a.mean.double() - b.mean.double()).square().sum()
    return max(0.0, float(gap + a.cov.trace() + b.cov.trace() - 2 * overlap))


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors. Of covariances of fewer rows than columns, most of whose eigenvalues are 0, torch's
    solver sometimes finds none; numpy's does."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError:  # torch.linalg.LinAlgError, which has no type stub
        found = np.linalg.eigh(symmetric.numpy(force=True))
        values, vectors = (torch.from_numpy(part).to(symmetric.device) for part in found)
    return values, vectors


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 20, size: int = 1_000, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under k(x, y) = (x.y / F + 1)^3 (Binkowski et al. 2018), its mean and
    standard deviation (divisor: the number) over `subsets` subsets.

    a (N, F), b (M, F). A subset holds min(size, N, M) >= 2 rows of each, drawn without replacement. Within one,
    the estimate is the U-statistic of all pairs, which has no bias: it may be slightly negative for like sets, and
    its expectation does not depend on N. Subsets that are the whole of both sets are all alike: the deviation is 0.
    """
    n = min(size, len(_rows(a, "first rows", at_least=2)), len(_rows(b, "second rows", at_least=2)))
    _same_width(a, b)
    if n < 2 or subsets < 1:
        raise ValueError(f"subsets of at least 2 rows, and at least one of them (got {subsets} of {n} rows)")
    chance = torch.Generator().manual_seed(seed)
    subsets = 1 if n == len(a) == len(b) else subsets
    rows_a, rows_b = (
        torch.stack([torch.randperm(len(of), generator=chance)[:n] for _ in range(subsets)]).to(of.device)
        for of in (a, b)
    )
    among = sum(_kernel_sums(of, rows, of, rows, own=True) for of, rows in ((a, rows_a), (b, rows_b)))
    between = _kernel_sums(a, rows_a, b, rows_b)
    found = among / (n * (n - 1)) - 2 * between / n**2
    return float(found.mean()), float(found.std(correction=0))


def _kernel_sums(a: Tensor, rows_a: Tensor, b: Tensor, rows_b: Tensor, *, own: bool = False) -> Tensor:
    """Sum of the kernel over the pairs between row i of `rows_a` of `a` and of `rows_b` of `b`: (subsets,).

    own=True: they are one set, and pairs of a row with itself are left out.
    """
    if rows_a.numel() * rows_b.shape[1] <= len(a) * len(b):
        sums = []
        for i, j in zip(rows_a, rows_b, strict=True):
            k = _kernel(a[i].double(), b[j].double())
            sums.append(k.sum() - k.diagonal().sum() if own else k.sum())
        return torch.stack(sums)
    # Subsets overlap so much that it is quicker to compute every pair once.
    in_a, in_b = (
        torch.zeros(len(rows), len(of), dtype=torch.float64, device=of.device).scatter_(1, rows, 1)
        for of, rows in ((a, rows_a), (b, rows_b))
    )
    total = torch.zeros(len(rows_a), dtype=torch.float64, device=a.device)
    b = b.double()
    for block in _blocks(len(a)):
        k = _kernel(a[block].double(), b)
        if own:
            k.diagonal(block.start).zero_()
        total += ((in_a[:, block] @ k) * in_b).sum(dim=1)
    return total


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    k = (x @ y.T).div_(x.shape[1]).add_(1)
    return k * k * k


# Neighbourhoods


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifold:
    """Shares in [0, 1]; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def radii(features: Tensor, k: int = 5) -> Tensor:
    """Distance of each row to the k-th nearest other one: (n,) float64 for the first n = min(N, MANIFOLD_LIMIT)."""
    return _radii(_rows(features, "features")[:MANIFOLD_LIMIT], k)


def manifold(real: Tensor, fake: Tensor, k: int = 5, *, real_radii: Tensor | None = None) -> Manifold:
    """How well two sets cover each other, by the neighbourhoods of their rows: balls up to the k-th nearest other one.

    real (N, F), fake (M, F), more than k rows each; `real_radii` is radii(real, k), computed here when None.
    Precision: share of generated rows in a real neighbourhood. Recall: share of real rows in a generated one
    (Kynkaanniemi et al. 2019; a row on the edge is in). Density: how many real neighbourhoods a generated row is in,
    over k; 1 is expected of like sets. Coverage: share of real rows with a generated one in their neighbourhood;
    1 - 2^-k is expected of large like sets of one size (Naeem et al. 2020). Precision alone is fooled by a single
    good image. The first MANIFOLD_LIMIT rows of each set are used, so rows must not be in order of their class.
    """
    _same_width(_rows(real, "real rows"), _rows(fake, "generated rows"))
    real, fake = real[:MANIFOLD_LIMIT], fake[:MANIFOLD_LIMIT]
    if real_radii is None:
        real_radii = _radii(real, k)
    elif real_radii.shape != (len(real),):
        raise ValueError(f"{len(real)} real rows need that many radii (got {tuple(real_radii.shape)})")
    reach_of_real = _finite(real_radii, "real radii").to(real.device).square()
    reach_of_fake = _radii(fake, k).square()
    centre = real.mean(dim=0, dtype=torch.float64)
    generated = fake.double() - centre
    fake_in = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    recalled, covered = 0, 0
    for rows in _blocks(len(real)):
        # Shrunk squares: a row on the edge, such as a copy of the neighbour that set the radius, is in for sure.
        squares = _squares(real[rows].double() - centre, generated, shrink=_SLACK)
        inside = squares <= reach_of_real[rows, None]
        fake_in += inside.sum(dim=0)
        covered += int(inside.any(dim=1).sum())
        recalled += int((squares <= reach_of_fake).any(dim=1).sum())
    return Manifold(
        precision=float((fake_in > 0).double().mean()),
        recall=recalled / len(real),
        density=float(fake_in.double().mean()) / k,
        coverage=covered / len(real),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    if not 1 <= k < len(x):
        raise ValueError(f"the {k}-th neighbour needs more than {k} rows (got {len(x)})")
    centred = x.double() - x.mean(dim=0, dtype=torch.float64)
    found = []
    for rows in _blocks(len(x)):
        squares = _squares(centred[rows], centred)
        squares.diagonal(rows.start).fill_(math.inf)
        found.append(squares.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found).clamp(min=0).sqrt()


def nearest(a: Tensor, b: Tensor, *, same: bool = False) -> Tensor:
    """Distance of each row of a (N, F) to its nearest of b (M, F): (N,) float64.

    same=True: `a` is `b`, and a row is not its own neighbour. Exact: a copy is at 0. (The nearest few are found by
    a matrix product, which tells distances apart to some 1e-7 of the rows' size; theirs are then computed from the
    differences.) Memory is bounded whatever N and M are. Raises ValueError when there is nothing to be near to.
    """
    _same_width(_rows(a, "first rows"), _rows(b, "second rows"))
    if same and (len(a) != len(b) or len(a) < 2):
        raise ValueError(
            f"neighbours within a set need one set of at least 2 rows (got {len(a)} and {len(b)})"
        )
    centre = b.mean(dim=0, dtype=torch.float64)
    found = torch.full((len(a),), math.inf, dtype=torch.float64, device=a.device)
    for rows in _blocks(len(a)):
        x = a[rows].double() - centre
        for others in _blocks(len(b)):
            y = b[others].double() - centre
            squares = _squares(x, y)
            if same and rows == others:
                squares.fill_diagonal_(math.inf)
            about, which = squares.topk(min(_CANDIDATES, len(y)), dim=1, largest=False)
            for close, index in zip(about.unbind(1), which.unbind(1), strict=True):
                exact = (a[rows].double() - b[others][index].double()).norm(dim=1)
                found[rows] = torch.minimum(found[rows], exact.masked_fill(close.isinf(), math.inf))
    return found


def diversity(fake: Tensor, real: Tensor, seed: int = 0) -> float:
    """mean_distance of the generated rows (M, F) over that of the real ones (N, F): 1 is alike, 0 one image alone.

    Raises ValueError when the real rows are all alike.
    """
    _same_width(_rows(fake, "generated rows", at_least=2), _rows(real, "real rows", at_least=2))
    of_real = mean_distance(real, seed)
    if of_real == 0:
        raise ValueError("the real rows are all alike")
    return mean_distance(fake, seed) / of_real


def mean_distance(x: Tensor, seed: int = 0) -> float:
    """Mean Euclidean distance over all pairs of min(N, PAIRS_LIMIT) rows of (N, F), N >= 2, drawn by `seed`."""
    chance = torch.Generator().manual_seed(seed)
    rows = _drawn(_rows(x, "features", at_least=2), min(len(x), PAIRS_LIMIT), chance).double()
    rows = rows - rows[0]  # copies become exact zeros, and so are their distances
    distances = _squares(rows, rows).clamp_(min=0).sqrt_()
    return float(distances.fill_diagonal_(0).sum()) / (len(rows) * (len(rows) - 1))


def intra_class_diversity(
    fake: Tensor, fake_classes: Tensor, real: Tensor, real_classes: Tensor
) -> float | None:
    """Mean over classes of mean_distance among generated rows of a class, over that among real ones of it.

    fake (M, F) and real (N, F) with integer classes (M,) and (N,). Classes of which either set has fewer than 2,
    or the real ones are all alike, are left out; None when no class is left.
    """
    _same_width(_rows(fake, "generated rows"), _rows(real, "real rows"))
    for name, rows, classes in (("generated", fake, fake_classes), ("real", real, real_classes)):
        if classes.shape != (len(rows),):
            raise ValueError(f"{len(rows)} {name} rows need a class each (got {tuple(classes.shape)})")
    ratios = []
    for label in real_classes.unique().tolist():
        generated, reference = fake[fake_classes == label], real[real_classes == label]
        if min(len(generated), len(reference)) >= 2 and (of_real := mean_distance(reference)) > 0:
            ratios.append(mean_distance(generated) / of_real)
    return sum(ratios) / len(ratios) if ratios else None


# Classes


def class_shares(probabilities: Tensor) -> Tensor:
    """Share of the images (N, K) in each class, the one of largest probability: (K,) float64 on the CPU."""
    return _counts(_probabilities(probabilities, "probabilities")).double() / len(probabilities)


def class_metrics(fake_probabilities: Tensor, real_probabilities: Tensor) -> dict[str, float]:
    """How the classes of generated images (N, K) compare with those of real ones (M, K). All values are finite.

    class_tv: total variation, the share of images in the wrong class, in [0, 1].
    class_kl: KL(generated || real), natural logarithm. Half an image is added to the real count of every class,
        so a class without a real image costs much but not infinitely much.
    chi2_p: p value of Pearson's chi-square test that the generated images are drawn with the shares of the real
        ones, which are taken as exact. 0 when a class without a real image has a generated one.
    modes: number of classes with a share above MODE_SHARE.
    ambiguous: share of images whose largest probability is below CONFIDENT.
    classifier_confidence: mean largest probability. Noise may get 1.
    inception_score: see there.
    """
    fake = _probabilities(fake_probabilities, "generated probabilities")
    real = _probabilities(real_probabilities, "real probabilities")
    if fake.shape[1] != real.shape[1]:
        raise ValueError(f"both sets need the same classes (got {fake.shape[1]} and {real.shape[1]})")
    count, real_count = _counts(fake).double(), _counts(real).double()
    share, real_share = count / len(fake), real_count / len(real)
    smooth = (real_count + 0.5) / (len(real) + 0.5 * len(real_count))
    confidence = fake.max(dim=1).values
    return {
        "class_tv": float((share - real_share).abs().sum()) / 2,
        "class_kl": float((torch.xlogy(share, share) - torch.xlogy(share, smooth)).sum()),
        "chi2_p": _chi_square_p(count, real_share),
        "modes": float((share > MODE_SHARE).sum()),
        "ambiguous": float((confidence < CONFIDENT).double().mean()),
        "classifier_confidence": float(confidence.double().mean()),
        "inception_score": inception_score(fake),
    }


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL(class given image || class) over images (N, K): in [1, K] (Salimans et al. 2016).

    All images are one split, since splits bias the score downwards.
    """
    p = _probabilities(probabilities, "probabilities").double()
    marginal = p.mean(dim=0)
    # Mean KL = entropy of the mean - mean of the entropies; xlogy is 0 at 0.
    return math.exp(float(torch.xlogy(p, p).sum()) / len(p) - float(torch.xlogy(marginal, marginal).sum()))


def class_fidelity(probabilities: Tensor, asked: Tensor) -> float:
    """Share of images (N, K) whose class of largest probability is the one `asked` (N,) for."""
    return float(_is_as_asked(probabilities, asked).double().mean())


def class_fidelities(probabilities: Tensor, asked: Tensor) -> dict[int, float]:
    """class_fidelity of the images asked of each class, by class; classes that none was asked of are left out."""
    right = _is_as_asked(probabilities, asked)
    return {label: float(right[asked == label].double().mean()) for label in asked.unique().tolist()}


def _is_as_asked(probabilities: Tensor, asked: Tensor) -> Tensor:
    found = _probabilities(probabilities, "probabilities").argmax(dim=1)
    if asked.shape != found.shape:
        raise ValueError(f"{len(found)} images need a class each (got {tuple(asked.shape)})")
    return found == asked.to(found.device)


def _counts(probabilities: Tensor) -> Tensor:
    return torch.bincount(probabilities.argmax(dim=1).cpu(), minlength=probabilities.shape[1])


def _chi_square_p(count: Tensor, expected_share: Tensor) -> float:
    present = expected_share > 0
    if count[~present].any():
        return 0.0
    expected = expected_share[present] * count.sum()
    degrees = len(expected) - 1
    if degrees == 0:
        return 1.0
    statistic = ((count[present] - expected).square() / expected).sum()
    # The survival function of a chi-square variable is the upper regularised incomplete gamma function.
    return float(torch.special.gammaincc(torch.tensor(degrees / 2, dtype=torch.float64), statistic / 2))


# Pixels


def sliced_wasserstein(a: Tensor, b: Tensor, n_projections: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance between two sets of the same number of vectors.

    a, b: (N, F) float. The mean over `n_projections` random unit directions of the mean absolute difference
    of the sorted projections (Rabin et al. 2011; Bonneel et al. 2015), in the dtype of the sets. Needs no network;
    0 for equal sets. The directions depend on `seed` and F alone. Raises ValueError when the shapes differ or a
    value is not finite.
    """
    _one_shape(a, b)
    return projected_distance(projections(a, n_projections, seed), projections(b, n_projections, seed))


def projections(x: Tensor, n_projections: int = 128, seed: int = 0) -> Tensor:
    """Rows (N, F) projected on random unit directions, sorted along each: (N, n_projections)."""
    _rows(x, "images")
    directions = torch.randn(x.shape[1], n_projections, generator=torch.Generator().manual_seed(seed))
    directions = (directions / directions.norm(dim=0)).to(x.device, x.dtype)
    ordered: Tensor = (x @ directions).sort(dim=0).values
    return ordered


def projected_distance(a: Tensor, b: Tensor) -> float:
    """sliced_wasserstein of two sets given as their `projections` with one seed, (N, P) each."""
    _one_shape(a, b)
    return float((_finite(a, "first projections") - _finite(b, "second projections")).abs().mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texture:
    """What row_jaggedness, checkerboard and spectrum_distance need to know of a set of images.

    `jaggedness`: mean absolute difference of vertical over that of horizontal neighbours.
    `power`: (H, W // 2 + 1) float64 on the CPU, mean over images and channels of the squared magnitude of the
    orthonormal discrete Fourier transform of an image less its mean, at vertical x non-negative horizontal
    frequencies. `size`: (H, W).
    """

    jaggedness: float
    power: Tensor
    size: tuple[int, int]


def texture(images: Tensor) -> Texture:
    """Of images (N, C, H, W) in [0, 1], H and W at least 2. The transform is in float32, means over images are not."""
    if images.ndim != 4 or not len(images) or min(images.shape[2:]) < 2:
        raise ValueError(f"images must be (N, C, H, W), at least 2 x 2 pixels (got {tuple(images.shape)})")
    _finite(images, "images")
    height, width = images.shape[2:]
    vertical, horizontal = 0.0, 0.0
    power = torch.zeros(height, width // 2 + 1, dtype=torch.float64, device=images.device)
    for rows in _blocks(len(images), _IMAGES):
        x = images[rows].float()
        vertical += float(x.diff(dim=2).abs().mean()) * len(x)
        horizontal += float(x.diff(dim=3).abs().mean()) * len(x)
        transform = torch.fft.rfft2(x - x.mean(dim=(2, 3), keepdim=True), norm="ortho")
        power += torch.view_as_real(transform).square().sum(dim=(0, 1, 4)) / images.shape[1]
    # A hundred-thousandth of a grey level a pixel: blank images are as smooth one way as the other.
    tiny = 1e-5 / 255 * len(images)
    return Texture(
        jaggedness=(vertical + tiny) / (horizontal + tiny),
        power=(power / len(images)).cpu(),
        size=(height, width),
    )


def row_jaggedness(fake: Tensor | Texture, real: Tensor | Texture) -> float:
    """Mean absolute difference of vertically neighbouring pixels over that of horizontally neighbouring ones, over
    the same of real images. Above 1: rows fit together worse than columns do.

    Each set is its images (N, C, H, W) or their texture, here and below.
    """
    a, b = _textures(fake, real)
    return a.jaggedness / b.jaggedness


def checkerboard(fake: Tensor | Texture, real: Tensor | Texture) -> float:
    """Mean power at the highest vertical or the highest horizontal frequency, over the same of real images.

    For even sizes that is the Nyquist frequency, where pixels alternate, as strided transposed convolutions make
    them do; for odd ones the highest below it. Power below that of rounding to 8 bits counts as that.
    """
    a, b = (_highest_power(of) for of in _textures(fake, real))
    return a / b


def spectrum_distance(fake: Tensor | Texture, real: Tensor | Texture) -> float:
    """Mean absolute difference of log10 power to that of real images, over the upper half of the frequencies.

    In decades: 1 is ten times too much or too little. Power is averaged over rings of one magnitude of frequency,
    1 / min(H, W) wide, from a quarter to half a cycle per pixel. Power below that of rounding to 8 bits counts as
    that.
    """
    a, b = (_upper_rings(of) for of in _textures(fake, real))
    return float((a.log10() - b.log10()).abs().mean())


def _textures(fake: Tensor | Texture, real: Tensor | Texture) -> tuple[Texture, Texture]:
    a, b = (of if isinstance(of, Texture) else texture(of) for of in (fake, real))
    if a.size != b.size:
        raise ValueError(f"images must have one size (got {a.size} and {b.size})")
    return a, b


def _highest_power(of: Texture) -> float:
    vertical, horizontal, weight = _frequencies(of)
    weight = weight * ((vertical == vertical.max()) | (horizontal == horizontal.max()))
    return max(_ROUNDING, float((of.power * weight).sum() / weight.sum()))


def _upper_rings(of: Texture) -> Tensor:
    vertical, horizontal, weight = _frequencies(of)
    finest = min(of.size)
    ring = (torch.hypot(vertical, horizontal) * finest).round().long().flatten()
    power = torch.bincount(ring, (of.power * weight).flatten()) / torch.bincount(ring, weight.flatten())
    return power[math.ceil(finest / 4) : finest // 2 + 1].clamp(min=_ROUNDING)


def _frequencies(of: Texture) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitudes of the vertical (H, 1) and horizontal (1, W // 2 + 1) frequencies, cycles per pixel, and how many
    frequencies each entry of the power stands for: the real transform leaves out the mirrored half."""
    height, width = of.size
    vertical = torch.fft.fftfreq(height, dtype=torch.float64).abs()[:, None]
    horizontal = torch.fft.rfftfreq(width, dtype=torch.float64)[None]
    mirrored = (horizontal > 0) & (horizontal < 0.5)
    return vertical, horizontal, (1.0 + mirrored).expand(of.power.shape)


# Shared


def _rows(x: Tensor, name: str, *, at_least: int = 1) -> Tensor:
    if x.ndim != 2 or len(x) < at_least or not x.shape[1]:
        raise ValueError(f"the {name} must be (N, F), N >= {at_least} (got {tuple(x.shape)})")
    return _finite(x, name)


def _probabilities(x: Tensor, name: str) -> Tensor:
    _rows(x, name)
    if (x < 0).any() or ((x.sum(dim=1) - 1).abs() > 1e-3).any():
        raise ValueError(f"the {name} must be at least 0 and add up to 1 in every row")
    return x


def _finite(x: Tensor, name: str) -> Tensor:
    if not (finite := torch.isfinite(x)).all():
        raise ValueError(f"the {name} are not finite: {int((~finite).sum())} of {x.numel()} values")
    return x


def _one_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"both sets must have one shape (got {tuple(a.shape)} and {tuple(b.shape)})")


def _same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features must have one dimension (got {a.shape[1]} and {b.shape[1]})")


def _blocks(n: int, size: int | None = None) -> Iterator[slice]:
    size = size or _BLOCK
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def _drawn(x: Tensor, n: int, chance: torch.Generator) -> Tensor:
    return x if n == len(x) else x[torch.randperm(len(x), generator=chance)[:n].to(x.device)]


def _squares(a: Tensor, b: Tensor, shrink: float = 0.0) -> Tensor:
    """Squared distances (n, m) by a matrix product: 7 times as fast as by differences, and wrong by some 1e-15 of
    the squared norms, either way. `shrink` of the squared norms is subtracted."""
    a_norms, b_norms = (x.square().sum(dim=1) * (1 - shrink) for x in (a, b))
    return torch.addmm(b_norms, a, b.T, alpha=-2).add_(a_norms[:, None])
