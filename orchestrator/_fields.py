"""The fields of a study document and what each may hold, by itself.

Untrusted text enters here and nowhere else. Imports neither torch, ray, mlflow, optuna nor a YAML library.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
)

from models import Value

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
NAME_RULE = "must be 1 to 63 of the characters A-Z a-z 0-9 . _ - and start with a letter or digit"
MAX_ARMS = 100_000
BUDGETS = ("full", "short", "smoke")


KeyPath = tuple[str | int, ...]
"""Leads to a part of the document: ("space", "lr", "low"); () is the whole."""

Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]
Number = Int | Float
Text = Annotated[str, StringConstraints(max_length=6000)]
"""MLflow cuts parameters after 6000 characters."""
Scalar = bool | Int | Float | Text
Strict = ConfigDict(extra="forbid", frozen=True, strict=True)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(name[:80], list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """`unknown KIND 'name'; did you mean ...? known: ...`."""
    hint = nearest(name, known)
    return f"unknown {kind} {name[:80]!r}; {hint}{' ' if hint else ''}known: {', '.join(sorted(known))}"


class Block(BaseModel):
    model_config = Strict


class Choices(Block):
    """One of a list of values."""

    choices: Annotated[list[Scalar], Field(min_length=1)]

    def values(self) -> list[Value]:
        return list(self.choices)


class Range(Block):
    """A number between two bounds, both included; `log` draws evenly in its logarithm."""

    low: Number
    high: Number
    step: Number | None = None
    log: bool = False

    @property
    def size(self) -> float | None:
        """How many values a grid visits (maybe infinity), or None when the range is continuous."""
        if self.step is not None:
            return max(0.0, (self.high - self.low) / self.step) + 1 if self.step > 0 else math.inf
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            return max(0.0, float(self.high) - self.low + 1)
        return None

    def values(self) -> list[Value] | None:
        """The values a grid visits, or None when the range is continuous.

        >>> Range(low=0.1, high=0.3, step=0.1).values()
        [0.1, 0.2, 0.3]
        """
        if self.size is None:
            return None
        step = 1 if self.step is None else self.step
        values = (self.low + i * step for i in range(round(self.size)))
        # 15 digits hide the rounding of i * step, so that 3 * 0.1 reads 0.3.
        return [v if isinstance(v, int) else min(float(f"{v:.15g}"), self.high) for v in values]


def _axis_kind(value: object) -> str:
    has_choices = isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value)
    return "choices" if has_choices else "range"


def _axis_form(value: object) -> object:
    if isinstance(value, Choices | Range):
        return value
    form = "{choices: [...]} or {low: ..., high: ...}"
    if not isinstance(value, dict):
        raise ValueError(f"must be {form}")
    given = value.keys() & AXIS_KEYS
    if not given:
        near = next(filter(None, (nearest(key, AXIS_KEYS) for key in value)), "")
        raise ValueError(f"must be {form}{near and '; '}{near}")
    if "choices" in given and len(given) > 1:
        others = ", ".join(sorted(given - {"choices"}))
        raise ValueError(f"choices and {others} exclude each other; keep one kind")
    return value


AXIS_KEYS = ("choices", "low", "high", "step", "log")
Axis = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(_axis_kind),
    BeforeValidator(_axis_form),
]
"""`{choices: [...]}` or `{low: ..., high: ...}`."""


class Dataset(Block):
    """`limit`: train on the first images only."""

    name: str
    limit: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None


class Train(Block):
    """Length of training (one of epochs and steps; the model's recipe otherwise), batch and cadence.

    One step is one discriminator and one generator update. `log_every`: steps averaged into one row of
    metrics. `checkpoint_every`: steps; a tenth of training when absent.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | None = None
    batch_size_g: Annotated[int, Field(ge=2, le=65_536)] | None = None
    log_every: Annotated[int, Field(ge=1, le=100_000_000)] = 20
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000_000)] | None = None


class Search(Block):
    """How arms are proposed. `trials`: the number of arms, for random and tpe; a grid runs all its points."""

    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: Annotated[int, Field(ge=1, le=MAX_ARMS)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Objective(Block):
    """What makes an arm good: the mean of this metric over the arm's seeds."""

    metric: str = "eval/swd"
    mode: Literal["min", "max"] = "min"


class Pictures(Block):
    """Sample grids of the same fixed latents in every trial, evenly spaced through training."""

    count: Annotated[int, Field(ge=1, le=1000)] = 10
    samples: Annotated[int, Field(ge=1, le=400)] = 64


class Evaluate(Block):
    """Distances to real images at the steps of the pictures: `samples` generated against as many real.

    As many real images again are held out for the floor, so at most half of the dataset; 2,000 when absent, or
    half of a smaller dataset. Distances at different `samples` do not compare.
    """

    samples: Annotated[int, Field(ge=2, le=50_000)] | None = None


class Resources(Block):
    """What one trial needs. A fraction of a GPU lets several trials share it."""

    cpu: Annotated[int, Field(gt=0, le=1024)] | Annotated[Float, Field(gt=0, le=1024)] = 1
    gpu: Annotated[int, Field(ge=0, le=64)] | Annotated[Float, Field(ge=0, le=64)] = 0


class Claim(Block):
    """What the source says, as a check on the results."""

    id: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    says: str
    check: str = ""


class StudySpec(Block):
    """A study: every arm of the space, with every seed."""

    version: Literal[1]
    name: str
    description: str = ""
    source: str = ""
    model: str
    dataset: Dataset
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=1000)] = [0]
    train: Train = Train()
    fixed: dict[str, Scalar] = {}
    space: dict[str, Axis] = {}
    search: Search = Search()
    objective: Objective = Objective()
    pictures: Pictures = Pictures()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    claims: list[Claim] = []
    budgets: dict[Literal["short", "smoke"], dict[str, Any]] = {}

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_a_number(cls, version: object) -> object:
        # To Python, and so to Literal, true and 1.0 equal 1.
        return version if type(version) is int else str(version)

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"{NAME_RULE} (got {name[:80]!r})")
        if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
            raise ValueError(f"is a device name on Windows, where no folder can have it (got {name!r})")
        return name

    @field_validator("dataset", mode="before")
    @classmethod
    def _dataset_by_name(cls, dataset: object) -> object:
        return {"name": dataset} if isinstance(dataset, str) else dataset
