"""Learning-rate schedules: stages of constant or randomly drawn rates. Imports no torch.

Text form: stages `LENGTH:RATE`, separated by spaces. LENGTH is in epochs of the source's recipe. RATE is a number,
or `LOW..HIGH` for a rate drawn anew for every optimiser update: uniform in 1/rate, or with `/uniform` or
`/log_uniform` behind it uniform in the rate or in its logarithm.

    100:1e-4 300:5e-5 400:2e-5..6e-5 300:2.5e-5 1400:2e-5
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

Draw = Literal["inverse_uniform", "uniform", "log_uniform"]
"""What a random rate is uniform in: 1/rate, the rate, or its logarithm."""
DRAWS: tuple[Draw, ...] = get_args(Draw)

_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?"
_STAGE = re.compile(
    rf"(?P<length>{_NUMBER}):(?P<low>{_NUMBER})"
    rf"(?:\.\.(?P<high>{_NUMBER})(?:/(?P<draw>{'|'.join(DRAWS)}))?)?"
)
MAX_RATE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Rates between `low` and `high` for `length` epochs; equal bounds are a constant rate."""

    length: float
    low: float
    high: float
    draw: Draw = "inverse_uniform"

    def rate(self, u: float) -> float:
        """The rate for a number u in [0, 1] that is uniform."""
        if self.low == self.high:
            return self.low
        match self.draw:
            case "inverse_uniform":
                return 1 / (1 / self.high + u * (1 / self.low - 1 / self.high))
            case "uniform":
                return self.low + u * (self.high - self.low)
            case "log_uniform":
                return float(self.low * (self.high / self.low) ** u)


@lru_cache(maxsize=64)
def parse(text: str) -> tuple[Stage, ...]:
    """The stages of a schedule. Raises ValueError that names the stage and what would be right.

    >>> [stage.low for stage in parse("100:1e-4 300:5e-5")]
    [0.0001, 5e-05]
    """
    stages = []
    for i, word in enumerate(text.split(), start=1):
        found = _STAGE.fullmatch(word.lower())
        if found is None:
            raise ValueError(f"stage {i} is {word!r}; write LENGTH:RATE or LENGTH:LOW..HIGH, as 100:1e-4")
        low, high = float(found["low"]), float(found["high"] or found["low"])
        draw = cast(Draw, found["draw"] or "inverse_uniform")
        stage = Stage(length=float(found["length"]), low=low, high=high, draw=draw)
        if not (stage.length > 0 and math.isfinite(stage.length)):
            raise ValueError(f"stage {i} ({word}): its length must be > 0")
        if not 0 < low <= high <= MAX_RATE:
            raise ValueError(
                f"stage {i} ({word}): rates must be > 0 and <= {MAX_RATE:g}, the lower one first"
            )
        stages.append(stage)
    if not stages:
        raise ValueError("a schedule needs at least one stage, as 100:1e-4")
    return tuple(stages)


def stage_at(stages: tuple[Stage, ...], step: int, steps: int) -> Stage:
    """The stage of the step after `step` steps out of `steps`.

    Stages are stretched so that together they fill the training: a shorter budget keeps their shares.
    """
    total = math.fsum(stage.length for stage in stages)
    end = 0.0
    for stage in stages:
        end += stage.length
        if step < round(steps * end / total):
            return stage
    return stages[-1]


def growth(n_levels: int, images: int, train: float, fade: float) -> tuple[int, float]:
    """Level and alpha of progressive growing after `images` real images (Karras et al. 2017, figure 2).

    Level 0 is trained on `train` images; every further level fades in over `fade` images, alpha rising linearly
    from 0, and is then trained alone on `train` images. The last level stays.

    >>> [growth(2, n, 100, 50) for n in (0, 99, 100, 125, 150, 1000)]
    [(0, 1.0), (0, 1.0), (1, 0.0), (1, 0.5), (1, 1.0), (1, 1.0)]
    """
    if images < train or n_levels == 1:
        return 0, 1.0
    level, position = divmod(images - train, fade + train)
    if level + 1 >= n_levels:
        return n_levels - 1, 1.0
    return int(level) + 1, min(1.0, position / fade)


def grown_after(n_levels: int, train: float, fade: float) -> float:
    """Images after which the last level has faded in."""
    return train + (n_levels - 1) * fade + (n_levels - 2) * train if n_levels > 1 else 0.0
