"""One trial against the loop that tutorials teach, on the same networks, one thread.

    python benchmarks/single.py [--rounds 7] [--seconds 2]

Prints a table of images per second and ratios: medians of rounds in which all variants take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _common import digits, make_spec, make_trainer, per_second, steps_of, table, tutorial, where

from models import Value
from trials import kernels
from trials.kernels import Matmul

BATCH = 64
NETWORKS: dict[str, tuple[str, dict[str, Value]]] = {
    "obs_mlp": ("obs_mlp", {}),
    "baseline, width 128, one layer": ("baseline", {"width": 128, "layers": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each variant in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    probe = kernels.probe_matmul()
    images = digits()
    rows = []
    for name, (model, params) in NETWORKS.items():

        def ours(
            precision: str, matmul: Matmul, model: str = model, params: dict[str, Value] = params
        ) -> tuple[Callable[[], None], int]:
            step = steps_of(
                make_trainer(make_spec(model, params, {"batch_size": BATCH, "precision": precision}), images)
            )

            def run() -> None:
                kernels.use_matmul(matmul)
                step()

            return run, BATCH

        def taught(model: str = model, params: dict[str, Value] = params) -> tuple[Callable[[], None], int]:
            step = tutorial(model, params, BATCH)

            def run() -> None:
                kernels.use_matmul("default")
                step()

            return run, BATCH

        rates = per_second(
            {
                "tutorial loop": taught(),
                "gan-sweep, float32, default kernels": ours("float32", "default"),
                f"gan-sweep, float32, {probe.matmul} kernels (chosen)": ours("float32", probe.matmul),
                "gan-sweep, bf16": ours("bf16", "default"),
            },
            options.rounds,
            options.seconds,
        )
        base = rates["tutorial loop"]
        rows += [(name, variant, f"{rate:,.0f}", f"{rate / base:.2f}") for variant, rate in rates.items()]
    print(f"{where()}; batch {BATCH}, one thread.\nMatrix kernels: {probe.matmul}, measured {probe.speedup:.2f}x, "
          f"error {probe.error:.1e}.\n")  # fmt: skip
    print(table(("networks", "loop", "real images/s", "ratio"), rows))


if __name__ == "__main__":
    main()
