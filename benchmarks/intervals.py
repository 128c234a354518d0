"""How often 95 % intervals of a paired difference leave out the truth: Student's t against two bootstraps.

    python benchmarks/intervals.py > benchmarks/intervals.md

Differences of arms that do not differ are drawn for each number of seeds; an interval that leaves 0 out is a false
alarm, of which there should be 5 %. Percentile and BCa intervals (Efron 1987) are scipy's, of 1,000 resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from _common import table, where
from numpy.typing import NDArray
from scipy.stats import bootstrap

from orchestrator.stats import interval

PAIRS = 2000
SEEDS = (2, 3, 5, 8, 20)
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
SHAPES: Mapping[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails (t, 3)": lambda rng, n: rng.standard_t(3, size=n),
    "skewed (log-normal)": lambda rng, n: rng.lognormal(size=n) - np.exp(0.5),
}


def alarms(draw: Draw, n: int) -> list[float]:
    """Shares of false alarms with `n` seeds: of t, of the percentile and of the BCa bootstrap."""
    rng = np.random.default_rng(n)
    counts = np.zeros(3)
    for _ in range(PAIRS):
        values = draw(rng, n)
        bounds = [interval(values.tolist())]
        for method in ("percentile", "BCa"):
            found = bootstrap(
                (values,), np.mean, n_resamples=1000, method=method, rng=rng, vectorized=True
            ).confidence_interval
            bounds.append((float(found.low), float(found.high)))
        counts += [b is not None and not b[0] <= 0 <= b[1] for b in bounds]
    return [float(share) for share in counts / PAIRS]


def main() -> None:
    warnings.simplefilter("ignore")  # of BCa where all resamples are equal: it has no interval then
    rows = []
    for shape, draw in SHAPES.items():
        for n in SEEDS:
            rows.append([shape, n, *(f"{share:.1%}" for share in alarms(draw, n))])
    print(f"# False alarms of 95 % intervals of a paired difference\n\n{where()}\n")
    print(f"{PAIRS:,} pairs of equal arms a row; the standard error of a share of 5 % is 0.5 %.\n")
    print(table(["differences", "seeds", "Student's t", "bootstrap, percentile", "bootstrap, BCa"], rows))


if __name__ == "__main__":
    main()
