"""Family `obs`: the vanilla GAN of the MNIST observations notebook, as an MLP and as a DCGAN.

Source: "Generative Adversarial Networks - Training and Observations" (its README; the notebook is lost).
The MLP is the widely used Keras GAN with BatchNorm after the activation; the DCGAN is the Keras MNIST GAN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from models._gan import Gan, ImageShape, Param, Preset
from models._layers import JoinImage, NormalLatent, ToImage, activate, drop, glorot_uniform_, head

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
        refuses={
            "multi_scale": "an MLP has no feature maps of a lower resolution",
            "progressive": "an MLP has no resolutions to grow through",
        },
        tiny={"latent_dim": 4, "width": 8},
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
        },
        recipe={
            "lr": 2e-4, "optimizer": "adam", "beta1": 0.5, "beta2": 0.999, "eps": 1e-7,
            "batch_size": 256, "epochs": 100, "dropout": 0.4,
        },
        refuses={"progressive": "its first layer makes the smallest of its resolutions in one piece"},
        tiny={"latent_dim": 4, "width": 8},
    ),
)  # fmt: skip


def build(preset: Preset, image_shape: ImageShape, params: Mapping[str, Any], n_classes: int) -> Gan:
    """Networks for images of (C, H, W), Glorot-initialised from torch's global generator."""
    scales: tuple[int, ...] = ()
    if preset.name == "obs_mlp":
        generator, discriminator = _mlp(image_shape, params)
    else:
        generator, discriminator = (
            _DcganGenerator(image_shape, params),
            _DcganDiscriminator(image_shape, params),
        )
        scales = (image_shape[1] // 4, image_shape[1] // 2, image_shape[1]) if params["multi_scale"] else ()
    glorot_uniform_(generator)
    glorot_uniform_(discriminator)
    return Gan(
        generator=generator,
        discriminator=discriminator,
        pixels=preset.pixels,
        latent=NormalLatent(params["latent_dim"]),
        scales=scales,
    )


def _mlp(image_shape: ImageShape, params: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    width, n_pixels = params["width"], math.prod(image_shape)
    sizes = [params["latent_dim"], width, 2 * width, 4 * width]
    hidden: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        # Keras' BatchNorm(momentum=0.8) in torch's words, after the activation.
        hidden += [
            nn.Linear(n_in, n_out),
            *activate(nn.LeakyReLU(0.2), params["pixel_norm"]),
            nn.BatchNorm1d(n_out, eps=1e-3, momentum=0.2),
        ]
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
        *drop(params["dropout"]),
        nn.Linear(2 * width, width),
        nn.LeakyReLU(0.2),
        *drop(params["dropout"]),
        head((width,), minibatch_stddev=params["minibatch_stddev"], group=params["minibatch_stddev_group"]),
    )
    return generator, discriminator


class _DcganGenerator(nn.Module):
    """(N, Z) -> (N, C, H, W), or with multi-scale gradients the images of H/4, H/2 and H."""

    def __init__(self, image_shape: ImageShape, params: Mapping[str, Any]) -> None:
        super().__init__()
        (channels, h, w), width = image_shape, params["width"]

        def hidden() -> list[nn.Module]:
            return activate(nn.LeakyReLU(0.2), params["pixel_norm"])

        self.stages = nn.ModuleList(
            (
                nn.Sequential(
                    nn.Linear(params["latent_dim"], width * (h // 4) * (w // 4)),
                    nn.Unflatten(1, (width, h // 4, w // 4)),  # (N, width, H/4, W/4)
                    *hidden(),
                ),
                # (N, width, H/2, W/2), then (N, width, H, W)
                nn.Sequential(nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), *hidden()),
                nn.Sequential(nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), *hidden()),
            )
        )
        coarse = [ToImage(width, channels, 1) for _ in range(2 if params["multi_scale"] else 0)]
        self.to_images = nn.ModuleList((*coarse, ToImage(width, channels, 7, padding=3)))

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        images, features = [], z
        first = len(self.stages) - len(self.to_images)
        for i, stage in enumerate(self.stages):
            features = stage(features)
            if i >= first:
                images.append(self.to_images[i - first](features).sigmoid())  # (N, C, h, w) in [0, 1]
        return images[0] if len(images) == 1 else tuple(images)


class _DcganDiscriminator(nn.Module):
    """(N, C, H, W), or the tuple of the scales, -> (N,) logits."""

    def __init__(self, image_shape: ImageShape, params: Mapping[str, Any]) -> None:
        super().__init__()
        (channels, h, w), features = image_shape, params["width"] // 2
        joined = features if params["multi_scale"] else 0
        self.joins = nn.ModuleList(JoinImage(channels, joined) for _ in range(2 if joined else 0))
        self.stages = nn.ModuleList(
            # (N, width/2, H/2, W/2), then (N, width/2, H/4, W/4)
            nn.Sequential(
                nn.Conv2d(n_in, features, 3, stride=2, padding=1), nn.LeakyReLU(0.2), *drop(params["dropout"])
            )
            for n_in in (channels, features + joined)
        )
        self.head = head(
            (features + joined, h // 4, w // 4),
            minibatch_stddev=params["minibatch_stddev"], group=params["minibatch_stddev_group"],
        )  # fmt: skip

    def forward(self, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        coarse, features = ((), images) if isinstance(images, Tensor) else (images[-2::-1], images[-1])
        for i, stage in enumerate(self.stages):
            features = stage(features)
            if coarse:
                features = self.joins[i](features, coarse[i])
        logits: Tensor = self.head(features)
        return logits
