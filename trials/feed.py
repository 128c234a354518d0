"""What a trial's steps are fed: which images, latents and labels, and the numbers that change from step to step.

All of it is drawn in blocks of BLOCK steps, on the device, and is a function of seed and step alone: it has no
place in a checkpoint, and a trial is fed the same whether it steps alone, in a pack, or from a recorded graph.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from models import Gan
from trials import schedule
from trials.spec import TrialSpec, batches_per_epoch, stream_seed

BLOCK = 64
"""Steps drawn at once."""

Rows = dict[str, Tensor]
"""By name, R steps of each (one row, without R, where a step is taken):

images    (R, batches, N) int64   indices of the real batches
latents   (R, n, Z)               of all fakes of a step: D's, update by update, then G's
labels    (R, n) int64            theirs, for a conditional model
target    (R,)                    of real images
sigma     (R,)                    standard deviation of the instance noise
orders    (R, n_critic, 2 N) int64  shuffles of real and fake together, for mixed updates
rates_d   (R, n_critic)           learning rates of D's updates, with a schedule and where optimisers keep them
rates_g   (R, 1)                  on the device; and of G's update

Of a pack of K trials: (R, K, ...).
"""


class Feed:
    """Feeds one trial. `n_images`: how many there are. `rates`: whether learning rates are among the rows.

    `lr_scale`: a factor on scheduled rates.
    """

    def __init__(
        self, spec: TrialSpec, gan: Gan, n_images: int, device: torch.device, *,
        rates: bool = False, lr_scale: float = 1.0,
    ) -> None:  # fmt: skip
        hyper = spec.training
        self.spec, self._gan, self._device = spec, gan, device
        self.order = DataOrder(n_images, int(hyper["batch_size"]), spec.seed, device, str(hyper["sampling"]))
        self.n_critic = int(hyper["n_critic"])
        self.batches = self.n_critic if hyper["real_batch"] == "fresh" else 1
        """Real batches in a step."""
        self._fakes = self.n_critic * int(hyper["batch_size"]) + int(hyper["batch_size_g"])
        self._schedule = schedule.parse(str(hyper["lr_schedule"])) if hyper["lr_schedule"] else ()
        self._rates = rates and bool(self._schedule)
        self._lr_scale = lr_scale
        self._block: tuple[int, Rows] | None = None

    def rows(self, step: int) -> Rows:
        """The steps from `step` to the end of its block: at least one, at most BLOCK."""
        number, first = divmod(step, BLOCK)
        if self._block is None or self._block[0] != number:
            self._block = number, self._draw(number)
        return {name: values[first:] for name, values in self._block[1].items()}

    def epoch(self, step: int) -> float:
        """Epochs trained on after so many steps."""
        return step * self.batches / self.order.batches_per_epoch

    def _draw(self, number: int) -> Rows:
        steps = range(number * BLOCK, (number + 1) * BLOCK)
        draw = torch.Generator(self._device).manual_seed(stream_seed(self.spec.seed, "latents", number))
        chosen = [self.order.batch(i) for i in range(steps[0] * self.batches, (steps[-1] + 1) * self.batches)]
        latents = self._gan.latent(BLOCK * self._fakes, draw)
        rows = {
            "images": torch.stack(chosen).view(BLOCK, self.batches, -1),
            "latents": latents.view(BLOCK, self._fakes, -1),
            "target": self._numbers(steps, lambda step: [self._target(step)])[:, 0],
            "sigma": self._numbers(steps, lambda step: [self._sigma(step)])[:, 0],
        }
        if self._gan.n_classes:
            rows["labels"] = torch.randint(
                self._gan.n_classes, (BLOCK, self._fakes), generator=draw, device=self._device
            )
        if self.spec.training["d_update"] == "mixed":
            keys = torch.rand(
                BLOCK, self.n_critic, 2 * self.order.batch_size, generator=draw, device=self._device
            )
            rows["orders"] = keys.argsort(-1)
        if self._rates:
            rows["rates_d"] = self._numbers(
                steps, lambda step: [self.rate("d", step, i) for i in range(self.n_critic)]
            )
            rows["rates_g"] = self._numbers(steps, lambda step: [self.rate("g", step, 0)])
        return rows

    def _numbers(self, steps: range, of_step: Callable[[int], list[float]]) -> Tensor:
        return torch.tensor([of_step(step) for step in steps], dtype=torch.get_default_dtype()).to(
            self._device
        )

    def _target(self, step: int) -> float:
        """One target an epoch; drawn ones are normal and at most 1."""
        mean, sd = float(self.spec.training["label_real"]), float(self.spec.training["label_real_sd"])
        if not sd:
            return mean
        drawn = random.Random(stream_seed(self.spec.seed, "label", int(self.epoch(step))))
        return min(1.0, max(0.0, drawn.gauss(mean, sd)))

    def _sigma(self, step: int) -> float:
        """s(t) of the instance noise: linear to 0 (Soenderby et al. 2016)."""
        hyper = self.spec.training
        left = 1.0 - step / (float(hyper["instance_noise_anneal"]) * self.spec.steps)
        return float(hyper["instance_noise"]) * max(0.0, left)

    def rate(self, net: str, step: int, i: int) -> float:
        """The schedule's rate for update number i of a step; a net whose own rate differs from lr keeps its ratio."""
        hyper = self.spec.training
        update = step * (self.n_critic if net == "d" else 1) + i
        stage = schedule.stage_at(self._schedule, step, self.spec.steps)
        drawn = stream_seed(self.spec.seed, "lr", net, update) / 2**63 if stage.low < stage.high else 0.0
        return stage.rate(drawn) * float(hyper[f"lr_{net}"]) / float(hyper["lr"]) * self._lr_scale


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
