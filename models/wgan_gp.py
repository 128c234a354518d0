"""Family `wgan_gp`: a WGAN with gradient penalty for small sets of diverse images of 32, 64 or 128 pixels a side.

Source: FishGAN, its 32x32 layer tables and its WGAN-GP-64 notebook; the 128 preset extends them.
The networks that grow are in `_progressive.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from models._gan import Gan, ImageShape, Param, Preset, Value
from models._layers import (
    JoinImage,
    NormalLatent,
    ToImage,
    activate,
    doubling,
    drop,
    glorot_uniform_,
    head,
)
from models._progressive import ProgressiveCritic, ProgressiveGenerator

_OTHER_PARAMS = {
    "latent_dim": Param(kind=int, default=256, low=1, high=4096, doc="dimensions of z"),
    "critic_width": Param(kind=float, default=1.0, low=0.1, high=4, doc="factor on the critic's channels"),
    "critic_extra": Param(
        kind=int, default=0, low=0, high=2, doc="more 3x3 layers at each resolution of the critic"
    ),
    "upsample": Param(
        kind=str, default="nearest", choices=("nearest", "transposed"),
        doc="repeat pixels and convolve, or a transposed convolution of stride 2",
    ),
}  # fmt: skip
_PARAMS = {
    "width": Param(
        kind=int, default=128, low=2, high=2048,
        doc="channels of both nets; the critic has twice as many at 4x4",
    ),
    **_OTHER_PARAMS,
}  # fmt: skip
_RECIPE: Mapping[str, Value] = {
    "lr": 1e-4, "optimizer": "adam", "beta1": 0.0, "beta2": 0.99, "eps": 1e-8, "batch_size": 32,
    "n_critic": 4, "real_batch": "same", "d_reduction": "sum", "gradient_penalty": 10.0,
    "drift": 0.001, "ema": 0.999, "augment": True,
    "pixel_norm": "before", "minibatch_stddev": True, "dropout": 0.5,
}  # fmt: skip
_RECIPE_64: Mapping[str, Value] = {
    **_RECIPE, "epochs": 2500, "lr_schedule": "100:1e-4 300:5e-5 400:2e-5..6e-5 300:2.5e-5 1400:2e-5",
}  # fmt: skip
_NO_TARGETS = "a critic's scores have no targets (Wasserstein loss)"
_REFUSES = {
    "label_real": _NO_TARGETS, "label_real_sd": _NO_TARGETS, "label_fake": _NO_TARGETS,
    "label_generator": _NO_TARGETS,
}  # fmt: skip
_TINY: Mapping[str, Value] = {"latent_dim": 8, "width": 8}

PRESETS = (
    Preset(
        name="wgan_gp_32",
        doc="WGAN-GP at 32x32: G 8-16-32, critic 32-16-8-4 with strided convolutions",
        source="FishGAN, 32x32 layer tables",
        pixels="tanh",
        loss="wasserstein",
        sizes=(32,),
        params=_PARAMS,
        recipe={**_RECIPE, "epochs": 1600, "lr_schedule": "200:1e-4 500:3e-5 900:2e-5"},
        refuses=_REFUSES,
        tiny=_TINY,
    ),
    Preset(
        name="wgan_gp_64",
        doc="WGAN-GP at 64x64: G 8-16-32-64, critic 64-32-16-8-4 with strided convolutions",
        source="FishGAN, WGAN-GP-64",
        pixels="tanh",
        loss="wasserstein",
        sizes=(64,),
        params=_PARAMS,
        recipe=_RECIPE_64,
        refuses=_REFUSES,
        tiny=_TINY,
    ),
    Preset(
        name="wgan_gp_128",
        doc="WGAN-GP at 128x128: the 64x64 nets with one more resolution of half the channels",
        source="FishGAN, WGAN-GP-64, extended",
        pixels="tanh",
        loss="wasserstein",
        sizes=(128,),
        params={
            "width": Param(
                kind=int, default=128, low=2, high=2048,
                doc="channels of both nets; the critic has twice as many at 4x4, both half as many at 128x128",
            ),
            **_OTHER_PARAMS,
        },
        recipe=_RECIPE_64,
        refuses=_REFUSES,
        tiny=_TINY,
    ),
)  # fmt: skip


def build(preset: Preset, image_shape: ImageShape, params: Mapping[str, Any], n_classes: int) -> Gan:
    """Networks for images of (C, R, R), Glorot-initialised from torch's global generator.

    Raises ValueError for `multi_scale` together with `progressive`.
    """
    if params["multi_scale"] and params["progressive"]:
        raise ValueError(
            "progressive shows the critic one resolution at a time, multi_scale all of them; keep one"
        )
    channels, side, _ = image_shape
    scales: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
    generator: nn.Module
    critic: nn.Module
    critic_width = max(2, round(params["width"] * params["critic_width"]))
    if params["progressive"]:
        levels = _sides(4, side)
        generator = ProgressiveGenerator(
            params["latent_dim"], levels, channels, params["width"],
            pixel_norm=params["pixel_norm"], transposed=params["upsample"] == "transposed",
        )  # fmt: skip
        critic = ProgressiveCritic(
            levels, channels, critic_width,
            layers=2 + params["critic_extra"], dropout=params["dropout"],
            minibatch_stddev=params["minibatch_stddev"], group=params["minibatch_stddev_group"],
        )  # fmt: skip
    else:
        scales = _sides(8, side) if params["multi_scale"] else ()
        generator = _Generator(channels, side, params)
        critic = _Critic(channels, side, critic_width, params)
    glorot_uniform_(generator)
    glorot_uniform_(critic)
    return Gan(
        generator=generator,
        discriminator=critic,
        pixels=preset.pixels,
        latent=NormalLatent(params["latent_dim"]),
        loss=preset.loss,
        scales=scales,
        levels=levels,
    )


def _sides(first: int, last: int) -> tuple[int, ...]:
    """Doubling from `first` to `last`: 8, 16, 32."""
    return tuple(first << i for i in range((last // first).bit_length()))


def _maps(width: int, side: int) -> int:
    """Channels of the feature maps of a side."""
    return {4: 2 * width, 128: width // 2}.get(side, width)


def same_conv(n_in: int, n_out: int, kernel: int) -> list[nn.Module]:
    """A convolution that keeps the side; an even kernel reaches one pixel further to the right and down."""
    if kernel % 2:
        return [nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)]
    # Padding apart: Conv2d(padding="same") pads as much, with a warning.
    before, after = kernel // 2 - 1, kernel // 2
    return [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(n_in, n_out, kernel)]


class _Generator(nn.Module):
    """(N, Z) -> (N, C, R, R), or with multi-scale gradients the images of 8, 16, ..., R."""

    def __init__(self, channels: int, side: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        width, transposed = params["width"], params["upsample"] == "transposed"

        def hidden(convolution: list[nn.Module]) -> list[nn.Module]:
            return [*convolution, *activate(nn.LeakyReLU(0.2), params["pixel_norm"])]

        sides = _sides(8, side)
        first = nn.Sequential(
            nn.Linear(params["latent_dim"], width * 8 * 8),
            nn.Unflatten(1, (width, 8, 8)),
            *hidden(same_conv(width, width, 5)),
            *hidden(same_conv(width, width, 4)),
        )
        stages = [first]  # (N, width, 8, 8), then (N, F, s, s) for each further side s
        for before, after in pairwise(sides):
            n_in, n_out = _maps(width, before), _maps(width, after)
            stage = hidden(doubling(n_in, n_out, 5, transposed=transposed))
            if after == 32 and side > 32:
                stage += hidden(same_conv(n_out, n_out, 5))
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        coarse = sides[:-1] if params["multi_scale"] else ()
        self.to_images = nn.ModuleList(
            (
                *(ToImage(_maps(width, s), channels, 1) for s in coarse),
                ToImage(_maps(width, side), channels, 5, padding=2),
            )
        )

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        images, features = [], z
        first = len(self.stages) - len(self.to_images)
        for i, stage in enumerate(self.stages):
            features = stage(features)
            if i >= first:
                images.append(self.to_images[i - first](features).tanh())  # (N, C, s, s)
        return images[0] if len(images) == 1 else tuple(images)


class _Critic(nn.Module):
    """(N, C, R, R), or the tuple of the scales, -> (N,) scores."""

    def __init__(self, channels: int, side: int, width: int, params: Mapping[str, Any]) -> None:
        super().__init__()

        def hidden(*convolution: nn.Module) -> list[nn.Module]:
            return [*convolution, nn.LeakyReLU(0.2), *drop(params["dropout"])]

        def small(n: int, layers: int) -> list[nn.Module]:
            return [module for _ in range(layers) for module in hidden(*same_conv(n, n, 3))]

        extra, n_in = params["critic_extra"], _maps(width, side)
        joins = []
        stages = [nn.Sequential(*hidden(*same_conv(channels, n_in, 5)), *small(n_in, extra))]  # (N, F, R, R)
        for s in _sides(4, side)[-2::-1]:  # (N, F, s, s) for R/2, ..., 4
            n_out = _maps(width, s)
            one_more = s == 4 or (s == 16 and side > 32)
            stage = hidden(nn.Conv2d(n_in, n_out, 4, stride=2, padding=1)) + small(n_out, one_more + extra)
            n_in = n_out
            if s == 4:
                stage += [*same_conv(n_out, n_out, 4), nn.LeakyReLU(0.2)]
            elif params["multi_scale"]:
                # Half as many channels as the map has, as in the reference code of Karnewar and Wang 2020.
                joins.append(JoinImage(channels, n_out // 2))
                n_in += n_out // 2
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.joins = nn.ModuleList(joins)
        self.head = head(
            (n_in, 4, 4), minibatch_stddev=params["minibatch_stddev"], group=params["minibatch_stddev_group"]
        )

    def forward(self, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        coarse, features = ((), images) if isinstance(images, Tensor) else (images[-2::-1], images[-1])
        for i, stage in enumerate(self.stages):
            features = stage(features)
            if 0 < i <= len(coarse):
                features = self.joins[i - 1](features, coarse[i - 1])
        scores: Tensor = self.head(features)
        return scores
