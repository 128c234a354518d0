"""How a study's trials are run on this machine: matrix kernels, and alone or in packs, by measuring.

None of it changes what a trial computes beyond rounding. Imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from models import Value
from orchestrator import arms
from orchestrator.machine import Slots
from orchestrator.study import Choices, StudySpec, n_images
from trials.calibrate import calibrate, why_alone
from trials.kernels import Matmul, probe_matmul
from trials.packs import fusion_key
from trials.spec import TrialSpec

WORTH_MEASURING_S = 60.0
"""A study that takes less on this machine is not measured: it would end hardly sooner."""
MOST_LOOKED_AT = 2000
"""Arms of a grid whose shapes are looked at; of more, every n-th."""
MOST_MEASURED = 4
"""Shapes of trials that are measured, those of most trials first; the others run alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How many trials may be one pack, by fusion key; and how that was chosen, a line a shape.

    `seconds`: how long the whole study is expected to take, where that was measured.
    """

    sizes: Mapping[Hashable, int]
    words: tuple[str, ...]
    seconds: float | None = None

    def size(self, spec: TrialSpec) -> int:
        return self.sizes.get(fusion_key(spec), 1)


def matmul_of_this_machine() -> Matmul:
    """The matrix kernels that a study begun now would use."""
    return probe_matmul().matmul


def choose_packs(study: StudySpec, slots: Slots, matmul: Matmul, *, measure_all: bool = False) -> Packing:
    """Packs as the study's `execution.pack` says; for "auto" by measuring, unless the study is too short for it.

    `measure_all`: also what is not to be packed, to know how long the study takes.
    """
    wanted = study.execution.pack
    if slots.gpu:
        return Packing(sizes={}, words=("alone, as packs have not been measured on GPUs yet",))
    if wanted == "off" and not measure_all:
        return Packing(sizes={}, words=("alone, as execution.pack is off",))
    shapes = _shapes(study)
    sizes, words, seconds = dict[Hashable, int](), list[str](), 0.0
    for key, (spec, shape, n_trials) in list(shapes.items())[:MOST_MEASURED]:
        if isinstance(wanted, int):
            reason = why_alone(spec, shape)
            sizes[key] = 1 if reason else wanted
            said = f"alone, as {reason}" if reason else f"packs of up to {wanted}, as execution.pack says"
            words.append(f"{spec.model}: {said}")
            continue
        in_turn = spec.steps * n_trials / slots.count  # steps of one trial after the other

        def worth(alone_ms: float, in_turn: float = in_turn) -> str:
            if wanted == "off":
                return "execution.pack is off"
            short = alone_ms / 1000 * in_turn < WORTH_MEASURING_S and not measure_all
            return "the study is too short for packs to matter" if short else ""

        most = -(-n_trials // slots.count)
        found = calibrate(spec, shape, matmul, most=most, worth=worth, measure_alone=measure_all)
        sizes[key] = found.size
        words.append(f"{spec.model}: {found.words}")
        seconds += (found.step_ms or 0.0) / 1000 * in_turn
    if len(shapes) > MOST_MEASURED:
        words.append(f"{len(shapes) - MOST_MEASURED} more kinds of trials: alone, as they were not measured")
    complete = measure_all and not isinstance(wanted, int) and 0 < len(shapes) <= MOST_MEASURED
    return Packing(sizes=sizes, words=tuple(dict.fromkeys(words)), seconds=seconds if complete else None)


def _shapes(study: StudySpec) -> dict[Hashable, tuple[TrialSpec, tuple[int, int, int], int]]:
    """By fusion key: a trial, the shape of its stored images, and how many trials of the kind there are.

    A search proposes its own arms: the first point of the space stands for them, with each named arm.
    """
    grid = study.search.sampler == "grid"
    points: list[dict[str, Value]] = (
        arms.grid(study) if grid else [_first_point(study, n) for n in study.arms or [""]]
    )
    found, counts = dict[Hashable, tuple[TrialSpec, tuple[int, int, int]]](), Counter[Hashable]()
    stride = 1 + len(points) // MOST_LOOKED_AT
    for point in points[::stride]:
        mine = arms.resolved(study, point)
        if n_images(mine) is None:
            continue
        spec = arms.trial_spec(study, point, study.seeds[0], "")
        key = fusion_key(spec)
        found.setdefault(key, (spec, mine.dataset.source.image_shape))
        counts[key] += len(study.seeds) * (stride if grid else -(-(study.search.trials or 1) // len(points)))
    return {key: (*found[key], n) for key, n in counts.most_common()}


def _first_point(study: StudySpec, arm: str) -> dict[str, Value]:
    named: dict[str, Value] = {"arm": arm} if arm else {}
    lowest = {
        n: axis.choices[0] if isinstance(axis, Choices) else axis.low for n, axis in study.space.items()
    }
    return named | lowest
