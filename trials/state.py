"""Everything that training changes, in one place: what a checkpoint holds is exactly this."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

import models
from models import Gan, Value
from trials.health import Watch
from trials.meter import Meter
from trials.spec import TrialSpec, stream_seed


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Networks, optimisers, step and random state of a trial.

    `averaged`: the generator's running average, or None. `dropout`: what dropout draws from when it is not torch's
    global generator, as in a pack. `best`, `evaluations_since`: of early stopping. `watch`: of its health.
    `rollbacks`: how often it went back; `lr_scale`: the factor on both learning rates since.
    """

    gan: Gan
    averaged: nn.Module | None
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    noise: torch.Generator
    meter: Meter
    watch: Watch
    dropout: torch.Generator | None = None
    step: int = 0
    train_s: float = 0.0
    best: float = float("inf")
    evaluations_since: int = 0
    rollbacks: int = 0
    lr_scale: float = 1.0

    @property
    def shown(self) -> nn.Module:
        """The generator that pictures and evaluation use."""
        return self.averaged or self.gan.generator

    def own_dropout(self) -> torch.Generator:
        """Let the trial have its own generator for dropout, which goes on where torch's global one is."""
        if self.dropout is None:
            self.dropout = torch.Generator(self.noise.device)
            self.dropout.set_state(torch.cuda.get_rng_state() if self._on_gpu else torch.get_rng_state())
        return self.dropout

    def scale_rates(self, scale: float) -> None:
        """Let both learning rates be those of the trial's options times `scale`."""
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] *= scale / self.lr_scale  # with a schedule it is set anew at every update
        self.lr_scale = scale

    def give_dropout_back(self) -> None:
        """Let dropout draw from torch's global generator again, from where the trial's own one is."""
        if self.dropout is not None:
            own, self.dropout = self.dropout.get_state(), None
            self._set_dropout(own)

    @property
    def _on_gpu(self) -> bool:
        return self.noise.device.type == "cuda"

    def _dropout(self) -> Tensor:
        """The state of what dropout draws from."""
        if self.dropout is not None:
            return self.dropout.get_state()
        return torch.cuda.get_rng_state() if self._on_gpu else torch.get_rng_state()

    def _set_dropout(self, state: Tensor) -> None:
        if self.dropout is not None:
            self.dropout.set_state(state)
        elif self._on_gpu:
            torch.cuda.set_rng_state(state)
        else:
            torch.set_rng_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only, so that it loads with `weights_only=True`."""
        return {
            "generator": self.gan.generator.state_dict(),
            "discriminator": self.gan.discriminator.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "meter": self.meter.state_dict(),
            "device": self.noise.device.type,
            "noise": self.noise.get_state(),
            # What dropout draws from: on a GPU the second.
            "torch_rng": torch.get_rng_state() if self._on_gpu else self._dropout(),
            "cuda_rng": self._dropout() if self._on_gpu else None,
            "step": self.step,
            "train_s": self.train_s,
            "best": self.best,
            "evaluations_since": self.evaluations_since,
            "health": self.watch.state_dict(),
            "rollbacks": self.rollbacks,
            "lr_scale": self.lr_scale,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on exactly where `saved` was taken, torch's global random state included.

        On another kind of device random numbers cannot go on: they are drawn anew from the step.
        """
        self.gan.generator.load_state_dict(saved["generator"])
        self.gan.discriminator.load_state_dict(saved["discriminator"])
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        _load(self.g_optimizer, saved["g_optimizer"])
        _load(self.d_optimizer, saved["d_optimizer"])
        self.meter.load_state_dict(saved["meter"])
        if self.dropout is None:
            torch.set_rng_state(saved["torch_rng"].cpu())
        if saved["device"] == self.noise.device.type:
            self.noise.set_state(saved["noise"].cpu())
            self._set_dropout(saved["cuda_rng" if self._on_gpu else "torch_rng"].cpu())
        else:
            own = self.noise.initial_seed()  # of this trial: seeds must not come to share their numbers
            self.noise.manual_seed(stream_seed(own, saved["step"], "noise on another device"))
            seed = stream_seed(own, saved["step"], "dropout on another device")
            self._set_dropout(torch.Generator(self.noise.device).manual_seed(seed).get_state())
        self.step = saved["step"]
        self.train_s = saved["train_s"]
        self.best = saved["best"]
        self.evaluations_since = saved["evaluations_since"]
        if "health" in saved:
            self.watch.load_state_dict(saved["health"])
            self.rollbacks, self.lr_scale = saved["rollbacks"], saved["lr_scale"]
        else:  # saved before there were these
            self.watch.begin(self.step)


def fresh_state(spec: TrialSpec, image_shape: tuple[int, int, int], device: torch.device) -> TrainState:
    """The state before the first step. Seeds torch's global generators: a process runs one trial at a time."""
    torch.manual_seed(stream_seed(spec.seed, "init"))
    gan = models.build(spec.model, image_shape, spec.model_params, spec.n_classes)
    gan.generator.to(device)
    gan.discriminator.to(device)
    averaged = copy.deepcopy(gan.generator).eval().requires_grad_(False) if spec.training["ema"] else None
    for layer in averaged.modules() if averaged else ():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()  # a copy lies in pieces, which cuDNN would gather at every call
    torch.manual_seed(stream_seed(spec.seed, "dropout"))
    return TrainState(
        gan=gan,
        averaged=averaged,
        g_optimizer=_optimizer(gan.generator.parameters(), spec.training, "g", device),
        d_optimizer=_optimizer(gan.discriminator.parameters(), spec.training, "d", device),
        noise=torch.Generator(device).manual_seed(stream_seed(spec.seed, "noise")),
        meter=Meter(device, extra_metrics(gan, spec.training)),
        watch=Watch(steps=spec.steps, confirm=spec.confirm, critic=gan.loss == "wasserstein"),
    )


def extra_metrics(gan: Gan, training: Mapping[str, Value]) -> list[str]:
    """The metrics that this trial logs beside the canonical ones."""
    there = {
        "w_dist": gan.loss == "wasserstein",
        "gp": training["gradient_penalty"],
        "gp_norm": training["gradient_penalty"],
        "drift": training["drift"],
        "l2_d": training["l2"],
        "l2_g": training["l2"],
    }
    return [name for name, on in there.items() if on]


def _optimizer(
    parameters: Iterable[nn.Parameter], training: Mapping[str, Value], net: str, device: torch.device
) -> Optimizer:
    """On a GPU one whose steps can be recorded: its counters, and a rate that is scheduled, lie on the device."""
    hyper = cast(
        Mapping[str, Any],
        {k.removesuffix(f"_{net}"): v for k, v in training.items() if k.endswith(f"_{net}")},
    )
    gpu = device.type == "cuda"
    lr = torch.tensor(hyper["lr"], device=device) if gpu and training["lr_schedule"] else hyper["lr"]
    match hyper["optimizer"]:
        case "adam":
            # The fused CPU kernel trusts that a gradient has its parameter's strides. backward() guarantees
            # that for .grad; autograd.grad() does not.
            return Adam(
                parameters, lr, (hyper["beta1"], hyper["beta2"]), hyper["eps"], hyper["weight_decay"],
                amsgrad=hyper["amsgrad"], fused=True, capturable=gpu,
            )  # fmt: skip
        case "rmsprop":
            return RMSprop(
                parameters, lr, hyper["alpha"], hyper["eps"], hyper["weight_decay"], hyper["momentum"],
                hyper["centered"], capturable=gpu,
            )  # fmt: skip
        case "sgd":
            return SGD(
                parameters, lr, hyper["momentum"], hyper["dampening"], hyper["weight_decay"], hyper["nesterov"],
                # The kernel for many tensors adds the momentum to .grad; the one for one tensor takes no rate from
                # the device.
                foreach=False, fused=gpu,
            )  # fmt: skip
        case unknown:
            raise ValueError(f"unknown optimizer {unknown!r}")


def _load(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Go on from another optimiser's state, which may lie on another kind of device and be made for it."""
    made_for_here: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "fused", "foreach", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(saved)
    for group, mine in zip(optimizer.param_groups, made_for_here, strict=True):
        if isinstance(mine["lr"], Tensor):
            mine["lr"].fill_(float(group["lr"]))
        else:
            mine["lr"] = float(group["lr"])
        group.update(mine)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(parameter.device)


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, a scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
