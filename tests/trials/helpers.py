"""Small trials for tests: 8x8 digits, width 8, a few steps."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from models import Value
from trials.checkpoints import CheckpointStore
from trials.loop import train
from trials.options import resolve_training
from trials.reports import Report
from trials.spec import TrialSpec

EVERYTHING: dict[str, dict[str, Any]] = {
    "wgan_gp_32": {"lr_schedule": "1:1e-4 1:1e-5..1e-4", "ema": 0.9, "augment": True, "drift_reduction": "half_sum"},
    "rnn_timestep": {"real_batch": "fresh", "n_critic": 2, "d_update": "mixed", "grad_clip": 1.0, "l2": 1e-3},
    "rgan_v2": {"sampling": "replacement", "label_real_sd": 0.05, "max_norm": 1.0, "instance_noise": 0.1},
    "obs_dcgan": {
        "multi_scale": True, "spectral_norm": "both", "pixel_norm": "after", "minibatch_stddev": True,
        "gradient_penalty": 1.0, "ema": 0.9, "optimizer_g": "rmsprop", "optimizer_d": "sgd", "momentum_d": 0.5,
    },
}  # fmt: skip
"""Families with many options switched on at once."""


def small_spec(model: str = "obs_mlp", *, steps: int = 12, seed: int = 0, **options: Value) -> TrialSpec:
    """A trial that takes milliseconds. `options`: of the networks or of training."""
    preset = models.preset(model)
    params = preset.build_params
    build = {name: param.default for name, param in params.items()} | dict(preset.tiny)
    build |= {name: value for name, value in options.items() if name in params}
    training = {name: value for name, value in options.items() if name not in params}
    values: dict[str, Any] = {
        "model": model,
        "model_params": build,
        "training": resolve_training(preset.recipe, {"batch_size": 8, **training}),
        "dataset": "noise",
        "dataset_digest": "0",
        "limit": None,
        "seed": seed,
        "steps": steps,
        "log_every": 2,
        "picture_steps": (steps // 2, steps),
        "picture_samples": 4,
        "eval_steps": (),
        "eval_samples": 16,
        "features": "random",
        "gallery": False,
        "n_classes": 3 if preset.conditional else 0,
    }
    return TrialSpec(**values)


def some_images(n: int = 40, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    """(n, C, H, W) uint8."""
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)


def images_for(spec: TrialSpec, n: int = 40) -> Tensor:
    """(n, C, H, W) uint8 of the smallest size that the model makes."""
    preset = models.preset(spec.model)
    return some_images(n, ((preset.channels or (1,))[0], preset.tiny_side, preset.tiny_side))


def labels_for(images: Tensor) -> Tensor:
    """(n,) int64 in 0..2."""
    return torch.arange(len(images)) % 3


def start(
    spec: TrialSpec, store: CheckpointStore, directory: Path, **options: Any
) -> Generator[Report, bool | None, None]:
    """The trial's training on noise."""
    images = images_for(spec)
    return train(spec, images, labels_for(images), store, directory, **options)


def store_for(spec: TrialSpec, directory: Path, attempt: int = 1) -> CheckpointStore:
    """An opened store in `directory`."""
    store = CheckpointStore(
        directory=directory / "checkpoints", key=spec.key, attempt=attempt, keep_steps=spec.keep_steps
    )
    store.open()
    return store


def run(spec: TrialSpec, directory: Path, *, attempt: int = 1, checkpoint_every: int = 4) -> list[Report]:
    """Train to the end, going on from what lies in `directory`."""
    store = store_for(spec, directory, attempt)
    return list(start(spec, store, directory, checkpoint_every=checkpoint_every, report_every_s=0.0))


def rows_of(reports: list[Report]) -> dict[int, dict[str, float]]:
    """step -> metrics, without speed and durations, which no two runs share."""
    return {
        row.step: {name: value for name, value in row.metrics.items() if not name.startswith("perf/")}
        for report in reports
        for row in report.rows
    }


def final_state(spec: TrialSpec, directory: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    state, notes = store_for(spec, directory, attempt=99).load_latest(torch.device("cpu"))
    assert state is not None
    assert notes == []
    return state


def same(a: object, b: object) -> bool:
    """Equality bit for bit of nested states."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "train_s")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
