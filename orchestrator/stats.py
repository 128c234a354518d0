"""How sure a difference between arms is, from a few seeds: pure.

Every arm runs the same seeds, so arms are compared seed by seed and the test is Student's t of the differences. A
bootstrap over so few seeds is too sure of itself: of pairs of arms that did not differ, 95 % intervals of t called 5 to
6 % different, percentile and BCa intervals half of them with 2 seeds, 25 to 27 % with 3, 15 % with 5 and 7 % with 20.
Differences with heavy tails make t call 3 to 4 %; strongly skewed ones make it call 16 % with 3 seeds, but the
bootstraps 37 to 39 % (benchmarks/intervals.md). So there is no bootstrap here.

The best arm is found by looking at the results, which makes the differences from it look larger than they are. Holm's
correction for the comparisons with the best alone (Scand. J. Statist. 6, 1979) would call some arm of a study of
equal arms worse than the best in 6 % of the studies of 3 arms, in 10 % of those of 9 and in 20 % of those of 40 (5
seeds). Each step here counts every pair of the arms that are left, any of which might have been the one looked at:
that gives 4, 3 and 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, stdev
from typing import Literal

LEVEL = 0.95
POWER = 0.8
MAX_SEEDS = 1000
"""More seeds than anyone will run: a difference that needs them is not estimated."""

Seeds = Mapping[int, float]
"""Seed -> value. A value that is not finite counts as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The mean of a - b over the `n` seeds that both have, its interval, and the two-sided p of its being 0."""

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm against the best one.

    `seeds`: those that both have. `difference`: mean of arm - best over them; None without one. `low`, `high`: its
    interval, so wide that all intervals of a study hold together at its level; it has 0 inside unless the arms are
    `apart`. `p`: adjusted for all comparisons, at most 1. `more_seeds`: how many more would tell them apart with
    probability POWER if the difference and spread seen here were the true ones; None when they are apart, when
    nothing can be estimated, or when it takes more than MAX_SEEDS.
    """

    arm: str
    best: str
    verdict: Literal["apart", "tied", "undecided"]
    seeds: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    more_seeds: int | None = None

    @property
    def words(self) -> str:
        """One line for people."""
        common = f"{self.seeds} common seed{'' if self.seeds == 1 else 's'}"
        if self.verdict == "undecided":
            return f"cannot be compared with the best: {common}"
        if self.verdict == "apart":
            return f"worse than the best ({common})"
        more = f"; about {self.more_seeds} more would tell" if self.more_seeds else ""
        return f"tied with the best ({common}{more})"


@dataclass(frozen=True, slots=True)
class Groups:
    """The arms by what can be said of them; `tied` begins with the best one."""

    tied: tuple[str, ...]
    apart: tuple[str, ...]
    undecided: tuple[str, ...]


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Confidence interval of the mean that `values` (one a seed) are drawn around; None for fewer than two.

    Student's t: exact for normal values, which the mean of a trial's many steps or images is near.
    """
    if len(values) < 2:
        return None
    reach = t_quantile((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - reach, fmean(values) + reach


def paired(a: Seeds, b: Seeds, level: float = LEVEL) -> Difference | None:
    """a against b over their common seeds; None for fewer than two."""
    seeds = _common(a, b)
    differences = [a[seed] - b[seed] for seed in seeds]
    bounds = interval(differences, level)
    if bounds is None:
        return None
    mean, sd, n = fmean(differences), stdev(differences), len(seeds)
    # Of differences that are all the same, as those of metrics with few values can be, t would be sure at once: the
    # sign test is not.
    p = 2 * t_tail(abs(mean) / sd * math.sqrt(n), n - 1) if sd else 0.5 ** (n - 1) if mean else 1.0
    return Difference(n=n, mean=mean, sd=sd, low=bounds[0], high=bounds[1], p=p)


def best_arm(values: Mapping[str, Seeds], mode: Literal["min", "max"]) -> str | None:
    """The arm with the best mean among those with the most seeds, as a lost seed counts against its arm."""
    finite = {arm: [v for v in seeds.values() if math.isfinite(v)] for arm, seeds in values.items()}
    sign = 1 if mode == "min" else -1
    scored = [arm for arm, found in finite.items() if found]
    return min(scored, key=lambda arm: (-len(finite[arm]), sign * fmean(finite[arm])), default=None)


def compare(
    values: Mapping[str, Seeds], mode: Literal["min", "max"], level: float = LEVEL, best: str | None = None
) -> list[Comparison]:
    """Every other arm against the best one, in the order of `values`; empty when no arm has a value.

    values: arm -> seed -> value. `best`: the first arm of a leaderboard; `best_arm` when absent.

    In studies of arms that are all equal, at most 1 - level call any arm apart (see above).
    """
    best = best_arm(values, mode) if best is None else best
    if best is None:
        return []
    others = [arm for arm in values if arm != best]
    found = {arm: d for arm in others if (d := paired(values[arm], values[best], level))}
    tests = _adjusted({arm: d.p for arm, d in found.items()}, 1 - level)
    return [
        _comparison(arm, best, found[arm], *tests[arm], level)
        if arm in found
        else Comparison(
            arm=arm, best=best, verdict="undecided", seeds=len(_common(values[arm], values[best]))
        )
        for arm in others
    ]


def groups(comparisons: Sequence[Comparison]) -> Groups:
    """Which arms cannot be told from the best one, which are worse, and of which nothing can be said."""

    def of(verdict: str) -> tuple[str, ...]:
        return tuple(c.arm for c in comparisons if c.verdict == verdict)

    return Groups((*(c.best for c in comparisons[:1]), *of("tied")), of("apart"), of("undecided"))


def seeds_needed(mean: float, sd: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """The least number of seeds at which a paired test at `level` finds a difference with probability `power`.

    `mean`, `sd`: of the true differences. By the normal approximation of noncentral t (Abramowitz and Stegun 26.7.10).
    None for no difference, or more than MAX_SEEDS.
    """

    def enough(n: int) -> bool:
        critical, df = t_quantile((1 + level) / 2, n - 1), n - 1
        above = abs(mean) * math.sqrt(n) - sd * critical * (1 - 1 / (4 * df))
        return above >= NormalDist().inv_cdf(power) * sd * math.sqrt(1 + critical**2 / (2 * df))

    if mean == 0 or not enough(MAX_SEEDS):
        return None
    low, high = 1, MAX_SEEDS  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def t_tail(t: float, df: int) -> float:
    """Probability that Student's t with `df` degrees of freedom is above t >= 0.

    >>> round(t_tail(12.706204736, 1), 9)
    0.025
    """
    return _beta_share(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t)) / 2


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: int) -> float:
    """The value that Student's t with `df` degrees of freedom is below with probability p in [0.5, 1)."""
    if not 0.5 <= p < 1 or df < 1:
        raise ValueError(f"p must be in [0.5, 1) and df >= 1 (got {p} and {df})")
    # From the normal quantile, which is never above this one, Newton's steps on the convex tail only rise.
    t = NormalDist().inv_cdf(p)
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    for _ in range(200):
        step = (t_tail(t, df) - (1 - p)) / (density * (1 + t * t / df) ** (-(df + 1) / 2))
        t += step
        if abs(step) <= 1e-14 * t:
            break
    return t


def _common(a: Seeds, b: Seeds) -> list[int]:
    return [seed for seed in a if seed in b and math.isfinite(a[seed]) and math.isfinite(b[seed])]


def _adjusted(ps: Mapping[str, float], alpha: float) -> dict[str, tuple[float, int]]:
    """Each arm's adjusted p, and the number of pairs that its interval has to allow for.

    Arm by arm from the smallest p, Holm's way. While no arm is wrongly called apart, all arms that equal the best
    are still among those left; one of them goes wrongly only if some pair of these has a p below alpha / pairs.
    """
    adjusted: dict[str, tuple[float, int]] = {}
    highest, held = 0.0, 0
    for i, arm in enumerate(sorted(ps, key=ps.__getitem__)):
        pairs = math.comb(len(ps) + 1 - i, 2)
        highest = max(highest, min(1.0, ps[arm] * pairs))
        held = held or (pairs if highest > alpha else 0)
        adjusted[arm] = (highest, held or pairs)
    return adjusted


def _comparison(arm: str, best: str, d: Difference, p: float, pairs: int, level: float) -> Comparison:
    corrected = 1 - (1 - level) / pairs
    reach = t_quantile((1 + corrected) / 2, d.n - 1) * d.sd / math.sqrt(d.n)
    is_apart = p <= 1 - level
    needed = None if is_apart or not d.sd else seeds_needed(d.mean, d.sd, corrected)
    return Comparison(
        arm=arm,
        best=best,
        verdict="apart" if is_apart else "tied",
        seeds=d.n,
        difference=d.mean,
        low=d.mean - reach,
        high=d.mean + reach,
        p=p,
        more_seeds=needed and needed - d.n,
    )


def _beta_share(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b); `rest` is 1 - x, given since it may be tiny.

    By its continued fraction (Abramowitz and Stegun 26.5.8), evaluated by Lentz's method, on the side of the mean
    where it converges quickly.
    """
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, rest, x)
    scale = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = 1 + numerator / c, 1 / (1 + numerator * d)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return scale * value / a
