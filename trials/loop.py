"""The training loop, and what it does at the picture steps.

Axes: N images of a batch, Z latent dimensions, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch import Tensor

from models import Gan
from trials.checkpoints import CheckpointStore
from trials.data import to_pixels, to_unit
from trials.errors import DivergedError
from trials.metrics import sliced_wasserstein
from trials.pictures import grid, write_png
from trials.reports import Picture, Report, Row
from trials.spec import TrialSpec, stream_seed
from trials.state import fresh_state, global_norm

FIXED_NOISE_SEED = 42  # the same in every trial of every study: pictures compare across arms


def train(
    spec: TrialSpec,
    images: Tensor,
    store: CheckpointStore,
    directory: Path,
    *,
    checkpoint_every: int,
    report_every_s: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Report, bool | None, None]:
    """Train `spec` on uint8 `images` (N, C, H, W), going on from the newest checkpoint in `store`.

    Yields reports; asking for the next one says that the last is safely recorded, and only then is a
    checkpoint of its step written: no metric is ever behind a checkpoint and lost. Sending True instead saves
    a checkpoint at once and ends, so that a stopped trial loses nothing. Pictures go below `directory`.
    Raises DivergedError when a metric stops being finite and FencedError when a newer attempt took over.
    """
    device = images.device
    state = fresh_state(spec, (images.shape[1], images.shape[2], images.shape[3]), device)
    saved, notes = store.load_latest(device)
    if saved is not None:
        state.load_state_dict(saved)
    gan = state.gan
    hyper = spec.training
    n_real, n_fake_g = int(hyper["batch_size"]), int(hyper["batch_size_g"])
    g_parameters = list(gan.generator.parameters())
    order = DataOrder(len(images), n_real, spec.seed, device)
    rows: list[Row] = []
    pictures: list[Picture] = []
    reported_at = started_at = clock()
    seconds_before = state.train_s
    first_step = state.step
    gan.generator.train()
    gan.discriminator.train()

    while state.step < spec.steps:
        real = to_pixels(images[order.batch(state.step)], gan.pixels)  # (N, C, H, W)

        with torch.no_grad():
            fake = gan.generator(gan.latent(n_real, state.noise))  # (N, C, H, W)
        real_logits, fake_logits = gan.discriminator(real), gan.discriminator(fake)  # (N,)
        d_loss, d_loss_real, d_loss_fake = gan.d_loss(real_logits, fake_logits)
        state.d_optimizer.zero_grad()
        d_loss.backward()
        state.d_optimizer.step()

        g_fake_logits = gan.discriminator(gan.generator(gan.latent(n_fake_g, state.noise)))  # (N,)
        g_loss = gan.g_loss(g_fake_logits)
        state.g_optimizer.zero_grad()
        g_loss.backward(inputs=g_parameters)
        state.g_optimizer.step()

        state.meter.add(d_loss_real, d_loss_fake, g_loss, real_logits, fake_logits, g_fake_logits)
        state.step += 1
        last = state.step == spec.steps
        draw = state.step in spec.picture_steps
        save = last or state.step % checkpoint_every == 0
        if not (last or draw or state.step % spec.log_every == 0):
            continue

        metrics: dict[str, float] = {}
        if last or state.step % spec.log_every == 0:
            norms = (global_norm(p) for p in (g_parameters, gan.discriminator.parameters()))
            read = state.meter.read(**dict(zip(("grad_norm_g", "grad_norm_d"), norms, strict=True)))
            metrics |= {f"train/{name}": value for name, value in read.items()}
            metrics["train/epoch"] = state.step * n_real / len(images)
        if draw:
            pictures.append(draw_samples(spec, gan, device, directory, state.step))
            metrics |= evaluate(spec, gan, images)
        bad = sorted(name for name, value in metrics.items() if not _finite(value))
        rows.append(Row(step=state.step, metrics={n: v for n, v in metrics.items() if n not in bad}))
        now = clock()
        if bad or last or save or pictures or now - reported_at >= report_every_s:
            state.train_s = seconds_before + now - started_at
            rate = n_real * (state.step - first_step) / max(now - started_at, 1e-9)
            rows[-1] = Row(step=state.step, metrics={**rows[-1].metrics, "perf/images_per_s": rate})
            report = Report(step=state.step, rows=tuple(rows), pictures=tuple(pictures), notes=tuple(notes))
            rows, pictures, notes, reported_at = [], [], [], now
            stop = yield report
            if stop and not bad:
                store.save(state.state_dict(), state.step)
                return
        if bad:
            raise DivergedError(f"not finite at step {state.step}: {', '.join(bad)}")
        if save:
            store.save(state.state_dict(), state.step)
    store.prune(1)


class DataOrder:
    """Which images each step trains on: every epoch a new shuffle, its last short batch dropped.

    A pure function of seed and step, so it needs no place in a checkpoint.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int, device: torch.device) -> None:
        if n_images < batch_size:
            raise ValueError(f"batch_size {batch_size} is larger than the dataset ({n_images} images)")
        self.n_images, self.batch_size, self.seed, self.device = n_images, batch_size, seed, device
        self.steps_per_epoch = n_images // batch_size
        self._epoch = -1
        self._shuffled = torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """Indices (N,) of the images of the step after `step` steps, on the device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            drawn = torch.Generator().manual_seed(stream_seed(self.seed, "data", epoch))
            self._shuffled = torch.randperm(self.n_images, generator=drawn).to(self.device)
            self._epoch = epoch
        return self._shuffled[position * self.batch_size : (position + 1) * self.batch_size]


@torch.no_grad()
def generate(gan: Gan, n: int, seed: int, device: torch.device, batch: int = 500) -> Tensor:
    """(n, C, H, W) images in [0, 1] from the latents of `seed`, with the generator in evaluation mode."""
    noise = torch.Generator(device).manual_seed(seed)
    latents = gan.latent(n, noise)  # (n, Z)
    gan.generator.eval()
    images = torch.cat([to_unit(gan.generator(z), gan.pixels) for z in latents.split(batch)])
    gan.generator.train()
    return images


def draw_samples(spec: TrialSpec, gan: Gan, device: torch.device, directory: Path, step: int) -> Picture:
    """Write the grid of the fixed latents, the same in every trial, as a PNG."""
    samples = generate(gan, spec.picture_samples, FIXED_NOISE_SEED, device)
    name = f"samples/step_{step:09d}.png"
    write_png(directory / name, grid(samples.nan_to_num().mul(255).round().to(torch.uint8).cpu().numpy()))
    return Picture(key="samples/fixed", step=step, path=name)


def evaluate(spec: TrialSpec, gan: Gan, images: Tensor) -> dict[str, float]:
    """Distances of generated to real images, and of real to held-out real ones (the floor).

    Each set holds eval_samples images, quantised to uint8, pixels in [0, 1]. The latents and the choice of
    real images are the same in every trial.
    """
    n = spec.eval_samples
    if 2 * n > len(images):
        raise ValueError(f"eval_samples {n} is more than half of the {len(images)} images")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))
    chosen = chosen[: 2 * n].to(images.device)
    real, held_out = (images[half].flatten(1).float() / 255 for half in chosen.split(n))  # (n, C H W)
    fake = generate(gan, n, FIXED_NOISE_SEED + 1, images.device).flatten(1)
    if not torch.isfinite(fake).all():
        return {"eval/swd": float("nan")}
    return {
        "eval/swd": sliced_wasserstein(fake.mul(255).round().div(255), real),
        "eval/swd_floor": sliced_wasserstein(held_out, real),
    }


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
