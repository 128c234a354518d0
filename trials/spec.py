"""What a trial is: values that pickle, have a digest, and decide everything the trial will compute.

Imports no torch, so that a study is resolved and planned in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Literal

from models import Value
from trials.options import switched_on


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One arm with one seed: everything that decides what the trial computes, and nothing else.

    `steps`: one step is `n_critic` discriminator updates and one generator update. `log_every`: steps averaged into
    one row of metrics. `picture_steps`: when sample grids are drawn. `eval_steps`: when the generator is evaluated,
    with `eval_samples` images in the features of `features`; some of the picture steps.
    `judged_by`: the metric of evaluations, and min or max, that decides which checkpoint is the best.
    `picture_samples`: images in a grid. `gallery`: whether the last step draws a gallery.
    `limit`: only the first images; `hold_out`: of these, so many are kept from training. `n_classes`: of the dataset,
    for a conditional model. `size`: the side that images are averaged down to when the dataset holds larger ones.
    `keep_steps`: checkpoints that are never removed. `stops`: flags that end the trial (health.py), which are raised
    when their condition has held for `confirm` steps; `rollback`: how often it goes back instead, there and when
    something is not finite, and the factor on its learning rates each time.
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
    eval_steps: tuple[int, ...]
    eval_samples: int
    features: Literal["classifier", "imagenet", "random"]
    judged_by: tuple[str, Literal["min", "max"]] = ("eval/fd", "min")
    gallery: bool = True
    hold_out: int = 0
    n_classes: int = 0
    size: int | None = None
    keep_steps: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    confirm: int = 500
    rollback: tuple[int, float] | None = None

    @property
    def key(self) -> str:
        """The trial key: 16 hexadecimal digits that are the same for the same trial for ever.

        What is at its default or switched off is left out, so that what is added later changes no key.
        """
        facts = asdict(self)
        for field in fields(self):
            if field.default is not MISSING and facts[field.name] == field.default:
                del facts[field.name]
        facts["model_params"] = switched_on(self.model_params)
        facts["training"] = switched_on(self.training)
        return digest(facts)[:16]


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


def batches_per_epoch(n_images: int, batch_size: int, sampling: str) -> int:
    """Real batches in an epoch: without the last short one, or with replacement enough to draw n_images."""
    return -(-n_images // batch_size) if sampling == "replacement" else n_images // batch_size


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one named stream of random numbers of a trial.

    Streams of different names are independent, and drawing from one never shifts another: evaluation and
    pictures cannot change training, and every arm sees the same data order for the same seed.
    """
    return int(digest([seed, *names])[:16], 16) >> 1
