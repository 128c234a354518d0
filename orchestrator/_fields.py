"""The fields of a study document and what each may hold, by itself.

Untrusted text enters here and nowhere else. Imports neither torch, ray, mlflow, optuna nor a YAML library.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from models import Value
from trials.datasets import DatasetSource
from trials.schedule import DRAWS, MAX_RATE

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
NAME_RULE = "must be 1 to 63 of the characters A-Z a-z 0-9 . _ - and start with a letter or digit"
MAX_ARMS = 100_000
MOST_LISTED = 30
"""Models or datasets in a list."""
MOST_CHARACTERS = 300
"""Of a constraint."""
LEAST_EVALUATED = 8
"""Images of an evaluation: neighbourhoods are of five."""
FlagName = Literal["d_win", "d_lost", "collapse", "jump", "frozen"]
BUDGETS = ("full", "short", "smoke")


KeyPath = tuple[str | int, ...]
"""Leads to a part of the document: ("space", "lr", "low"); () is the whole."""

Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]
Number = Int | Float
Text = Annotated[str, StringConstraints(max_length=6000)]
"""MLflow cuts parameters after 6000 characters."""
ArmName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Scalar = bool | Int | Float | Text
AS_WRITTEN = "as written"
"""Context of the validation of what a person wrote; what was submitted holds more."""
FOUND_FACTS = frozenset({"n_images", "n_classes"})
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


def _one_or_more(value: object) -> object:
    return value if isinstance(value, list) else [value]


When = dict[str, Annotated[list[Scalar], BeforeValidator(_one_or_more), Field(min_length=1)]]
"""`{OTHER: VALUE}` or `{OTHER: [VALUE, ...]}`: an arm has the hyperparameter only where all of these hold."""


class Choices(Block):
    """One of a list of values, in arms for which `when` holds."""

    choices: Annotated[list[Scalar], Field(min_length=1)]
    when: When = {}

    def values(self) -> list[Value]:
        return list(self.choices)


class Range(Block):
    """A number between two bounds, both included; `log` draws evenly in its logarithm. `when`: as of choices."""

    low: Number
    high: Number
    step: Number | None = None
    log: bool = False
    when: When = {}

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
    if "choices" in given and given & set(BOUNDS):
        others = ", ".join(sorted(given & set(BOUNDS)))
        raise ValueError(f"choices and {others} exclude each other; keep one kind")
    return value


BOUNDS = ("low", "high", "step", "log")
AXIS_KEYS = ("choices", *BOUNDS, "when")
Axis = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(_axis_kind),
    BeforeValidator(_axis_form),
]
"""`{choices: [...]}` or `{low: ..., high: ...}`, with `when`."""


class Dataset(Block):
    """A dataset by name, or a folder of images of any sizes, made square.

    `size`: the side of the images trained on, `channels`: 1 grey or 3 colour; a named dataset has its own.
    `stored`: prepare at this larger side, augment there, and average down to `size` on the device.
    `limit`: use the first images only. `hold_out`: keep so many of them, drawn at random, from training, for the
    metrics that ask how the discriminator judges images it has not seen. `n_images` and `n_classes` are found by
    looking at the files.
    """

    name: str | None = None
    folder: str | None = None
    size: Annotated[int, Field(ge=4, le=1024)] | None = None
    channels: Literal[1, 3] | None = None
    stored: Annotated[int, Field(ge=4, le=1024)] | None = None
    limit: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None
    hold_out: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    n_images: Annotated[int, Field(ge=0)] | None = None
    n_classes: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _facts_are_found(cls, dataset: object, info: ValidationInfo) -> object:
        if info.context == AS_WRITTEN and isinstance(dataset, dict):
            for name in FOUND_FACTS & dataset.keys():
                raise ValueError(f"{name} is found by looking at the images; remove it")
        return dataset

    @property
    def source(self) -> DatasetSource:
        """What is prepared for it."""
        return DatasetSource(
            name=self.name, folder=self.folder, size=self.stored or self.size, channels=self.channels
        )


def _dataset_by_name(dataset: object) -> object:
    return {"name": dataset} if isinstance(dataset, str) else dataset


NamedDataset = Annotated[Dataset, BeforeValidator(_dataset_by_name)]
"""`dataset: mnist` is short for {name: mnist}."""


def _schedules_as_text(values: object) -> object:
    """`lr_schedule` written as a list of stages becomes its text, here and in a list of choices."""
    if not isinstance(values, dict) or "lr_schedule" not in values:
        return values
    given = values["lr_schedule"]
    if isinstance(given, list):
        given = _schedule_text(given)
    elif isinstance(given, dict) and isinstance(given.get("choices"), list):
        choices = [_schedule_text(c) if isinstance(c, list) else c for c in given["choices"]]
        given = {**given, "choices": choices}
    return {**values, "lr_schedule": given}


def _schedule_text(stages: list[object]) -> str:
    form = "write stages as {epochs: 100, lr: 1e-4} or {epochs: 400, lr_random: [2e-5, 6e-5]}"
    if not stages:
        raise ValueError(f"lr_schedule: needs at least one stage; {form}")
    words = []
    for i, stage in enumerate(stages, start=1):
        if not isinstance(stage, dict):
            raise ValueError(f"lr_schedule: stage {i} is not a stage; {form}")
        if wrong := _stage_problem(stage):
            raise ValueError(f"lr_schedule: stage {i}: {wrong}; {form}")
        if "lr" in stage:
            rate = f"{stage['lr']}"
        else:
            low, high = stage["lr_random"]
            rate = f"{low}..{high}/{stage.get('dist', DRAWS[0])}"
        words.append(f"{stage['epochs']}:{rate}")
    return " ".join(words)


STAGE_KEYS = ("epochs", "lr", "lr_random", "dist")


def _stage_problem(stage: dict[object, object]) -> str | None:
    """What makes this no stage of a schedule; the rates themselves are judged in the schedule's text."""
    if extra := stage.keys() - set(STAGE_KEYS):
        key = sorted(map(str, extra))[0]
        return "; ".join(filter(None, (f"unknown key {key[:80]!r}", nearest(key, STAGE_KEYS))))
    if "epochs" not in stage or ("lr" in stage) == ("lr_random" in stage):
        return "needs epochs, and one of lr and lr_random"
    if "dist" in stage and "lr" in stage:
        return "dist says how lr_random is drawn; a constant lr has none"
    if stage.get("dist", DRAWS[0]) not in DRAWS:
        return f"dist must be one of {', '.join(DRAWS)} (got {str(stage['dist'])[:80]!r})"
    drawn = stage.get("lr_random", [0, 0])
    if not isinstance(drawn, list) or len(drawn) != 2:
        return "lr_random must be [LOW, HIGH]"
    for name, value in (
        ("epochs", stage["epochs"]),
        ("lr", stage.get("lr", 1)),
        ("lr_random", drawn[0]),
        ("lr_random", drawn[1]),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} must be numeric (got {str(value)[:80]!r})"
    if cast(float, stage["epochs"]) <= 0:
        return f"epochs must be > 0 (got {stage['epochs']})"
    low, high = drawn if "lr_random" in stage else (stage["lr"], stage["lr"])
    if not 0 < cast(float, low) <= cast(float, high) <= MAX_RATE:
        got = f"{low} and {high}" if "lr_random" in stage else f"{low}"
        return f"rates must be > 0 and <= {MAX_RATE:g}, the lower one first (got {got})"
    return None


Fixed = Annotated[dict[str, Scalar], BeforeValidator(_schedules_as_text)]


class Train(Block):
    """Length of training (one of epochs and steps; the model's recipe otherwise), batch and cadence.

    One step is one generator update and its discriminator updates. `log_every`: steps averaged into one row of
    metrics. `checkpoint_every`: steps; a tenth of training when absent.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | None = None
    batch_size_g: Annotated[int, Field(ge=2, le=65_536)] | None = None
    log_every: Annotated[int, Field(ge=1, le=100_000_000)] = 20
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000_000)] | None = None


SamplerName = Literal["grid", "random", "qmc", "tpe", "cmaes", "gp", "nsga2", "nsga3"]


class Search(Block):
    """How arms are proposed. `trials`: the number of arms; a grid runs all its points.

    `options`: of the sampler. `warm_start`: a submitted study whose finished arms the sampler learns from first.
    """

    sampler: SamplerName = "grid"
    trials: Annotated[int, Field(ge=1, le=MAX_ARMS)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    options: dict[str, Scalar] = {}
    warm_start: str | None = None


class Objective(Block):
    """What makes an arm good: the mean of this metric over the arm's seeds.

    `at`: a trial's value of a metric of evaluations is that of its best evaluation, or of its last one.
    """

    metric: str = "eval/fd"
    mode: Literal["min", "max"] = "min"
    at: Literal["best", "last"] = "best"


def _objectives_form(value: object) -> object:
    if not isinstance(value, dict | list | Objective):
        raise ValueError("must be {metric: ..., mode: min}, or a list of up to three")
    return value if isinstance(value, list) else [value]


Objectives = Annotated[list[Objective], BeforeValidator(_objectives_form), Field(min_length=1, max_length=3)]
"""One objective, or a list of up to three: the first one ranks arms that no other arm beats in all of them."""


class Pictures(Block):
    """Sample grids of the same fixed latents in every trial, `count` of them evenly spaced through training.

    `at`: epochs at whose end there is a grid too, if training gets so far. `gallery`: at the end, paths through the
    latents, classes, nearest neighbours, the best of many, and animations.
    """

    count: Annotated[int, Field(ge=1, le=1000)] = 10
    at: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(max_length=100)] = []
    samples: Annotated[int, Field(ge=1, le=400)] = 64
    gallery: bool = True


class Evaluate(Block):
    """`count` evaluations, evenly spaced through training: `samples` generated images against as many real ones.

    `count`: as many as there are pictures when absent, 0 for none. `samples`: as many real images again are held
    against the real ones for the floor, so at most half of the dataset; 2,000 when absent, or half of a smaller
    dataset. Distances at different `samples` do not compare. `features`: what images are compared in. "classifier":
    trained on the dataset's labels; "imagenet": a network trained on photographs; "random": an untrained one, for
    runs that are there to be tried; "auto": a classifier for grey images with labels, else imagenet.
    """

    count: Annotated[int, Field(ge=0, le=1000)] | None = None
    samples: Annotated[int, Field(ge=LEAST_EVALUATED, le=50_000)] | None = None
    features: Literal["auto", "classifier", "imagenet", "random"] = "auto"


class Prune(Block):
    """Arms are judged at rungs, and the weakest end there.

    `rungs`: steps, the first one first; evaluations take place there too. `method`: "halving" waits until all arms are
    at a rung and keeps the share `keep` of them; "asha" lets an arm go on as soon as it is among the share `keep` of
    those that have been there; "hyperband" does as halving does in brackets, of which each skips one more of the first
    rungs; "median" ends arms that are worse than the median of all that have been at the rung; "paired" ends those a
    paired test over seeds calls worse than the best. `least`: arms that must have been at a rung before asha, median
    and paired judge there. `seeds`: only so many of the first seeds run before the last rung is passed; all when
    absent. `level`: of the paired test.
    """

    method: Literal["halving", "asha", "hyperband", "median", "paired"] = "halving"
    rungs: Annotated[list[Annotated[int, Field(ge=1, le=100_000_000)]], Field(min_length=1, max_length=20)]
    keep: Annotated[Float, Field(gt=0, lt=1)] = 0.5
    least: Annotated[int, Field(ge=2, le=MAX_ARMS)] = 4
    seeds: Annotated[int, Field(ge=1, le=1000)] | None = None
    level: Annotated[Float, Field(ge=0.5, lt=1)] = 0.95


class Rollback(Block):
    """Going back to the last checkpoint before a flag, with rates times `lr_factor`; at most `times` times."""

    times: Annotated[int, Field(ge=1, le=20)] = 1
    lr_factor: Annotated[Float, Field(gt=0, lt=1)] = 0.5


class Health(Block):
    """What is said of a training that goes wrong, and what is done.

    `flags`: which flags are raised; they are notes on a trial and change nothing. `stop`: which of them end it as
    diverged; numbers that are not finite always do. `confirm`: steps that a flag's condition must hold before it is
    raised, as trainings recover. `rollback`: go back before ending.
    """

    flags: list[FlagName] = ["d_win", "d_lost", "collapse", "jump", "frozen"]
    stop: list[FlagName] = []
    confirm: Annotated[int, Field(ge=1, le=100_000_000)] = 500
    rollback: Rollback | None = None


class Limits(Block):
    """What a study may take. At a limit it stops cleanly and can go on with a higher one.

    `trials`: that are run to an end. `hours`: by the clock, over all submits together. `gpu_hours`: hours of trials
    times their share of a GPU. `failed_arms`: arms with a failed trial before the study ends as failed; without it
    the study runs to its end. `stall_minutes`: a trial that makes no step for so long has its worker ended, and is
    retried. `retries`: of a trial whose worker was lost, or that ran out of memory.
    """

    trials: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    hours: Annotated[Float, Field(gt=0, le=100_000)] | None = None
    gpu_hours: Annotated[Float, Field(gt=0, le=10_000_000)] | None = None
    failed_arms: Annotated[int, Field(ge=0, le=MAX_ARMS)] | None = None
    stall_minutes: Annotated[Float, Field(gt=0, le=100_000)] = 30.0
    retries: Annotated[int, Field(ge=0, le=100)] = 2


class Resources(Block):
    """What one trial needs, and how many may run at once. A fraction of a GPU lets several trials share it."""

    cpu: Annotated[int, Field(gt=0, le=1024)] | Annotated[Float, Field(gt=0, le=1024)] = 1
    gpu: Annotated[int, Field(ge=0, le=64)] | Annotated[Float, Field(ge=0, le=64)] = 0
    at_once: Annotated[int, Field(ge=1, le=10_000)] | None = None


def _pack_form(value: object) -> object:
    is_size = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 64
    if value in ("auto", "off") or is_size:
        return value
    raise ValueError(f"must be auto, off, or a number of trials from 2 to 64 (got {str(value)[:80]!r})")


class Execution(Block):
    """How trials are run, which changes no result beyond rounding.

    `pack`: how many trials of one shape step together in one worker; "auto" measures what is fastest here.
    """

    pack: Annotated[
        Literal["auto", "off"] | Annotated[int, Field(ge=2, le=64)], BeforeValidator(_pack_form)
    ] = "auto"


class Claim(Block):
    """What the source says, and a check on the results in the language of claims.py.

    `holds_for`: the budgets that the check is meant for. Without a check the claim is words only.
    """

    id: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    says: str
    check: str = ""
    holds_for: Annotated[list[Literal["full", "short"]], Field(min_length=1)] = ["full", "short"]


class ArmTrain(Block):
    """What an arm may change of `train`."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | None = None
    batch_size_g: Annotated[int, Field(ge=2, le=65_536)] | None = None


class Arm(Block):
    """What a named arm changes of the study; `fixed` is laid over the study's."""

    model: str | None = None
    dataset: NamedDataset | None = None
    train: ArmTrain = ArmTrain()
    fixed: Fixed = {}


class StudySpec(Block):
    """A study: every named arm, if there are any, at every point of the space, with every seed."""

    model_config = {**Strict, "serialize_by_alias": True}

    version: Literal[1]
    name: str
    description: str = ""
    source: str = ""
    model: str
    dataset: NamedDataset
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=1000)] = [0]
    train: Train = Train()
    fixed: Fixed = {}
    arms: dict[ArmName, Arm] = {}
    space: Annotated[dict[str, Axis], BeforeValidator(_schedules_as_text)] = {}
    constraints: Annotated[
        list[Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]], Field(max_length=50)
    ] = []
    search: Search = Search()
    objectives: Annotated[Objectives, Field(alias="objective")] = [Objective()]
    pictures: Pictures = Pictures()
    evaluate: Evaluate = Evaluate()
    prune: Prune | None = None
    health: Health = Health()
    limits: Limits = Limits()
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    resources: Resources = Resources()
    execution: Execution = Execution()
    claims: list[Claim] = []
    budgets: dict[Literal["short", "smoke"], dict[str, Any]] = {}

    @property
    def objective(self) -> Objective:
        """The first objective: the one that names a leaderboard's column."""
        return self.objectives[0]

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


STUDY_FIELDS: Mapping[str, FieldInfo] = {
    field.alias or name: field for name, field in StudySpec.model_fields.items()
}
"""The keys of a study document."""
