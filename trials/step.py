"""One step of training: the discriminator's updates, then the generator's.

Axes: N images of a batch, Z latent dimensions, C channels, H height, W width. `Images` are (N, C, H, W), or with
multi-scale gradients a tuple of them, one for each scale.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from models import Gan
from models._layers import MinibatchStddev
from models._losses import fake_term, generator_term, real_term
from trials import schedule
from trials.augment import Augment, augment
from trials.data import downsample, to_pixels
from trials.feed import Feed, Rows
from trials.spec import TrialSpec, stream_seed
from trials.state import TrainState, global_norm

Images = Tensor | tuple[Tensor, ...]


class Step(ABC):
    """What a step is made of, for one trial or for the trials of a pack.

    Logits are (N,) and losses scalars for one trial, (K, N) and (K,) for a pack of K: every mean is over the last axis.
    `hyper`: the training options, which the trials of a pack share wherever this class reads them.
    """

    gan: Gan
    hyper: Mapping[str, Any]
    row: Rows
    """What this step is fed."""
    _joins: bool
    """Whether D may see real and fake images of a joint update as one batch."""
    _rows: Rows
    _first = 0
    _n_rows = 0

    def step(self) -> None:
        """One step: `n_critic` updates of D, one of G. Averages are taken by the state's meter."""
        self.prepare()
        self.compute()
        self.advance()

    def prepare(self) -> None:
        """Have the row of this step at hand, from a new block of rows where needed."""
        at = self.members[0].state.step - self._first
        if not 0 <= at < self._n_rows:
            self.renew()
            at = 0
        self.row = {name: values[at] for name, values in self._rows.items()}

    def renew(self) -> Rows:
        """The rows from this step on."""
        self._rows = self.rows_ahead()
        self._first, self._n_rows = self.members[0].state.step, len(self._rows["images"])
        return self._rows

    def compute(self) -> None:
        """Everything that the device does in a step: a function of weights, `row` and generators alone."""
        real, labels = self.real_batch(0)
        for i in range(self.hyper["n_critic"]):
            if i and self.hyper["real_batch"] == "fresh":
                real, labels = self.real_batch(i)
            self._set_rate("d", i)
            real_logits, fake_logits, real_loss, fake_loss, extras = self._d_step(i, real, labels)
        self._set_rate("g", 0)
        g_logits, g_loss = self._g_step(extras)
        if self.gan.loss == "wasserstein":
            extras["w_dist"] = real_logits.mean(-1) - fake_logits.mean(-1)
        self._end(real_loss, fake_loss, g_loss, real_logits, fake_logits, g_logits, extras)

    def advance(self) -> None:
        """Count the step."""
        for member in self.members:
            member.state.meter.count()
            member.state.step += 1

    def _d_step(
        self, i: int, real: Images, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """D's update number i: logits of real and fake, their two terms, and the scalars logged apart."""
        hyper, loss = self.hyper, self.gan.loss
        with torch.no_grad():
            fake, fake_labels = self._fakes(i)
        real, fake = self._noisy(real), self._noisy(fake)
        target = self.real_target()
        extras: dict[str, Tensor] = {}
        if hyper["d_update"] == "separate":
            real_logits = self._judge(real, labels)
            real_loss = real_term(loss, real_logits, target)
            self._update("d", real_loss + self._drift(real_logits, extras), extras)
            fake_logits = self._judge(fake, fake_labels)
            fake_loss = fake_term(loss, fake_logits, self._option("label_fake"))
            self._update("d", fake_loss, extras)
            return real_logits, fake_logits, real_loss, fake_loss, extras
        if hyper["d_update"] == "mixed" or self._joins:
            real_logits, fake_logits = self._judge_both(i, real, labels, fake, fake_labels)
        else:
            real_logits, fake_logits = self._judge(real, labels), self._judge(fake, fake_labels)
        real_loss = real_term(loss, real_logits, target)
        fake_loss = fake_term(loss, fake_logits, self._option("label_fake"))
        weight = 0.5 if hyper["d_reduction"] == "mean" else 1.0
        total = weight * (real_loss + fake_loss) + self._drift(real_logits, extras)
        if hyper["gradient_penalty"]:
            total = total + self._penalty(real, fake, labels, extras)
        self._update("d", total, extras)
        return real_logits, fake_logits, real_loss, fake_loss, extras

    def _g_step(self, extras: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One update of G: logits of its fakes, and its loss."""
        fake, labels = self._fakes(int(self.hyper["n_critic"]))
        logits = self._judge(self._noisy(fake), labels)
        loss = generator_term(self.gan.loss, logits, self._option("label_generator"))
        self._update("g", loss, extras)
        return logits, loss

    def _drift(self, real_logits: Tensor, extras: dict[str, Tensor]) -> Tensor:
        """eps * D(x)^2 of real images: a batch mean, or half the sum (Karras et al. 2017, appendix A.1)."""
        if not self.hyper["drift"]:
            return real_logits.new_zeros(())
        squares = real_logits.square()
        half_sum = self.hyper["drift_reduction"] == "half_sum"
        extras["drift"] = 0.5 * squares.sum(-1) if half_sum else squares.mean(-1)
        return extras["drift"] * self._option("drift")

    def _set_rate(self, net: str, i: int) -> None:
        rates = self.row.get(f"rates_{net}")  # (n,), or (K, n)
        for k, member in enumerate(self.members):
            member.set_rate(net, i, None if rates is None else rates.view(len(self.members), -1)[k, i])

    def _part(self, name: str, update: int) -> Tensor:
        """The row's part for update number `update`: D's are 0..n_critic-1, then comes G's."""
        n, n_g = int(self.hyper["batch_size"]), int(self.hyper["batch_size_g"])
        first = update * n
        length = n_g if update == self.hyper["n_critic"] else n
        return self.row[name].narrow(-2 if name == "latents" else -1, first, length)

    @property
    @abstractmethod
    def members(self) -> Sequence[Trainer]:
        """The trials that take this step."""

    @abstractmethod
    def rows_ahead(self) -> Rows:
        """What the next steps are fed, from this one on."""

    @abstractmethod
    def _end(
        self, real_loss: Tensor, fake_loss: Tensor, g_loss: Tensor, real_logits: Tensor, fake_logits: Tensor,
        g_logits: Tensor, extras: dict[str, Tensor],
    ) -> None:  # fmt: skip
        """Take the step's figures."""

    @abstractmethod
    def _option(self, name: str) -> float | Tensor:
        """A number among the training options; (K,) for a pack."""

    @abstractmethod
    def real_target(self) -> float | Tensor:
        """The target of real images in this step."""

    @abstractmethod
    def real_batch(self, i: int) -> tuple[Images, Tensor | None]:
        """The step's real batch number `i` as D sees it, without noise, and its labels."""

    @abstractmethod
    def _fakes(self, update: int) -> tuple[Images, Tensor | None]:
        """The generated images of an update (`_part`), with uniform random labels for a conditional model."""

    @abstractmethod
    def _noisy(self, images: Images) -> Images:
        """x + s(t) e with e ~ N(0, I), s falling linearly to 0 (Soenderby et al. 2016; Arjovsky and Bottou 2017)."""

    @abstractmethod
    def _judge(self, images: Images, labels: Tensor | None) -> Tensor:
        """D's logits."""

    @abstractmethod
    def _judge_both(
        self, i: int, real: Images, labels: Tensor | None, fake: Images, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """D's logits of real and fake images that it sees as one batch; for mixed updates a shuffled one.

        i: D's update number.
        """

    @abstractmethod
    def _penalty(
        self, real: Images, fake: Images, labels: Tensor | None, extras: dict[str, Tensor]
    ) -> Tensor:
        """lambda * mean((|grad D(xhat)| - target)^2) (Gulrajani et al. 2017, equation 3).

        xhat = x + a (G(z) - x), one `a` an image; the norm is over C, H, W; with several scales the penalties
        of the scales are averaged.
        """

    @abstractmethod
    def _update(self, net: str, loss: Tensor, extras: dict[str, Tensor]) -> None:
        """Backward for one network's parameters alone, clip, one optimiser step, project."""


class Trainer(Step):
    """Advances a trial's state step by step.

    `images`: (n, C, H, W) uint8; `labels`: (n,), read by conditional models alone.
    """

    def __init__(self, spec: TrialSpec, state: TrainState, images: Tensor, labels: Tensor | None) -> None:
        self.spec, self.state, self.gan = spec, state, state.gan
        self.hyper = spec.training
        self.images = images
        self._labels = labels if self.gan.n_classes else None
        on_device = any(
            isinstance(group["lr"], Tensor)
            for optimizer in (state.g_optimizer, state.d_optimizer)
            for group in optimizer.param_groups
        )
        self.feed = Feed(spec, self.gan, len(images), images.device, rates=on_device, lr_scale=state.lr_scale)
        self._augment = augmentation(spec) if self.hyper["augment"] else None
        self._augment_noise = torch.Generator(images.device)
        self.precision: Callable[[], contextlib.AbstractContextManager[object]] = (
            partial(torch.autocast, images.device.type, torch.bfloat16)
            if self.hyper["precision"] == "bf16"
            else contextlib.nullcontext
        )
        self.nets = {
            "g": Net(self.gan.generator, state.g_optimizer, self.hyper),
            "d": Net(self.gan.discriminator, state.d_optimizer, self.hyper),
        }
        # cuDNN's LSTM has no second derivative.
        recurrent = any(isinstance(layer, nn.RNNBase) for layer in self.gan.discriminator.modules())
        self._second_derivatives: Callable[[], contextlib.AbstractContextManager[None]] = (
            partial(torch.backends.cudnn.flags, enabled=False)
            if images.is_cuda and recurrent
            else contextlib.nullcontext
        )
        self._joins = judges_alone(self.gan.discriminator)
        if self.gan.levels:
            self._grow(reset=False)

    @property
    def members(self) -> Sequence[Trainer]:
        return (self,)

    def rows_ahead(self) -> Rows:
        return self.feed.rows(self.state.step)

    @property
    def epoch(self) -> float:
        """Epochs trained on so far."""
        return self.feed.epoch(self.state.step)

    @property
    def real_images(self) -> int:
        """Real images in a step."""
        return self.feed.order.batch_size * self.feed.batches

    def gradient_norms(self) -> dict[str, Tensor]:
        """Global norms of the last updates' gradients, before clipping."""
        return {f"grad_norm_{name}": net.gradient_norm() for name, net in self.nets.items()}

    def prepare(self) -> None:
        super().prepare()
        if self.gan.levels:
            self._grow(reset=True)

    def _end(
        self, real_loss: Tensor, fake_loss: Tensor, g_loss: Tensor, real_logits: Tensor, fake_logits: Tensor,
        g_logits: Tensor, extras: dict[str, Tensor],
    ) -> None:  # fmt: skip
        meter = self.state.meter
        meter.take(meter.measures(real_loss, fake_loss, g_loss, real_logits, fake_logits, g_logits, extras))

    def _option(self, name: str) -> float:
        return float(self.hyper[name])

    def real_target(self) -> float | Tensor:
        return self.row["target"] if self.hyper["label_real_sd"] else float(self.hyper["label_real"])

    def real_batch(self, i: int) -> tuple[Images, Tensor | None]:
        chosen = self.row["images"][i]
        return self.real_images_of(chosen, i), self.labels_of(chosen)

    def labels_of(self, chosen: Tensor) -> Tensor | None:
        """The labels of the images with these indices, for a conditional model."""
        return None if self._labels is None else self._labels.index_select(0, chosen)

    def real_images_of(self, chosen: Tensor, i: int, among: Tensor | None = None) -> Images:
        """The images with these indices as D sees them in this step's real batch number i, without noise.

        `among`: where they are taken from, when not from the trial's own.
        """
        images = (self.images if among is None else among).index_select(0, chosen)
        if self._augment is None and self.spec.size is None:
            x = to_pixels(images, self.gan.pixels)
        else:
            x = images.float().div_(255)
            if self._augment is not None:
                batch = self.state.step * self.feed.batches + i
                self._augment_noise.manual_seed(stream_seed(self.spec.seed, "augment", batch))
                x = augment(x, self._augment, self._augment_noise)
            if self.spec.size is not None:
                x = downsample(x, self.spec.size)
            x = x * 2 - 1 if self.gan.pixels == "tanh" else x
        if self.gan.levels:
            x = faded(x, self.gan.levels, *self._level())
        return pyramid(x, self.gan.scales) if self.gan.scales else x

    def _fakes(self, update: int) -> tuple[Images, Tensor | None]:
        labels = self._part("labels", update) if self.gan.n_classes else None
        latents = self._part("latents", update)
        with self.precision():
            made = self.gan.generator(latents) if labels is None else self.gan.generator(latents, labels)
        return _each(made, _full), labels

    def _noisy(self, images: Images) -> Images:
        if not self.hyper["instance_noise"]:
            return images
        sigma, noise = self.row["sigma"] * self._repeats, self.state.noise
        return _each(images, lambda x: x + sigma * torch.randn(x.shape, generator=noise, device=noise.device))

    def _judge(self, images: Images, labels: Tensor | None) -> Tensor:
        with self.precision():
            logits: Tensor = (
                self.gan.discriminator(images) if labels is None else self.gan.discriminator(images, labels)
            )
        return _full(logits)

    def _judge_both(
        self, i: int, real: Images, labels: Tensor | None, fake: Images, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n = int(self.hyper["batch_size"])
        both = _join(real, fake)
        both_labels = None if labels is None or fake_labels is None else torch.cat((labels, fake_labels))
        if self.hyper["d_update"] != "mixed":
            logits = self._judge(both, both_labels)
            return logits[:n], logits[n:]
        # Shuffled, so that a layer that looks at its neighbours in the batch sees real and fake together.
        order = self.row["orders"][i]
        logits = self._judge(
            _each(both, lambda x: x[order]), None if both_labels is None else both_labels[order]
        )
        logits = torch.empty_like(logits).index_copy(0, order, logits)
        return logits[:n], logits[n:]

    def _penalty(
        self, real: Images, fake: Images, labels: Tensor | None, extras: dict[str, Tensor]
    ) -> Tensor:
        noise = self.state.noise
        first = real if isinstance(real, Tensor) else real[0]
        draw = torch.rand if self.hyper["gp_alpha"] == "uniform" else torch.randn
        a = draw(len(first), 1, 1, 1, generator=noise, device=noise.device)
        mixed = _zip(real, fake, lambda x, y: (x + a * (y - x)).detach().requires_grad_())
        with self._second_derivatives():
            scores = self._judge(mixed, labels)
            inputs = [mixed] if isinstance(mixed, Tensor) else list(mixed)
            slopes = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        # The small number keeps the root's derivative finite where a gradient is zero.
        norms = torch.stack([(slope.flatten(1).square().sum(1) + 1e-12).sqrt() for slope in slopes])
        norms = norms * self._repeats  # as seen by pixels of the level
        extras["gp"] = (norms - self.hyper["gp_target"]).square().mean()
        extras["gp_norm"] = norms.mean()
        return extras["gp"] * float(self.hyper["gradient_penalty"])

    def set_rate(self, net: str, i: int, rate: Tensor | None) -> None:
        """Set the learning rate of this step's update number i of a network, where there is a schedule.

        `rate`: the same as a tensor on the device, for optimisers that keep it there.
        """
        if not self.hyper["lr_schedule"]:
            return
        for group in self.nets[net].optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                assert rate is not None
                group["lr"].copy_(rate)
            else:
                group["lr"] = self.feed.rate(net, self.state.step, i)

    def _update(self, net: str, loss: Tensor, extras: dict[str, Tensor]) -> None:
        self.nets[net].update(loss, extras, f"l2_{net}")
        if net == "g":
            self.average()

    def average(self) -> None:
        """Move the averaged generator, if there is one, after an update of G."""
        if self.state.averaged is not None:
            average_(self.state.averaged, self.gan.generator, self.hyper["ema"])

    def _level(self, step: int | None = None) -> tuple[int, float]:
        images = (self.state.step if step is None else step) * self.real_images
        kimg = (1000 * self.hyper["train_kimg"], 1000 * self.hyper["fade_kimg"])
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
            for trained in self.nets.values():
                trained.optimizer.state.clear()


class Net:
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
        self.take_step()

    def take_step(self) -> None:
        """Clip the gradients, one optimiser step, project the weights."""
        if self._clip:
            self._norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.optimizer.step()
        if self._held:
            project_(self._held, self._max_norm)

    def gradient_norm(self) -> Tensor:
        return global_norm(self._parameters) if self._norm is None else self._norm


def judges_alone(discriminator: nn.Module) -> bool:
    """Whether the verdict on an image does not depend on the rest of its batch, nor on how many batches there were.

    Then two batches may be judged as one, to rounding. What depends on it has running statistics or a power
    iteration, which are buffers, or looks at the batch's spread.
    """
    spread = any(isinstance(layer, MinibatchStddev) for layer in discriminator.modules())
    return not spread and not any(True for _ in discriminator.buffers())


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


def _full(x: Tensor) -> Tensor:
    """What came out of bfloat16 arithmetic in float32."""
    return x.float() if x.dtype is torch.bfloat16 else x


def _join(real: Images, fake: Images) -> Images:
    return _zip(real, fake, lambda x, y: torch.cat((x, y)))
