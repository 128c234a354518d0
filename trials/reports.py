"""What a trial tells the world while it runs, and how it ends. Plain values that pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
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

EVAL_METRICS = ("swd", "swd_floor", "swd_raw")
"""Logged as eval/NAME at the picture steps; swd_raw, of the generator itself, where an averaged one is judged."""

FINAL_SHARE = 0.1
"""final/NAME is the mean of train/NAME over this last share of training."""

OBJECTIVES = tuple(f"eval/{name}" for name in EVAL_METRICS[:1]) + tuple(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Metrics of one step; all values are finite."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG that was written at `step`; `path` is relative to the trial's directory."""

    key: str
    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened since the last report, up to and including `step`.

    `notes`: lines for people, such as which damaged checkpoint was passed over.
    """

    step: int
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. `reason` is one line for people; `detail` may hold a traceback.

    `lost`: the attempt ended through no fault of the trial (its worker died), so another one may succeed.
    """

    state: State
    step: int
    reason: str = ""
    detail: str = ""
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An attempt at a trial: everything a worker needs, as plain values.

    `directory` belongs to the trial; `images` is the prepared dataset (.npy, uint8, N C H W)
    and `labels` its labels (.npy, uint8, N).
    `device`: "cpu" or "cuda". `threads`: CPU threads for torch. `matmul`: the kernels of kernels.py. `recorded`: take
    steps from a recording (recorded.py).
    """

    key: str
    attempt: int
    spec: TrialSpec
    directory: Path
    images: Path
    labels: Path
    checkpoint_every: int
    device: str = "cpu"
    threads: int = 1
    matmul: Literal["default", "onednn"] = "default"
    recorded: bool = False
