"""How fast a trial steps on this device, alone and in packs: measured, in a few seconds, on images of noise."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import psutil
import torch

from trials import kernels
from trials.data import Images
from trials.evaluation import Evaluator
from trials.features import untrained
from trials.kernels import Matmul
from trials.packs import Pack, alone_because
from trials.recorded import WARM_UP, Recorded, why_not
from trials.spec import TrialSpec
from trials.state import fresh_state
from trials.step import Step, Trainer

SIZES = {"cpu": (2, 4, 8), "cuda": (2, 4, 8, 16, 32)}
LEAST_SPEEDUP = 1.05
"""A pack that is not at least so much faster is not worth the trials that a lost worker takes with it."""
SLOW_MS = 200.0
"""A step alone that takes longer is measured once, next to one size of packs."""
BUDGET_MS = 3000.0
MOST_DIFFERENCE = 1e-3
"""Of a metric of recorded steps from that of the steps themselves, on the same device: kernels may add in any order."""
_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Milliseconds of a step: alone (None: not measured), and of one trial in a pack, by the pack's size.

    `recorded_ms`: the same from a recording, on a GPU, by size; 1 is alone. `memory_mb`: what the trials of one worker
    take, by size. `reason`: why no pack was tried. `notes`: what else was found.
    """

    alone_ms: float | None
    packed_ms: Mapping[int, float]
    recorded_ms: Mapping[int, float] = field(default_factory=dict)
    memory_mb: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def _best(self) -> dict[int, float]:
        plain = {} if self.alone_ms is None else {1: self.alone_ms, **self.packed_ms}
        return {size: min(ms, self.recorded_ms.get(size, ms)) for size, ms in plain.items()}

    @property
    def size(self) -> int:
        """The best pack: the smallest that is nearly as fast as the fastest, or 1 when none is worth it."""
        best = self._best
        if len(best) < 2:
            return 1
        alone = best.pop(1)
        least = min(best.values())
        if least * LEAST_SPEEDUP > alone:
            return 1
        return min(size for size, ms in best.items() if ms <= 1.02 * least)

    @property
    def recorded(self) -> bool:
        """Whether steps of the chosen size are faster from a recording."""
        size = self.size
        plain = self.alone_ms if size == 1 else self.packed_ms[size]
        return plain is not None and self.recorded_ms.get(size, math.inf) < plain

    @property
    def step_ms(self) -> float | None:
        """A step of one trial, run as chosen."""
        return self._best.get(self.size)

    @property
    def words(self) -> str:
        """The choice and its figures for people."""
        plain = {} if self.alone_ms is None else {1: self.alone_ms, **self.packed_ms}
        names = {size: "a step alone" if size == 1 else f"in packs of {size}" for size in plain}
        parts = [f"{ms:.3g} ms {names[size]}" for size, ms in plain.items()]
        parts += [f"{ms:.3g} ms {names[size]} recorded" for size, ms in self.recorded_ms.items()]
        if self.size in self.memory_mb:
            parts.append(f"{self.memory_mb[self.size]:,.0f} MB")
        chosen = f"packs of {self.size}" if self.size > 1 else "alone"
        chosen += ", recorded" if self.recorded else ""
        reason = f", as {self.reason}" if self.reason else ""
        return "; ".join((f"{chosen}{reason}" + (f" ({', '.join(parts)})" if parts else ""), *self.notes))


def calibrate(
    spec: TrialSpec,
    image_shape: tuple[int, int, int],
    matmul: Matmul,
    *,
    device: str = "cpu",
    most: int = 8,
    least_ms: float = 0.0,
    off: bool = False,
    measure_alone: bool = True,
    budget_mb: float = math.inf,
) -> Calibration:
    """Steps of the trial alone and in packs of up to `most`, in turns on one thread: a few seconds.

    `least_ms`: with shorter steps the study is too short for packs to matter. `off`: packs are not wanted.
    `measure_alone`: measure also what cannot be packed. `budget_mb`: memory that the trials of one worker may take.
    """
    on = torch.device(device)
    with _Process(spec, matmul):
        memory = _Memory(on)
        alone = _trainers(spec, image_shape, 1, on)[0]
        reason = alone_because(spec, alone.gan) or ("there is no trial to share with" if most < 2 else "")
        reason = reason or ("execution.pack is off" if off else "")
        if not measure_alone and on.type == "cpu":
            reason = reason or _too_long(spec, image_shape)
            if reason:
                return Calibration(alone_ms=None, packed_ms={}, reason=reason)
        if on.type == "cuda":  # kernels are loaded at their first call
            _ms(alone.step, WARM_UP, on)
        alone_ms = _ms(alone.step, 1, on)
        if alone_ms < SLOW_MS:  # the first step also sets things up
            alone_ms = _ms(alone.step, 1, on)
        taken_mb = {1: max(memory.grown(), _state_mb(alone))}
        slow = alone_ms > SLOW_MS
        if alone_ms < least_ms:
            return Calibration(
                alone_ms=alone_ms, packed_ms={}, memory_mb=taken_mb,
                reason=reason or "the study is too short for packs to matter",
            )  # fmt: skip
        sizes = [size for size in SIZES[on.type] if size <= most and not (slow and size != min(4, most))]
        fitting = [size for size in sizes or [2] if size * taken_mb[1] <= budget_mb]
        if not reason and not fitting:
            reason = f"two trials take more memory than the {budget_mb:,.0f} MB that a worker has"
        steps: dict[int, Step] = {1: alone}
        notes: tuple[str, ...] = ()
        for size in [] if reason else fitting:
            memory = _Memory(on)
            try:
                pack = Pack(_trainers(spec, image_shape, size, on))
                pack.step()
            except (torch.OutOfMemoryError, MemoryError):
                notes += (f"packs of {size} take more memory than there is",)
                break
            taken_mb[size] = max(memory.grown(), size * _state_mb(alone))
            if taken_mb[size] > budget_mb:
                break
            steps[size] = pack
        ways: dict[tuple[int, bool], Callable[[], None]] = {
            (k, False): step.step for k, step in steps.items()
        }
        if on.type == "cuda":
            memory = _Memory(on)
            recorded, why = _recorded(spec, image_shape, steps, on)
            notes += why
            if recorded:  # their graphs' own memory, shared out by size
                taken_mb = {
                    k: mb + memory.grown() * k / sum(recorded) if k in recorded else mb
                    for k, mb in taken_mb.items()
                }
            ways |= {(size, True): way for size, way in recorded.items()}
        if reason and len(ways) == 1:
            return Calibration(
                alone_ms=alone_ms, packed_ms={}, memory_mb=taken_mb, reason=reason, notes=notes
            )
        # On a CPU a step of a pack of K takes about K steps, on a GPU little more than one.
        weight = sum(size for size, _ in ways) if on.type == "cpu" else 2 * len(ways)
        repeats = max(1, int(BUDGET_MS / (_ROUNDS * weight * max(alone_ms, 1e-3))))
        taken: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
        for _ in range(1 if slow else _ROUNDS):  # in turns, so that a busy moment meets all of them
            for (size, is_recorded), work in ways.items():
                taken[size, is_recorded].append(_ms(work, repeats, on) / size)
    alone_each = taken[1, False]
    # Relative to alone in the same round: what the machine does meanwhile meets both.
    medians = {
        way: median(alone_each)
        * median(ms / ms_alone for ms, ms_alone in zip(values, alone_each, strict=True))
        for way, values in taken.items()
    }
    return Calibration(
        alone_ms=medians[1, False],
        packed_ms={size: ms for (size, rec), ms in medians.items() if size > 1 and not rec},
        recorded_ms={size: ms for (size, rec), ms in medians.items() if rec},
        memory_mb=taken_mb,
        reason=reason,
        notes=notes,
    )


def _recorded(
    spec: TrialSpec,
    image_shape: tuple[int, int, int],
    steps: Mapping[int, Step],
    on: torch.device,
    record: Callable[[Step], Recorded] = Recorded,
) -> tuple[dict[int, Callable[[], None]], tuple[str, ...]]:
    """The steps from recordings, by size, if those are the steps themselves; and why there are none."""
    if refused := why_not(spec, steps[1].gan):
        return {}, (f"not recorded, as {refused}",)
    try:
        metrics = []
        for kind in (lambda trainer: trainer, record):
            (trainer,) = _trainers(spec, image_shape, 1, on)  # which also begins dropout's stream anew
            way = kind(trainer)
            for _ in range(WARM_UP + 5):
                way.step()
            metrics.append(trainer.state.meter.read(**trainer.gradient_norms()))
            if isinstance(way, Recorded) and way.failed:
                return {}, (f"not recorded: {way.failed}",)
        difference = max(
            abs(metrics[1][name] - value) / max(1.0, abs(value)) for name, value in metrics[0].items()
        )
        if not difference <= MOST_DIFFERENCE:
            return {}, (f"not recorded, as recorded steps differ by {difference:.1e}",)
        ways = {size: record(step) for size, step in steps.items()}
        for way in ways.values():
            for _ in range(WARM_UP + 1):
                way.step()
    except (RuntimeError, MemoryError) as error:
        return {}, (f"not recorded: {error}".splitlines()[0],)
    failed = [way.failed for way in ways.values() if way.failed]
    notes = (f"not recorded: {failed[0]}",) if failed else ()
    return {size: way.step for size, way in ways.items() if not way.failed}, notes


class _Memory:
    """What this process has taken since."""

    def __init__(self, on: torch.device) -> None:
        self._on = on
        if on.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._before = self._now()

    def _now(self) -> float:
        if self._on.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return float(psutil.Process().memory_info().rss) / 2**20

    def grown(self) -> float:
        """MB."""
        return max(0.0, self._now() - self._before)


def _state_mb(trainer: Trainer) -> float:
    """MB of weights, gradients and two moments: what a trial takes at least."""
    nets = (trainer.gan.generator, trainer.gan.discriminator)
    return sum(4 * p.numel() * p.element_size() for net in nets for p in net.parameters()) / 2**20


def _too_long(spec: TrialSpec, image_shape: tuple[int, int, int]) -> str:
    """A step with few images tells whether trying packs would take minutes, and gain little."""
    group = int(spec.model_params.get("minibatch_stddev_group", 0)) or 8  # it must divide a batch
    few = {name: min(group, int(spec.training[name])) for name in ("batch_size", "batch_size_g")}
    cpu = torch.device("cpu")
    trainer = _trainers(replace(spec, training={**spec.training, **few}), image_shape, 1, cpu)[0]
    return "its steps are too long to gain from packs" if _ms(trainer.step, 1, cpu) > SLOW_MS else ""


def why_alone(spec: TrialSpec, image_shape: tuple[int, int, int]) -> str:
    """Why a trial cannot be one of a pack; nothing when it can."""
    with _Process(spec, "default"):
        return alone_because(spec, _trainers(spec, image_shape, 1, torch.device("cpu"))[0].gan) or ""


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
        gc.collect()
        kernels.give_blocks_back()


MOST_EVALUATED = 2000
"""Images of an evaluation that is measured; larger ones take as much longer as they are larger."""


def measure_evaluation(spec: TrialSpec, image_shape: tuple[int, int, int], n_classes: int) -> float:
    """Seconds that an evaluation of the trial takes on one CPU thread, with noise in the place of real images.

    image_shape: (C, H, W) of the stored images; `n_classes`: of the dataset.
    """
    n = min(spec.eval_samples, MOST_EVALUATED)
    draw, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    pixels = torch.randint(0, 256, (2 * n, *image_shape), generator=draw, dtype=torch.uint8)
    labels = torch.arange(2 * n) % max(2, n_classes)
    images = Images(pixels, labels if spec.features == "classifier" else None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="gan-sweep-") as directory:
            extractor = untrained(spec.features, images.sized(spec.size).pixels, max(2, n_classes))
            judged = Evaluator(replace(spec, eval_samples=n), images, extractor, Path(directory))
            channels, height, width = judged.real.images.shape[1:]
            state = fresh_state(spec, (channels, height, width), cpu)
            started = time.perf_counter()
            judged.measure(state.gan, state.shown, first=False)
            return (time.perf_counter() - started) * spec.eval_samples / n
    finally:
        torch.set_num_threads(before)


def _trainers(spec: TrialSpec, image_shape: tuple[int, int, int], n: int, on: torch.device) -> list[Trainer]:
    draw = torch.Generator().manual_seed(0)
    count = 2 * int(spec.training["batch_size"])
    images = torch.randint(0, 256, (count, *image_shape), generator=draw, dtype=torch.uint8)
    images = images.to(on)
    labels = torch.arange(count, device=on) % max(1, spec.n_classes)
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


def _ms(work: Callable[[], object], repeats: int, on: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    if on.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / repeats
