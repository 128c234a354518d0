"""Layers, initialisers and latent distributions that several families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NormalLatent:
    """Draws z ~ N(0, I)."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, Z) on the device of `generator`."""
        return torch.randn(n, self.dim, generator=generator, device=generator.device)


class Squeeze(nn.Module):
    """(N, 1) -> (N,): the shape in which a discriminator gives its logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1)


@torch.no_grad()
def glorot_uniform_(module: nn.Module) -> None:
    """Keras' default: Glorot uniform weights, zero biases, in every Linear and convolution (in place)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
