"""Losses of the standard GAN and of the Wasserstein GAN, on logits or scores (N,).

Goodfellow et al. 2014 (arXiv 1406.2661); Arjovsky et al. 2017 (arXiv 1701.07875).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def bce(logits: Tensor, target: float) -> Tensor:
    """Batch mean of -t log sigma(l) - (1 - t) log(1 - sigma(l)) for one constant target t in [0, 1]."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def real_term(loss: str, logits: Tensor, target: float) -> Tensor:
    """The discriminator's loss on real images: BCE to the target, or minus the mean score."""
    return bce(logits, target) if loss == "bce" else -logits.mean()


def fake_term(loss: str, logits: Tensor, target: float) -> Tensor:
    """The discriminator's loss on generated images: BCE to the target, or the mean score."""
    return bce(logits, target) if loss == "bce" else logits.mean()


def generator_term(loss: str, logits: Tensor, target: float) -> Tensor:
    """The generator's loss: BCE to the target (the non-saturating form for 1), or minus the mean score."""
    return bce(logits, target) if loss == "bce" else -logits.mean()
