"""The types that declare a GAN. This file imports no torch, so that a study is checked in milliseconds.

Axes used in this package: N images of a batch, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = bool | int | float | str
"""What a hyperparameter can be."""

ImageShape = tuple[int, int, int]
"""(C, H, W)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One hyperparameter: its type, default, range and where the default comes from.

    `low` and `high` are inclusive unless `low_open` / `high_open`. `default=None` means "follows another
    parameter", which `doc` then names.
    """

    kind: type[bool] | type[int] | type[float] | type[str]
    default: Value | None
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()
    doc: str = ""
    source: str = ""

    @property
    def range(self) -> str:
        """The allowed values in words, for error messages and tables."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
        noun = "a whole number" if self.kind is int else "a number"
        low = "" if self.low is None else f" {'>' if self.low_open else '>='} {self.low:g}"
        high = "" if self.high is None else f" {'<' if self.high_open else '<='} {self.high:g}"
        return noun + low + (" and" if low and high else "") + high

    def problem(self, value: object) -> str | None:
        """Say what is wrong with `value` for this parameter, or None."""
        return None if self._allows(value) else f"must be {self.range} (got {value!r})"

    def _allows(self, value: object) -> bool:
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is str or isinstance(value, str):
            return self.kind is str and isinstance(value, str) and (not self.choices or value in self.choices)
        if not isinstance(value, int | float) or (self.kind is int and not isinstance(value, int)):
            return False
        if not math.isfinite(value):
            return False
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        return self.high is None or not (value > self.high or (self.high_open and value == self.high))


STRUCTURE: Mapping[str, Param] = MappingProxyType(
    {
        "dropout": Param(
            kind=float, default=0.0, low=0, high=1, high_open=True,
            doc="rate of the dropout in the discriminator", source="Srivastava et al. 2014",
        ),
        "spectral_norm": Param(
            kind=str, default="none", choices=("none", "d", "both"),
            doc="nets whose Linear and Conv weights are divided by their largest singular value",
            source="Miyato et al. 2018",
        ),
        "equalized_lr": Param(
            kind=bool, default=False, doc="weights kept as N(0, 1) and scaled by gain/sqrt(fan_in) when used",
            source="Karras et al. 2017, 4.1",
        ),
        "pixel_norm": Param(
            kind=str, default="none", choices=("none", "before", "after"),
            doc="normalise each position's channels in the generator, before or after the activation",
            source="Karras et al. 2017, 4.2",
        ),
        "minibatch_stddev": Param(
            kind=bool, default=False, doc="show the discriminator the spread over the batch as one more channel",
            source="Karras et al. 2017, 3",
        ),
        "minibatch_stddev_group": Param(
            kind=int, default=0, low=0, high=65536, doc="images a spread is taken over; 0: the whole batch",
            source="Karras et al. 2017, 3",
        ),
        "multi_scale": Param(
            kind=bool, default=False, doc="the generator shows the discriminator an image of every resolution",
            source="Karnewar and Wang 2020",
        ),
        "progressive": Param(
            kind=bool, default=False, doc="grow both nets from 4x4 to the full resolution",
            source="Karras et al. 2017, 2",
        ),
    }
)  # fmt: skip
"""Options that shape the networks of any family, all off by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named GAN with its hyperparameters and the training recipe it was published with.

    `recipe` overrides the defaults of options (`STRUCTURE`, `trials.options.TRAINING`) and may set `epochs` or
    `steps`. `refuses`: options this family cannot take, and why. `channels`, `sizes`: the image channels and
    sides it makes (any when empty); `size_multiple`: sides must be multiples of it; `min_size`: the smallest
    side. `pixels`: the range of the generator's output and of the images the discriminator sees, "tanh"
    [-1, 1] or "unit" [0, 1]. `conditional`: both nets are given the class. `recurrent`: both have LSTMs.
    `loss`: "bce" on logits, or "wasserstein" on a critic's scores. `tiny`: values of `params` with which the
    networks train in milliseconds, for tests and trying out.
    """

    name: str
    doc: str
    source: str
    pixels: Literal["tanh", "unit"]
    loss: Literal["bce", "wasserstein"] = "bce"
    conditional: bool = False
    recurrent: bool = False
    channels: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    size_multiple: int = 1
    min_size: int = 1
    params: Mapping[str, Param] = field(default_factory=dict)
    recipe: Mapping[str, Value] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    tiny: Mapping[str, Value] = field(default_factory=dict)

    @property
    def build_params(self) -> dict[str, Param]:
        """What `models.build` takes: the family's own parameters and the structural options it does not refuse."""
        shared = {
            name: replace(param, default=self.recipe.get(name, param.default))
            for name, param in STRUCTURE.items()
            if name not in self.refuses
        }
        return {**self.params, **shared}

    @property
    def tiny_side(self) -> int:
        """The side of the smallest square images worth trying it on."""
        side = max(8, self.min_size)
        return min(self.sizes) if self.sizes else -(-side // self.size_multiple) * self.size_multiple

    def shape_problem(self, image_shape: ImageShape) -> str | None:
        """Say why this GAN cannot make images of `image_shape` (C, H, W), or None."""
        channels, height, width = image_shape
        if self.channels and channels not in self.channels:
            allowed = " or ".join({1: "grey", 3: "colour"}.get(c, f"{c}-channel") for c in self.channels)
            return f"{self.name} makes {allowed} images (got {channels} channels), set the dataset's channels"
        if self.sizes and (height != width or height not in self.sizes):
            sides = " or ".join(f"{side}x{side}" for side in self.sizes)
            return f"{self.name} makes images of {sides} (got {height}x{width}), set the dataset's size"
        if height % self.size_multiple or width % self.size_multiple:
            return (
                f"{self.name} needs images whose sides are multiples of {self.size_multiple} "
                f"(got {height}x{width}), set the dataset's size"
            )
        if min(height, width) < self.min_size:
            return (
                f"{self.name} needs images of at least {self.min_size}x{self.min_size} "
                f"(got {height}x{width}), set the dataset's size"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gan:
    """Two networks and what is particular about training them against each other.

    generator      (N, Z) -> (N, C, H, W) in the range of `pixels`
    discriminator  (N, C, H, W) -> (N,) logits, or a critic's scores
    latent         (n, torch.Generator) -> (n, Z), drawn on the generator's device

    n_classes > 0: both nets take a second argument, the labels (N,) int64 in 0..n_classes-1.
    scales: for multi-scale gradients, the heights of the images, ascending; the generator then returns and the
    discriminator then takes a tuple of (N, C, s, s), one for each scale s. Empty otherwise.
    levels: for progressive growing, the resolutions in their order; both nets then have
    `grow(level: int, alpha: float)`, with `level` an index into `levels` and alpha in [0, 1] the share of the
    newest resolution. Images are of the full size at every level. Empty otherwise.
    """

    generator: nn.Module
    discriminator: nn.Module
    pixels: Literal["tanh", "unit"]
    latent: Callable[..., Tensor]
    loss: Literal["bce", "wasserstein"] = "bce"
    n_classes: int = 0
    scales: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
