"""Averages what training logs over the logging interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
