"""Family `obs`: the vanilla GAN of the MNIST observations notebook, as an MLP and as a DCGAN.

Source: "Generative Adversarial Networks - Training and Observations" (its README; the notebook is lost).
The MLP is the widely used Keras GAN with BatchNorm after the activation; the DCGAN is the Keras MNIST GAN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from models._gan import Gan, ImageShape, Param, Preset
from models._layers import NormalLatent, Squeeze, glorot_uniform_
from models._losses import d_loss_mean, g_loss_non_saturating

PRESETS = (
    Preset(
        name="obs_mlp",
        doc="MLP GAN: G 256-512-1024 with BatchNorm, D 512-256",
        source="Keras GAN; GAN observations notebook",
        pixels="tanh",
        params={
            "latent_dim": Param(kind=int, default=100, low=1, high=4096, doc="dimensions of z"),
            "width": Param(
                kind=int, default=256, low=1, high=4096,
                doc="G has layers of width, 2 width, 4 width; D of 2 width, width",
            ),
        },
        recipe={
            "lr": 2e-4, "optimizer": "adam", "beta1": 0.5, "beta2": 0.999, "eps": 1e-7,
            "batch_size": 128, "epochs": 50,
        },
    ),
    Preset(
        name="obs_dcgan",
        doc="DCGAN: G 128x7x7 up twice, D two strided convolutions with dropout",
        source="Keras MNIST GAN",
        pixels="unit",
        size_multiple=4,
        params={
            "latent_dim": Param(kind=int, default=100, low=1, high=4096, doc="dimensions of z"),
            "width": Param(kind=int, default=128, low=2, high=2048, doc="channels of G; D has half as many"),
            "dropout": Param(kind=float, default=0.4, low=0, high=1, high_open=True, doc="dropout rate in D"),
        },
        recipe={
            "lr": 2e-4, "optimizer": "adam", "beta1": 0.5, "beta2": 0.999, "eps": 1e-7,
            "batch_size": 256, "epochs": 100,
        },
    ),
)  # fmt: skip


def build(preset: Preset, image_shape: ImageShape, params: Mapping[str, Any]) -> Gan:
    """Networks for images of (C, H, W), Glorot-initialised from torch's global generator."""
    if preset.name == "obs_mlp":
        generator, discriminator = _mlp(image_shape, **params)
    else:
        generator, discriminator = _dcgan(image_shape, **params)
    glorot_uniform_(generator)
    glorot_uniform_(discriminator)
    return Gan(
        generator=generator,
        discriminator=discriminator,
        pixels=preset.pixels,
        latent=NormalLatent(params["latent_dim"]),
        d_loss=d_loss_mean,
        g_loss=g_loss_non_saturating,
    )


def _mlp(image_shape: ImageShape, latent_dim: int, width: int) -> tuple[nn.Module, nn.Module]:
    n_pixels = math.prod(image_shape)
    sizes = [latent_dim, width, 2 * width, 4 * width]
    hidden: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        # Keras' BatchNorm(momentum=0.8) in torch's words, after the activation.
        hidden += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2), nn.BatchNorm1d(n_out, eps=1e-3, momentum=0.2)]
    generator = nn.Sequential(
        *hidden,  # (N, Z) -> (N, 4 width)
        nn.Linear(sizes[-1], n_pixels),
        nn.Tanh(),
        nn.Unflatten(1, image_shape),  # (N, C, H, W)
    )
    discriminator = nn.Sequential(
        nn.Flatten(),  # (N, C H W)
        nn.Linear(n_pixels, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Linear(2 * width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, 1),
        Squeeze(),  # (N,)
    )
    return generator, discriminator


def _dcgan(
    image_shape: ImageShape, latent_dim: int, width: int, dropout: float
) -> tuple[nn.Module, nn.Module]:
    channels, height, _width = image_shape
    h, w = height // 4, _width // 4
    generator = nn.Sequential(
        nn.Linear(latent_dim, width * h * w),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (width, h, w)),  # (N, width, H/4, W/4)
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),  # (N, width, H/2, W/2)
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),  # (N, width, H, W)
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, channels, 7, padding=3),
        nn.Sigmoid(),  # (N, C, H, W) in [0, 1]
    )
    discriminator = nn.Sequential(
        nn.Conv2d(channels, width // 2, 3, stride=2, padding=1),  # (N, width/2, H/2, W/2)
        nn.LeakyReLU(0.2),
        nn.Dropout(dropout),
        nn.Conv2d(width // 2, width // 2, 3, stride=2, padding=1),  # (N, width/2, H/4, W/4)
        nn.LeakyReLU(0.2),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(width // 2 * h * w, 1),
        Squeeze(),  # (N,)
    )
    return generator, discriminator
