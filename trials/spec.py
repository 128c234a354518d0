"""What a trial is: values that pickle, have a digest, and decide everything the trial will compute.

Imports no torch, so that a study is resolved and planned in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from models import Param, Value

TRAINING: Mapping[str, Param] = MappingProxyType(
    {
        "lr": Param(
            kind=float, default=2e-4, low=0, low_open=True, high=10, doc="learning rate of both nets"
        ),
        "lr_g": Param(
            kind=float, default=None, low=0, low_open=True, high=10, doc="of the generator; default: lr"
        ),
        "lr_d": Param(
            kind=float, default=None, low=0, low_open=True, high=10, doc="of the discriminator; default: lr"
        ),
        "optimizer": Param(kind=str, default="adam", choices=("adam", "rmsprop", "sgd"), doc="of both nets"),
        "beta1": Param(kind=float, default=0.5, low=0, high=1, high_open=True, doc="Adam: first moment"),
        "beta2": Param(kind=float, default=0.999, low=0, high=1, high_open=True, doc="Adam: second moment"),
        "eps": Param(
            kind=float, default=1e-7, low=0, low_open=True, high=1, doc="Adam, RMSprop: added to the root"
        ),
        "alpha": Param(kind=float, default=0.9, low=0, high=1, high_open=True, doc="RMSprop: smoothing"),
        "momentum": Param(kind=float, default=0.0, low=0, high=1, high_open=True, doc="SGD: momentum"),
        "batch_size": Param(
            kind=int, default=128, low=2, high=65536, doc="real images of a D step, and as many fakes"
        ),
        "batch_size_g": Param(
            kind=int, default=None, low=2, high=65536, doc="fakes of a G step; default: batch_size"
        ),
    }
)
"""The hyperparameters every model takes; a preset's recipe overrides the defaults."""

FOLLOWS: Mapping[str, str] = MappingProxyType({"lr_g": "lr", "lr_d": "lr", "batch_size_g": "batch_size"})
"""Hyperparameters that take another one's value unless given."""


def resolve_training(recipe: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """All training hyperparameters: the given ones over the preset's recipe over the defaults."""
    values: dict[str, Value] = {}
    for name, param in TRAINING.items():
        value = given.get(name, recipe.get(name, param.default))
        values[name] = values[FOLLOWS[name]] if value is None else value
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One arm with one seed: everything that decides what the trial computes, and nothing else.

    `steps`: one step is one discriminator update and one generator update. `log_every`: steps averaged into
    one row of metrics. `picture_steps`: when sample grids are drawn and the generator is evaluated.
    `picture_samples`, `eval_samples`: images in a grid and in an evaluation. `limit`: only the first images.
    """

    model: str
    model_params: Mapping[str, Value]
    training: Mapping[str, Value]
    dataset: str
    dataset_digest: str
    limit: int | None
    seed: int
    steps: int
    log_every: int
    picture_steps: tuple[int, ...]
    picture_samples: int
    eval_samples: int

    @property
    def key(self) -> str:
        """The trial key: 16 hexadecimal digits that are the same for the same trial for ever."""
        return digest(asdict(self))[:16]


def digest(value: object) -> str:
    """SHA-256 of a JSON-able value in canonical form (sorted keys, no spaces, finite numbers)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def evenly_spaced_steps(steps: int, count: int) -> tuple[int, ...]:
    """At most `count` distinct steps that divide 1..steps evenly and end with `steps`; none for count 0.

    >>> evenly_spaced_steps(1000, 4)
    (250, 500, 750, 1000)
    """
    return tuple(sorted({max(1, round(steps * i / count)) for i in range(1, count + 1)}))


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one named stream of random numbers of a trial.

    Streams of different names are independent, and drawing from one never shifts another: evaluation and
    pictures cannot change training, and every arm sees the same data order for the same seed.
    """
    return int(digest([seed, *names])[:16], 16) >> 1
