"""Images from a generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Gan
from models._layers import MinibatchStddev
from trials.data import to_unit

FIXED_NOISE_SEED = 42  # the same in every trial of every study: pictures compare across arms


@torch.no_grad()
def generate(
    gan: Gan, generator: nn.Module, n: int, seed: int, device: torch.device, batch: int = 500
) -> Tensor:
    """(n, C, H, W) images in [0, 1] from the latents of `seed`, with `generator` in evaluation mode.

    The latents are drawn on the CPU, so that they are the same on every device. Of a conditional model image i shows
    class i modulo the number of classes.
    """
    inputs = [fixed_latents(gan, n, seed, device)]  # (n, Z)
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


def fixed_latents(gan: Gan, n: int, seed: int, device: torch.device) -> Tensor:
    """(n, Z) of `seed`, the same on every device."""
    return gan.latent(n, torch.Generator().manual_seed(seed)).to(device)


def score(discriminator: nn.Module, made: Tensor | tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
    """D's scores (N,) of images; with multi-scale gradients `made` is an image of every scale.

    A discriminator that looks at groups of images has its last group filled up with the first images.
    """
    groups = [layer.group for layer in discriminator.modules() if isinstance(layer, MinibatchStddev)]
    inputs = [made] if isinstance(made, Tensor) else list(made)
    n, group = len(inputs[0]), max(groups, default=0) or 1
    padded = torch.arange(-(-n // group) * group, device=inputs[0].device) % n
    inputs = [x[padded] for x in inputs]
    scores: Tensor = discriminator(
        inputs[0] if isinstance(made, Tensor) else tuple(inputs), *(x[padded] for x in labels)
    )
    return scores[:n]


def quantised(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8; what is not a number becomes 0."""
    return images.nan_to_num().mul(255).round().to(torch.uint8)
