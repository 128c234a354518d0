"""What a trial tells the world while it runs, and how it ends. Plain values that pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from trials.spec import TrialSpec

TRAIN_METRICS = (
    "d_loss_real", "d_loss_fake", "d_loss_mean", "d_loss_sum", "g_loss", "d_acc_real", "d_acc_fake", "d_acc",
    "real_score", "fake_score", "g_fool_rate", "grad_norm_g", "grad_norm_d",
)  # fmt: skip
"""Logged as train/NAME: means over the logging interval (gradient norms: of its last step)."""

EXTRA_METRICS = ("w_dist", "gp", "gp_norm", "drift", "l2_d", "l2_g")
"""Logged as train/NAME by the trials that have them: a critic's distance, the penalties before their weights, and
the mean gradient norm between real and generated images."""

EVAL_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "fd": "Frechet distance to real images in the features",
        "fd_raw": "the same of the generator itself, where an averaged one is judged",
        "fd_floor": "the same of held-out real images",
        "kid": "kernel distance to real images in the features (unbiased; may be slightly negative)",
        "kid_sd": "its standard deviation over subsets",
        "kid_floor": "the kernel distance of held-out real images",
        "precision": "share of generated images within the real ones' manifold",
        "recall": "share of real images within the generated ones' manifold",
        "density": "how many real neighbourhoods a generated image lies in, over the number expected of a real one",
        "coverage": "share of real images with a generated one in their neighbourhood",
        "diversity": "mean distance between generated images over that between real ones, in the features",
        "class_tv": "total variation between the classes of generated and of real images",
        "class_kl": "Kullback-Leibler divergence of the same, natural logarithm",
        "chi2_p": "p value of the classes of generated images being those of the data",
        "modes": "number of classes with more than 0.5 % of the generated images",
        "ambiguous": "share of generated images whose largest class probability is below 0.9",
        "classifier_confidence": "mean largest class probability of generated images",
        "inception_score": "exponential of the mean information between image and class",
        "class_fidelity": "share of the images asked of a class that the classifier calls so",
        "intra_class_diversity": "mean pixel distance between generated images of a class over that of real ones",
        "swd": "sliced Wasserstein distance to real images in pixels",
        "swd_raw": "the same of the generator itself, where an averaged one is judged",
        "swd_floor": "the same of held-out real images",
        "row_jaggedness": "vertical over horizontal neighbour differences, over the same of real images",
        "checkerboard": "power at the highest spatial frequencies over that of real images",
        "spectrum_distance": "distance of the high spatial frequencies' power to that of real images, decades",
        "nn_train_ratio": "median distance to the nearest training image over that of other real ones, in the features",
        "nn_fake_fake": "median pixel distance to the nearest other generated image, over that among real ones",
        "nn_real_fake": "least pixel distance to a training image, over the median among real ones",
        "memorisation": "discriminator's accuracy on training images minus that on held-out ones",
        "d_holdout_gap": "mean D(x) on training images minus that on held-out ones",
        "path_step_ratio": "largest over median distance between neighbours on latent paths",
        "walk_dip_smooth": "fall of the critic's score midway between like latents",
        "walk_dip_rough": "fall of the critic's score midway between unlike latents",
    }
)
"""Logged as eval/NAME at the evaluations, by the trials that have them. Floors are logged once, at the first
evaluation; those of nearest neighbours and of paths at the last one."""

OF_CLASSES = frozenset({"class_tv", "class_kl", "chi2_p", "modes", "ambiguous", "classifier_confidence",
                        "inception_score", "class_fidelity", "intra_class_diversity"})  # fmt: skip
"""The metrics of evaluations that need a classifier."""
OF_HELD_OUT = frozenset({"memorisation", "d_holdout_gap"})
"""Those that need images held out from training."""
OF_GALLERY = frozenset({"path_step_ratio", "walk_dip_smooth", "walk_dip_rough"})
"""Those that the gallery measures."""

AT_THE_END = OF_GALLERY | {"nn_fake_fake", "nn_real_fake", "nn_train_ratio"}
"""Those that are measured after the last step only."""

FINAL_SHARE = 0.1
"""final/NAME is the mean of train/NAME over this last share of training."""

_NO_OBJECTIVE = ("fd_floor", "kid_floor", "swd_floor", "kid_sd")

OBJECTIVES = tuple(f"eval/{name}" for name in EVAL_METRICS if name not in _NO_OBJECTIVE) + tuple(
    f"final/{name}" for name in TRAIN_METRICS
)
"""What a study may optimise."""


class State(StrEnum):
    """The state of a trial, the same word in the CLI, the journal, MLflow and the report."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """A final trial is never started again. A stopped one goes on when its study is submitted again."""
        return self in (State.COMPLETED, State.PRUNED, State.DIVERGED, State.FAILED)


FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "d_win": "the discriminator is never wrong and its loss is nothing",
        "d_lost": "the discriminator is wrong more often than right",
        "collapse": "all generated images are alike, or nearly all of one class",
        "jump": "the generator's loss halved or doubled at once",
        "frozen": "the losses do not change at all",
    }
)
"""What a trial may be flagged with while it trains (health.py has the definitions)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag that was raised at `step`, as its condition had held since step `since`. `words`: one line for people."""

    name: str
    since: int
    step: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Metrics of one step; all values are finite."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG or GIF that was written at `step`; `path` is relative to the trial's directory."""

    key: str
    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened since the last report, up to and including `step`.

    `notes`: lines for people, such as which damaged checkpoint was passed over. `flags`: that were raised.
    """

    step: int
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()


class Cause(StrEnum):
    """Why an attempt ended that did not complete: what decides whether there is another one."""

    NONE = ""
    WORKER = "worker"
    """Its worker was lost, or its node."""
    STALLED = "stalled"
    """It made no step for too long."""
    MEMORY = "memory"
    NAN = "nan"
    """Something was not finite."""
    UNHEALTHY = "unhealthy"
    """A flag was raised that ends trials."""
    ERROR = "error"
    """Of the code: it would come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. `reason` is one line for people; `detail` may hold a traceback.

    `paused`: it came to the step that it was to come to, saved a checkpoint, and the trial waits for what is decided.
    """

    state: State
    step: int
    reason: str = ""
    detail: str = ""
    cause: Cause = Cause.NONE
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An attempt at a trial: everything a worker needs, as plain values.

    `directory` belongs to the trial; `images` is the prepared dataset (.npy, uint8, N C H W)
    and `labels` its labels (.npy, uint8, N). `features`: where classifiers and the features of real images are kept.
    `device`: "cpu" or "cuda". `threads`: CPU threads for torch. `matmul`: the kernels of kernels.py. `recorded`: take
    steps from a recording (recorded.py). `until`: the step to pause at. `flags`: which flags are raised (health.py).
    `stall_s`: end the worker when the attempt makes no step for so long. `was`: keys under which a trial that goes on
    for longer was trained before.
    """

    key: str
    attempt: int
    spec: TrialSpec
    directory: Path
    images: Path
    labels: Path
    features: Path
    checkpoint_every: int
    device: str = "cpu"
    threads: int = 1
    matmul: Literal["default", "onednn"] = "default"
    recorded: bool = False
    until: int | None = None
    flags: tuple[str, ...] = tuple(FLAGS)
    stall_s: float | None = None
    was: tuple[str, ...] = ()
