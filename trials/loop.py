"""The training loop, and what it does at the picture steps.

Axes: N images of a batch, Z latent dimensions, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch import Tensor, nn

from models import Gan
from trials.checkpoints import CheckpointStore
from trials.data import downsample, to_unit
from trials.errors import DivergedError
from trials.metrics import sliced_wasserstein
from trials.pictures import grid, write_png
from trials.reports import Picture, Report, Row
from trials.spec import TrialSpec
from trials.state import TrainState, fresh_state
from trials.step import Trainer

FIXED_NOISE_SEED = 42  # the same in every trial of every study: pictures compare across arms


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
    """`training` that takes its steps by itself: only its reports."""
    run = training(
        spec, images, labels, store, directory,
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
        draw = state.step in spec.picture_steps
        save = last or state.step % checkpoint_every == 0 or state.step in spec.keep_steps
        if not (last or draw or save or state.step % spec.log_every == 0):
            continue

        metrics: dict[str, float] = {}
        if last or state.step % spec.log_every == 0:
            read = state.meter.read(**trainer.gradient_norms())
            metrics |= {f"train/{name}": value for name, value in read.items()}
            metrics["train/epoch"] = trainer.epoch
        if draw:
            pictures += draw_samples(spec, state, device, directory)
            metrics |= evaluate(spec, state, images)
            ended = _judge_progress(spec, state, metrics)
            if ended and not last:
                notes = [
                    *notes,
                    f"ended at step {state.step}: no better eval/swd for {spec.training['patience']} evaluations",
                ]
        last = last or ended
        bad = sorted(name for name, value in metrics.items() if not _finite(value))
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
                store.save(state.state_dict(), state.step)
                return
        if bad:
            raise DivergedError(f"not finite at step {state.step}: {', '.join(bad)}")
        if save or last:
            store.save(state.state_dict(), state.step)
    store.prune(1)


def _judge_progress(spec: TrialSpec, state: TrainState, metrics: dict[str, float]) -> bool:
    """Count evaluations without a better distance, if that matters; whether training ends early."""
    if not spec.training["patience"]:
        return False
    better = metrics["eval/swd"] < state.best
    state.best = min(state.best, metrics["eval/swd"])
    state.evaluations_since = 0 if better else state.evaluations_since + 1
    return _out_of_patience(spec, state)


def _out_of_patience(spec: TrialSpec, state: TrainState) -> bool:
    patience = int(spec.training["patience"])
    return patience > 0 and state.evaluations_since >= patience


@torch.no_grad()
def generate(
    gan: Gan, generator: nn.Module, n: int, seed: int, device: torch.device, batch: int = 500
) -> Tensor:
    """(n, C, H, W) images in [0, 1] from the latents of `seed`, with `generator` in evaluation mode.

    Of a conditional model image i shows class i modulo the number of classes.
    """
    noise = torch.Generator(device).manual_seed(seed)
    inputs = [gan.latent(n, noise)]  # (n, Z)
    if gan.n_classes:
        inputs.append(torch.arange(n, device=device) % gan.n_classes)
    was_training = generator.training
    generator.eval()
    images = []
    for parts in zip(*(x.split(batch) for x in inputs), strict=True):
        made = generator(*parts)
        images.append(to_unit(made if isinstance(made, Tensor) else made[-1], gan.pixels))
    generator.train(was_training)
    return torch.cat(images)


def draw_samples(spec: TrialSpec, state: TrainState, device: torch.device, directory: Path) -> list[Picture]:
    """Write the grid of the fixed latents, the same in every trial, as a PNG.

    With an averaged generator that one's, and beside it the trained generator's own as samples/raw.
    """
    generators = {"fixed": state.shown} | ({"raw": state.gan.generator} if state.averaged else {})
    pictures = []
    for key, generator in generators.items():
        samples = generate(state.gan, generator, spec.picture_samples, FIXED_NOISE_SEED, device)
        name = f"samples/{'' if key == 'fixed' else f'{key}_'}step_{state.step:09d}.png"
        sheet = samples.nan_to_num().mul(255).round().to(torch.uint8).cpu().numpy()
        write_png(directory / name, grid(sheet, columns=state.gan.n_classes or None))
        pictures.append(Picture(key=f"samples/{key}", step=state.step, path=name))
    return pictures


def evaluate(spec: TrialSpec, state: TrainState, images: Tensor) -> dict[str, float]:
    """Distances of generated to real images, and of real to held-out real ones (the floor).

    Each set holds eval_samples images, quantised to uint8, pixels in [0, 1]. The latents and the choice of
    real images are the same in every trial.
    """
    n = spec.eval_samples
    if 2 * n > len(images):
        raise ValueError(f"eval_samples {n} is more than half of the {len(images)} images")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))
    chosen = chosen[: 2 * n].to(images.device)
    real, held_out = (_real(images[half], spec.size) for half in chosen.split(n))  # (n, C H W)
    generators = {"swd": state.shown} | ({"swd_raw": state.gan.generator} if state.averaged else {})
    distances = {"eval/swd_floor": sliced_wasserstein(held_out, real)}
    for name, generator in generators.items():
        fake = generate(state.gan, generator, n, FIXED_NOISE_SEED + 1, images.device).flatten(1)
        finite = bool(torch.isfinite(fake).all())
        distances[f"eval/{name}"] = (
            sliced_wasserstein(fake.mul(255).round().div(255), real) if finite else float("nan")
        )
    return distances


def _real(images: Tensor, size: int | None) -> Tensor:
    x = images.float() / 255
    return (x if size is None else downsample(x, size).mul(255).round().div(255)).flatten(1)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
