"""What evaluations, sample grids and the gallery cost beside training steps, one thread.

    python benchmarks/evaluate.py [--rounds 5] [--samples 2000,10000]

The first table takes an evaluation of quickstart's network apart, in the features of a classifier (untrained: that
changes the numbers, not the work). The second sets evaluations, grids and the gallery against the steps of shipped
studies: the first arm of each, its number of steps and of evaluations as planned. MNIST's 60,000 images are stood in
for by the 5,000 that ship, repeated. All are medians of rounds in which the parts take turns.
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

from orchestrator import arms
from orchestrator.loader import Budget, load_study
from trials import kernels, metrics
from trials.data import Images
from trials.evaluation import Evaluator
from trials.features import untrained
from trials.gallery import draw_gallery
from trials.loop import draw_samples
from trials.samples import generate, quantised
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", default="2000,10000", help="sizes of an evaluation, 30,000 at most")
    parser.add_argument("--studies", default=",".join(dict.fromkeys(name for name, _ in STUDIES)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels.keep_large_blocks()
    probe = kernels.probe_matmul()
    kernels.use_matmul(probe.matmul)
    print(f"{where()}; one thread, kernels: {probe.matmul}.\n")
    with tempfile.TemporaryDirectory(prefix="evaluate-") as directory:
        sizes = [int(n) for n in options.samples.split(",")]
        print(table(*parts(sizes, options.rounds, Path(directory))), "\n")
        wanted = [pair for pair in STUDIES if pair[0] in options.studies.split(",")]
        print(table(*shares(wanted, options.rounds, Path(directory))))


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


def trainer_of(spec: TrialSpec, directory: Path) -> tuple[Trainer, Evaluator]:
    """A trainer at step 0 and its evaluator. Of MNIST the images that ship, repeated: drawing is as scattered."""
    pixels = digits()[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    if spec.dataset == "mnist":
        pixels = pixels.repeat(12, 1, 1, 1)
    images = Images(pixels[: spec.limit], torch.arange(len(pixels[: spec.limit])) % 10)
    state = fresh_state(spec, (1, *images.pixels.shape[2:]), CPU)
    state.gan.generator.train()
    state.gan.discriminator.train()
    judged = Evaluator(
        spec, images, untrained(spec.features, images.pixels, 10, images.pixels.device), directory
    )
    return Trainer(spec, state, images.pixels, images.labels if spec.n_classes else None), judged


def parts(sizes: list[int], rounds: int, directory: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every part of an evaluation, by its size."""
    rows = []
    for n in sizes:
        spec = replace(first_trial("quickstart", "full"), eval_samples=n, dataset="mnist")
        trainer, judged = trainer_of(spec, directory)
        gan, shown, real = trainer.state.gan, trainer.state.shown, judged.real
        with torch.no_grad():
            made = generate(gan, shown, n, 1, CPU)
        fake, floats = quantised(made), made.flatten(1)
        features = judged.extractor(fake)
        vectors, reals = features.vectors, real.features.vectors
        assert features.probabilities is not None
        classes = features.probabilities.argmax(1)
        flat = real.images.float().flatten(1)
        radii = metrics.radii(reals)
        work: dict[str, Callable[[], object]] = {
            "a training step": trainer.step,
            "evaluation": lambda j=judged, g=gan, s=shown: j.measure(g, s, first=False),
            "- generating": torch.no_grad()(lambda n=n, g=gan, s=shown: generate(g, s, n, 1, CPU)),
            "- features": lambda j=judged, f=fake: j.extractor(f),
            "- Frechet distance": lambda v=vectors, r=real: metrics.frechet_distance(
                metrics.moments(v), r.moments
            ),
            "- kernel distance": lambda v=vectors, r=reals: metrics.kernel_distance(v, r),
            "- precision, recall, density, coverage": lambda v=vectors, r=reals, d=radii: metrics.manifold(
                r, v, real_radii=d
            ),
            "- diversity": lambda v=vectors, r=reals: metrics.diversity(v, r),
            "- nearest real images": lambda v=vectors, r=reals: metrics.nearest(v, r),
            "- sliced Wasserstein distance": lambda x=floats, r=real: metrics.projected_distance(
                metrics.projections(x), r.projected
            ),
            "- textures": lambda x=made: metrics.texture(x),
            "- diversity within classes": lambda x=floats, c=classes, y=flat: metrics.intra_class_diversity(
                x, c, y, c
            ),
        }
        found = milliseconds(work, rounds)
        for name, taken in found.items():
            share = f"{taken / found['evaluation']:.0%}" if name.startswith("-") else "-"
            rows.append([f"{n:,}", name, f"{taken:.1f}", share, f"{taken / found['a training step']:.1f}"])
    return ["samples", "part", "ms", "share", "in steps"], rows


def shares(
    studies: list[tuple[str, Budget]], rounds: int, directory: Path
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: evaluations, grids and the gallery as shares of a trial's steps, as planned."""
    rows = []
    for study, budget in studies:
        spec = first_trial(study, budget)
        trainer, judged = trainer_of(spec, directory)
        state = trainer.state

        def gallery(spec: TrialSpec = spec, trainer: Trainer = trainer, judged: Evaluator = judged) -> object:
            return draw_gallery(
                spec, trainer.state.gan, trainer.state.shown, directory, real=judged.real.images,
                extractor=judged.extractor, step=1, device=CPU,
            )  # fmt: skip

        found = milliseconds(
            {
                "step": trainer.step,
                "evaluation": lambda j=judged, s=state: j.measure(s.gan, s.shown, first=False),
                "grid": lambda s=spec, t=state: draw_samples(s, t, CPU, directory),
                "gallery": gallery,
            },
            rounds,
        )
        evaluations, grids = len(spec.eval_steps), len(spec.picture_steps)
        steps = spec.steps * found["step"]
        of_evaluations = evaluations * found["evaluation"] / steps
        rest = (grids * found["grid"] + found["gallery"]) / steps
        rows.append(
            [
                study,
                budget,
                f"{spec.steps:,}",
                f"{evaluations} of {spec.eval_samples:,}",
                f"{found['step']:.2f}",
                f"{found['evaluation']:.0f}",
                f"{found['gallery']:.0f}",
                f"{of_evaluations:.1%}",
                f"{rest:.1%}",
            ]
        )
    header = [
        "study", "budget", "steps", "evaluations", "ms a step", "ms an evaluation", "ms the gallery",
        "evaluations / steps", "pictures / steps",
    ]  # fmt: skip
    return header, rows


if __name__ == "__main__":
    main()
