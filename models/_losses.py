"""Losses of the standard GAN and of the Wasserstein GAN, on logits or scores (N,), or (K, N) of K networks.

Means are over the last axis. A target is a number, or (K,).

Goodfellow et al. 2014 (arXiv 1406.2661); Arjovsky et al. 2017 (arXiv 1701.07875).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def bce(logits: Tensor, target: float | Tensor) -> Tensor:
    """Batch mean of -t log sigma(l) - (1 - t) log(1 - sigma(l)) for a target t in [0, 1]."""
    if isinstance(target, Tensor):
        targets = target.to(logits.dtype)[..., None].expand_as(logits)
    else:
        targets = torch.full_like(logits, target)
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


def real_term(loss: str, logits: Tensor, target: float | Tensor) -> Tensor:
    """The discriminator's loss on real images: BCE to the target, or minus the mean score."""
    return bce(logits, target) if loss == "bce" else -logits.mean(-1)


def fake_term(loss: str, logits: Tensor, target: float | Tensor) -> Tensor:
    """The discriminator's loss on generated images: BCE to the target, or the mean score."""
    return bce(logits, target) if loss == "bce" else logits.mean(-1)


def generator_term(loss: str, logits: Tensor, target: float | Tensor) -> Tensor:
    """The generator's loss: BCE to the target (the non-saturating form for 1), or minus the mean score."""
    return bce(logits, target) if loss == "bce" else -logits.mean(-1)
