"""How distances at few samples rank trials, compared with many: rank correlations over the checkpoints of real trials.

    python benchmarks/sample_sizes.py STUDY [STUDY ...] [--sizes 500,1000,2000,10000] [--data-dir DIR]

Takes every checkpoint that the studies' trials kept (the best one and the last one), draws images from it, and judges
them at each size against as many real images. The last size is the reference. Rank correlations of Spearman and of
Kendall, over all checkpoints and over the better half of them, where arms lie close together.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _common import table, where
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from orchestrator import arms
from orchestrator.home import data_directory, features_directory, home
from orchestrator.sampling import built, find_source
from orchestrator.status import find_study, load_definition, load_records
from trials.checkpoints import load
from trials.data import prepare, resident
from trials.evaluation import evaluator
from trials.kept import checkpoints

METRICS = ("fd", "kid", "recall", "coverage", "class_tv", "swd")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--sizes", default="500,1000,2000,10000")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    sizes = [int(n) for n in options.sizes.split(",")]
    found = [judged(study, sizes, options.data_dir) for study in options.studies]
    print(f"{where()}\n")
    values = {metric: np.concatenate([part[metric] for part in found], axis=1) for metric in METRICS}
    n = values["fd"].shape[1]
    print(f"{n} checkpoints of {', '.join(options.studies)}; reference: {sizes[-1]:,} samples\n")
    best = np.argsort(values["fd"][-1])[: n // 2]
    rows = []
    for metric, of in values.items():
        for i, size in enumerate(sizes[:-1]):
            cells = [metric, f"{size:,}"]
            for chosen in (np.arange(n), best):
                a, b = of[i, chosen], of[-1, chosen]
                cells += [f"{spearmanr(a, b).statistic:.3f}", f"{kendalltau(a, b).statistic:.3f}"]
            there = of[-1] != 0  # recall of a collapse is 0
            rows.append([*cells, f"{np.median(of[i, there] / of[-1, there]):.3f}"])
    header = ["metric", "samples", "Spearman", "Kendall", "Spearman, better half", "Kendall, better half",
              "median ratio to the reference"]  # fmt: skip
    print(table(header, rows))


def judged(study: str, sizes: list[int], data_dir: Path | None) -> dict[str, NDArray[np.float64]]:
    """Metric -> (sizes, checkpoints)."""
    files = find_study(study)
    definition, records = load_definition(files), load_records(files)
    cpu, rows = torch.device("cpu"), {metric: [list[float]() for _ in sizes] for metric in METRICS}
    for trial in records.trials.values():
        dataset = arms.resolved(definition, records.arms[trial.arm].values).dataset
        prepared = prepare(dataset.source, cache_dir=home() / "datasets", data_dir=data_directory(data_dir))
        for path in checkpoints(files.trial(trial.folder) / "checkpoints"):
            source = find_source(str(path))
            state = built(source, load(path, source.keys, cpu), cpu)
            whole, mine, held_out = resident(
                prepared.images, prepared.labels, cpu, source.spec.limit, source.spec.hold_out
            )
            for i, size in enumerate(sizes):
                spec = replace(source.spec, eval_samples=size, dataset_digest=prepared.digest)
                judge = evaluator(spec, whole, mine, held_out, features_directory())
                measured = judge.measure(state.gan, state.shown, first=False)
                for metric in METRICS:
                    rows[metric][i].append(measured.get(f"eval/{metric}", float("nan")))
            fds = ", ".join(f"{values[-1]:.2f}" for values in rows["fd"])
            print(f"{trial.name}, {path.name}: fd {fds}", flush=True)
    return {metric: np.array(values) for metric, values in rows.items()}


if __name__ == "__main__":
    main()
