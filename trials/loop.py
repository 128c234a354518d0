"""The training loop, and what it does at the steps of pictures and evaluations.

Axes: N images of a batch, Z latent dimensions, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import Gan
from trials.checkpoints import CheckpointStore
from trials.data import Images
from trials.errors import DivergedError, UnhealthyError
from trials.evaluation import Evaluator, evaluator
from trials.gallery import draw_gallery
from trials.health import check_every, reach
from trials.metrics import mean_distance
from trials.pictures import grid, write_png
from trials.reports import FLAGS, Flag, Picture, Report, Row
from trials.samples import FIXED_NOISE_SEED, generate, quantised
from trials.spec import TrialSpec
from trials.state import TrainState, fresh_state
from trials.step import Trainer

SAMPLES = 64
"""Images in a check of the generator."""

Judge = Callable[[], Evaluator]
"""Makes a trial's evaluator when it is first needed."""


def train(
    spec: TrialSpec,
    images: Tensor,
    labels: Tensor | None,
    store: CheckpointStore,
    directory: Path,
    *,
    checkpoint_every: int,
    report_every_s: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Report, bool | None, None]:
    """`training` that takes its steps by itself, judged against the images it trains on: only its reports."""
    known = Images(images, labels)
    run = training(
        spec, images, labels, store, directory, lambda: evaluator(spec, known, known, None, directory / "features"),
        checkpoint_every=checkpoint_every, report_every_s=report_every_s, clock=clock,
    )  # fmt: skip
    answer = None
    while True:
        try:
            said = run.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(said, Trainer):
            said.step()
        else:
            answer = yield said


def training(
    spec: TrialSpec,
    images: Tensor,
    labels: Tensor | None,
    store: CheckpointStore,
    directory: Path,
    judge: Judge,
    *,
    checkpoint_every: int,
    until: int | None = None,
    flags: Collection[str] = tuple(FLAGS),
    report_every_s: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Report | Trainer, bool | None, bool]:
    """Train `spec` on uint8 `images` (n, C, H, W) with `labels` (n,), going on from `store`'s newest checkpoint.

    Yields its trainer when a step is to be taken, by itself or in a pack, and reports. Asking for what comes after a
    report says that the report is safely recorded, and only then is a checkpoint of its step written: no metric is
    ever behind a checkpoint and lost. Sending True after a report saves a checkpoint at once and ends, so that a
    stopped trial loses nothing; sending True in place of a step asks for a report of what there is. Pictures go below
    `directory`. `flags`: those that are reported when they are raised (health.py), beside those that end the trial.
    Returns whether it paused at step `until`, with a checkpoint, before its end.

    When a metric is not finite or a flag of `spec.stops` is raised, goes back to a checkpoint from before that, with
    lower learning rates, as often as `spec.rollback` says; then raises DivergedError or UnhealthyError. Raises
    FencedError when a newer attempt took over.
    """
    device = images.device
    saved, notes = store.load_latest(device)
    state = _state(spec, images, saved)
    trainer, spread = Trainer(spec, state, images, labels), Spread(images, spec.size)
    rows: list[Row] = []
    pictures: list[Picture] = []
    raised: list[Flag] = []
    reported_at = started_at = clock()
    seconds_before = state.train_s
    first_step = state.step
    ended = _out_of_patience(spec, state)
    goal = spec.steps if until is None else min(until, spec.steps)

    while state.step < goal and not ended:
        if (yield trainer):
            state.train_s = seconds_before + clock() - started_at
            if (yield Report(step=state.step, rows=tuple(rows), notes=tuple(notes), flags=tuple(raised))):
                store.save(state.state_dict(), state.step, spare=_spared(spec, state.step, checkpoint_every))
                return False
            rows, notes, raised, reported_at = [], [], [], clock()
            continue
        last = state.step == spec.steps
        draw, judged = state.step in spec.picture_steps, state.step in spec.eval_steps
        save = state.step == goal or state.step % checkpoint_every == 0 or state.step in spec.keep_steps
        if not (last or draw or judged or save or state.step % spec.log_every == 0):
            continue

        metrics: dict[str, float] = {}
        if last or state.step % spec.log_every == 0:
            read = state.meter.read(**trainer.gradient_norms())
            metrics |= {f"train/{name}": value for name, value in read.items()}
            metrics["train/epoch"] = trainer.epoch
        if draw:
            pictures += draw_samples(spec, state, device, directory)
        best = False
        if judged:
            began = clock()
            metrics |= judge().measure(state.gan, state.shown, first=state.step == spec.eval_steps[0])
            metrics["perf/evaluation_s"] = clock() - began
            best = _is_best(spec, state, metrics)
            ended = _out_of_patience(spec, state)
        if judged or state.step % check_every(spec) == 0:
            metrics |= spread.of(state.gan, state.shown)
        bad = sorted(name for name, value in metrics.items() if not _finite(value))
        found = [] if bad else _look(spec, state, metrics)
        raised += [flag for flag in found if flag.name in flags or flag.name in spec.stops]
        trouble = _trouble(spec, state.step, bad, found)
        if ended and not last and trouble is None:
            lasted = f"no better {spec.judged_by[0]} for {spec.training['patience']} evaluations"
            notes = [*notes, f"ended at step {state.step}: {lasted}"]
        last, save = last or ended, save or best
        if last and trouble is None:
            began = clock()
            drawn, said = _finish(spec, state, images, judge, directory, metrics)
            pictures, notes = [*pictures, *drawn], [*notes, *said]
            metrics["perf/gallery_s"] = clock() - began
        if metrics:
            rows.append(Row(step=state.step, metrics={n: v for n, v in metrics.items() if n not in bad}))
        # Not from the last step: each step is recorded once, and its values would be those that were left.
        may = spec.rollback is not None and state.rollbacks < spec.rollback[0] and state.step < spec.steps
        going_back = trouble is not None and may
        if trouble is not None and going_back:
            saved, said = store.load_latest(device, among=range(0, trouble.since + 1, checkpoint_every))
            notes = [*notes, *said, _back_words(spec, state, trouble, saved)]
        now, stop = clock(), None
        if trouble or last or save or pictures or raised or now - reported_at >= report_every_s:
            state.train_s = seconds_before + now - started_at
            rate = trainer.real_images * (state.step - first_step) / max(now - started_at, 1e-9)
            if rows:
                rows[-1] = Row(step=rows[-1].step, metrics={**rows[-1].metrics, "perf/images_per_s": rate})
            report = Report(
                step=state.step, rows=tuple(rows), pictures=tuple(pictures), notes=tuple(notes), flags=tuple(raised)
            )  # fmt: skip
            rows, pictures, notes, raised, reported_at = [], [], [], [], now
            stop = yield report
        if trouble is not None:
            if not going_back:
                raise trouble.error
            # Only now: what is built seeds torch's global generators, which another trial may have used meanwhile.
            left, state = state, _rolled_back(spec, images, saved, state)
            trainer = Trainer(spec, state, images, labels)
            first_step -= left.step - state.step
            best, save, ended = False, True, _out_of_patience(spec, state)
        if save or last or stop:
            spare = _spared(spec, state.step, checkpoint_every)
            store.save(state.state_dict(), state.step, best=best, spare=spare)
        if stop:
            return False
    if state.step < spec.steps and not ended:
        return True
    store.prune(1)
    return False


def _state(spec: TrialSpec, images: Tensor, saved: Mapping[str, Any] | None) -> TrainState:
    """The state to go on from, its networks in training mode."""
    side = spec.size or images.shape[2]
    state = fresh_state(spec, (images.shape[1], side, spec.size or images.shape[3]), images.device)
    if saved is not None:
        state.load_state_dict(saved)
    state.gan.generator.train()
    state.gan.discriminator.train()
    return state


class _Trouble(NamedTuple):
    """What a trial goes back for or ends with. `since`: the last step at which all seemed well."""

    name: str
    since: int
    error: DivergedError | UnhealthyError


def _interval(spec: TrialSpec, step: int) -> int:
    """Steps since the last row of training metrics."""
    return (step - 1) % spec.log_every + 1


def _look(spec: TrialSpec, state: TrainState, metrics: Mapping[str, float]) -> list[Flag]:
    """The flags that these metrics raise."""
    found: list[Flag] = []
    if "train/g_loss" in metrics:
        found += state.watch.row(state.step, _interval(spec, state.step), metrics)
    if "health/diversity" in metrics:
        found += state.watch.diversity(state.step, metrics["health/diversity"])
    if shares := [value for name, value in metrics.items() if name.startswith("classes/share_")]:
        unlike, sure = metrics["eval/class_tv"], metrics["eval/classifier_confidence"]
        found += state.watch.classes(state.step, max(shares), unlike, sure)
    return found


def _trouble(spec: TrialSpec, step: int, bad: Sequence[str], found: Sequence[Flag]) -> _Trouble | None:
    if bad:
        # The update of the last finite row's last step may have done it.
        since = max(0, step - _interval(spec, step) - 1)
        return _Trouble("not finite", since, DivergedError(f"not finite at step {step}: {', '.join(bad)}"))
    for flag in found:
        if flag.name in spec.stops:
            return _Trouble(flag.name, flag.since, UnhealthyError(flag.words))
    return None


def _spared(spec: TrialSpec, step: int, checkpoint_every: int) -> range:
    """Steps whose checkpoints are kept at step `step`, as the trial might go back there.

    Only those of the regular interval: that a trial was stopped in between must not decide where it goes back to.
    """
    if spec.rollback is None:
        return range(0)
    first = max(0, step // checkpoint_every * checkpoint_every - reach(spec))
    return range(first // checkpoint_every * checkpoint_every, step + 1, checkpoint_every)


def _lr_scale(spec: TrialSpec, state: TrainState) -> float:
    """The factor on learning rates after one more rollback."""
    assert spec.rollback is not None
    return float(spec.rollback[1] ** (state.rollbacks + 1))


def _back_words(
    spec: TrialSpec, state: TrainState, trouble: _Trouble, saved: Mapping[str, Any] | None
) -> str:
    assert spec.rollback is not None
    to, count = 0 if saved is None else saved["step"], f"{state.rollbacks + 1} of {spec.rollback[0]}"
    rates = f"learning rates x {_lr_scale(spec, state):g} ({count})"
    return f"rolled back from step {state.step} ({trouble.name}) to step {to}, {rates}"


def _rolled_back(
    spec: TrialSpec, images: Tensor, saved: Mapping[str, Any] | None, left: TrainState
) -> TrainState:
    """The earlier state with lower rates; `left`: the one that was left."""
    state = _state(spec, images, saved)
    state.scale_rates(_lr_scale(spec, left))
    state.rollbacks, state.train_s = left.rollbacks + 1, left.train_s
    return state


def _is_best(spec: TrialSpec, state: TrainState, metrics: Mapping[str, float]) -> bool:
    """Whether this evaluation is the best so far; counts those since the best one."""
    metric, mode = spec.judged_by
    value = metrics.get(metric, float("nan"))
    better = (value if mode == "min" else -value) < state.best
    if better:
        state.best = value if mode == "min" else -value
    state.evaluations_since = 0 if better else state.evaluations_since + 1
    return better


def _finish(
    spec: TrialSpec,
    state: TrainState,
    images: Tensor,
    judge: Judge,
    directory: Path,
    metrics: dict[str, float],
) -> tuple[list[Picture], list[str]]:
    """What is looked at once, at the end: nearest neighbours, and the gallery. Adds to `metrics`.

    Returns pictures and notes: a trial that is trained does not fail for a picture.
    """
    extractor, features = None, None
    if spec.eval_steps:
        judged = judge()
        near = judged.neighbours(state.gan, state.shown)
        metrics |= near.metrics
        extractor, (images, features) = judged.extractor, judged.searched
    elif spec.gallery:
        images = Images(images[: spec.eval_samples]).sized(spec.size).pixels
    if not spec.gallery:
        return [], []
    try:
        gallery = draw_gallery(
            spec, state.gan, state.shown, directory, real=images, extractor=extractor, step=state.step,
            device=images.device, real_features=features,
        )  # fmt: skip
        pictures = gallery.pictures
        if spec.eval_steps:
            from trials.plots import nearest_distances  # matplotlib: at the end only

            path = nearest_distances(directory / "gallery" / "neighbours_distances.png", near.distances)
            pictures.append(Picture(key="neighbours/distances", step=state.step, path=f"gallery/{path.name}"))
    except (OSError, ValueError, RuntimeError) as error:
        return [], [f"the gallery could not be drawn: {type(error).__name__}: {error}".splitlines()[0]]
    metrics |= {f"eval/{name}": value for name, value in gallery.metrics.items()}
    return pictures, []


def _out_of_patience(spec: TrialSpec, state: TrainState) -> bool:
    patience = int(spec.training["patience"])
    return patience > 0 and state.evaluations_since >= patience


def draw_samples(spec: TrialSpec, state: TrainState, device: torch.device, directory: Path) -> list[Picture]:
    """Write the grid of the fixed latents, the same in every trial, as a PNG.

    With an averaged generator that one's, and beside it the trained generator's own as samples/raw.
    """
    generators = {"fixed": state.shown} | ({"raw": state.gan.generator} if state.averaged else {})
    pictures = []
    for key, generator in generators.items():
        samples = quantised(generate(state.gan, generator, spec.picture_samples, FIXED_NOISE_SEED, device))
        name = f"samples/{'' if key == 'fixed' else f'{key}_'}step_{state.step:09d}.png"
        sheet = samples.cpu().numpy()
        write_png(directory / name, grid(sheet, columns=state.gan.n_classes or None))
        pictures.append(Picture(key=f"samples/{key}", step=state.step, path=name))
    return pictures


class Spread:
    """Compares how far apart a generator's images lie with how far apart real ones do."""

    def __init__(self, images: Tensor, size: int | None) -> None:
        """`images`: (n, C, H, W) uint8, of which the first SAMPLES of a shuffle are looked at, at side `size`."""
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))[
            :SAMPLES
        ]
        self._device = images.device
        some = Images(images[chosen.to(self._device)], None).sized(size).pixels
        self._real = mean_distance(some.float().div(255).flatten(1)) if len(some) > 1 else 0.0

    def of(self, gan: Gan, generator: nn.Module) -> dict[str, float]:
        """Mean pixel distance between SAMPLES images of the fixed latents over that between real images.

        Nothing where it is not defined: real images that are all alike, generated ones that are not finite.
        """
        made = generate(gan, generator, SAMPLES, FIXED_NOISE_SEED, self._device).flatten(1)
        defined = self._real > 0 and bool(torch.isfinite(made).all())
        return {"health/diversity": mean_distance(made) / self._real} if defined else {}


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
