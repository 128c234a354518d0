"""Packs against trials one after the other, and against the tutorial loop: one core, and two.

    python benchmarks/pack.py [--rounds 5] [--seconds 2] [--sizes 1,2,4,8,16,32] [--only obs_mlp]

The first table is one process of one thread. The second is two of them side by side, as on a machine of two cores:
images per second of both together, packed as a study with `execution: {pack: auto}` would choose. The third says why
convolutions have no batched form on a CPU: K of them against one grouped convolution, forward and backward.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _common import SIDE, digits, make_spec, make_trainer, per_second, steps_of, table, tutorial, where
from torch import nn

from models import Value
from trials import kernels
from trials.calibrate import calibrate
from trials.packs import Pack

SMALL_LSTM: dict[str, Value] = {"g_layers": 2, "d_layers": 2, "g_hidden": 128, "d_hidden": 128}
CASES: dict[str, tuple[str, dict[str, Value], dict[str, Value]]] = {
    "baseline, width 128, one layer": ("baseline", {"width": 128, "layers": 1}, {"batch_size": 64}),
    "improved": ("improved", {}, {}),
    "obs_mlp": ("obs_mlp", {}, {"batch_size": 64}),
    "obs_mlp, bf16": ("obs_mlp", {}, {"batch_size": 64, "precision": "bf16"}),
    "obs_mlp, spectral norm": ("obs_mlp", {"spectral_norm": "d"}, {"batch_size": 64}),
    "improved, gradient penalty": ("improved", {}, {"gradient_penalty": 10.0}),
    "rnn_timestep T=4": ("rnn_timestep", SMALL_LSTM, {}),
    "rnn_timestep T=4, bf16": ("rnn_timestep", SMALL_LSTM, {"precision": "bf16"}),
    "rnn_timestep T=16": ("rnn_timestep", {**SMALL_LSTM, "timesteps": 16}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each variant in a round")
    parser.add_argument("--sizes", default="1,2,4,8,16,32")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    options = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if name.startswith(options.only)}
    sizes = [int(size) for size in options.sizes.split(",")]
    prepare()
    print(f"{where()}; kernels: {MATMUL}.\n")
    rows = []
    for name in cases:
        work = {"alone": work_of(name, 0), **{f"K={size}": work_of(name, size) for size in sizes}}
        rates = per_second(work, options.rounds, options.seconds)
        alone = rates.pop("alone")
        rows.append([name, f"{alone:,.0f}", *(f"{rate / alone:.2f}" for rate in rates.values())])
    print(table(["one core", "alone, images/s", *(f"pack of {size}" for size in sizes)], rows), "\n")
    rows = []
    for name in cases:
        model, params, training = CASES[name]
        found = calibrate(
            make_spec(model, params, training), (1, SIDE, SIDE), "onednn" if MATMUL == "onednn" else "default"
        )
        prepare()
        kinds = [] if "rnn" in name else ["tutorial"]
        kinds += ["0"] if found.size == 1 else ["0", str(found.size)]
        together = {kind: [two_processes(name, kind, options.seconds) for _ in range(1)] for kind in kinds}
        for _ in range(options.rounds - 1):
            for kind in kinds:
                together[kind].append(two_processes(name, kind, options.seconds))
        rate = {kind: median(values) for kind, values in together.items()}
        chosen = rate[kinds[-1]]
        rows.append(
            [
                name,
                f"{rate['tutorial']:,.0f}" if "tutorial" in rate else "-",
                f"{rate['0']:,.0f}",
                f"packs of {found.size}" if found.size > 1 else "alone",
                f"{chosen:,.0f}",
                f"{chosen / rate['tutorial']:.2f}" if "tutorial" in rate else "-",
                f"{chosen / rate['0']:.2f}",
            ]
        )
    print(table(
        ("two cores", "two tutorials, images/s", "two trials alone", "auto chose", "two workers as chosen",
         "chosen / tutorials", "chosen / alone"),
        rows,
    ), "\n")  # fmt: skip
    print(table(
        ("convolutions, forward and backward", *(f"K={size}" for size in sizes if size > 1)),
        [grouped(name, [size for size in sizes if size > 1], options.rounds) for name in CONVOLUTIONS],
    ))  # fmt: skip


CONVOLUTIONS: dict[str, tuple[type[nn.Conv2d] | type[nn.ConvTranspose2d], int, int, int]] = {
    "16 to 32 channels, 16x16 in": (nn.Conv2d, 16, 32, 16),
    "32 to 64 channels, 8x8 in": (nn.Conv2d, 32, 64, 8),
    "transposed, 64 to 32 channels, 8x8 in": (nn.ConvTranspose2d, 64, 32, 8),
}


def grouped(name: str, sizes: list[int], rounds: int) -> list[str]:
    """Speed of one grouped convolution (4x4, stride 2, 64 images) relative to K of them."""
    kind, n_in, n_out, side = CONVOLUTIONS[name]
    cells = [name]
    for k in sizes:
        own = [kind(n_in, n_out, 4, stride=2, padding=1) for _ in range(k)]
        together = kind(k * n_in, k * n_out, 4, stride=2, padding=1, groups=k)
        x = torch.randn(64, n_in, side, side, requires_grad=True)
        wide = torch.randn(64, k * n_in, side, side, requires_grad=True)

        def apart(own: Any = own, x: torch.Tensor = x) -> None:
            for layer in own:
                layer(x).sum().backward()

        def at_once(together: Any = together, wide: torch.Tensor = wide) -> None:
            together(wide).sum().backward()

        rates = per_second({"apart": (apart, 1), "at once": (at_once, 1)}, rounds, 0.2)
        cells.append(f"{rates['at once'] / rates['apart']:.2f}")
    return cells


MATMUL = ""


def prepare() -> None:
    """What a worker sets at its start."""
    global MATMUL
    torch.set_num_threads(1)
    kernels.keep_large_blocks()
    MATMUL = MATMUL or kernels.probe_matmul().matmul
    kernels.use_matmul("onednn" if MATMUL == "onednn" else "default")


def work_of(name: str, size: int) -> tuple[Callable[[], None], int]:
    """A step of a trial alone (size 0) or of a pack, and the real images in it."""
    model, params, training = CASES[name]
    images = digits()
    trainers = [
        make_trainer(make_spec(model, params, training, seed), images, pack=size > 0)
        for seed in range(max(1, size))
    ]
    if not size:
        return steps_of(trainers[0]), trainers[0].real_images
    pack = Pack(trainers)

    def step() -> None:
        pack.step()
        if trainers[0].state.step % 20 == 0:
            for trainer in trainers:
                trainer.state.meter.read(**trainer.gradient_norms())

    return step, size * trainers[0].real_images


def two_processes(name: str, kind: str, seconds: float) -> float:
    """Images per second of two processes of one thread that train side by side."""
    context = multiprocessing.get_context("spawn")
    queue, barrier = context.Queue(), context.Barrier(2)
    processes = [
        context.Process(target=_run, args=(name, kind, seconds, MATMUL, barrier, queue)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    rates = [float(queue.get(timeout=300)) for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def _run(name: str, kind: str, seconds: float, matmul: str, barrier: Any, queue: Any) -> None:
    global MATMUL
    MATMUL = matmul
    prepare()
    model, params, training = CASES[name]
    if kind == "tutorial":
        kernels.use_matmul("default")
        batch = int(training.get("batch_size", 100))
        step, images = tutorial(model, params, batch), batch
    else:
        step, images = work_of(name, int(kind))
    step()
    step()
    barrier.wait()
    started, n = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds:
        step()
        n += images
    queue.put(n / taken)


if __name__ == "__main__":
    main()
