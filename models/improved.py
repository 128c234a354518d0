"""Family `improved`: an MLP GAN with an extra layer a net, a faster D and smoothed labels, and what it improves on.

Source: "Slightly Improved GAN" on MNIST; the GAN it starts from is the MLP GAN of the PyTorch tutorials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from models._gan import Gan, ImageShape, Param, Preset
from models._layers import NormalLatent, activate, drop, head

PRESETS = (
    Preset(
        name="improved",
        doc="MLP GAN: three hidden layers a net, faster D, smoothed labels",
        source="Slightly Improved GAN (MNIST)",
        pixels="tanh",
        params={
            "latent_dim": Param(kind=int, default=64, low=1, high=4096, doc="dimensions of z"),
            "width": Param(kind=int, default=256, low=1, high=4096, doc="units of every hidden layer"),
            "layers": Param(kind=int, default=3, low=1, high=8, doc="hidden layers of each net"),
        },
        recipe={
            "lr": 2e-4, "lr_d": 4e-4, "optimizer": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
            "batch_size": 100, "epochs": 350, "d_reduction": "sum",
            "label_real": 0.9, "label_fake": 0.1, "label_generator": 1.0,
        },
        refuses={
            "multi_scale": "an MLP has no feature maps of a lower resolution",
            "progressive": "an MLP has no resolutions to grow through",
        },
        tiny={"latent_dim": 4, "width": 8},
    ),
    Preset(
        name="baseline",
        doc="MLP GAN: two hidden layers a net, one learning rate, hard labels",
        source="PyTorch tutorial GAN (MNIST)",
        pixels="tanh",
        params={
            "latent_dim": Param(kind=int, default=64, low=1, high=4096, doc="dimensions of z"),
            "width": Param(kind=int, default=256, low=1, high=4096, doc="units of every hidden layer"),
            "layers": Param(kind=int, default=2, low=1, high=8, doc="hidden layers of each net"),
        },
        recipe={
            "lr": 2e-4, "optimizer": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
            "batch_size": 100, "epochs": 300, "d_reduction": "sum",
        },
        refuses={
            "multi_scale": "an MLP has no feature maps of a lower resolution",
            "progressive": "an MLP has no resolutions to grow through",
        },
        tiny={"latent_dim": 4, "width": 8},
    ),
)  # fmt: skip


def build(preset: Preset, image_shape: ImageShape, params: Mapping[str, Any], n_classes: int) -> Gan:
    """Networks for images of (C, H, W), with torch's own initialisation from its global generator."""
    width, n_pixels = params["width"], math.prod(image_shape)
    hidden = [width] * params["layers"]
    generator: list[nn.Module] = []
    for n_in, n_out in pairwise([params["latent_dim"], *hidden]):
        generator += [nn.Linear(n_in, n_out), *activate(nn.ReLU(), params["pixel_norm"])]
    discriminator: list[nn.Module] = [nn.Flatten()]  # (N, C H W)
    for n_in, n_out in pairwise([n_pixels, *hidden]):
        discriminator += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2), *drop(params["dropout"])]
    return Gan(
        generator=nn.Sequential(
            *generator,  # (N, Z) -> (N, width)
            nn.Linear(width, n_pixels),
            nn.Tanh(),
            nn.Unflatten(1, image_shape),  # (N, C, H, W)
        ),
        discriminator=nn.Sequential(
            *discriminator,  # (N, C, H, W) -> (N, width)
            head(
                (width,),
                minibatch_stddev=params["minibatch_stddev"],
                group=params["minibatch_stddev_group"],
            ),
        ),
        pixels=preset.pixels,
        latent=NormalLatent(params["latent_dim"]),
    )
