"""How a study's trials are run on this machine: matrix kernels, and alone or in packs, by measuring.

None of it changes what a trial computes beyond rounding. Imports torch.
"""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from collections.abc import Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from models import Value
from orchestrator import arms
from orchestrator.machine import Slots
from orchestrator.study import Choices, StudySpec, n_classes, n_images
from trials.calibrate import Calibration, calibrate, measure_evaluation, why_alone
from trials.kernels import Matmul
from trials.packs import fusion_key
from trials.spec import TrialSpec

WORTH_MEASURING_S = 60.0
"""A study that takes less on this machine is not measured: it would end hardly sooner."""
MOST_LOOKED_AT = 2000
"""Arms of a grid whose shapes are looked at; of more, every n-th."""
MOST_MEASURED = 4
"""Shapes of trials that are measured, those of most trials first; the others run alone."""
WORKER_MB = 800.0
"""What a worker takes before its first trial: torch and Ray, measured (2026-11)."""
SHARE_OF_MEMORY = 0.8
"""Of what is free now: the driver, MLflow and other programs need some too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How many trials may be one pack, by fusion key; and how that was chosen, a line a shape.

    `recorded`: the fusion keys of trials that take their steps from a recording. `seconds`: how long the steps of the
    whole study are expected to take, where that was measured, and `evaluation_s` its evaluations.
    """

    sizes: Mapping[Hashable, int]
    words: tuple[str, ...]
    seconds: float | None = None
    evaluation_s: float | None = None
    recorded: frozenset[Hashable] = frozenset()

    def size(self, spec: TrialSpec) -> int:
        return self.sizes.get(fusion_key(spec), 1)

    def is_recorded(self, spec: TrialSpec) -> bool:
        return fusion_key(spec) in self.recorded


def choose_packs(study: StudySpec, slots: Slots, matmul: Matmul, *, measure_all: bool = False) -> Packing:
    """Packs as the study's `execution.pack` says; for "auto" by measuring, unless the study is too short for it.

    `measure_all`: also what is not to be packed, to know how long the study takes.
    """
    wanted = study.execution.pack
    if wanted == "off" and not measure_all and not slots.gpu:
        return Packing(sizes={}, words=("alone, as execution.pack is off",))
    shapes = _shapes(study)
    sizes, words, seconds, evaluation_s = dict[Hashable, int](), list[str](), 0.0, 0.0
    recorded = set[Hashable]()
    for key, (spec, shape, classes, n_trials) in list(shapes.items())[:MOST_MEASURED]:
        if isinstance(wanted, int):
            reason = why_alone(spec, shape)
            sizes[key] = 1 if reason else wanted
            said = f"alone, as {reason}" if reason else f"packs of up to {wanted}, as execution.pack says"
            words.append(f"{spec.model}: {said}")
            continue
        in_turn = spec.steps * n_trials / slots.count  # steps of one trial after the other
        found = _measured(
            slots, study, spec, shape, matmul,
            most=-(-n_trials // slots.count),
            least_ms=0.0 if measure_all else 1000 * WORTH_MEASURING_S / in_turn,
            off=wanted == "off",
            measure_alone=measure_all,
        )  # fmt: skip
        sizes[key] = found.size
        if found.recorded:
            recorded.add(key)
        words.append(f"{spec.model}: {found.words}")
        seconds += (found.step_ms or 0.0) / 1000 * in_turn
        if measure_all and spec.eval_steps and not slots.gpu:  # what it takes there is not known here
            each = measure_evaluation(spec, shape, classes)
            evaluation_s += each * len(spec.eval_steps) * n_trials / slots.count
    if len(shapes) > MOST_MEASURED:
        words.append(f"{len(shapes) - MOST_MEASURED} more kinds of trials: alone, as they were not measured")
    complete = measure_all and not isinstance(wanted, int) and 0 < len(shapes) <= MOST_MEASURED
    return Packing(
        sizes=sizes, words=tuple(dict.fromkeys(words)), seconds=seconds if complete else None,
        evaluation_s=evaluation_s if complete and not slots.gpu else None,
        recorded=frozenset(recorded),
    )  # fmt: skip


def _measured(slots: Slots, study: StudySpec, *of: Any, **how: Any) -> Calibration:
    """`calibrate` where the trials will run; on a GPU in a process of its own, which frees the device when it ends."""
    images_mb = (n_images(study) or 0) * math.prod(study.dataset.source.image_shape) / 2**20
    if not slots.gpu:
        free_mb = psutil.virtual_memory().available / 2**20
        mine_mb = SHARE_OF_MEMORY * free_mb / slots.count - WORKER_MB - images_mb
        return calibrate(*of, budget_mb=max(0.0, mine_mb), **how)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_on_gpu, min(1.0, slots.gpu), images_mb, *of, **how).result()
    except (RuntimeError, OSError) as error:  # of CUDA, or of a process that died
        reason = f"measuring failed ({type(error).__name__}: {error})".splitlines()[0]
        return Calibration(alone_ms=None, packed_ms={}, reason=reason)


def _on_gpu(share: float, images_mb: float, *of: Any, **how: Any) -> Calibration:
    """`calibrate` for a worker that has this share of a GPU."""
    import torch

    free_mb = torch.cuda.mem_get_info()[0] / 2**20
    budget_mb = max(0.0, SHARE_OF_MEMORY * free_mb * share - images_mb)
    return calibrate(*of, device="cuda", budget_mb=budget_mb, **how)


def _shapes(study: StudySpec) -> dict[Hashable, tuple[TrialSpec, tuple[int, int, int], int, int]]:
    """By fusion key: a trial, the shape of its stored images, their classes, and how many such trials there are.

    A search proposes its own arms: the first point of the space stands for them, with each named arm.
    """
    grid = study.search.sampler == "grid"
    points: list[dict[str, Value]] = (
        arms.grid(study) if grid else [_first_point(study, n) for n in study.arms or [""]]
    )
    found, counts = dict[Hashable, tuple[TrialSpec, tuple[int, int, int], int]](), Counter[Hashable]()
    stride = 1 + len(points) // MOST_LOOKED_AT
    for point in points[::stride]:
        mine = arms.resolved(study, point)
        if n_images(mine) is None:
            continue
        spec = arms.trial_spec(study, point, study.seeds[0], "")
        key = fusion_key(spec)
        found.setdefault(key, (spec, mine.dataset.source.image_shape, n_classes(mine)))
        counts[key] += len(study.seeds) * (stride if grid else -(-(study.search.trials or 1) // len(points)))
    return {key: (*found[key], n) for key, n in counts.most_common()}


def _first_point(study: StudySpec, arm: str) -> dict[str, Value]:
    named: dict[str, Value] = {"arm": arm} if arm else {}
    lowest = {
        n: axis.choices[0] if isinstance(axis, Choices) else axis.low for n, axis in study.space.items()
    }
    return named | lowest
