"""Networks that grow from 4x4 to the full resolution while they train (Karras et al. 2017, sections 2 and 3).

Both take or make images of the full size at every level, so that training code need not know the level.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from models._layers import ToImage, activate, doubling, drop, head


class _Growing(nn.Module):
    """What both nets know of the growth. Plain attributes: whoever trains sets them, checkpoints do not hold them."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.level = len(levels) - 1
        self.alpha = 1.0

    def grow(self, level: int, alpha: float) -> None:
        """Use the resolutions up to `levels[level]`, the newest with share `alpha`. Raises ValueError outside."""
        if not (0 <= level < len(self.levels) and 0 <= alpha <= 1):
            raise ValueError(
                f"level must be in 0..{len(self.levels) - 1} and alpha in 0..1 (got {level} and {alpha})"
            )
        self.level, self.alpha = level, alpha

    @property
    def fading(self) -> bool:
        """Whether the level below still has a share."""
        return self.level > 0 and self.alpha < 1

    def fade(self, low: Tensor, high: Tensor) -> Tensor:
        """(1 - alpha) low + alpha high, written so that alpha 0 gives `low` to the bit."""
        return low + self.alpha * (high - low)


class ProgressiveGenerator(_Growing):
    """(N, Z) -> (N, C, R, R) in [-1, 1], R the last of `levels` 4, 8, ..., R; the level's pixels are repeated."""

    def __init__(
        self, latent_dim: int, levels: tuple[int, ...], channels: int, width: int, *,
        pixel_norm: str, transposed: bool,
    ) -> None:  # fmt: skip
        super().__init__(levels)

        def hidden(convolution: list[nn.Module]) -> list[nn.Module]:
            return [*convolution, *activate(nn.LeakyReLU(0.2), pixel_norm)]

        def small() -> list[nn.Module]:
            return hidden([nn.Conv2d(width, width, 3, padding=1)])

        start = [nn.Linear(latent_dim, width * 4 * 4), nn.Unflatten(1, (width, 4, 4)), *small(), *small()]
        self.stages = nn.ModuleList(
            # (N, width, 4, 4), then (N, width, s, s) for each further level s
            nn.Sequential(*stage)
            for stage in (
                start,
                *(
                    hidden(doubling(width, width, 3, transposed=transposed)) + small()
                    for _ in range(len(levels) - 1)
                ),
            )
        )
        self.to_images = nn.ModuleList(ToImage(width, channels, 1) for _ in levels)

    def forward(self, z: Tensor) -> Tensor:
        below = features = z
        for stage in self.stages[: self.level + 1]:
            below, features = features, stage(features)
        image: Tensor = self.to_images[self.level](features).tanh()  # (N, C, s, s)
        if self.fading:
            low = self.to_images[self.level - 1](below).tanh()  # (N, C, s/2, s/2)
            image = self.fade(interpolate(low, scale_factor=2.0), image)
        repeated = self.levels[-1] // self.levels[self.level]
        return interpolate(image, scale_factor=float(repeated)) if repeated > 1 else image


class ProgressiveCritic(_Growing):
    """(N, C, R, R) -> (N,) scores; images are averaged down to the level first. `layers` 3x3 layers a level."""

    def __init__(
        self, levels: tuple[int, ...], channels: int, width: int, *,
        layers: int, dropout: float, minibatch_stddev: bool, group: int,
    ) -> None:  # fmt: skip
        super().__init__(levels)
        self.from_images = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2)) for _ in levels
        )

        def small() -> list[nn.Module]:
            return [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), *drop(dropout)]

        self.stages = nn.ModuleList(
            # (N, width, s, s) -> (N, width, s/2, s/2), but 4x4 stays
            nn.Sequential(
                *(module for _ in range(layers) for module in small()),
                *([nn.AvgPool2d(2)] if level else []),
            )
            for level in range(len(levels))
        )
        self.head = head((width, 4, 4), minibatch_stddev=minibatch_stddev, group=group)

    def forward(self, images: Tensor) -> Tensor:
        # One halving at a time, so that fading out sums in the same order as the level below did.
        for _ in self.levels[self.level + 1 :]:
            images = avg_pool2d(images, 2)  # (N, C, s, s)
        features: Tensor = self.stages[self.level](self.from_images[self.level](images))
        if self.fading:
            low = self.from_images[self.level - 1](avg_pool2d(images, 2))  # (N, width, s/2, s/2)
            features = self.fade(low, features)
        for level in reversed(range(self.level)):
            features = self.stages[level](features)
        scores: Tensor = self.head(features)
        return scores
