"""Everything that training changes, in one place: what a checkpoint holds is exactly this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

import models
from models import Gan, Value
from trials.metrics import Meter
from trials.spec import TrialSpec, stream_seed


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Networks, optimisers, step and random state of a trial."""

    gan: Gan
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    noise: torch.Generator
    meter: Meter
    step: int = 0
    train_s: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only, so that it loads with `weights_only=True`."""
        return {
            "generator": self.gan.generator.state_dict(),
            "discriminator": self.gan.discriminator.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "meter": self.meter.state_dict(),
            "device": self.noise.device.type,
            "noise": self.noise.get_state(),
            "torch_rng": torch.get_rng_state(),  # dropout draws from torch's global generators
            "cuda_rng": torch.cuda.get_rng_state() if self.noise.device.type == "cuda" else None,
            "step": self.step,
            "train_s": self.train_s,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on exactly where `saved` was taken, torch's global random state included.

        On another kind of device random numbers cannot go on: they are drawn anew from the step.
        """
        self.gan.generator.load_state_dict(saved["generator"])
        self.gan.discriminator.load_state_dict(saved["discriminator"])
        self.g_optimizer.load_state_dict(saved["g_optimizer"])
        self.d_optimizer.load_state_dict(saved["d_optimizer"])
        self.meter.load_state_dict(saved["meter"])
        torch.set_rng_state(saved["torch_rng"].cpu())
        if saved["device"] == self.noise.device.type:
            self.noise.set_state(saved["noise"].cpu())
            if saved["cuda_rng"] is not None:
                torch.cuda.set_rng_state(saved["cuda_rng"].cpu())
        else:
            self.noise.manual_seed(stream_seed(saved["step"], "noise on another device"))
        self.step = saved["step"]
        self.train_s = saved["train_s"]


def fresh_state(spec: TrialSpec, image_shape: tuple[int, int, int], device: torch.device) -> TrainState:
    """The state before the first step. Seeds torch's global generators: a process runs one trial at a time."""
    torch.manual_seed(stream_seed(spec.seed, "init"))
    gan = models.build(spec.model, image_shape, spec.model_params)
    gan.generator.to(device)
    gan.discriminator.to(device)
    torch.manual_seed(stream_seed(spec.seed, "dropout"))
    return TrainState(
        gan=gan,
        g_optimizer=_optimizer(gan.generator.parameters(), spec.training, spec.training["lr_g"]),
        d_optimizer=_optimizer(gan.discriminator.parameters(), spec.training, spec.training["lr_d"]),
        noise=torch.Generator(device).manual_seed(stream_seed(spec.seed, "noise")),
        meter=Meter(device),
    )


def _optimizer(parameters: Iterable[nn.Parameter], training: Mapping[str, Value], lr: Value) -> Optimizer:
    hyper = cast(Mapping[str, Any], training)
    rate = float(lr)
    match hyper["optimizer"]:
        case "adam":
            # The fused CPU kernel trusts that a gradient has its parameter's strides. backward() guarantees
            # that for .grad; autograd.grad() does not.
            return Adam(parameters, rate, (hyper["beta1"], hyper["beta2"]), hyper["eps"], fused=True)
        case "rmsprop":
            return RMSprop(parameters, rate, hyper["alpha"], hyper["eps"])
        case "sgd":
            return SGD(parameters, rate, hyper["momentum"])
        case unknown:
            raise ValueError(f"unknown optimizer {unknown!r}")


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, a scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
