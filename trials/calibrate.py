"""How fast a trial steps on this device, alone and in packs: measured, in a few seconds, on images of noise."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch
from torch.nn.functional import cross_entropy

from trials import kernels
from trials.checkpoints import CheckpointStore
from trials.data import Images
from trials.evaluation import MOST_SEARCHED, Evaluator
from trials.features import BATCH, Classifier, untrained
from trials.gallery import draw_gallery
from trials.kernels import Matmul
from trials.loop import draw_samples
from trials.packs import Pack, alone_because
from trials.pictures import MAX_FRAMES
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
    take, by size. `checkpoint_mb`, `checkpoint_s`: what one checkpoint weighs on disk, and how long writing it takes.
    `fits`: whether the device's memory holds one trial. `reason`: why no pack was tried. `notes`: what else was found.
    """

    alone_ms: float | None
    packed_ms: Mapping[int, float]
    recorded_ms: Mapping[int, float] = field(default_factory=dict)
    memory_mb: Mapping[int, float] = field(default_factory=dict)
    checkpoint_mb: float = 0.0
    checkpoint_s: float = 0.0
    fits: bool = True
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
    memory_mb: float = math.inf,
    packs: Sequence[int] | None = None,
) -> Calibration:
    """Steps of the trial alone and in packs of up to `most`, in turns on one thread: a few seconds.

    `least_ms`: with shorter steps the study is too short for packs to matter. `off`: packs are not wanted.
    `measure_alone`: measure also what cannot be packed. `budget_mb`: memory that the trials of one worker may take, and
    `memory_mb`: all that there is for them. `packs`: try these sizes, and no others.
    """
    on = torch.device(device)
    with _Process(spec, matmul):
        memory = _Memory(on)
        alone = _trainers(spec, image_shape, 1, on)[0]
        if _state_mb(alone) > memory_mb:
            return _too_large(f"{_state_mb(alone):,.0f} MB of weights, gradients and moments")
        reason = alone_because(spec, alone.gan) or ("there is no trial to share with" if most < 2 else "")
        reason = reason or ("execution.pack is off" if off else "")
        if not measure_alone and on.type == "cpu":
            reason = reason or _too_long(spec, image_shape)
            if reason:
                return Calibration(alone_ms=None, packed_ms={}, reason=reason)
        try:
            if on.type == "cuda":  # kernels are loaded at their first call
                _ms(alone.step, WARM_UP, on)
            alone_ms = _ms(alone.step, 1, on)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            return _too_large(f"{type(error).__name__} in its first step")
        if alone_ms < SLOW_MS:  # the first step also sets things up
            alone_ms = _ms(alone.step, 1, on)
        taken_mb = {1: max(memory.grown(), _state_mb(alone))}
        checkpoint_mb, checkpoint_s = measure_checkpoint(alone)
        slow = alone_ms > SLOW_MS
        if alone_ms < least_ms:
            return Calibration(
                alone_ms=alone_ms, packed_ms={}, memory_mb=taken_mb,
                checkpoint_mb=checkpoint_mb, checkpoint_s=checkpoint_s,
                reason=reason or "the study is too short for packs to matter",
            )  # fmt: skip
        sizes = [size for size in SIZES[on.type] if size <= most and not (slow and size != min(4, most))]
        sizes = sizes if packs is None else list(packs)
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
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
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
        if reason and len(ways) == 1 and not measure_alone:
            return Calibration(
                alone_ms=alone_ms, packed_ms={}, memory_mb=taken_mb, checkpoint_mb=checkpoint_mb,
                checkpoint_s=checkpoint_s, reason=reason, notes=notes,
            )  # fmt: skip
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
        checkpoint_mb=checkpoint_mb,
        checkpoint_s=checkpoint_s,
        reason=reason,
        notes=notes,
    )


def _is_memory(error: Exception) -> bool:
    """On a CPU torch raises what it raises for everything else."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _too_large(words: str) -> Calibration:
    reason = f"one trial takes more memory than there is: {words}"
    return Calibration(alone_ms=None, packed_ms={}, fits=False, reason=reason)


def measure_checkpoint(trainer: Trainer) -> tuple[float, float]:
    """MB of one checkpoint on disk, and seconds to write it.

    The trainer must have taken a step: optimisers hold nothing before.
    """
    with tempfile.TemporaryDirectory(prefix="gan-sweep-") as directory:
        store = CheckpointStore(directory=Path(directory), key="0" * 16, attempt=1)
        store.open()
        started = time.perf_counter()
        path = store.save(trainer.state.state_dict(), trainer.state.step)
        return _mb_below(path), time.perf_counter() - started


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
MOST_DRAWN = 3
"""Grids that are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a trial takes beside its steps and checkpoints. Seconds on one thread, or on the GPU; MB on disk.

    `evaluation_s`: an evaluation. `grid_s`, `grid_mb`: the grids of one step. `end_s`: what comes after the last step:
    nearest neighbours, and the gallery of `gallery_mb`. `feature_s`: the features of one real image.
    """

    evaluation_s: float = 0.0
    grid_s: float = 0.0
    grid_mb: float = 0.0
    end_s: float = 0.0
    gallery_mb: float = 0.0
    feature_s: float = 0.0


def measure_rest(
    spec: TrialSpec,
    image_shape: tuple[int, int, int],
    n_classes: int,
    n_images: int,
    *,
    device: str = "cpu",
    most: int = MOST_EVALUATED,
) -> Rest:
    """Evaluate and draw once, with noise in the place of `n_images` real images, at most `most` in an evaluation.

    image_shape: (C, H, W) of the stored images; `n_classes`: of the dataset. The generator is untrained.
    """
    n = min(spec.eval_samples, most)
    draw, on = torch.Generator().manual_seed(0), torch.device(device)
    pixels = torch.randint(0, 256, (2 * n, *image_shape), generator=draw, dtype=torch.uint8).to(on)
    labels = torch.arange(2 * n, device=on) % max(2, n_classes)
    images = Images(pixels, labels if spec.features == "classifier" else None)
    found, threads, random = Rest(), torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="gan-sweep-") as name:
            directory = Path(name)
            sized = images.sized(spec.size).pixels
            channels, height, width = sized.shape[1:]
            state = fresh_state(spec, (channels, height, width), on)
            if spec.eval_steps:
                extractor = untrained(spec.features, sized, max(2, n_classes), on)
                took = _seconds(lambda: extractor(sized), on)
                judged = Evaluator(replace(spec, eval_samples=n), images, extractor, directory / "features")
                judged.neighbours(state.gan, state.shown)  # what is of real images alone is kept
                evaluation_s = _seconds(lambda: judged.measure(state.gan, state.shown, first=False), on)
                near_s = _seconds(lambda: judged.neighbours(state.gan, state.shown), on)
                found = replace(
                    found,
                    evaluation_s=evaluation_s * spec.eval_samples / n,
                    feature_s=took / len(sized),
                    end_s=near_s * max(1.0, min(n_images, MOST_SEARCHED) / len(sized)),
                )
            frames = min(MOST_DRAWN, len(spec.picture_steps))
            for i in range(frames):  # of generators that differ, as those of one training do
                other = fresh_state(replace(spec, seed=i), (channels, height, width), on)
                other.step = i + 1
                took = _seconds(partial(draw_samples, spec, other, on, directory), on)
                grid_mb = _mb_below(directory / "samples") / (i + 1)
                found = replace(found, grid_s=took if i == 0 else min(took, found.grid_s), grid_mb=grid_mb)
            if spec.gallery:
                real, features = judged.searched if spec.eval_steps else (sized, None)
                gallery_s = _seconds(
                    lambda: draw_gallery(
                        spec, state.gan, state.shown, directory, real=real,
                        extractor=judged.extractor if spec.eval_steps else None,
                        step=spec.steps, device=on, real_features=features,
                    ),
                    on,
                )  # fmt: skip
                gallery_mb = _mb_below(directory / "gallery")
                if (film := directory / "gallery" / "animation_training.gif").exists():
                    n_frames = min(len(spec.picture_steps), MAX_FRAMES)
                    gallery_mb += film.stat().st_size / 2**20 * (n_frames / frames - 1)
                found = replace(found, end_s=found.end_s + gallery_s, gallery_mb=gallery_mb)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
    return found


def measure_classifier(image_shape: tuple[int, int, int], n_classes: int) -> float:
    """Seconds on one thread that one image takes in one epoch of the training of a classifier.

    image_shape: (C, H, W) as trained on.
    """
    network, threads = Classifier(image_shape, n_classes), torch.get_num_threads()
    network.initialise(torch.Generator().manual_seed(0))
    x, labels = torch.rand(BATCH, *image_shape), torch.arange(BATCH) % n_classes
    x = x.contiguous(memory_format=torch.channels_last)

    def work() -> None:
        torch.autograd.grad(cross_entropy(network(x), labels), list(network.parameters()))

    torch.set_num_threads(1)
    try:
        return min(_ms(work, 1, x.device) for _ in range(3)) / 1000 / BATCH
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], object], on: torch.device) -> float:
    return _ms(work, 1, on) / 1000


def _mb_below(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 2**20


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
