"""Metrics: what training logs, series derived from it, and distances between sets of images.

The names and definitions are the canonical ones; every plot is derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from trials.reports import TRAIN_METRICS

_SUMMED = ("d_loss_real", "d_loss_fake", "g_loss", "d_acc_real", "d_acc_fake", "real_score", "fake_score",
           "g_fool_rate")  # fmt: skip


class Meter:
    """Averages the canonical metrics over the steps of a logging interval, without leaving the device."""

    def __init__(self, device: torch.device, extras: Sequence[str] = ()) -> None:
        """`extras`: names of the scalars that every step adds to the canonical ones."""
        self._extras = tuple(extras)
        self._sum = torch.zeros(len(_SUMMED) + len(self._extras), device=device)
        self._n = 0

    @torch.no_grad()
    def measures(
        self, d_loss_real: Tensor, d_loss_fake: Tensor, g_loss: Tensor, real_logits: Tensor, fake_logits: Tensor,
        g_fake_logits: Tensor, extras: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """What is averaged, of one step: (M,), or (K, M) for the logits (K, N) and losses (K,) of a pack.

        Accuracies compare logits with hard labels at threshold 0.
        """
        measured = (
            d_loss_real,
            d_loss_fake,
            g_loss,
            (real_logits > 0).float().mean(-1),
            (fake_logits <= 0).float().mean(-1),
            real_logits.sigmoid().mean(-1),
            fake_logits.sigmoid().mean(-1),
            (g_fake_logits > 0).float().mean(-1),
            *(extras[name] for name in self._extras),
        )
        return torch.stack([value.float() for value in measured], dim=-1)

    def take(self, measured: Tensor) -> None:
        """Take one step's `measures` (M,)."""
        self._sum += measured

    def count(self) -> None:
        """Count a step that was taken."""
        self._n += 1

    def state_dict(self) -> dict[str, Any]:
        """The interval so far."""
        return {"sum": self._sum.clone(), "n": self._n}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on in the middle of an interval."""
        self._sum.copy_(saved["sum"])
        self._n = saved["n"]

    def read(self, **last_step: Tensor) -> dict[str, float]:
        """The means since the last call, with `last_step`'s scalars; the one synchronisation an interval."""
        values = torch.cat((self._sum / self._n, torch.stack(list(last_step.values())))).tolist()
        metrics = dict(zip((*_SUMMED, *self._extras, *last_step), values, strict=True))
        metrics["d_loss_sum"] = metrics["d_loss_real"] + metrics["d_loss_fake"]
        metrics["d_loss_mean"] = 0.5 * metrics["d_loss_sum"]
        metrics["d_acc"] = 0.5 * (metrics["d_acc_real"] + metrics["d_acc_fake"])
        self._sum.zero_()
        self._n = 0
        return {name: metrics[name] for name in (*TRAIN_METRICS, *self._extras)}


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
    """First step after which the smoothed series stays within 2 sd of its last-quarter mean, or None."""
    series = smooth(values, window)
    last = series[-max(1, len(series) // 4) :]
    outside = np.flatnonzero(np.abs(series - last.mean()) > 2 * last.std())
    first = 0 if len(outside) == 0 else int(outside[-1]) + 1
    return None if first >= len(series) else int(steps[first + window - 1])


def _tail(values: ArrayLike, start: float) -> NDArray[np.float64]:
    series = np.asarray(values, dtype=np.float64)
    return series[min(int(len(series) * start), len(series) - 1) :]


def sliced_wasserstein(a: Tensor, b: Tensor, n_projections: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance between two sets of the same number of vectors.

    a, b: (N, F) float. The mean over `n_projections` random unit directions of the mean absolute difference
    of the sorted projections (Rabin et al. 2011; Bonneel et al. 2015). Needs no network; 0 for equal sets.
    The directions depend on `seed` and F alone. Raises ValueError when the shapes differ or a value is not
    finite.
    """
    if a.shape != b.shape:
        raise ValueError(f"both sets must have one shape (got {tuple(a.shape)} and {tuple(b.shape)})")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("images are not finite")
    directions = torch.randn(a.shape[1], n_projections, generator=torch.Generator().manual_seed(seed))
    directions = (directions / directions.norm(dim=0)).to(a.device, a.dtype)
    a_sorted = (a @ directions).sort(dim=0).values  # (N, projections)
    b_sorted = (b @ directions).sort(dim=0).values
    return float((a_sorted - b_sorted).abs().mean())
