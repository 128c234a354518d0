"""Distances between sets of images: closed forms, properties, and another library's values."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trials import metrics
from trials.metrics import (
    Moments,
    checkerboard,
    class_fidelities,
    class_fidelity,
    class_metrics,
    class_shares,
    diversity,
    frechet_distance,
    inception_score,
    intra_class_diversity,
    kernel_distance,
    manifold,
    mean_distance,
    moments,
    nearest,
    projected_distance,
    projections,
    radii,
    row_jaggedness,
    sliced_wasserstein,
    spectrum_distance,
    texture,
)

SEEDS = st.integers(0, 10_000)


def points(n: int, features: int, seed: int) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def double(n: int, features: int, seed: int) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(features: int, seed: int) -> Tensor:
    q: Tensor = torch.linalg.qr(double(features, features, seed)).Q
    return q


def lattice(n: int, seed: int) -> Tensor:
    """Rows of small integers: many copies and many equal distances, all of them exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (n, 3), generator=generator).double()


def one_hot(classes: list[int], n: int) -> Tensor:
    return torch.eye(n)[torch.tensor(classes)]


def exact_distances(a: Tensor, b: Tensor) -> Tensor:
    distances: Tensor = (a[:, None].double() - b[None].double()).norm(dim=2)
    return distances


# Frechet distance


@given(SEEDS)
@settings(max_examples=25)
def test_the_frechet_distance_of_gaussians_that_share_their_axes_has_a_closed_form(seed: int) -> None:
    axes, a, b = rotation(6, seed), double(6, 1, seed + 1)[:, 0].abs(), double(6, 1, seed + 2)[:, 0].abs()
    mean_a, mean_b = double(2, 6, seed + 3)
    found = frechet_distance(
        Moments(mean=mean_a, cov=(axes * a) @ axes.T, n=9), Moments(mean=mean_b, cov=(axes * b) @ axes.T, n=9)
    )
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-9)


@given(SEEDS)
@settings(max_examples=25)
def test_the_frechet_distance_in_the_plane_has_a_closed_form(seed: int) -> None:
    # For 2 x 2 matrices tr(M^1/2) = sqrt(tr M + 2 sqrt(det M)), whether or not the two covariances commute.
    a, b = moments(double(5, 2, seed)), moments(double(7, 2, seed + 1))
    product = a.cov @ b.cov
    overlap = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-7, abs=1e-9)


def test_the_frechet_distance_of_samples_nears_that_of_their_gaussians_from_above() -> None:
    # Truth: 16 features, means 1 apart in each, sd 1 and 2: 16 (1 + 1) = 32. At 20,000 rows the bias is below 0.1
    # and the standard deviation of the mean's term, 2 |d| sqrt((1 + 4) / N), is 0.13.
    a, b = points(20_000, 16, 0), 1 + 2 * points(20_000, 16, 1)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(32.0, abs=0.5)
    few = [frechet_distance(moments(points(100, 16, s)), moments(points(100, 16, s + 50))) for s in range(5)]
    assert min(few) > 0.5  # of like sets, where the truth is 0


def test_the_frechet_distance_to_one_repeated_image_has_a_closed_form() -> None:
    real, one = double(200, 12, 0), double(1, 12, 1)
    expected = (real.mean(dim=0) - one[0]).square().sum() + real.var(dim=0).sum()
    assert frechet_distance(moments(real), moments(one.repeat(200, 1))) == pytest.approx(
        float(expected), rel=1e-10
    )


@given(SEEDS)
@settings(max_examples=15)
def test_a_common_rotation_or_shift_another_order_and_the_other_way_round_keep_the_frechet_distance(
    seed: int,
) -> None:
    a, b = double(40, 8, seed), 1.5 * double(50, 8, seed + 1)
    found = frechet_distance(moments(a), moments(b))
    turn, shift = rotation(8, seed + 2), double(1, 8, seed + 3)
    alike = [(a @ turn + shift, b @ turn + shift), (a.flip(0), b), (b, a)]
    for x, y in alike:
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(found, rel=1e-9)


def test_features_far_from_zero_keep_their_frechet_distance() -> None:
    # float32 holds values near 10,000 to 0.0005; means or covariances in float32 would lose several units.
    a, b = points(2_000, 16, 0), 1 + 2 * points(2_000, 16, 1)
    near, far = (frechet_distance(moments(a + c), moments(b + c)) for c in (0.0, 1e4))
    assert far == pytest.approx(near, rel=1e-3)


def test_copies_in_any_order_have_frechet_distance_zero_and_it_is_never_below() -> None:
    a = points(300, 40, 0)
    assert frechet_distance(moments(a), moments(a.flip(0))) == pytest.approx(0.0, abs=1e-9)
    # Fewer rows than features: the covariances are singular.
    few = [moments(points(5, 40, seed)) for seed in range(4)]
    assert all(frechet_distance(x, x) >= 0 for x in few)
    assert frechet_distance(few[0], few[1]) > 1.0


def test_moments_are_those_of_the_sample() -> None:
    a = points(30, 4, 0)
    found = moments(a)
    assert found.n == 30
    assert found.mean.dtype == found.cov.dtype == torch.float64
    torch.testing.assert_close(found.cov, torch.cov(a.double().T))
    torch.testing.assert_close(found.mean, a.double().mean(dim=0))


def test_moments_that_are_not_finite_or_do_not_match_are_refused() -> None:
    good = moments(points(9, 3, 0))
    with pytest.raises(ValueError, match="covariances of the second set are not finite"):
        frechet_distance(good, Moments(mean=good.mean, cov=good.cov * math.nan, n=9))
    with pytest.raises(ValueError, match="means of the first set are not finite"):
        frechet_distance(Moments(mean=good.mean / 0, cov=good.cov, n=9), good)
    with pytest.raises(ValueError, match="one dimension"):
        frechet_distance(good, moments(points(9, 4, 0)))
    with pytest.raises(ValueError, match="of shape"):
        frechet_distance(good, Moments(mean=good.mean, cov=good.cov[:2], n=9))


# Kernel distance


def naive_kernel_distance(x: Tensor, y: Tensor) -> float:
    """The U-statistic written out."""

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    among_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    among_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return among_x + among_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@given(SEEDS)
@settings(max_examples=10)
def test_one_subset_of_everything_is_the_u_statistic(seed: int) -> None:
    x, y = double(7, 3, seed), double(7, 3, seed + 1) + 0.5
    found, sd = kernel_distance(x, y)
    assert found == pytest.approx(naive_kernel_distance(x, y), rel=1e-9, abs=1e-12)
    assert sd == 0


@pytest.mark.parametrize("subsets", [2, 60])
def test_few_and_many_subsets_are_means_of_the_u_statistics_of_their_rows(subsets: int) -> None:
    # Few subsets are computed one by one, many from all pairs at once.
    x, y = double(12, 3, 0), double(20, 3, 1) + 1
    found = kernel_distance(x, y, subsets=subsets, size=6, seed=4)
    chance = torch.Generator().manual_seed(4)
    rows = [[torch.randperm(n, generator=chance)[:6] for _ in range(subsets)] for n in (12, 20)]
    expected = torch.tensor(
        [naive_kernel_distance(x[i], y[j]) for i, j in zip(*rows, strict=True)], dtype=torch.float64
    )
    assert found == pytest.approx((float(expected.mean()), float(expected.std(correction=0))), rel=1e-9)


def test_the_kernel_distance_in_one_dimension_has_a_closed_form() -> None:
    # (xy + 1)^3 = sum_j C(3, j) x^j y^j, so the distance is sum_j C(3, j) (E_P x^j - E_Q x^j)^2. Moments of
    # U(0, 1): 1/2, 1/3, 1/4; of U(-1, 1): 0, 1/3, 0. Hence 3/4 + 0 + 1/16. The mean's own standard deviation over
    # 30 pairs of sets is the tolerance.
    def uniform(seed: int) -> Tensor:
        return torch.rand(500, 1, generator=torch.Generator().manual_seed(seed))

    found = torch.tensor([kernel_distance(uniform(s), 2 * uniform(s + 100) - 1)[0] for s in range(30)])
    error = float(found.std()) / 30**0.5
    assert error < 0.02
    assert float(found.mean()) == pytest.approx(3 / 4 + 1 / 16, abs=3 * error)


def test_the_kernel_distance_of_like_sets_has_no_bias_at_any_size() -> None:
    # Pairs of a row with itself would add 2 (E k(x, x) - E k(x, y)) / n: for x, y of N(0, 1) in 4 dimensions
    # 2 (11.5 - 1.75) / n.
    for n in (10, 40):
        found = torch.tensor(
            [kernel_distance(points(n, 4, s), points(n, 4, s + 1000))[0] for s in range(100)]
        )
        error = float(found.std()) / 10
        assert abs(float(found.mean())) < 3 * error < 19.5 / n / 2
        assert (found < 0).any()


def test_the_kernel_distance_is_that_of_its_seed() -> None:
    x, y = points(60, 4, 0), points(50, 4, 1)
    assert kernel_distance(x, y, size=20) == kernel_distance(x, y, size=20)
    assert kernel_distance(x, y, size=20) != kernel_distance(x, y, size=20, seed=1)
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(x, y, size=1)


# Neighbourhoods


def naive_manifold(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage from exact distances."""
    reach_real, reach_fake = (exact_distances(x, x).sort(dim=1).values[:, k] for x in (real, fake))
    between = exact_distances(real, fake)
    inside, recalled = between <= reach_real[:, None], between <= reach_fake
    shares = (inside.any(0), recalled.any(1), inside.sum(0) / k, inside.any(1))
    precision, recall, density, coverage = (float(share.double().mean()) for share in shares)
    return precision, recall, density, coverage


def four(found: metrics.Manifold) -> tuple[float, float, float, float]:
    return found.precision, found.recall, found.density, found.coverage


@given(st.integers(6, 40), st.integers(6, 40), st.integers(1, 5), SEEDS)
@settings(max_examples=40)
def test_the_manifold_is_that_of_exact_distances_with_copies_and_ties_and_far_from_zero(
    n: int, m: int, k: int, seed: int
) -> None:
    real, fake = lattice(n, seed), lattice(m, seed + 1)
    expected = naive_manifold(real, fake, k)
    for at in (0.0, 1e7 + 0.1):  # sums of these and small integers are exact, squares are not
        assert four(manifold(real + at, fake + at, k)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_and_density_of_like_sets_have_closed_forms(k: int) -> None:
    # Among a row's neighbours from both sets the first k are all real with probability 2^-k (large sets), and k of a
    # row's neighbours are expected within its radius. Coverage of 2,000: sd below 0.01; density: 0.03.
    found = manifold(points(2_000, 8, 0), points(2_000, 8, 1), k)
    assert found.coverage == pytest.approx(1 - 2.0**-k, abs=0.03)
    assert found.density == pytest.approx(1.0, abs=0.1)


def test_copies_of_the_real_images_are_precise_recalled_and_cover() -> None:
    real = points(200, 16, 0)
    found = manifold(real, real[torch.randperm(200, generator=torch.Generator().manual_seed(1))])
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    # A row is in the neighbourhood of its copy and of all that have it among their 5, the edge included: 6 / 5.
    assert found.density == pytest.approx(1.2, abs=1e-9)


def test_one_good_image_fools_precision_and_not_recall() -> None:
    real = points(200, 4, 0)
    found = manifold(real, real.mean(dim=0, keepdim=True).repeat(200, 1))
    assert found.precision == 1.0
    assert found.recall == 0.0
    assert found.coverage < 0.5


def test_far_away_images_are_in_nothing_and_cover_nothing() -> None:
    found = manifold(points(50, 4, 0), points(50, 4, 1) + 100)
    assert four(found) == (0.0, 0.0, 0.0, 0.0)


def test_a_collapse_to_a_tenth_of_the_modes_lowers_recall_and_coverage_and_not_precision() -> None:
    centres = 6 * points(50, 16, 0)

    def sample(modes: int, seed: int) -> Tensor:
        which = torch.randint(0, modes, (1_000,), generator=torch.Generator().manual_seed(seed))
        return centres[which] + points(1_000, 16, seed + 1)

    real = sample(50, 10)
    alike, collapsed, blurred = sample(50, 20), sample(5, 30), sample(50, 40) + 3 * points(1_000, 16, 50)
    good, bad, noisy = (manifold(real, fake) for fake in (alike, collapsed, blurred))
    assert good.precision > 0.9
    assert bad.precision == pytest.approx(good.precision, abs=0.05)
    assert good.recall > 0.9
    assert good.coverage > 0.9
    assert bad.recall < 0.15
    assert bad.coverage < 0.15
    assert noisy.precision < 0.2
    to_real = moments(real)
    fd_good, fd_bad = (frechet_distance(to_real, moments(fake)) for fake in (alike, collapsed))
    assert fd_bad > 10 * fd_good
    assert kernel_distance(real, collapsed)[0] > 10 * abs(kernel_distance(real, alike)[0])
    assert diversity(collapsed, real) < 0.95 < diversity(alike, real)


def test_a_thousand_images_repeated_have_lower_recall_and_coverage_at_the_same_precision() -> None:
    real, fake = points(1_000, 8, 0), points(1_000, 8, 1)
    once, repeated = manifold(real, fake), manifold(real, fake[:100].repeat(10, 1))
    assert repeated.precision == pytest.approx(once.precision, abs=0.1)
    assert repeated.recall == 0.0  # each image's 5 nearest are its copies: no room around it
    assert repeated.coverage < 0.6 * once.coverage


def test_radii_computed_before_give_the_same_manifold() -> None:
    real, fake = points(80, 6, 0), points(60, 6, 1)
    assert manifold(real, fake, 3, real_radii=radii(real, 3)) == manifold(real, fake, 3)
    torch.testing.assert_close(radii(real, 3), exact_distances(real, real).sort(dim=1).values[:, 3])


def test_blocks_do_not_change_a_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = points(50, 6, 0), points(43, 6, 1)

    def found() -> list[Tensor]:
        return [
            torch.tensor(four(manifold(a, b))),
            nearest(a, b),
            nearest(a, a, same=True),
            torch.tensor(kernel_distance(a, b, subsets=40, size=30)),
        ]

    whole = found()
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    torch.testing.assert_close(found(), whole)


def test_only_the_first_rows_of_large_sets_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = points(50, 6, 0), points(60, 6, 1)
    monkeypatch.setattr(metrics, "MANIFOLD_LIMIT", 20)
    assert manifold(a, b) == manifold(a[:20], b[:20])
    assert len(radii(a)) == 20


def test_too_few_rows_for_the_neighbour_and_radii_of_another_set_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 5 rows"):
        manifold(points(9, 3, 0), points(5, 3, 1))
    with pytest.raises(ValueError, match="radii"):
        manifold(points(9, 3, 0), points(9, 3, 1), real_radii=radii(points(8, 3, 0)))


@given(st.integers(2, 40), st.integers(1, 40), SEEDS)
@settings(max_examples=30)
def test_nearest_distances_are_exact(n: int, m: int, seed: int) -> None:
    for a, b in ((lattice(n, seed), lattice(m, seed + 1)), (double(n, 3, seed), double(m, 3, seed + 1))):
        torch.testing.assert_close(
            nearest(a, b), exact_distances(a, b).min(dim=1).values, rtol=1e-12, atol=0.0
        )
        among = exact_distances(a, a).fill_diagonal_(math.inf).min(dim=1).values
        torch.testing.assert_close(nearest(a, a, same=True), among, rtol=1e-12, atol=0.0)


def test_a_copy_among_near_copies_is_told_from_them() -> None:
    # At squared sizes of 1e13 a matrix product knows squared distances to 0.01 or so, and near copies are at 1e-6.
    a = 1e6 * double(40, 12, 0)
    near = [a + 1e-3 * double(40, 12, seed) for seed in (1, 2)]
    assert torch.equal(nearest(a, torch.cat([*near, a])), torch.zeros(40, dtype=torch.float64))


def test_a_copy_is_at_distance_zero() -> None:
    a = 100 + points(300, 64, 0)
    assert torch.equal(nearest(a.flip(0), a), torch.zeros(300, dtype=torch.float64))
    with pytest.raises(ValueError, match="one set"):
        nearest(a, a[:9], same=True)
    with pytest.raises(ValueError, match="one set"):
        nearest(a[:1], a[:1], same=True)


@given(st.floats(0.1, 10.0), SEEDS)
@settings(max_examples=20)
def test_diversity_is_the_scale_of_the_spread(scale: float, seed: int) -> None:
    real = points(30, 5, seed).double()
    assert diversity(7 + scale * real, real) == pytest.approx(scale, rel=1e-9)


def test_mean_distance_is_that_of_all_pairs_or_nearly_that_of_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(400, 8, 0)
    all_pairs = float(exact_distances(x, x).sum()) / (400 * 399)
    assert mean_distance(x) == pytest.approx(all_pairs, rel=1e-9)
    monkeypatch.setattr(metrics, "PAIRS_LIMIT", 200)
    assert mean_distance(x) == pytest.approx(all_pairs, rel=0.03)  # 3 sd of the mean of 200 rows' distances
    assert mean_distance(x) != mean_distance(x, seed=1)
    in_order = torch.cat([torch.zeros(200, 8), x[:200]])
    assert mean_distance(in_order) > 0.3 * all_pairs  # the first 200 alone are all alike


def test_one_repeated_image_has_no_diversity_and_like_real_images_are_refused() -> None:
    real, one = points(30, 5, 0), points(1, 5, 1).repeat(30, 1)
    assert diversity(one, real) == 0.0
    with pytest.raises(ValueError, match="all alike"):
        diversity(real, one)


def test_diversity_within_classes_does_not_see_that_between_them() -> None:
    classes = torch.arange(60) % 3
    real = points(60, 4, 0).double() + 100.0 * classes[:, None]
    fake = 0.5 * (real - 100.0 * classes[:, None])  # half as wide within, and the classes in one place
    assert intra_class_diversity(fake, classes, real, classes) == pytest.approx(0.5, rel=1e-9)
    assert diversity(fake, real) < 0.1


def test_classes_that_either_set_lacks_are_left_out_of_diversity_within_classes() -> None:
    real, classes = points(40, 4, 0).double(), torch.arange(40) % 4
    fake, fake_classes = 2 * real, classes.clone()
    fake_classes[classes == 0] = 9  # no generated 0, no real 9
    fake[classes == 1] = 0  # collapsed
    assert intra_class_diversity(fake, fake_classes, real, classes) == pytest.approx((0 + 2 + 2) / 3)
    real[classes == 3] = 1  # all alike
    assert intra_class_diversity(fake, fake_classes, real, classes) == pytest.approx((0 + 2) / 2)
    assert intra_class_diversity(fake, fake_classes * 0 + 7, real, classes) is None
    with pytest.raises(ValueError, match="class each"):
        intra_class_diversity(fake, fake_classes[:3], real, classes)


# Classes


def test_class_metrics_of_a_worked_example() -> None:
    fake = one_hot([0] * 6 + [1] * 2 + [2] * 2, 4)
    real = one_hot([0] * 2 + [1] * 2 + [2] * 4 + [3] * 2, 4)
    fake[0] = torch.tensor([0.85, 0.15, 0.0, 0.0])
    found = class_metrics(fake, real)
    assert found["class_tv"] == pytest.approx(0.4)  # 0.6 0.2 0.2 0 against 0.2 0.2 0.4 0.2
    smooth = [2.5 / 12, 2.5 / 12, 4.5 / 12]
    expected = sum(p * math.log(p / q) for p, q in zip((0.6, 0.2, 0.2), smooth, strict=True))
    assert found["class_kl"] == pytest.approx(expected)
    assert found["modes"] == 3
    assert found["ambiguous"] == pytest.approx(0.1)
    assert found["classifier_confidence"] == pytest.approx(0.985)
    assert class_shares(fake).tolist() == pytest.approx([0.6, 0.2, 0.2, 0.0])


@given(st.lists(st.integers(0, 50), min_size=3, max_size=6).filter(lambda counts: sum(counts) > 0), SEEDS)
@settings(max_examples=40)
def test_the_p_value_is_that_of_pearsons_chi_square(counts: list[int], seed: int) -> None:
    from scipy.stats import chisquare

    k = len(counts)
    generator = torch.Generator().manual_seed(seed)
    real = torch.cat([torch.arange(k), torch.randint(0, k, (100,), generator=generator)])
    fake = torch.repeat_interleave(torch.arange(k), torch.tensor(counts))
    found = class_metrics(torch.eye(k)[fake], torch.eye(k)[real])["chi2_p"]
    expected = torch.bincount(real, minlength=k).double() / len(real) * sum(counts)
    assert found == pytest.approx(float(chisquare(counts, expected.numpy()).pvalue), rel=1e-6, abs=1e-12)


def test_classes_that_real_images_lack_cost_much_and_stay_finite() -> None:
    real = one_hot([0, 1] * 50, 3)
    there, missing = class_metrics(one_hot([0, 1, 2], 3), real), class_metrics(one_hot([0, 1], 3), real)
    assert there["chi2_p"] == 0.0
    assert missing["chi2_p"] == 1.0
    assert 1.0 < there["class_kl"] < math.inf
    assert missing["class_kl"] < 0.01
    assert class_metrics(one_hot([1], 3), one_hot([1], 3))["chi2_p"] == 1.0


def test_real_classes_against_themselves_are_perfect() -> None:
    real = one_hot(list(range(10)) * 20, 10)
    found = class_metrics(real, real.flip(0))
    assert found["class_tv"] == 0
    assert found["class_kl"] == pytest.approx(0, abs=1e-12)
    assert found["chi2_p"] == 1
    assert found["modes"] == 10


@given(st.integers(1, 12))
def test_the_inception_score_is_the_number_of_sure_and_equally_frequent_classes(k: int) -> None:
    assert inception_score(one_hot(list(range(k)) * 5, 12)) == pytest.approx(k)
    assert inception_score(torch.full((8, k), 1 / k)) == pytest.approx(1.0)


def test_class_fidelity_is_the_share_that_is_what_was_asked() -> None:
    probabilities, asked = one_hot([0, 0, 1, 2, 2, 2], 4), torch.tensor([0, 1, 1, 2, 2, 1])
    assert class_fidelity(probabilities, asked) == pytest.approx(4 / 6)
    assert class_fidelities(probabilities, asked) == {
        0: 1.0,
        1: pytest.approx(1 / 3),
        2: 1.0,
    }
    with pytest.raises(ValueError, match="class each"):
        class_fidelity(probabilities, asked[:5])


def test_what_is_not_probabilities_is_refused() -> None:
    good = one_hot([0, 1], 3)
    with pytest.raises(ValueError, match="generated probabilities must"):
        class_metrics(points(4, 3, 0), good)
    with pytest.raises(ValueError, match="same classes"):
        class_metrics(one_hot([0, 1], 4), good)


# Pixels


def test_a_solver_that_gives_up_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = moments(points(9, 40, 0)), moments(points(9, 40, 1))  # of rank 8
    expected = frechet_distance(a, b)

    def give_up(_: torch.Tensor) -> None:
        raise RuntimeError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    # Eigenvalues that are 0 come out as about 1e-16 of the largest, and their roots as 1e-8.
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_a_set_to_itself_in_another_order_is_zero() -> None:
    a = points(64, 10, 0)
    assert sliced_wasserstein(a, a.flip(0)) == pytest.approx(0.0, abs=1e-6)


@given(st.integers(0, 100))
def test_the_distance_is_symmetric_and_the_same_every_time(seed: int) -> None:
    a, b = points(30, 6, seed), points(30, 6, seed + 1)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(b, a) == sliced_wasserstein(a, b)


def test_the_distance_of_a_shifted_set_has_a_closed_form() -> None:
    # Every projection shifts by d.v, so the distance is the mean of |d.v| over unit v: for dimension F,
    # |d| * Gamma(F/2) / (sqrt(pi) Gamma((F+1)/2)); for F = 3 that is |d|/2. 4,000 directions: sd 0.5 %.
    a, shift = points(50, 3, 0), torch.tensor([3.0, 0.0, 4.0])
    found = sliced_wasserstein(a, a + shift, n_projections=4000)
    expected = 5.0 * math.gamma(1.5) / (math.sqrt(math.pi) * math.gamma(2.0))
    assert expected == pytest.approx(2.5)
    assert found == pytest.approx(expected, rel=0.025)


def test_projections_computed_before_give_the_same_distance() -> None:
    a, b = points(30, 6, 0), points(30, 6, 1)
    assert projected_distance(projections(a, 16, 3), projections(b, 16, 3)) == sliced_wasserstein(a, b, 16, 3)


def test_sets_of_different_shape_and_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(points(8, 4, 0), points(9, 4, 0))
    with pytest.raises(ValueError, match="not finite"):
        sliced_wasserstein(points(8, 4, 0), points(8, 4, 0) * math.nan)


def noise(n: int, size: int | tuple[int, int], seed: int, channels: int = 1) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def test_row_jaggedness_is_the_ratio_of_slopes() -> None:
    # Planes that rise by a a row and b a column: a / b, over that of the real images.
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    fake, real = (0.06 * y + 0.02 * x).expand(3, 1, 8, 8), (0.01 * y + 0.02 * x).expand(200, 3, 8, 8)
    assert row_jaggedness(fake, real) == pytest.approx(3 / 0.5, rel=1e-4)


@given(st.sampled_from([(8, 8), (7, 9), (9, 6)]), SEEDS)
@settings(max_examples=10)
def test_turning_images_on_their_side_inverts_their_row_jaggedness(size: tuple[int, int], seed: int) -> None:
    images = noise(20, size, seed)
    shaken = images + torch.linspace(0, 1, size[0])[:, None]
    upright = texture(shaken).jaggedness
    assert upright > texture(images).jaggedness
    assert texture(shaken.transpose(2, 3)).jaggedness == pytest.approx(1 / upright, rel=1e-5)


def test_rows_shaken_apart_are_jagged() -> None:
    smooth = torch.nn.functional.avg_pool2d(noise(50, 32, 0), 5, stride=1)
    rows = smooth + 0.2 * torch.rand(50, 1, 28, 1, generator=torch.Generator().manual_seed(1))
    assert row_jaggedness(rows, smooth) > 1.5
    assert row_jaggedness(smooth, smooth.flip(0)) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("size", [8, 9, (8, 11)])
def test_power_adds_up_to_the_variance_of_the_pixels(size: int | tuple[int, int]) -> None:
    # Parseval, with the mirrored half counted: also what the weights of the other two metrics rest on.
    images = noise(150, size, 0, channels=3)
    found = texture(images)
    *_, weight = metrics._frequencies(found)
    assert weight.sum() == found.size[0] * found.size[1]
    expected = images.double().var(dim=(2, 3), correction=0).mean()
    assert float((found.power * weight).mean() * weight.numel() / weight.sum()) == pytest.approx(
        float(expected), rel=1e-5
    )


@pytest.mark.parametrize("size", [16, 15])
def test_an_alternating_pattern_raises_the_power_at_the_highest_frequencies(size: int) -> None:
    real = noise(400, size, 0)
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    board = torch.where((ys + xs) % 2 == 0, 0.1, -0.1)
    assert checkerboard(noise(400, size, 1), real) == pytest.approx(1.0, abs=0.05)
    if size == 16:
        # All of it is at one of the 2 * 16 - 1 frequencies: 0.1^2 * 16^2 there, white noise of variance 1/12 around.
        assert checkerboard(noise(400, size, 1) + board, real) == pytest.approx(
            1 + 0.01 * 256 / 31 * 12, rel=0.03
        )
    stripes = torch.where(xs % 2 == 0, 0.1, -0.1)
    for pattern in (board, stripes, stripes.T):
        assert checkerboard(noise(400, size, 1) + pattern, real) > 1.3
    assert checkerboard(torch.nn.functional.avg_pool2d(noise(400, size + 1, 1), 2, stride=1), real) < 0.3


@given(st.sampled_from([8, 9, 28]), st.floats(-1.5, 0.0))
@settings(max_examples=20)
def test_the_spectrum_distance_of_fainter_noise_is_its_power_in_decades(size: int, decades: float) -> None:
    real = noise(30, size, 0)
    assert spectrum_distance(0.5 + 10 ** (decades / 2) * (real - 0.5), real) == pytest.approx(
        -decades, abs=1e-4
    )


def test_the_spectrum_distance_does_not_see_low_frequencies() -> None:
    real = noise(30, 16, 0)
    y = torch.arange(16)[:, None]
    for cycles, seen in ((2, False), (6, True)):
        wave = torch.cos(2 * math.pi * cycles * y / 16).expand(16, 16)
        found = spectrum_distance(real + wave, real)
        assert found > 0.1 if seen else found < 1e-3


def test_blank_images_have_finite_values() -> None:
    blank, real = torch.full((5, 1, 8, 8), 0.3), noise(5, 8, 0)
    for fake, reference in ((blank, real), (real, blank), (blank, blank)):
        for metric in (row_jaggedness, checkerboard, spectrum_distance):
            assert math.isfinite(metric(fake, reference))
    assert row_jaggedness(blank, blank) == checkerboard(blank, blank) == 1.0
    assert spectrum_distance(blank, blank) == 0.0


def test_textures_computed_before_give_the_same_values_and_sizes_must_match() -> None:
    a, b = noise(9, 8, 0), noise(9, 8, 1)
    for metric in (row_jaggedness, checkerboard, spectrum_distance):
        assert metric(texture(a), texture(b)) == metric(a, b)
        with pytest.raises(ValueError, match="one size"):
            metric(a, noise(9, 9, 0))
    with pytest.raises(ValueError, match="N, C, H, W"):
        texture(a[0])


# Every function

CLASSES = torch.arange(8) % 2
SETS: dict[str, tuple[Callable[..., Any], Tensor, Tensor]] = {
    "frechet_distance": (
        lambda a, b: frechet_distance(moments(a), moments(b)),
        points(8, 3, 0),
        points(8, 3, 1),
    ),
    "kernel_distance": (lambda a, b: kernel_distance(a, b, size=4), points(8, 3, 0), points(8, 3, 1)),
    "manifold": (manifold, points(8, 3, 0), points(8, 3, 1)),
    "radii": (lambda a, b: (radii(a), radii(b)), points(8, 3, 0), points(8, 3, 1)),
    "nearest": (nearest, points(8, 3, 0), points(8, 3, 1)),
    "diversity": (diversity, points(8, 3, 0), points(8, 3, 1)),
    "mean_distance": (lambda a, b: mean_distance(a) + mean_distance(b), points(8, 3, 0), points(8, 3, 1)),
    "intra_class_diversity": (
        lambda a, b: intra_class_diversity(a, CLASSES, b, CLASSES),
        points(8, 3, 0),
        points(8, 3, 1),
    ),
    "class_metrics": (class_metrics, one_hot([0, 1, 2], 3), one_hot([0, 1, 1], 3)),
    "class_shares": (
        lambda a, b: (class_shares(a), class_shares(b)),
        one_hot([0, 1], 3),
        one_hot([1], 3),
    ),
    "inception_score": (
        lambda a, b: inception_score(a) + inception_score(b),
        one_hot([0, 1], 3),
        one_hot([1], 3),
    ),
    "class_fidelity": (
        lambda a, b: class_fidelity(a, CLASSES[:2]) + class_fidelity(b, CLASSES[:2]),
        one_hot([0, 1], 3),
        one_hot([1, 1], 3),
    ),
    "sliced_wasserstein": (sliced_wasserstein, points(8, 3, 0), points(8, 3, 1)),
    "row_jaggedness": (row_jaggedness, noise(3, 8, 0), noise(3, 8, 1)),
    "checkerboard": (checkerboard, noise(3, 8, 0), noise(3, 8, 1)),
    "spectrum_distance": (spectrum_distance, noise(3, 8, 0), noise(3, 8, 1)),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_single_value_that_is_not_finite_is_refused(name: str, value: float, which: int) -> None:
    function, *sets = SETS[name]
    spoilt = [one.clone() for one in sets]
    spoilt[which].view(-1)[-1] = value
    with pytest.raises(ValueError, match="not finite"):
        function(*spoilt)


@pytest.mark.parametrize("name", SETS)
def test_no_function_touches_the_global_generator_or_its_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PAIRS_LIMIT", 5)  # so that rows are drawn
    function, a, b = SETS[name]
    copies = a.clone(), b.clone()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    function(a, b)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])


@pytest.mark.parametrize(
    "name", ["kernel_distance", "manifold", "nearest", "diversity", "intra_class_diversity"]
)
def test_sets_of_another_width_or_rank_are_refused(name: str) -> None:
    function, a, b = SETS[name]
    with pytest.raises(ValueError, match="one dimension"):
        function(a, b[:, :2])
    with pytest.raises(ValueError, match="must be"):
        function(a[..., None], b)
    with pytest.raises(ValueError, match="must be"):
        function(a, b[:0])


# torch-fidelity on the same features


def fidelity(metric: str) -> Any:
    return importlib.import_module(f"torch_fidelity.metric_{metric}")


def pair() -> tuple[Tensor, Tensor]:
    """Generated and real features that differ; float64, as torch-fidelity's means are in the dtype of the features."""
    return 0.3 + 1.2 * double(300, 24, 1), double(300, 24, 0)


def test_torch_fidelity_finds_the_same_frechet_distance() -> None:
    statistics = [fidelity("fid").fid_features_to_statistics(x) for x in pair()]
    expected = fidelity("fid").fid_statistics_to_metric(*statistics, verbose=False)
    fake, real = (moments(x) for x in pair())
    # It takes eigenvalues of an asymmetric product; both are right to about 1e-8.
    assert frechet_distance(fake, real) == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_torch_fidelity_finds_the_same_kernel_distance() -> None:
    fake, real = pair()
    expected = fidelity("kid").kid_features_to_metric(
        fake, real, kid_subsets=1, kid_subset_size=300, verbose=False
    )
    assert kernel_distance(fake, real)[0] == pytest.approx(
        expected["kernel_inception_distance_mean"], rel=1e-9
    )


def test_torch_fidelity_finds_the_same_precision_and_recall() -> None:
    fake, real = pair()
    expected = fidelity("prc").prc_features_to_metric(
        fake, real, prc_neighborhood=5, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    found = manifold(real, fake)
    assert 0.1 < found.precision < 0.9  # so that swapped ones would not pass
    assert found.recall > found.precision + 0.1
    # One row that rounding puts on the other side of an edge would make 1 / 300.
    assert (found.precision, found.recall) == pytest.approx(
        (expected["precision"], expected["recall"]), abs=1e-6
    )


def test_torch_fidelity_finds_the_same_inception_score() -> None:
    logits = 3 * double(200, 10, 0)
    expected = fidelity("isc").isc_features_to_metric(logits, splits=1)
    assert inception_score(logits.softmax(dim=1)) == pytest.approx(expected["inception_score_mean"], rel=1e-9)
