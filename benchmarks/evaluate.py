"""What an evaluation and a sample grid cost beside training steps, one thread.

    python benchmarks/evaluate.py [--rounds 9] [--samples 500,2000]

The first table takes an evaluation and a grid of 64 samples of quickstart's network apart. The second sets them against
the steps of shipped studies: the first arm of each, its number of steps and of evaluations as planned. MNIST's 60,000
images are stood in for by the 5,000 that ship, repeated. All are medians of rounds in which the parts take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from _common import digits, table, where
from torch import Tensor

from orchestrator import arms
from orchestrator.loader import Budget, load_study
from trials import kernels
from trials.loop import FIXED_NOISE_SEED, draw_samples, evaluate, generate
from trials.metrics import sliced_wasserstein
from trials.pictures import grid, write_png
from trials.spec import TrialSpec
from trials.state import fresh_state
from trials.step import Trainer

STUDIES: tuple[tuple[str, Budget], ...] = (
    ("quickstart", "full"),
    ("lr_optimizer", "short"),
    ("lr_optimizer", "full"),
    ("improved_main", "short"),
    ("rnn_t4", "short"),
    ("rgan_conv", "short"),
)
CPU = torch.device("cpu")
GRID = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", default="500,2000", help="sizes of an evaluation, 2,500 at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels.keep_large_blocks()
    probe = kernels.probe_matmul()
    kernels.use_matmul(probe.matmul)
    print(f"{where()}; one thread, kernels: {probe.matmul}.\n")
    with tempfile.TemporaryDirectory(prefix="evaluate-") as directory:
        print(
            table(*parts([int(n) for n in options.samples.split(",")], options.rounds, Path(directory))), "\n"
        )
        print(table(*shares(options.rounds, Path(directory))))


def milliseconds(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians over rounds in which all take turns; a first call of each does not count."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    for _ in range(rounds):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: median(taken) for name, taken in times.items()}


def first_trial(study: str, budget: Budget) -> TrialSpec:
    """The trial of a study's first arm and seed."""
    path = Path(__file__).parent.parent / "studies" / f"{study}.yaml"
    definition = load_study(path, budget=budget)
    return arms.trial_spec(definition, arms.grid(definition)[0], definition.seeds[0], "")


def trainer_of(spec: TrialSpec) -> tuple[Trainer, Tensor]:
    """A trainer at step 0 and its images: those that ship, repeated for MNIST, so that drawing is as scattered."""
    images = digits()[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    if spec.dataset == "mnist":
        images = images.repeat(12, 1, 1, 1)
    images = images[: spec.limit]
    state = fresh_state(spec, (1, *images.shape[2:]), CPU)
    state.gan.generator.train()
    state.gan.discriminator.train()
    labels = torch.arange(len(images)) % 10 if spec.n_classes else None
    return Trainer(spec, state, images, labels), images


def parts(sizes: list[int], rounds: int, directory: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every part of an evaluation and of a grid, by the size of the evaluation."""
    base = first_trial("quickstart", "full")
    trainer, images = trainer_of(base)
    state = trainer.state
    rows = []
    for n in sizes:
        spec = replace(base, eval_samples=n)
        real, held_out = _chosen(images, n)
        with torch.no_grad():
            fake = generate(state.gan, state.shown, n, 1, CPU).flatten(1).mul(255).round().div(255)
            sheet = generate(state.gan, state.shown, GRID, 1, CPU).mul(255).round().to(torch.uint8).numpy()

        def quantise(fake: Tensor = fake) -> Tensor:
            return fake.mul(255).round().div(255)

        work: dict[str, Callable[[], object]] = {
            "a training step": trainer.step,
            "evaluation": lambda spec=spec: evaluate(spec, state, images),
            "- choosing real images": lambda n=n: _chosen(images, n),
            "- floor: held-out to real images": lambda a=held_out, b=real: sliced_wasserstein(a, b),
            "- generating": torch.no_grad()(lambda n=n: generate(state.gan, state.shown, n, 1, CPU)),
            "- rounding to uint8's values": quantise,
            "- distance: generated to real images": lambda a=fake, b=real: sliced_wasserstein(a, b),
            "-- of it, projecting and sorting one set": lambda a=real: _sorted(a),
            f"grid of {GRID} samples": lambda: draw_samples(base, state, CPU, directory),
            "- generating them": torch.no_grad()(lambda: generate(state.gan, state.shown, GRID, 1, CPU)),
            "- sheet and PNG": lambda sheet=sheet: write_png(directory / "sheet.png", grid(sheet)),
        }
        found = milliseconds(work, rounds)
        whole = 1.0
        for name, taken in found.items():
            if not name.startswith("-"):
                whole = taken
            share = f"{taken / whole:.0%}" if name.startswith("-") else "-"
            rows.append([f"{n:,}", name, f"{taken:.2f}", share, f"{taken / found['a training step']:.1f}"])
    return ["eval_samples", "part", "ms", "share", "in steps"], rows


def shares(rounds: int, directory: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: evaluations and grids as a share of a trial's steps, as planned."""
    rows = []
    for study, budget in STUDIES:
        spec = first_trial(study, budget)
        trainer, images = trainer_of(spec)
        real, held_out = _chosen(images, spec.eval_samples)
        found = milliseconds(
            {
                "step": trainer.step,
                "evaluation": lambda s=spec, t=trainer, i=images: evaluate(s, t.state, i),
                "choosing": lambda i=images, n=spec.eval_samples: _chosen(i, n),
                "floor": lambda a=held_out, b=real: sliced_wasserstein(a, b),
                "sorted": lambda a=real: _sorted(a),
                "grid": lambda s=spec, t=trainer: draw_samples(s, t.state, CPU, directory),
            },
            rounds,
        )
        times, steps = len(spec.picture_steps), spec.steps * found["step"]
        every = {name: times * taken / steps for name, taken in found.items()}
        same = every["choosing"] + every["floor"] + every["sorted"]
        rows.append(
            [
                study,
                budget,
                f"{spec.steps:,}",
                str(times),
                f"{found['step']:.2f}",
                f"{found['evaluation']:.0f}",
                f"{found['grid']:.1f}",
                f"{every['evaluation']:.1%}",
                f"{every['grid']:.2%}",
                f"{same:.1%}",
            ]
        )
    header = [
        "study", "budget", "steps", "evaluations", "ms a step", "ms an evaluation", "ms a grid",
        "evaluations / steps", "grids / steps", "same at every evaluation / steps",
    ]  # fmt: skip
    return header, rows


def _chosen(images: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The two sets of real images of `evaluate`, (n, C H W) each."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(FIXED_NOISE_SEED))
    first, second = ((images[half].float() / 255).flatten(1) for half in chosen[: 2 * n].split(n))
    return first, second


def _sorted(images: Tensor) -> Tensor:
    """What sliced_wasserstein does with each of its sets."""
    directions = torch.randn(images.shape[1], 128, generator=torch.Generator().manual_seed(0))
    return (images @ (directions / directions.norm(dim=0))).sort(dim=0).values


if __name__ == "__main__":
    main()
