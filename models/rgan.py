"""Family `rgan`: convolutions and LSTMs in both nets, in five versions of how a picture becomes a sequence.

Source: "mv-temporal-rgan" (RGAN versions 1 to 5, Keras). Version 1 writes and reads a picture as one string of
pixels with 1-d convolutions; version 2 as rows, one row a time step; version 3 as a string again, between 2-d
convolutions; 4 is 3 with spectral norm; 5 is 4 with LeakyReLU. A string is in raster order.
Axes besides those of the package: T time steps, F features of a step, U units of an LSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models._gan import Gan, ImageShape, Param, Preset, Value
from models._layers import (
    JoinImage,
    NormalLatent,
    ToImage,
    Unnormalised,
    activate,
    drop,
    glorot_uniform_,
    head,
)

_LATENT = {"latent_dim": Param(kind=int, default=100, low=1, high=4096, doc="dimensions of z")}
_D_WIDTH = {
    "d_width": Param(
        kind=int, default=256, low=8, high=2048,
        doc="D has layers of d_width, d_width/2, d_width/4, d_width/8 channels",
    )
}  # fmt: skip
_PARAMS_3 = {  # of v3 and its successors
    **_LATENT,
    "width": Param(
        kind=int, default=128, low=4, high=2048,
        doc="G has layers of width, 2 width, width, width/2 channels, after them all width/4",
    ),
    "d_width": Param(
        kind=int, default=256, low=32, high=2048,
        doc="D has layers of d_width, d_width/2, d_width/4 channels and an LSTM of d_width/32 units",
    ),
}  # fmt: skip
_RECIPE: Mapping[str, Value] = {
    "lr": 4e-4, "g_factor": 0.25, "optimizer": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-7,
    "batch_size": 256, "sampling": "replacement", "epochs": 500, "d_update": "separate",
    "label_real": 0.9, "label_fake": 0.0, "label_generator": 0.9, "max_norm": 3.0, "dropout": 0.25,
}  # fmt: skip
_RECIPE_4: Mapping[str, Value] = {**_RECIPE, "label_real_sd": 0.005, "spectral_norm": "both"}
_REFUSES = {
    "progressive": "growing starts at 4x4, of which the discriminator's unpadded convolutions leave nothing",
    "gradient_penalty": "BatchNorm in the discriminator makes the score of an image depend on the others, "
    "so a penalty on each image's own gradient means nothing (Gulrajani et al. 2017, 4)",
}
_TINY: Mapping[str, Value] = {"latent_dim": 4, "width": 16, "d_width": 16}
_TINY_3: Mapping[str, Value] = {"latent_dim": 4, "width": 16, "d_width": 32}

PRESETS = (
    Preset(
        name="rgan_v1",
        recurrent=True,
        doc="1-d convolutions and LSTMs over the string of pixels",
        source="mv-temporal-rgan, RGAN v1",
        pixels="unit",
        channels=(1,),
        size_multiple=4,
        min_size=8,
        params={
            **_LATENT,
            "width": Param(
                kind=int, default=128, low=8, high=2048,
                doc="G has layers of width, width, width/2, width/4, width/8 channels",
            ),
            **_D_WIDTH,
        },
        recipe=_RECIPE,
        refuses={
            **_REFUSES,
            "multi_scale": "its feature maps are strings of pixels, which have no pictures of lower resolutions",
            "progressive": "it writes and reads strings of pixels, which have no resolutions to grow through",
        },
        tiny=_TINY,
    ),
    Preset(
        name="rgan_v2",
        recurrent=True,
        doc="2-d convolutions, and LSTMs that take a row of the picture as a time step",
        source="mv-temporal-rgan, RGAN v2",
        pixels="unit",
        channels=(1,),
        size_multiple=4,
        min_size=16,
        params={
            **_LATENT,
            "width": Param(
                kind=int, default=128, low=2, high=2048,
                doc="G has layers of width, width, width/2 channels, and then as many as the picture has columns",
            ),
            **_D_WIDTH,
        },
        recipe=_RECIPE,
        refuses=_REFUSES,
        tiny=_TINY,
    ),
    Preset(
        name="rgan_v3",
        recurrent=True,
        doc="2-d convolutions, and LSTMs over the string of pixels",
        source="mv-temporal-rgan, RGAN v3",
        pixels="unit",
        channels=(1,),
        size_multiple=4,
        min_size=16,
        params=_PARAMS_3,
        recipe={**_RECIPE, "label_real_sd": 0.005},
        refuses=_REFUSES,
        tiny=_TINY_3,
    ),
    Preset(
        name="rgan_v4",
        recurrent=True,
        doc="rgan_v3 with spectral norm and one more convolution in front of D",
        source="mv-temporal-rgan, RGAN v4",
        pixels="unit",
        channels=(1,),
        size_multiple=4,
        min_size=16,
        params=_PARAMS_3,
        recipe=_RECIPE_4,
        refuses=_REFUSES,
        tiny=_TINY_3,
    ),
    Preset(
        name="rgan_v5",
        recurrent=True,
        doc="rgan_v4 with LeakyReLU in G, on images in [-1, 1]",
        source="mv-temporal-rgan, RGAN v5",
        pixels="tanh",
        channels=(1,),
        size_multiple=4,
        min_size=16,
        params=_PARAMS_3,
        recipe=_RECIPE_4,
        refuses=_REFUSES,
        tiny=_TINY_3,
    ),
)  # fmt: skip


def build(preset: Preset, image_shape: ImageShape, params: Mapping[str, Any], n_classes: int) -> Gan:
    """Networks for images of (1, H, W), initialised from torch's global generator (`_init`).

    G ends in a ReLU (LeakyReLU in version 5), so its pixels are not bounded above.
    """
    _, h, w = image_shape
    version = int(preset.name[-1])
    generator: nn.Module
    discriminator: nn.Module
    if version == 1:
        generator, discriminator = _generator_1(h, w, params), _discriminator_1(params)
    elif version == 2:
        generator, discriminator = _generator_2(h, w, params), _discriminator_2(w, params)
    else:
        generator = _generator_3(h, w, params, leaky=version == 5)
        discriminator = _discriminator_3(h, w, params, extra=version > 3)
    _init(generator)
    _init(discriminator)
    return Gan(
        generator=generator,
        discriminator=discriminator,
        pixels=preset.pixels,
        latent=NormalLatent(params["latent_dim"]),
        scales=(h // 4, h // 2, h) if params.get("multi_scale") else (),
    )


class _Lstm(nn.Module):
    """(N, T, F) -> (N, T, U); `both` directions: (N, T, 2 U), forward and backward outputs side by side."""

    def __init__(self, features: int, units: int, *, both: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, units, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.lstm(x)[0]
        return outputs


class _Ends(nn.Module):
    """(N, T, 2 U) of a bidirectional LSTM -> (N, 2 U): each direction's output when it has read all."""

    def forward(self, x: Tensor) -> Tensor:
        units = x.shape[2] // 2
        return torch.cat((x[:, -1, :units], x[:, 0, units:]), dim=1)


class _Swap(nn.Module):
    """(N, T, F) <-> (N, F, T): LSTMs take the features last, convolutions second."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Rows(nn.Module):
    """(N, C, H, W) -> (N, T = H, F = W C): a row is a time step, feature column * C + channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(2)


class _GlobalMax(nn.Module):
    """(N, C, ...) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).amax(dim=2)


def _norm(layer: nn.Conv1d | nn.Conv2d) -> list[nn.Module]:
    """The layer and Keras' BatchNorm(momentum=0.8) in torch's words."""
    norm = nn.BatchNorm1d if isinstance(layer, nn.Conv1d) else nn.BatchNorm2d
    return [layer, norm(layer.out_channels, eps=1e-3, momentum=0.2)]


def _generator_1(h: int, w: int, params: Mapping[str, Any]) -> nn.Sequential:
    """(N, Z) -> (N, 1, H, W)."""
    width, length = params["width"], h * w // 16
    sizes = [width, width, width // 2, width // 4, width // 8]
    layers: list[nn.Module] = [
        nn.Linear(params["latent_dim"], width * length),
        nn.Unflatten(1, (width, length)),  # (N, width, H W / 16)
        *activate(nn.ReLU(), params["pixel_norm"]),
    ]
    for (n_in, n_out), kernel in zip(pairwise(sizes), (12, 8, 4, 2), strict=True):
        layers += [
            nn.Upsample(scale_factor=2),
            # "Same" padding of an even kernel: the odd zero is at the end.
            nn.ZeroPad1d((kernel // 2 - 1, kernel // 2)),
            *_norm(nn.Conv1d(n_in, n_out, kernel)),
            *activate(nn.Tanh() if kernel == 2 else nn.ReLU(), params["pixel_norm"]),
        ]
    return nn.Sequential(
        *layers,  # (N, width/8, H W)
        _Swap(),
        _Lstm(width // 8, 1, both=True),  # (N, H W, 2)
        _Swap(),
        nn.Conv1d(2, 1, 3, padding=1),
        nn.ReLU(),
        nn.Unflatten(2, (h, w)),
    )


def _discriminator_1(params: Mapping[str, Any]) -> nn.Sequential:
    """(N, 1, H, W) -> (N,) logits."""
    d_width = params["d_width"]
    sizes = [2, d_width, d_width // 2, d_width // 4, d_width // 8]
    convolutions = [
        nn.Conv1d(n_in, n_out, kernel, stride=2)
        for (n_in, n_out), kernel in zip(pairwise(sizes), (6, 6, 4, 4), strict=True)
    ]
    return nn.Sequential(
        nn.Flatten(2),
        _Swap(),  # (N, T = H W, 1)
        _Lstm(1, 1, both=True),
        _Swap(),  # (N, 2, H W)
        *[
            _stage(convolution, normalised=i > 0, rate=params["dropout"])
            for i, convolution in enumerate(convolutions)
        ],
        _GlobalMax(),
        _head(sizes[-1], params),
    )


class _Generator(nn.Module):
    """(N, Z) -> (N, 1, H, W), or with multi-scale gradients the images of H/4, H/2 and H.

    `stages` end at features of H/4, at features of H/2 and at the image. The coarse images are bounded by a
    sigmoid or tanh: behind a ReLU, pixels that start negative would pass no gradient.
    """

    def __init__(self, stages: Sequence[nn.Module], to_images: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.to_images = nn.ModuleList(to_images)

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        coarse: list[Tensor] = []
        features = z
        for i, stage in enumerate(self.stages):
            features = stage(features)
            if i < len(self.to_images):
                coarse.append(self.to_images[i](features))  # (N, 1, h, w)
        return (*coarse, features) if coarse else features


def _generator_2(h: int, w: int, params: Mapping[str, Any]) -> _Generator:
    width, pixel_norm = params["width"], params["pixel_norm"]
    stages = (
        _seed(h, w, params, activate(nn.ReLU(), pixel_norm)),
        nn.Sequential(  # (N, width, H/2, W/2)
            nn.Upsample(scale_factor=2),
            *_norm(nn.Conv2d(width, width, 3, padding=1)),
            *activate(nn.ReLU(), pixel_norm),
        ),
        nn.Sequential(
            nn.Upsample(scale_factor=2),
            *_norm(nn.Conv2d(width, width // 2, 3, padding=1)),
            *activate(nn.ReLU(), pixel_norm),  # (N, width/2, H, W)
            *_norm(nn.Conv2d(width // 2, w, 3, padding=1)),
            *activate(nn.Tanh(), pixel_norm),  # (N, W, H, W)
            _Rows(),
            _Lstm(w * w, w, both=True),  # (N, H, 2 W)
            _Swap(),
            nn.Conv1d(2 * w, w, 3, padding=1),
            nn.ReLU(),
            _Swap(),  # (N, H, W)
            nn.Unflatten(1, (1, h)),
        ),
    )
    return _Generator(stages, _to_images((width, width), nn.Sigmoid, params))


def _generator_3(h: int, w: int, params: Mapping[str, Any], *, leaky: bool) -> _Generator:
    width, pixel_norm = params["width"], params["pixel_norm"]

    def activation() -> nn.Module:
        return nn.LeakyReLU(0.2) if leaky else nn.ReLU()

    def hidden() -> list[nn.Module]:
        return activate(activation(), pixel_norm)

    stages = (
        nn.Sequential(  # (N, 2 width, H/4, W/4)
            _seed(h, w, params, hidden()),
            *_norm(nn.Conv2d(width, 2 * width, 3, padding=1)),
            *hidden(),
        ),
        nn.Sequential(  # (N, width, H/2, W/2)
            nn.Upsample(scale_factor=2),
            *_norm(nn.Conv2d(2 * width, width, 3, padding=1)),
            *hidden(),
        ),
        nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 2, 1, 2)),  # "same": the odd zeros are at the end
            *_norm(nn.Conv2d(width, width // 2, 4)),
            *hidden(),  # (N, width/2, H, W)
            nn.Flatten(2),
            _Swap(),
            _Lstm(width // 2, width // 4),  # (N, H W, width/4)
            _Swap(),
            nn.Unflatten(2, (h, w)),
            *_norm(nn.Conv2d(width // 4, width // 4, 3, padding=1)),
            *_norm(nn.Conv2d(width // 4, width // 4, 3, padding=1)),
            *_norm(ToImage(width // 4, 1, 3, padding=1)),
            activation(),
        ),
    )
    bound = nn.Tanh if leaky else nn.Sigmoid
    return _Generator(stages, _to_images((2 * width, width), bound, params))


def _seed(h: int, w: int, params: Mapping[str, Any], activation: list[nn.Module]) -> nn.Sequential:
    """(N, Z) -> (N, width, H/4, W/4)."""
    shape = (params["width"], h // 4, w // 4)
    return nn.Sequential(
        nn.Linear(params["latent_dim"], shape[0] * shape[1] * shape[2]),
        nn.Unflatten(1, shape),
        *activation,
    )


def _to_images(
    channels: tuple[int, int], bound: Callable[[], nn.Module], params: Mapping[str, Any]
) -> list[nn.Module]:
    """What makes an image of the features of H/4 and of H/2; nothing without multi-scale gradients."""
    return [nn.Sequential(ToImage(n, 1, 1), bound()) for n in (channels if params["multi_scale"] else ())]


class _Discriminator(nn.Module):
    """(N, 1, H, W), or the tuple of the scales, -> (N,) logits.

    With multi-scale gradients the image of H/2 joins the features before the last stage but one, that of H/4
    those before the last stage: at 28x28 it joins maps of side 18 and 16 in version 2, 13 and 6 from version 3.
    """

    def __init__(
        self,
        front: nn.Module,
        sizes: Sequence[int],
        geometry: Sequence[tuple[int, int, int]],
        end: nn.Module,
        params: Mapping[str, Any],
        *,
        first_normalised: bool,
    ) -> None:
        """`front`: image -> (N, sizes[0], H, W); a stage has (kernel, stride, dilation) of `geometry`."""
        super().__init__()
        self.front, self.end = front, end
        first_joined = len(geometry) - 2 if params["multi_scale"] else len(geometry)
        self.joins = nn.ModuleList(JoinImage(1, n) for n in sizes[first_joined:-1])
        self.stages = nn.ModuleList(
            _stage(
                nn.Conv2d(2 * n_in if i >= first_joined else n_in, n_out, kernel, stride, dilation=dilation),
                normalised=i > 0 or first_normalised,
                rate=params["dropout"],
            )
            for i, ((n_in, n_out), (kernel, stride, dilation)) in enumerate(
                zip(pairwise(sizes), geometry, strict=True)
            )
        )

    def forward(self, images: Tensor | tuple[Tensor, ...]) -> Tensor:
        coarse, image = ((), images) if isinstance(images, Tensor) else (images[-2::-1], images[-1])
        features = self.front(image)
        first_joined = len(self.stages) - len(self.joins)
        for i, stage in enumerate(self.stages):
            if i >= first_joined:
                features = self.joins[i - first_joined](features, coarse[i - first_joined])
            features = stage(features)
        logits: Tensor = self.end(features)
        return logits


def _discriminator_2(w: int, params: Mapping[str, Any]) -> _Discriminator:
    d_width = params["d_width"]
    sizes = [1, d_width, d_width // 2, d_width // 4, d_width // 8]
    front = nn.Sequential(
        _Rows(),  # (N, T = H, F = W)
        _Lstm(w, w, both=True),
        _Swap(),
        nn.Conv1d(2 * w, w, 2, dilation=2, padding=1),
        nn.ReLU(),
        _Swap(),  # (N, H, W)
        nn.Unflatten(1, (1, -1)),
    )
    return _Discriminator(
        front,
        sizes,
        [(kernel, 1, 2) for kernel in (4, 3, 2, 2)],
        nn.Sequential(_GlobalMax(), _head(sizes[-1], params)),
        params,
        first_normalised=False,
    )


def _discriminator_3(h: int, w: int, params: Mapping[str, Any], *, extra: bool) -> _Discriminator:
    """`extra`: a convolution before the LSTM, and a last Linear that spectral norm leaves alone (version 4)."""
    d_width = params["d_width"]
    sizes = [1, d_width, d_width // 2, d_width // 4]
    units = d_width // 32
    convolution = [_stage(nn.Conv2d(1, 1, 3, padding=1), rate=params["dropout"])] if extra else []
    front = nn.Sequential(
        *convolution,
        nn.Flatten(2),
        _Swap(),  # (N, T = H W, 1)
        _Lstm(1, 1),
        _Swap(),
        nn.Unflatten(2, (h, w)),  # (N, 1, H, W)
    )
    end = nn.Sequential(
        nn.Flatten(2),
        _Swap(),  # (N, T, d_width/4), at 28x28 of T = 16 steps
        _Lstm(sizes[-1], units, both=True),
        _Ends(),
        _head(2 * units, params, linear=Unnormalised if extra else nn.Linear),
    )
    return _Discriminator(front, sizes, [(3, 2, 1), (3, 2, 1), (3, 1, 1)], end, params, first_normalised=True)


def _stage(convolution: nn.Conv1d | nn.Conv2d, *, rate: float, normalised: bool = True) -> nn.Sequential:
    layers = _norm(convolution) if normalised else [convolution]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), *drop(rate))


def _head(features: int, params: Mapping[str, Any], linear: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    return head(
        (features,),
        minibatch_stddev=params["minibatch_stddev"],
        group=params["minibatch_stddev_group"],
        linear=linear,
    )


@torch.no_grad()
def _init(module: nn.Module) -> None:
    """Glorot uniform weights, of an LSTM over its four gates as one matrix, and zero biases (in place).

    As in Keras, recurrent weights are one orthogonal matrix over the four gates, and the bias of a forget gate
    is 1: the first of torch's two biases, so that max-norm acts on it as on Keras' only one.
    """
    glorot_uniform_(module)
    for lstm in module.modules():
        if not isinstance(lstm, nn.LSTM):
            continue
        units = lstm.hidden_size
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight_ih"):  # (4 U, F)
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):  # (4 U, U)
                nn.init.orthogonal_(parameter)
            else:  # gates in the order input, forget, cell, output
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    parameter[units : 2 * units] = 1
