"""How a study's trials are run on this machine: matrix kernels, and alone or in packs, by measuring.

None of it changes what a trial computes beyond rounding. Imports torch.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from models import Value
from orchestrator import arms
from orchestrator.costs import WORKER_MB, Kind, Prediction, dataset_mb, predict, whole_images
from orchestrator.home import features_directory, home
from orchestrator.machine import Slots
from orchestrator.samplers import SAMPLERS
from orchestrator.study import Choices, StudySpec, each_arm, holds, n_classes, n_images, ordered
from trials.calibrate import (
    MOST_EVALUATED,
    Calibration,
    Rest,
    calibrate,
    measure_classifier,
    measure_rest,
    why_alone,
)
from trials.features import SHARDS, classifier_file, n_epochs
from trials.kernels import Matmul
from trials.packs import fusion_key
from trials.spec import TrialSpec, digest

WORTH_MEASURING_S = 60.0
"""A study that takes less on this machine is not measured: it would end hardly sooner."""
MOST_LOOKED_AT = 2000
"""Arms of a grid whose shapes are looked at; of more, every n-th."""
MOST_MEASURED = 4
"""Shapes of trials that are measured, those of most trials first; the others run alone."""
NAMED_ARMS = 3
"""Arms of one shape that are named in words."""
SHARE_OF_MEMORY = 0.8
"""Of what is free now: the driver, MLflow and other programs need some too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How many trials may be one pack, by fusion key; and how that was chosen, a line a shape.

    `recorded`: the fusion keys of trials that take their steps from a recording. `kinds`: what was measured of them,
    and `complete`: that is all of the study's trials. `prediction`: what the study will take, where that is known.
    """

    sizes: Mapping[Hashable, int]
    words: tuple[str, ...]
    recorded: frozenset[Hashable] = frozenset()
    kinds: tuple[Kind, ...] = ()
    complete: bool = False
    prediction: Prediction | None = None

    def size(self, spec: TrialSpec) -> int:
        return self.sizes.get(fusion_key(spec), 1)

    def is_recorded(self, spec: TrialSpec) -> bool:
        return fusion_key(spec) in self.recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Trials of one fusion key. `label`: of their dataset, which has `whole` images, and `n_images` to train on.

    `lengths`: one trial of each length, with how many there are. `arms`: their labels.
    """

    image_shape: tuple[int, int, int]
    n_classes: int
    n_images: int
    dataset_mb: float
    label: str
    whole: int
    lengths: dict[int, tuple[TrialSpec, int]]
    arms: dict[str, None]

    @property
    def spec(self) -> TrialSpec:
        """A trial of the length that most have."""
        return max(self.lengths.values(), key=lambda found: found[1])[0]

    @property
    def n_trials(self) -> int:
        return sum(n for _, n in self.lengths.values())

    @property
    def steps(self) -> int:
        """Of all trials."""
        return sum(spec.steps * n for spec, n in self.lengths.values())

    @property
    def trained_shape(self) -> tuple[int, int, int]:
        """(C, H, W) as trained on."""
        channels, height, width = self.image_shape
        return channels, self.spec.size or height, self.spec.size or width

    @property
    def words(self) -> str:
        shown = list(self.arms)[:NAMED_ARMS]
        more = f" and {len(self.arms) - len(shown)} more" if len(self.arms) > len(shown) else ""
        return ", ".join(shown) + more


def choose_packs(
    study: StudySpec, slots: Slots, matmul: Matmul, *, measure_all: bool = False, evaluated: int | None = None
) -> Packing:
    """Packs as the study's `execution.pack` says; for "auto" by measuring, unless the study is too short for it.

    `measure_all`: also what is not to be packed, to know what the study takes. `evaluated`: measure evaluations and
    pictures too, with at most so many images; when None those of a plan with `measure_all`, and none without.
    """
    wanted = study.execution.pack
    most = (MOST_EVALUATED if measure_all else 0) if evaluated is None else evaluated
    if wanted == "off" and not measure_all and not slots.gpu:
        return Packing(sizes={}, words=("alone, as execution.pack is off",))
    shapes = _shapes(study)
    sizes, words, kinds = dict[Hashable, int](), list[str](), list[Kind]()
    recorded, made, short = set[Hashable](), set[Hashable](), False
    for key, shape in list(shapes.items())[:MOST_MEASURED]:
        spec = shape.spec
        if isinstance(wanted, int):
            reason = why_alone(spec, shape.image_shape)
            sizes[key] = 1 if reason else wanted
            said = f"alone, as {reason}" if reason else f"packs of up to {wanted}, as execution.pack says"
            words.append(f"{spec.model}: {said}")
            if not measure_all:
                continue
        # Of one trial after the other.
        least_ms = 0.0 if measure_all else 1000 * WORTH_MEASURING_S * slots.count / shape.steps
        at_most = -(-shape.n_trials // slots.count)
        if SAMPLERS[study.search.sampler].adaptive:  # arms come one at a time
            at_most = min(at_most, len(study.seeds))
        asked = min(at_most, sizes[key]) if isinstance(wanted, int) else None
        found, rest = _measured(
            slots, shape, matmul,
            most=at_most,
            packs=None if asked is None else [asked] if asked > 1 else [],
            least_ms=least_ms,
            off=wanted == "off",
            measure_alone=measure_all,
            evaluated=most,
        )  # fmt: skip
        short |= found.step_ms is not None and found.step_ms < least_ms
        if not isinstance(wanted, int):
            sizes[key] = found.size
            words.append(f"{spec.model}: {found.words}")
            if found.recorded:
                recorded.add(key)
        judged_in = (shape.label, spec.size)
        make_s = _making_s(shape) if measure_all and judged_in not in made else 0.0
        made.add(judged_in)
        kinds += [
            Kind.measured(
                found, asked, spec=one, arm=shape.words, n_trials=n, rest=rest, n_images=shape.n_images,
                dataset_mb=shape.dataset_mb, pixels=math.prod(shape.trained_shape),
                make_s=0.0 if i else make_s,
            )
            for i, (one, n) in enumerate(shape.lengths.values())
        ]  # fmt: skip
    if len(shapes) > MOST_MEASURED:
        words.append(f"{len(shapes) - MOST_MEASURED} more kinds of trials: alone, as they were not measured")
    complete = 0 < len(shapes) <= MOST_MEASURED
    prediction = None
    if complete and not short:
        copies = not os.environ.get("MLFLOW_TRACKING_URI")
        prediction = predict(study, kinds, slots, arms.arm_count(study), copies=copies)
    return Packing(
        sizes=sizes, words=tuple(dict.fromkeys(words)), recorded=frozenset(recorded), kinds=tuple(kinds),
        complete=complete, prediction=prediction,
    )  # fmt: skip


def _measured(
    slots: Slots, shape: _Shape, matmul: Matmul, *, evaluated: int, **how: Any
) -> tuple[Calibration, Rest | None]:
    """`measure` where the trials will run; on a GPU in a process of its own, which frees the device when it ends."""
    work = partial(_measure, shape.spec, shape, matmul, evaluated, how)
    if not slots.gpu:
        memory, others_mb = psutil.virtual_memory(), WORKER_MB + shape.dataset_mb
        mine_mb = SHARE_OF_MEMORY * memory.available / 2**20 / slots.count - others_mb
        return work("cpu", max(0.0, mine_mb), memory.total / 2**20 - others_mb)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_on_gpu, min(1.0, slots.gpu), shape.dataset_mb, work).result()
    except (RuntimeError, OSError) as error:  # of CUDA, or of a process that died
        reason = f"measuring failed ({type(error).__name__}: {error})".splitlines()[0]
        return Calibration(alone_ms=None, packed_ms={}, reason=reason), None


def _on_gpu(share: float, images_mb: float, work: Any) -> tuple[Calibration, Rest | None]:
    """`work` for a worker that has this share of a GPU."""
    import torch

    free_mb, all_mb = (found / 2**20 for found in torch.cuda.mem_get_info())
    mine_mb = max(0.0, SHARE_OF_MEMORY * free_mb * share - images_mb)
    found: tuple[Calibration, Rest | None] = work("cuda", mine_mb, all_mb - images_mb)
    return found


def _measure(
    spec: TrialSpec, shape: _Shape, matmul: Matmul, evaluated: int, how: Mapping[str, Any], device: str,
    budget_mb: float, memory_mb: float,
) -> tuple[Calibration, Rest | None]:  # fmt: skip
    """Steps of a trial and, with at most `evaluated` images, its evaluations and pictures."""
    found = calibrate(
        spec, shape.image_shape, matmul, device=device, budget_mb=budget_mb, memory_mb=memory_mb, **how
    )
    if not evaluated or found.alone_ms is None or found.alone_ms < how["least_ms"]:
        return found, None
    return found, measure_rest(
        spec, shape.image_shape, shape.n_classes, shape.n_images, device=device, most=evaluated
    )


def _making_s(shape: _Shape) -> float:
    """Seconds to train the classifier that its evaluations need, with all cores; 0 when it is there already."""
    if shape.spec.features != "classifier" or not shape.spec.eval_steps or _has_classifier(shape):
        return 0.0
    each = measure_classifier(shape.trained_shape, max(2, shape.n_classes))
    return each * shape.whole * n_epochs(shape.whole) / min(SHARDS, os.cpu_count() or 1)


def _has_classifier(shape: _Shape) -> bool:
    """Whether the classifier that its evaluations need was trained already."""
    for path in (home() / "datasets").glob("*.json"):
        facts = json.loads(path.read_text())
        if facts.get("name") == shape.label:
            of = digest([facts["digest"], shape.spec.size])
            n_classes, n_images = facts["n_classes"], facts["n_images"]
            if classifier_file(features_directory(), of, shape.trained_shape, n_classes, n_images).exists():
                return True
    return False


def _shapes(study: StudySpec) -> dict[Hashable, _Shape]:
    """By fusion key, those of most trials first.

    A search proposes its own arms: the first point of the space stands for them, with each named arm.
    """
    grid = study.search.sampler == "grid"
    points: list[dict[str, Value]] = (
        arms.grid(study) if grid else [_first_point(study, n) for n in study.arms or [""]]
    )
    found = dict[Hashable, _Shape]()
    stride = 1 + len(points) // MOST_LOOKED_AT
    for point in points[::stride]:
        mine = arms.resolved(study, point)
        n = n_images(mine)
        if n is None:
            continue
        spec = arms.trial_spec(study, point, study.seeds[0], "")
        image_shape = mine.dataset.source.image_shape
        shape = found.setdefault(
            fusion_key(spec),
            _Shape(
                image_shape=image_shape, n_classes=n_classes(mine), n_images=n, lengths={}, arms={},
                dataset_mb=dataset_mb(mine), label=mine.dataset.source.label,
                whole=whole_images(mine.dataset),
            ),
        )  # fmt: skip
        trials = len(study.seeds) * (stride if grid else -(-(study.search.trials or 1) // len(points)))
        first, before = shape.lengths.get(spec.steps, (spec, 0))
        shape.lengths[spec.steps] = first, before + trials
        shape.arms[str(point["arm"]) if "arm" in point else arms.label(point)] = None
    return dict(sorted(found.items(), key=lambda item: -item[1].n_trials))


def _first_point(study: StudySpec, arm: str) -> dict[str, Value]:
    point: dict[str, Value] = {"arm": arm} if arm else {}
    space = each_arm(study)[arm].space
    for name in ordered(space):
        axis = space[name]
        if holds(axis, point):
            point[name] = axis.choices[0] if isinstance(axis, Choices) else axis.low
    return point
