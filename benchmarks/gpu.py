"""One trial and packs on a GPU: step by step, and from recorded CUDA graphs.

    python benchmarks/gpu.py [--device cuda] [--sizes 32] [--only obs_mlp]

Figures are of the calibration that chooses at submit (trials/calibrate.py), so this is also what a study would do. The
floor is what Adam's reads and writes alone take at the memory bandwidth that a copy reaches in the same run.
`--device cpu` shows the table without recordings.
"""

from __future__ import annotations

import argparse
import time

import torch
from _common import SIDE, make_spec, table, where
from pack import CASES

import models
from trials.calibrate import calibrate

CONVOLUTIONS = {
    "obs_dcgan": ("obs_dcgan", {}, {"batch_size": 64}),
    "rgan_v2": ("rgan_v2", {}, {"batch_size": 64}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--sizes", type=int, default=32, help="the largest pack")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    if gpu and not torch.cuda.is_available():
        parser.error(
            "this machine has no CUDA device that torch can use; --device cpu shows the table without one"
        )
    name = torch.cuda.get_device_name() if gpu else "no GPU"
    rate = bandwidth(torch.device(options.device))
    print(f"{where()}; {name}, a copy moves {rate / 1e9:,.0f} GB/s.\n")
    rows = []
    for case, (model, params, training) in {**CASES, **CONVOLUTIONS}.items():
        if not case.startswith(options.only):
            continue
        spec = make_spec(model, params, training)
        found = calibrate(spec, (1, SIDE, SIDE), "default", device=options.device, most=options.sizes)
        alone = found.alone_ms
        assert alone is not None
        floor_ms = 1000 * 7 * 4 * weights(model, params) / rate  # Adam reads 4 numbers a weight and writes 3
        ways = {f"packs of {size}": ms for size, ms in found.packed_ms.items()}
        ways |= {
            "alone, recorded" if size == 1 else f"packs of {size}, recorded": ms
            for size, ms in found.recorded_ms.items()
        }
        rows.append((case, "alone", f"{alone:.3f}", "1.00", f"{floor_ms / alone:.2f}"))
        rows += [
            (case, way, f"{ms:.3f}", f"{alone / ms:.2f}", f"{floor_ms / ms:.2f}") for way, ms in ways.items()
        ]
        rows.append((case, f"chosen: {found.words.split(' (')[0]}", "", "", ""))
    print(table(("networks", "steps", "ms a trial's step", "speed-up", "floor / step"), rows))


def weights(model: str, params: dict[str, models.Value]) -> int:
    """How many weights both nets have."""
    spec = make_spec(model, params, {})
    gan = models.build(model, (1, SIDE, SIDE), spec.model_params, spec.n_classes)
    return sum(p.numel() for net in (gan.generator, gan.discriminator) for p in net.parameters())


def bandwidth(on: torch.device) -> float:
    """Bytes a second that a copy of 256 MB reads and writes."""
    source = torch.zeros(64 * 2**20, device=on)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        target.copy_(source)
        if on.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() * source.element_size() / best


if __name__ == "__main__":
    main()
