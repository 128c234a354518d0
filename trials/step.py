"""One step of training: the discriminator's updates, then the generator's.

Axes: N images of a batch, Z latent dimensions, C channels, H height, W width. `Images` are (N, C, H, W), or with
multi-scale gradients a tuple of them, one for each scale.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from models._losses import fake_term, generator_term, real_term
from trials import schedule
from trials.augment import Augment, augment
from trials.data import downsample, to_pixels
from trials.spec import TrialSpec, batches_per_epoch, stream_seed
from trials.state import TrainState, global_norm

Images = Tensor | tuple[Tensor, ...]


class Trainer:
    """Advances a trial's state step by step.

    `images`: (n, C, H, W) uint8; `labels`: (n,), read by conditional models alone.
    """

    def __init__(self, spec: TrialSpec, state: TrainState, images: Tensor, labels: Tensor | None) -> None:
        self.spec, self.state, self.gan = spec, state, state.gan
        self._hyper: Mapping[str, Any] = spec.training
        self._images = images
        self._labels = labels if self.gan.n_classes else None
        self._order = DataOrder(
            len(images),
            int(self._hyper["batch_size"]),
            spec.seed,
            images.device,
            str(self._hyper["sampling"]),
        )
        self._n_critic = int(self._hyper["n_critic"])
        self._batches = self._n_critic if self._hyper["real_batch"] == "fresh" else 1
        self._weight = 0.5 if self._hyper["d_reduction"] == "mean" else 1.0
        self._schedule = schedule.parse(self._hyper["lr_schedule"]) if self._hyper["lr_schedule"] else ()
        self._augment = augmentation(spec) if self._hyper["augment"] else None
        self._augment_noise = torch.Generator(images.device)
        self._precision: Callable[[], contextlib.AbstractContextManager[object]] = (
            partial(torch.autocast, images.device.type, torch.bfloat16)
            if self._hyper["precision"] == "bf16"
            else contextlib.nullcontext
        )
        self._nets = {
            "g": _Net(self.gan.generator, state.g_optimizer, self._hyper),
            "d": _Net(self.gan.discriminator, state.d_optimizer, self._hyper),
        }
        # cuDNN's LSTM has no second derivative.
        self._second_derivatives: Callable[[], contextlib.AbstractContextManager[None]] = lambda: (
            torch.backends.cudnn.flags(enabled=False)
            if images.is_cuda and any(isinstance(m, nn.RNNBase) for m in self.gan.discriminator.modules())
            else contextlib.nullcontext()
        )
        if self.gan.levels:
            self._grow(reset=False)

    @property
    def epoch(self) -> float:
        """Epochs trained on so far."""
        return self.state.step * self._batches / self._order.batches_per_epoch

    @property
    def real_images(self) -> int:
        """Real images in a step."""
        return self._order.batch_size * self._batches

    def step(self) -> None:
        """One step: `n_critic` updates of D, one of G. Averages are taken by the state's meter."""
        state = self.state
        if self.gan.levels:
            self._grow(reset=True)
        real, labels = self._real_batch(state.step * self._batches)
        for i in range(self._n_critic):
            if i and self._batches > 1:
                real, labels = self._real_batch(state.step * self._batches + i)
            self._set_rate("d", state.step * self._n_critic + i)
            real_logits, fake_logits, real_loss, fake_loss, extras = self._d_step(real, labels)
        self._set_rate("g", state.step)
        g_logits, g_loss = self._g_step(extras)
        if self.gan.loss == "wasserstein":
            extras["w_dist"] = real_logits.mean() - fake_logits.mean()
        state.meter.add(real_loss, fake_loss, g_loss, real_logits, fake_logits, g_logits, extras)
        state.step += 1

    def gradient_norms(self) -> dict[str, Tensor]:
        """Global norms of the last updates' gradients, before clipping."""
        return {f"grad_norm_{name}": net.gradient_norm() for name, net in self._nets.items()}

    # The two kinds of update

    def _d_step(
        self, real: Images, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """One update of D: logits (N,) of real and fake, their two terms, and the scalars logged apart."""
        hyper, loss, d = self._hyper, self.gan.loss, self._nets["d"]
        with torch.no_grad():
            fake, fake_labels = self._fakes(self._order.batch_size)
        real, fake = self._noisy(real), self._noisy(fake)
        target = self._real_target()
        extras: dict[str, Tensor] = {}
        if hyper["d_update"] == "separate":
            real_logits = self._judge(real, labels)
            real_loss = real_term(loss, real_logits, target)
            d.update(real_loss + self._drift(real_logits, extras), extras, "l2_d")
            fake_logits = self._judge(fake, fake_labels)
            fake_loss = fake_term(loss, fake_logits, hyper["label_fake"])
            d.update(fake_loss, extras, "l2_d")
            return real_logits, fake_logits, real_loss, fake_loss, extras
        if hyper["d_update"] == "mixed":
            both = _join(real, fake)
            n = self._order.batch_size
            both_labels = None if labels is None or fake_labels is None else torch.cat((labels, fake_labels))
            # Shuffled, so that a layer that looks at its neighbours in the batch sees real and fake together.
            order = torch.randperm(2 * n, generator=self.state.noise, device=self.state.noise.device)
            logits = self._judge(
                _each(both, lambda x: x[order]), None if both_labels is None else both_labels[order]
            )
            logits = torch.empty_like(logits).index_copy(0, order, logits)
            real_logits, fake_logits = logits[:n], logits[n:]
        else:
            real_logits, fake_logits = self._judge(real, labels), self._judge(fake, fake_labels)
        real_loss = real_term(loss, real_logits, target)
        fake_loss = fake_term(loss, fake_logits, hyper["label_fake"])
        total = self._weight * (real_loss + fake_loss) + self._drift(real_logits, extras)
        if hyper["gradient_penalty"]:
            total = total + self._penalty(real, fake, labels, extras)
        d.update(total, extras, "l2_d")
        return real_logits, fake_logits, real_loss, fake_loss, extras

    def _g_step(self, extras: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One update of G: logits (N,) of its fakes, and its loss."""
        g = self._nets["g"]
        fake, labels = self._fakes(int(self._hyper["batch_size_g"]))
        logits = self._judge(self._noisy(fake), labels)
        loss = generator_term(self.gan.loss, logits, self._hyper["label_generator"])
        g.update(loss, extras, "l2_g")
        if self.state.averaged is not None:
            average_(self.state.averaged, self.gan.generator, self._hyper["ema"])
        return logits, loss

    # What the updates are made of

    def _fakes(self, n: int) -> tuple[Images, Tensor | None]:
        """n generated images, with uniform random labels for a conditional model."""
        noise = self.state.noise
        inputs = [self.gan.latent(n, noise)]  # (n, Z)
        if self.gan.n_classes:
            inputs.append(torch.randint(self.gan.n_classes, (n,), generator=noise, device=noise.device))
        with self._precision():
            made = self.gan.generator(*inputs)
        return _each(made, Tensor.float), inputs[1] if self.gan.n_classes else None

    def _judge(self, images: Images, labels: Tensor | None) -> Tensor:
        with self._precision():
            logits: Tensor = (
                self.gan.discriminator(images) if labels is None else self.gan.discriminator(images, labels)
            )
        return logits.float()

    def _real_batch(self, batch: int) -> tuple[Images, Tensor | None]:
        """Real images number `batch` of the training as D sees them, without noise, and their labels."""
        chosen = self._order.batch(batch)
        images = self._images[chosen]
        labels = None if self._labels is None else self._labels[chosen]
        if self._augment is None and self.spec.size is None:
            x = to_pixels(images, self.gan.pixels)
        else:
            x = images.float().div_(255)
            if self._augment is not None:
                self._augment_noise.manual_seed(stream_seed(self.spec.seed, "augment", batch))
                x = augment(x, self._augment, self._augment_noise)
            if self.spec.size is not None:
                x = downsample(x, self.spec.size)
            x = x * 2 - 1 if self.gan.pixels == "tanh" else x
        if self.gan.levels:
            x = faded(x, self.gan.levels, *self._level())
        return (pyramid(x, self.gan.scales) if self.gan.scales else x), labels

    def _real_target(self) -> float:
        hyper = self._hyper
        if not hyper["label_real_sd"]:
            return float(hyper["label_real"])
        drawn = random.Random(stream_seed(self.spec.seed, "label", int(self.epoch)))
        return min(1.0, max(0.0, drawn.gauss(hyper["label_real"], hyper["label_real_sd"])))

    def _noisy(self, images: Images) -> Images:
        """x + s(t) e with e ~ N(0, I), s falling linearly to 0 (Soenderby et al. 2016; Arjovsky and Bottou 2017)."""
        hyper = self._hyper
        if not hyper["instance_noise"]:
            return images
        progress = self.state.step / (hyper["instance_noise_anneal"] * self.spec.steps)
        sigma = hyper["instance_noise"] * max(0.0, 1.0 - progress) * self._repeats
        noise = self.state.noise
        return _each(images, lambda x: x + sigma * torch.randn(x.shape, generator=noise, device=noise.device))

    def _drift(self, real_logits: Tensor, extras: dict[str, Tensor]) -> Tensor:
        """eps * D(x)^2 of real images: a batch mean, or half the sum (Karras et al. 2017, appendix A.1)."""
        if not self._hyper["drift"]:
            return real_logits.new_zeros(())
        squares = real_logits.square()
        extras["drift"] = squares.mean() if self._hyper["drift_reduction"] == "mean" else 0.5 * squares.sum()
        return extras["drift"] * float(self._hyper["drift"])

    def _penalty(
        self, real: Images, fake: Images, labels: Tensor | None, extras: dict[str, Tensor]
    ) -> Tensor:
        """lambda * mean((|grad D(xhat)| - target)^2) (Gulrajani et al. 2017, equation 3).

        xhat = x + a (G(z) - x), one `a` an image; the norm is over C, H, W; with several scales the penalties
        of the scales are averaged.
        """
        noise = self.state.noise
        first = real if isinstance(real, Tensor) else real[0]
        draw = torch.rand if self._hyper["gp_alpha"] == "uniform" else torch.randn
        a = draw(len(first), 1, 1, 1, generator=noise, device=noise.device)
        mixed = _zip(real, fake, lambda x, y: (x + a * (y - x)).detach().requires_grad_())
        with self._second_derivatives():
            scores = self._judge(mixed, labels)
            inputs = [mixed] if isinstance(mixed, Tensor) else list(mixed)
            slopes = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        # The small number keeps the root's derivative finite where a gradient is zero.
        norms = torch.stack([(slope.flatten(1).square().sum(1) + 1e-12).sqrt() for slope in slopes])
        norms = norms * self._repeats  # as seen by pixels of the level
        extras["gp"] = (norms - self._hyper["gp_target"]).square().mean()
        extras["gp_norm"] = norms.mean()
        return extras["gp"] * float(self._hyper["gradient_penalty"])

    def _set_rate(self, net: str, update: int) -> None:
        """The schedule's rate for this update; a net whose own rate differs from lr keeps its ratio to it."""
        if not self._schedule:
            return
        stage = schedule.stage_at(self._schedule, self.state.step, self.spec.steps)
        drawn = stream_seed(self.spec.seed, "lr", net, update) / 2**63 if stage.low < stage.high else 0.0
        rate = stage.rate(drawn) * self._hyper[f"lr_{net}"] / self._hyper["lr"]
        for group in self._nets[net].optimizer.param_groups:
            group["lr"] = rate

    def _level(self, step: int | None = None) -> tuple[int, float]:
        images = (self.state.step if step is None else step) * self.real_images
        kimg = (1000 * self._hyper["train_kimg"], 1000 * self._hyper["fade_kimg"])
        return schedule.growth(len(self.gan.levels), images, *kimg)

    @property
    def _repeats(self) -> int:
        """While a net grows: how often a pixel of its level is repeated in each direction, and averaged by D."""
        return self.gan.levels[-1] // self.gan.levels[self._level()[0]] if self.gan.levels else 1

    def _grow(self, *, reset: bool) -> None:
        level, alpha = self._level()
        for net in (self.gan.generator, self.gan.discriminator, self.state.averaged):
            if net is not None:
                net.grow(level, alpha)  # type: ignore[operator]  # what a Gan with levels promises
        if reset and self.state.step and level != self._level(self.state.step - 1)[0]:
            for trained in self._nets.values():
                trained.optimizer.state.clear()


class _Net:
    """One network on its way: its optimiser and what is done to gradients and weights around an update."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, hyper: Mapping[str, Any]) -> None:
        self.optimizer = optimizer
        self._parameters = list(module.parameters())
        self._clip, self._l2, self._max_norm = hyper["grad_clip"], hyper["l2"], hyper["max_norm"]
        self._held = list(held_by_max_norm(module, hyper["max_norm_layers"])) if self._max_norm else []
        self._norm: Tensor | None = None

    def update(self, loss: Tensor, extras: dict[str, Tensor], l2_name: str) -> None:
        """Backward for this net's parameters alone, clip, one optimiser step, project."""
        if self._l2:
            extras[l2_name] = 0.5 * torch.stack([p.square().sum() for p in self._parameters]).sum()
            loss = loss + self._l2 * extras[l2_name]
        self.optimizer.zero_grad()
        loss.backward(inputs=self._parameters)
        if self._clip:
            self._norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.optimizer.step()
        if self._held:
            project_(self._held, self._max_norm)

    def gradient_norm(self) -> Tensor:
        return global_norm(self._parameters) if self._norm is None else self._norm


class DataOrder:
    """Which images each batch holds: every epoch a new shuffle, its last short batch dropped, or with replacement.

    A pure function of seed and batch number, so it needs no place in a checkpoint.
    """

    def __init__(
        self, n_images: int, batch_size: int, seed: int, device: torch.device, sampling: str = "shuffle"
    ) -> None:
        if n_images < batch_size:
            raise ValueError(f"batch_size {batch_size} is larger than the dataset ({n_images} images)")
        self.n_images, self.batch_size, self.seed, self.device = n_images, batch_size, seed, device
        self.batches_per_epoch = batches_per_epoch(n_images, batch_size, sampling)
        self._replacement = sampling == "replacement"
        self._epoch = -1
        self._order = torch.empty(0)

    def batch(self, number: int) -> Tensor:
        """Indices (N,) of the images of batch `number`, counted from 0, on the device."""
        epoch, position = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            drawn = torch.Generator().manual_seed(stream_seed(self.seed, "data", epoch))
            self._order = (
                torch.randint(self.n_images, (self.batches_per_epoch * self.batch_size,), generator=drawn)
                if self._replacement
                else torch.randperm(self.n_images, generator=drawn)
            ).to(self.device)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def augmentation(spec: TrialSpec) -> Augment:
    """The ranges of the trial's augmentation."""
    hyper: Mapping[str, Any] = spec.training
    return Augment(**{k.removeprefix("augment_"): v for k, v in hyper.items() if k.startswith("augment_")})


def pyramid(x: Tensor, scales: tuple[int, ...]) -> tuple[Tensor, ...]:
    """(N, C, H, W) averaged down by 2x2 pooling to every height in `scales`, which ends with H."""
    levels = [x]
    for _ in scales[1:]:
        levels.append(avg_pool2d(levels[-1], 2))
    return tuple(reversed(levels))


def faded(x: Tensor, levels: tuple[int, ...], level: int, alpha: float) -> Tensor:
    """Real images at a stage of progressive growing, at full size: detail beyond the level is averaged away, and
    the newest level's own detail is blended in with share alpha (Karras et al. 2017, appendix A)."""
    side = x.shape[-1]
    at_level = avg_pool2d(x, side // levels[level])
    if level and alpha < 1:
        coarse = interpolate(avg_pool2d(at_level, 2), scale_factor=2)
        at_level = coarse + alpha * (at_level - coarse)
    return (
        interpolate(at_level, scale_factor=side // levels[level]) if at_level.shape[-1] < side else at_level
    )


@torch.no_grad()
def average_(averaged: nn.Module, generator: nn.Module, beta: float) -> None:
    """averaged <- beta * averaged + (1 - beta) * generator, buffers copied (in place)."""
    torch._foreach_lerp_(list(averaged.parameters()), list(generator.parameters()), 1 - beta)
    for kept, buffer in zip(averaged.buffers(), generator.buffers(), strict=True):
        kept.copy_(buffer)


def held_by_max_norm(module: nn.Module, layers: str) -> Iterator[nn.Parameter]:
    """The parameters that max-norm projects: recurrent kernels and biases, and for "all" Linear and Conv weights.

    A transposed convolution's rows are its input channels.
    """
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            yield from layer.parameters(recurse=False)
        elif layers == "all" and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            yield from (p for p in layer.parameters() if p.dim() > 1)


@torch.no_grad()
def project_(parameters: list[nn.Parameter], limit: float) -> None:
    """Rescale each row of a weight (a unit's incoming weights), and a bias whole, to L2 norm <= limit (in place)."""
    for parameter in parameters:
        rows = parameter.view(1, -1) if parameter.dim() == 1 else parameter.flatten(1)
        norms = rows.norm(dim=1).clamp(min=limit)  # (rows,)
        rows.mul_((limit / norms)[:, None])


def _each(images: Images, change: Callable[[Tensor], Tensor]) -> Images:
    return change(images) if isinstance(images, Tensor) else tuple(map(change, images))


def _zip(a: Images, b: Images, combine: Callable[[Tensor, Tensor], Tensor]) -> Images:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return combine(a, b)
    return tuple(combine(x, y) for x, y in zip(a, b, strict=True))


def _join(real: Images, fake: Images) -> Images:
    return _zip(real, fake, lambda x, y: torch.cat((x, y)))
