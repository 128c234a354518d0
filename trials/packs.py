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
from trials.feed import Rows
from trials.spec import TrialSpec
from trials.step import Images, Step, Trainer, judges_alone

SHARED = ("batch_size", "batch_size_g", "n_critic", "real_batch", "d_update", "d_reduction", "precision",
          "drift_reduction", "gp_alpha")  # fmt: skip
"""Training options in which the trials of a pack agree."""

SWITCHES = ("l2", "drift", "instance_noise", "lr_schedule", "augment", "gradient_penalty")
"""Training options that are on in all trials of a pack or in none; their values differ freely."""


def alone_because(spec: TrialSpec, gan: Gan) -> str | None:
    """Why a trial cannot be one of a pack, or None."""
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
        self._joins = judges_alone(first.gan.discriminator)
        largest = max((trainer.images for trainer in self.trainers), key=len)
        alike = all(trainer.images.data_ptr() == largest.data_ptr() for trainer in self.trainers)
        changed = any(trainer.hyper["augment"] for trainer in self.trainers)
        self._images = None if changed or not alike else largest
        """Where the images of all trials can be taken from at once."""

    @property
    def members(self) -> Sequence[Trainer]:
        return self.trainers

    def rows_ahead(self) -> Rows:
        ahead = [trainer.feed.rows(trainer.state.step) for trainer in self.trainers]
        n = min(len(rows["images"]) for rows in ahead)
        return {name: torch.stack([rows[name][:n] for rows in ahead], dim=1) for name in ahead[0]}

    def _end(
        self, real_loss: Tensor, fake_loss: Tensor, g_loss: Tensor, real_logits: Tensor, fake_logits: Tensor,
        g_logits: Tensor, extras: dict[str, Tensor],
    ) -> None:  # fmt: skip
        meter = self.trainers[0].state.meter
        measured = meter.measures(real_loss, fake_loss, g_loss, real_logits, fake_logits, g_logits, extras)
        for trainer, mine in zip(self.trainers, measured.unbind(0), strict=True):
            trainer.state.meter.take(mine)

    def _option(self, name: str) -> Tensor:
        if name not in self._options:
            self._options[name] = self._of_each([float(trainer.hyper[name]) for trainer in self.trainers])
        return self._options[name]

    def _of_each(self, values: Sequence[float]) -> Tensor:
        parameter = next(iter(self._nets["d"].weights.values()))
        return torch.tensor(values, dtype=parameter.dtype, device=parameter.device)

    def real_target(self) -> Tensor:
        drawn = any(trainer.hyper["label_real_sd"] for trainer in self.trainers)
        return self.row["target"] if drawn else self._option("label_real")

    def real_batch(self, i: int) -> tuple[Images, Tensor | None]:
        chosen = self.row["images"][:, i]  # (K, N)
        k, n = chosen.shape
        if self._images is not None:
            x = self.trainers[0].real_images_of(chosen.flatten(), i, self._images)
            assert isinstance(x, Tensor)
            images = x.view(k, n, *x.shape[1:])  # (K, N, C, H, W)
        else:
            apart = [t.real_images_of(mine, i) for t, mine in zip(self.trainers, chosen, strict=True)]
            images = torch.stack([x for x in apart if isinstance(x, Tensor)])
        of_each = [t.labels_of(mine) for t, mine in zip(self.trainers, chosen, strict=True)]
        labels = [mine for mine in of_each if mine is not None]
        return images.movedim(1, -1), torch.stack(labels) if labels else None

    def _fakes(self, update: int) -> tuple[Images, Tensor | None]:
        labels = [self._part("labels", update)] if self.gan.n_classes else []  # (K, N)
        latents = self._part("latents", update)  # (K, N, Z)
        with self.trainers[0].precision():
            made = self._nets["g"](latents.transpose(1, 2), *labels)
        return made.to(latents.dtype), labels[0] if labels else None

    def _noisy(self, images: Images) -> Images:
        if not self.hyper["instance_noise"]:
            return images
        assert isinstance(images, Tensor)
        one = (images.shape[-1], *images.shape[1:-1])  # (N, C, H, W)
        noise = torch.stack(
            [torch.randn(one, generator=t.state.noise, device=images.device) for t in self.trainers]
        )
        sigma = self.row["sigma"].view(-1, *[1] * (images.dim() - 1))
        return images + sigma * noise.movedim(1, -1)

    def _judge(self, images: Images, labels: Tensor | None) -> Tensor:
        assert isinstance(images, Tensor)
        with self.trainers[0].precision():
            logits = self._nets["d"](images, *(() if labels is None else (labels,)))
        return logits.to(images.dtype)

    def _judge_both(
        self, i: int, real: Images, labels: Tensor | None, fake: Images, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(real, Tensor) and isinstance(fake, Tensor)  # noqa: PT018
        n = real.shape[-1]
        images = torch.cat((real, fake), dim=-1)
        both = None if labels is None or fake_labels is None else torch.cat((labels, fake_labels), 1)
        if self.hyper["d_update"] != "mixed":
            logits = self._judge(images, both)
            return logits[:, :n], logits[:, n:]
        orders = self.row["orders"][:, i]  # (K, 2N)
        shuffled = images.gather(
            -1, orders.view(len(orders), *[1] * (images.dim() - 2), -1).expand(images.shape)
        )
        logits = self._judge(shuffled, None if both is None else both.gather(1, orders))
        logits = torch.empty_like(logits).scatter(1, orders, logits)
        return logits[:, :n], logits[:, n:]

    def _penalty(
        self, real: Images, fake: Images, labels: Tensor | None, extras: dict[str, Tensor]
    ) -> Tensor:
        assert isinstance(real, Tensor) and isinstance(fake, Tensor)  # noqa: PT018
        draw = torch.rand if self.hyper["gp_alpha"] == "uniform" else torch.randn
        streams = [trainer.state.noise for trainer in self.trainers]
        one = (real.shape[-1], 1, 1, 1)
        a = torch.stack([draw(one, generator=noise, device=noise.device) for noise in streams])
        mixed = (real + a.movedim(1, -1) * (fake - real)).detach().requires_grad_()
        scores = self._judge(mixed, labels)
        (slopes,) = torch.autograd.grad(scores.sum(), [mixed], create_graph=True)
        # The small number keeps the root's derivative finite where a gradient is zero.
        norms = (slopes.flatten(1, -2).square().sum(1) + 1e-12).sqrt()  # (K, N)
        extras["gp"] = (norms - self._option("gp_target")[:, None]).square().mean(-1)
        extras["gp_norm"] = norms.mean(-1)
        return extras["gp"] * self._option("gradient_penalty")

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
