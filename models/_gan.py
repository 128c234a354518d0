"""The types that declare a GAN. This file imports no torch, so that a study is checked in milliseconds.

Axes used in this package: N images of a batch, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named GAN with its hyperparameters and the training recipe it was published with.

    `recipe` overrides the defaults of the training hyperparameters (`trials.spec.TRAINING`) and may set
    `epochs`. `size_multiple`: image height and width must be multiples of it. `pixels` is the range of the
    generator's output and of the images the discriminator sees: "tanh" [-1, 1] or "unit" [0, 1].
    """

    name: str
    doc: str
    source: str
    pixels: Literal["tanh", "unit"]
    size_multiple: int = 1
    params: Mapping[str, Param] = field(default_factory=dict)
    recipe: Mapping[str, Value] = field(default_factory=dict)

    def shape_problem(self, image_shape: ImageShape) -> str | None:
        """Say why this GAN cannot make images of `image_shape` (C, H, W), or None."""
        _, height, width = image_shape
        if height % self.size_multiple or width % self.size_multiple:
            return (
                f"{self.name} needs images whose sides are multiples of {self.size_multiple} "
                f"(got {height}x{width})"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gan:
    """Two networks and how they are trained against each other.

    generator      (N, Z) -> (N, C, H, W) in the range of `pixels`
    discriminator  (N, C, H, W) -> (N,) logits
    latent         (n, torch.Generator) -> (n, Z), drawn on the generator's device
    d_loss         (logits of real, logits of fake) -> (total to minimise, real term, fake term), scalars
    g_loss         logits of fake -> scalar
    """

    generator: nn.Module
    discriminator: nn.Module
    pixels: Literal["tanh", "unit"]
    latent: Callable[..., Tensor]
    d_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    g_loss: Callable[[Tensor], Tensor]
