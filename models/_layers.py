"""Layers, initialisers and latent distributions that several families share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d
"""The layers that initialisers, spectral norm and equalised learning rates act on; never recurrent ones."""


class NormalLatent:
    """Draws z ~ N(0, I)."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, Z) on the device of `generator`."""
        return torch.randn(n, self.dim, generator=generator, device=generator.device)


class UniformLatent:
    """Draws z ~ U(-1, 1)."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, Z) on the device of `generator`."""
        return torch.rand(n, self.dim, generator=generator, device=generator.device) * 2 - 1


class Squeeze(nn.Module):
    """(N, 1) -> (N,): the shape in which a discriminator gives its logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1)


class ToImage(nn.Conv2d):
    """A convolution whose output is an image: its equalised learning rate has gain 1."""


class Unnormalised(nn.Linear):
    """A linear layer that spectral norm leaves alone."""


class ReadLabel(Unnormalised):
    """A linear layer that reads a label."""


class PixelNorm(nn.Module):
    """b = a / sqrt(mean_c a_c^2 + 1e-8) at every position of (N, C, ...) (Karras et al. 2017, 4.2)."""

    def forward(self, a: Tensor) -> Tensor:
        return a * torch.rsqrt(a.square().mean(dim=1, keepdim=True) + 1e-8)


class MinibatchStddev(nn.Module):
    """Appends the spread over a group of images as one constant channel: (N, C, ...) -> (N, C + 1, ...).

    The standard deviation over the group at every channel and position, with 1e-8 inside the root, averaged to
    one number a group (Karras et al. 2017, 3). `group` 0 is the whole batch; else it must divide N, and a
    group is `group` neighbouring images.
    """

    def __init__(self, group: int = 0) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        group = self.group or n
        grouped = x.reshape(n // group, group, -1)  # (G, group, C ...)
        sd = (grouped.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=1)  # (G,)
        shape = (n, 1, *x.shape[2:])
        column = sd.repeat_interleave(group).reshape(n, *[1] * (x.dim() - 1)).expand(shape)
        return torch.cat((x, column), dim=1)


class JoinImage(nn.Module):
    """Appends an image of a coarser scale to a feature map, through a 1x1 convolution (multi-scale gradients).

    (N, F, h, w), (N, C, s, s) -> (N, F + joined, h, w). An image of another side than the map is averaged down
    or repeated up to it first.
    """

    def __init__(self, image_channels: int, joined: int) -> None:
        super().__init__()
        self.from_image = nn.Conv2d(image_channels, joined, 1)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        if image.shape[-1] > width:
            image = adaptive_avg_pool2d(image, (height, width))
        elif image.shape[-1] < width:
            image = interpolate(image, (height, width))
        return torch.cat((features, self.from_image(image)), dim=1)


def activate(activation: nn.Module, pixel_norm: str) -> list[nn.Module]:
    """A hidden layer's activation in a generator, with the pixel norm "none", "before" or "after" it."""
    before = [PixelNorm()] if pixel_norm == "before" else []
    after = [PixelNorm()] if pixel_norm == "after" else []
    return [*before, activation, *after]


def drop(rate: float) -> list[nn.Module]:
    """A discriminator's dropout; nothing at rate 0."""
    return [nn.Dropout(rate)] if rate else []


def doubling(n_in: int, n_out: int, kernel: int, *, transposed: bool) -> list[nn.Module]:
    """(N, n_in, h, w) -> (N, n_out, 2 h, 2 w) by repeating pixels before a convolution of an odd kernel.

    `transposed`: by one transposed 4x4 convolution of stride 2.
    """
    if transposed:
        return [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1)]
    return [nn.Upsample(scale_factor=2), nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)]


def head(
    shape: tuple[int, ...], *, minibatch_stddev: bool, group: int, linear: type[nn.Linear] = nn.Linear
) -> nn.Sequential:
    """The end of a discriminator: features of `shape` without N, (F,) or (C, h, w), -> (N,) logits."""
    channels = shape[0] + minibatch_stddev
    return nn.Sequential(
        *([MinibatchStddev(group)] if minibatch_stddev else []),
        nn.Flatten(),
        linear(channels * math.prod(shape[1:]), 1),
        Squeeze(),
    )


@torch.no_grad()
def glorot_uniform_(module: nn.Module) -> None:
    """Keras' default: Glorot uniform weights, zero biases, in every Linear and convolution (in place)."""
    for layer in module.modules():
        if isinstance(layer, Weighted):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def add_spectral_norm(module: nn.Module) -> None:
    """Divide every Linear and convolution weight by its largest singular value (in place).

    One power iteration a forward pass in training mode, none in evaluation mode; kernels are flattened to
    (out, in * kernel) (Miyato et al. 2018, algorithm 1). Recurrent weights and `Unnormalised` layers stay as
    they are.
    """
    for layer in list(module.modules()):
        if isinstance(layer, Weighted) and not isinstance(layer, Unnormalised):
            spectral_norm(layer)


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


@torch.no_grad()
def add_equalized_lr(module: nn.Module) -> None:
    """Redraw every Linear and convolution weight from N(0, 1) and scale it by gain/sqrt(fan_in) when it is used.

    fan_in = input channels x kernel; the gain is sqrt 2, or 1 for `ToImage` layers and those with one
    output (in place; Karras et al. 2017, 4.1). Biases start at 0. Recurrent weights stay as they are.
    """
    for layer in list(module.modules()):
        if isinstance(layer, Weighted):
            weight = layer.weight
            # Of a transposed convolution the first axis is the input.
            outputs = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
            fan_in = outputs[0].numel()
            gain = 1.0 if isinstance(layer, ToImage) or len(outputs) == 1 else math.sqrt(2)
            nn.init.normal_(weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            register_parametrization(layer, "weight", _Scale(gain / math.sqrt(fan_in)))
