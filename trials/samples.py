"""Images from a generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Gan
from trials.data import to_unit

FIXED_NOISE_SEED = 42  # the same in every trial of every study: pictures compare across arms


@torch.no_grad()
def generate(
    gan: Gan, generator: nn.Module, n: int, seed: int, device: torch.device, batch: int = 500
) -> Tensor:
    """(n, C, H, W) images in [0, 1] from the latents of `seed`, with `generator` in evaluation mode.

    Of a conditional model image i shows class i modulo the number of classes.
    """
    noise = torch.Generator(device).manual_seed(seed)
    inputs = [gan.latent(n, noise)]  # (n, Z)
    if gan.n_classes:
        inputs.append(torch.arange(n, device=device) % gan.n_classes)
    was_training = generator.training
    generator.eval()
    images = []
    for parts in zip(*(x.split(batch) for x in inputs), strict=True):
        made = generator(*parts)
        images.append(to_unit(made if isinstance(made, Tensor) else made[-1], gan.pixels))
    generator.train(was_training)
    return torch.cat(images)


def quantised(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8; what is not a number becomes 0."""
    return images.nan_to_num().mul(255).round().to(torch.uint8)
