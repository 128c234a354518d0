"""Series derived from what training logs: smoothed curves, bands, windows and plateaus.

The names and definitions are the canonical ones; every plot and claim is derived from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def smooth(values: ArrayLike, window: int) -> NDArray[np.float64]:
    """Means of `window` consecutive values; shorter than the input by window - 1.

    >>> smooth([1, 2, 3, 6], 2).tolist()
    [1.5, 2.5, 4.5]
    """
    if window < 1:
        raise ValueError(f"window must be >= 1 (got {window})")
    return np.convolve(np.asarray(values, dtype=np.float64), np.full(window, 1 / window), mode="valid")


def band(values: ArrayLike, start: float = 0.5) -> tuple[float, float]:
    """5th and 95th percentile of the values after the share `start` of training."""
    low, high = np.percentile(_tail(values, start), [5, 95])
    return float(low), float(high)


def band_fraction(values: ArrayLike, low: float, high: float, start: float = 0.0) -> float:
    """Share of the values in [low, high] after the share `start` of training."""
    tail = _tail(values, start)
    return float(np.mean((tail >= low) & (tail <= high)))


def window_mean(values: ArrayLike, start: float, stop: float = 1.0) -> float:
    """Mean over the shares start..stop of training."""
    series = np.asarray(values, dtype=np.float64)
    return float(series[int(len(series) * start) : max(1, round(len(series) * stop))].mean())


def sd_of_means(values: ArrayLike, window: int, start: float = 0.5) -> float:
    """Standard deviation of the means of consecutive blocks of `window` values after the share `start`."""
    tail = _tail(values, start)
    blocks = tail[: len(tail) // window * window].reshape(-1, window).mean(axis=1)
    return float(blocks.std(ddof=1)) if len(blocks) > 1 else 0.0


def time_to_plateau(steps: Sequence[int], values: ArrayLike, window: int) -> int | None:
    """First step after which the smoothed series stays within 2 sd of the mean of the last quarter, or None.

    The sd is that of the values: by that of the smoothed series a noisy curve that had its level from the start
    would leave the band again and again.
    """
    raw = np.asarray(values, dtype=np.float64)
    last = raw[-max(1, len(raw) // 4) :]
    outside = np.flatnonzero(np.abs(smooth(raw, window) - last.mean()) > 2 * last.std())
    settled = window + int(outside[-1]) if len(outside) else window - 1  # the last step of a window
    return int(steps[settled]) if settled < len(raw) else None


def _tail(values: ArrayLike, start: float) -> NDArray[np.float64]:
    series = np.asarray(values, dtype=np.float64)
    return series[min(int(len(series) * start), len(series) - 1) :]
