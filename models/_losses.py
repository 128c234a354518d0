"""Losses of the standard GAN (Goodfellow et al. 2014, arXiv 1406.2661), on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def bce(logits: Tensor, target: float) -> Tensor:
    """Batch mean of -t log sigma(l) - (1 - t) log(1 - sigma(l)) for one constant target t in [0, 1]."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def d_loss_mean(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Discriminator loss as the mean of its two halves: (total, real, fake); ln 2 at equilibrium."""
    real, fake = bce(real_logits, 1.0), bce(fake_logits, 0.0)
    return 0.5 * (real + fake), real, fake


def g_loss_non_saturating(fake_logits: Tensor) -> Tensor:
    """Generator loss BCE(D(G(z)), 1), the non-saturating form of section 3 of the paper."""
    return bce(fake_logits, 1.0)
