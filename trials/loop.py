"""The training loop, and what it does at the steps of pictures and evaluations.

Axes: N images of a batch, Z latent dimensions, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trials.checkpoints import CheckpointStore
from trials.data import Images
from trials.errors import DivergedError
from trials.evaluation import Evaluator, evaluator
from trials.gallery import draw_gallery
from trials.pictures import grid, write_png
from trials.reports import Picture, Report, Row
from trials.samples import FIXED_NOISE_SEED, generate, quantised
from trials.spec import TrialSpec
from trials.state import TrainState, fresh_state
from trials.step import Trainer

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
    report_every_s: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Report | Trainer, bool | None, None]:
    """Train `spec` on uint8 `images` (n, C, H, W) with `labels` (n,), going on from `store`'s newest checkpoint.

    Yields its trainer when a step is to be taken, by itself or in a pack, and reports. Asking for what comes after a
    report says that the report is safely recorded, and only then is a checkpoint of its step written: no metric is
    ever behind a checkpoint and lost. Sending True after a report saves a checkpoint at once and ends, so that a
    stopped trial loses nothing; sending True in place of a step asks for a report of what there is. Pictures go below
    `directory`. Raises DivergedError when a metric stops being finite and FencedError when a newer attempt took over.
    """
    device = images.device
    side = spec.size or images.shape[2]
    state = fresh_state(spec, (images.shape[1], side, spec.size or images.shape[3]), device)
    saved, notes = store.load_latest(device)
    if saved is not None:
        state.load_state_dict(saved)
    trainer = Trainer(spec, state, images, labels)
    rows: list[Row] = []
    pictures: list[Picture] = []
    reported_at = started_at = clock()
    seconds_before = state.train_s
    first_step = state.step
    state.gan.generator.train()
    state.gan.discriminator.train()
    ended = _out_of_patience(spec, state)

    while state.step < spec.steps and not ended:
        if (yield trainer):
            state.train_s = seconds_before + clock() - started_at
            if (yield Report(step=state.step, rows=tuple(rows), notes=tuple(notes))):
                store.save(state.state_dict(), state.step)
                return
            rows, notes, reported_at = [], [], clock()
            continue
        last = state.step == spec.steps
        draw, judged = state.step in spec.picture_steps, state.step in spec.eval_steps
        save = last or state.step % checkpoint_every == 0 or state.step in spec.keep_steps
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
            if ended and not last:
                lasted = f"no better {spec.judged_by[0]} for {spec.training['patience']} evaluations"
                notes = [*notes, f"ended at step {state.step}: {lasted}"]
        last, save = last or ended, save or best
        bad = sorted(name for name, value in metrics.items() if not _finite(value))
        if last and not bad:
            began = clock()
            drawn, said = _finish(spec, state, images, judge, directory, metrics)
            pictures, notes = [*pictures, *drawn], [*notes, *said]
            metrics["perf/gallery_s"] = clock() - began
        if metrics:
            rows.append(Row(step=state.step, metrics={n: v for n, v in metrics.items() if n not in bad}))
        now = clock()
        if bad or last or save or pictures or now - reported_at >= report_every_s:
            state.train_s = seconds_before + now - started_at
            rate = trainer.real_images * (state.step - first_step) / max(now - started_at, 1e-9)
            if rows:
                rows[-1] = Row(step=rows[-1].step, metrics={**rows[-1].metrics, "perf/images_per_s": rate})
            report = Report(step=state.step, rows=tuple(rows), pictures=tuple(pictures), notes=tuple(notes))
            rows, pictures, notes, reported_at = [], [], [], now
            stop = yield report
            if stop and not bad:
                store.save(state.state_dict(), state.step, best=best)
                return
        if bad:
            raise DivergedError(f"not finite at step {state.step}: {', '.join(bad)}")
        if save or last:
            store.save(state.state_dict(), state.step, best=best)
    store.prune(1)


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


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
