"""Packs: trials of one shape that train as one batched network in one process.

Every trial keeps its own state, seeds, random numbers, optimisers and metrics; only the arithmetic is shared. Axes:
K trials, N images of a batch, and images come last (models/_batched.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models import Gan
from models._batched import Batched, layers_without_twin
from trials.spec import TrialSpec
from trials.step import Images, Step, Trainer

SHARED = ("batch_size", "batch_size_g", "n_critic", "real_batch", "d_update", "d_reduction", "precision",
          "drift_reduction")  # fmt: skip
"""Training options in which the trials of a pack agree."""

SWITCHES = ("l2", "drift", "instance_noise")
"""Training options that are on in all trials of a pack or in none; their values differ freely."""


def alone_because(spec: TrialSpec, gan: Gan) -> str | None:
    """Why a trial cannot be one of a pack, or None."""
    if spec.training["gradient_penalty"]:
        return "there is no batched form of a gradient penalty"
    if gan.levels or gan.scales:
        return "there is no batched form of images of several scales"
    layers = {*layers_without_twin(gan.generator), *layers_without_twin(gan.discriminator)}
    return f"there is no batched form of {', '.join(sorted(layers))}" if layers else None


def fusion_key(spec: TrialSpec) -> Hashable:
    """Trials with equal keys can be one pack: networks, batches and steps of one shape. All else is their own."""
    shapes = {name: bool(value) if name == "dropout" else value for name, value in spec.model_params.items()}
    shared = {name: spec.training[name] for name in SHARED} | {n: bool(spec.training[n]) for n in SWITCHES}
    return (
        spec.model,
        tuple(sorted(shapes.items())),
        tuple(sorted(shared.items())),
        (spec.n_classes, spec.size, spec.dataset),
    )


class Pack(Step):
    """Takes the steps of its trials together.

    The trials' networks stay what they are and share their memory with the stacked ones: a trial evaluates, saves
    and reports by itself, as if it were alone. Several packs may not hold one trial.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        """Stack the trainers' networks. Their specs must have one fusion key, and no reason to be alone."""
        self.trainers = list(trainers)
        first = self.trainers[0]
        self.gan: Gan = first.gan
        self.hyper: Mapping[str, Any] = first.hyper
        states = [trainer.state for trainer in self.trainers]
        streams = [state.own_dropout() for state in states]
        self._nets = {
            "g": Batched([state.gan.generator for state in states], streams),
            "d": Batched([state.gan.discriminator for state in states], streams),
        }
        self._options: dict[str, Tensor] = {}

    def _begin(self) -> None:
        pass

    def _end(
        self, real_loss: Tensor, fake_loss: Tensor, g_loss: Tensor, real_logits: Tensor, fake_logits: Tensor,
        g_logits: Tensor, extras: dict[str, Tensor],
    ) -> None:  # fmt: skip
        meter = self.trainers[0].state.meter
        measured = meter.measures(real_loss, fake_loss, g_loss, real_logits, fake_logits, g_logits, extras)
        for trainer, mine in zip(self.trainers, measured.unbind(0), strict=True):
            trainer.state.meter.take(mine)
            trainer.state.step += 1

    def _option(self, name: str) -> Tensor:
        if name not in self._options:
            self._options[name] = self._of_each([float(trainer.hyper[name]) for trainer in self.trainers])
        return self._options[name]

    def _of_each(self, values: Sequence[float]) -> Tensor:
        parameter = next(iter(self._nets["d"].weights.values()))
        return torch.tensor(values, dtype=parameter.dtype, device=parameter.device)

    def real_target(self) -> Tensor:
        if not any(trainer.hyper["label_real_sd"] for trainer in self.trainers):
            return self._option("label_real")
        return self._of_each([trainer.real_target() for trainer in self.trainers])

    def real_batch(self, i: int) -> tuple[Images, Tensor | None]:
        batches = [trainer.real_batch(i) for trainer in self.trainers]
        images = torch.stack([x for x, _ in batches if isinstance(x, Tensor)])  # (K, N, C, H, W)
        labels = [mine for _, mine in batches if mine is not None]
        return images.movedim(1, -1), torch.stack(labels) if labels else None

    def _fakes(self, n: int) -> tuple[Images, Tensor | None]:
        z, *labels = (
            torch.stack(drawn) for drawn in zip(*(t.draw_inputs(n) for t in self.trainers), strict=True)
        )
        with self.trainers[0].precision():
            made = self._nets["g"](z.transpose(1, 2), *labels)
        return made.to(z.dtype), labels[0] if labels else None

    def _noisy(self, images: Images) -> Images:
        if not self.hyper["instance_noise"]:
            return images
        assert isinstance(images, Tensor)
        one = (images.shape[-1], *images.shape[1:-1])  # (N, C, H, W)
        noise = [
            t.noise_sigma() * torch.randn(one, generator=t.state.noise, device=images.device)
            for t in self.trainers
        ]
        return images + torch.stack(noise).movedim(1, -1)

    def _judge(self, images: Images, labels: Tensor | None) -> Tensor:
        assert isinstance(images, Tensor)
        with self.trainers[0].precision():
            logits = self._nets["d"](images, *(() if labels is None else (labels,)))
        return logits.to(images.dtype)

    def _judge_mixed(
        self, real: Images, labels: Tensor | None, fake: Images, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(real, Tensor) and isinstance(fake, Tensor)  # noqa: PT018
        n = real.shape[-1]
        orders = torch.stack([trainer.draw_order(2 * n) for trainer in self.trainers])  # (K, 2N)
        images = torch.cat((real, fake), dim=-1)
        shuffled = images.gather(
            -1, orders.view(len(orders), *[1] * (images.dim() - 2), -1).expand(images.shape)
        )
        both = (
            None
            if labels is None or fake_labels is None
            else torch.cat((labels, fake_labels), 1).gather(1, orders)
        )
        logits = self._judge(shuffled, both)
        logits = torch.empty_like(logits).scatter(1, orders, logits)
        return logits[:, :n], logits[:, n:]

    def _penalty(
        self, real: Images, fake: Images, labels: Tensor | None, extras: dict[str, Tensor]
    ) -> Tensor:
        raise AssertionError("trials with a gradient penalty train alone")

    def set_rate(self, net: str, i: int) -> None:
        for trainer in self.trainers:
            trainer.set_rate(net, i)

    def _update(self, net: str, loss: Tensor, extras: dict[str, Tensor]) -> None:
        stacked = self._nets[net]
        if self.hyper["l2"]:
            squares = [weight.square().flatten(1).sum(1) for weight in stacked.weights.values()]
            extras[f"l2_{net}"] = 0.5 * torch.stack(squares).sum(0)
            loss = loss + self._option("l2") * extras[f"l2_{net}"]
        stacked.gradients_of(loss.sum())  # of the sum: every trial's own loss has weight 1
        for trainer in self.trainers:
            trainer.nets[net].take_step()
            if net == "g":
                trainer.average()
