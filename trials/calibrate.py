"""How fast a trial steps on this device, alone and in packs: measured, in a few seconds, on images of noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch

from trials import kernels
from trials.kernels import Matmul
from trials.packs import Pack, alone_because
from trials.spec import TrialSpec
from trials.state import fresh_state
from trials.step import Trainer

SIZES = (2, 4, 8)
LEAST_SPEEDUP = 1.05
"""A pack that is not at least so much faster is not worth the trials that a lost worker takes with it."""
SLOW_MS = 200.0
"""A step alone that takes longer is measured once, next to one size of packs."""
BUDGET_MS = 3000.0
_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Milliseconds of a step: alone (None: not measured), and of one trial in a pack, by the pack's size.

    `reason`: why no pack was tried.
    """

    alone_ms: float | None
    packed_ms: Mapping[int, float]
    reason: str = ""

    @property
    def size(self) -> int:
        """The best pack: the smallest that is nearly as fast as the fastest, or 1 when none is worth it."""
        if not self.packed_ms or self.alone_ms is None:
            return 1
        least = min(self.packed_ms.values())
        if least * LEAST_SPEEDUP > self.alone_ms:
            return 1
        return min(size for size, ms in self.packed_ms.items() if ms <= 1.02 * least)

    @property
    def step_ms(self) -> float | None:
        """A step of one trial, run as chosen."""
        return self.packed_ms[self.size] if self.size > 1 else self.alone_ms

    @property
    def words(self) -> str:
        """The choice and its figures for people."""
        parts = [f"{self.alone_ms:.3g} ms a step alone"] if self.alone_ms is not None else []
        parts += [f"{ms:.3g} ms in packs of {size}" for size, ms in self.packed_ms.items()]
        chosen = f"packs of {self.size}" if self.size > 1 else "alone"
        reason = f", as {self.reason}" if self.reason else ""
        return f"{chosen}{reason}" + (f" ({', '.join(parts)})" if parts else "")


def calibrate(
    spec: TrialSpec,
    image_shape: tuple[int, int, int],
    matmul: Matmul,
    *,
    most: int = SIZES[-1],
    worth: Callable[[float], str] = lambda _: "",
    measure_alone: bool = True,
) -> Calibration:
    """Steps of the trial alone and in packs of up to `most`, in turns on one thread: a few seconds.

    `worth`: of a step's milliseconds alone, why packs need not be measured, or nothing. `measure_alone`: measure also
    what cannot be packed.
    """
    with _Process(spec, matmul):
        alone = _trainers(spec, image_shape, 1)[0]
        reason = alone_because(spec, alone.gan) or ("there is no trial to share with" if most < 2 else "")
        if not measure_alone:
            reason = reason or _too_long(spec, image_shape)
            if reason:
                return Calibration(alone_ms=None, packed_ms={}, reason=reason)
        alone_ms = _ms(alone.step, 1)
        if alone_ms < SLOW_MS:  # the first step also sets things up
            alone_ms = _ms(alone.step, 1)
        if reason := reason or worth(alone_ms):
            return Calibration(alone_ms=alone_ms, packed_ms={}, reason=reason)
        slow = alone_ms > SLOW_MS
        sizes = [size for size in SIZES if size <= most and not (slow and size != min(SIZES[1], most))]
        packs = {size: Pack(_trainers(spec, image_shape, size)) for size in sizes or [2]}
        for pack in packs.values():
            pack.step()
        repeats = max(1, int(BUDGET_MS / (_ROUNDS * (1 + sum(packs)) * max(alone_ms, 1e-3))))
        taken: dict[int, list[float]] = {1: [], **{size: [] for size in packs}}
        for _ in range(1 if slow else _ROUNDS):  # in turns, so that a busy moment meets all of them
            taken[1].append(_ms(alone.step, repeats))
            for size, pack in packs.items():
                taken[size].append(_ms(pack.step, repeats) / size)
    medians = {size: median(values) for size, values in taken.items()}
    return Calibration(alone_ms=medians.pop(1), packed_ms=medians)


def _too_long(spec: TrialSpec, image_shape: tuple[int, int, int]) -> str:
    """A step with few images tells whether trying packs would take minutes, and gain little."""
    few = {name: min(8, int(spec.training[name])) for name in ("batch_size", "batch_size_g")}
    trainer = _trainers(replace(spec, training={**spec.training, **few}), image_shape, 1)[0]
    return "its steps are too long to gain from packs" if _ms(trainer.step, 1) > SLOW_MS else ""


def why_alone(spec: TrialSpec, image_shape: tuple[int, int, int]) -> str:
    """Why a trial cannot be one of a pack; nothing when it can."""
    with _Process(spec, "default"):
        return alone_because(spec, _trainers(spec, image_shape, 1)[0].gan) or ""


class _Process:
    """Sets a worker's arithmetic while it is open, and torch's random state and threads back afterwards."""

    def __init__(self, spec: TrialSpec, matmul: Matmul) -> None:
        self._spec, self._matmul = spec, matmul

    def __enter__(self) -> None:
        self._random, self._threads = torch.get_rng_state(), torch.get_num_threads()
        torch.set_num_threads(1)
        kernels.keep_large_blocks()
        kernels.use_matmul(self._matmul)
        kernels.use_precision(str(self._spec.training["precision"]))

    def __exit__(self, *_: object) -> None:
        kernels.use_matmul("default")
        kernels.use_precision("float32")
        torch.set_num_threads(self._threads)
        torch.set_rng_state(self._random)


def _trainers(spec: TrialSpec, image_shape: tuple[int, int, int], n: int) -> list[Trainer]:
    draw = torch.Generator().manual_seed(0)
    count = 2 * int(spec.training["batch_size"])
    images = torch.randint(0, 256, (count, *image_shape), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % max(1, spec.n_classes)
    side = spec.size or image_shape[1]
    made = []
    for _ in range(n):
        state = fresh_state(spec, (image_shape[0], side, spec.size or image_shape[2]), images.device)
        if n > 1:
            state.own_dropout()
        state.gan.generator.train()
        state.gan.discriminator.train()
        made.append(Trainer(spec, state, images, labels))
    return made


def _ms(work: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return 1000 * (time.perf_counter() - started) / repeats
