"""Packs against trials one after the other, and against the tutorial loop: one core, and two.

    python benchmarks/pack.py [--rounds 5] [--seconds 2] [--sizes 1,2,4,8] [--only obs_mlp]

The first table is one process of one thread. The second is two of them side by side, as on a machine of two cores:
images per second of both together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _common import digits, make_spec, make_trainer, per_second, steps_of, table, tutorial, where

from models import Value
from trials import kernels
from trials.packs import Pack

SMALL_LSTM: dict[str, Value] = {"g_layers": 2, "d_layers": 2, "g_hidden": 128, "d_hidden": 128}
CASES: dict[str, tuple[str, dict[str, Value], dict[str, Value]]] = {
    "baseline, width 128, one layer": ("baseline", {"width": 128, "layers": 1}, {"batch_size": 64}),
    "improved": ("improved", {}, {}),
    "obs_mlp": ("obs_mlp", {}, {"batch_size": 64}),
    "obs_mlp, bf16": ("obs_mlp", {}, {"batch_size": 64, "precision": "bf16"}),
    "rnn_timestep T=4": ("rnn_timestep", SMALL_LSTM, {}),
    "rnn_timestep T=4, bf16": ("rnn_timestep", SMALL_LSTM, {"precision": "bf16"}),
    "rnn_timestep T=16": ("rnn_timestep", {**SMALL_LSTM, "timesteps": 16}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each variant in a round")
    parser.add_argument("--sizes", default="1,2,4,8")
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
        kinds = ["alone", "pack of 4"] if "rnn" in name else ["tutorial", "alone", "pack of 4"]
        together = {kind: [0.0] for kind in kinds}
        for _ in range(options.rounds):
            for kind in kinds:
                together[kind].append(two_processes(name, kind, options.seconds))
        rate = {kind: median(values[1:]) for kind, values in together.items()}
        rows.append(
            [
                name,
                f"{rate['tutorial']:,.0f}" if "tutorial" in rate else "-",
                f"{rate['alone']:,.0f}",
                f"{rate['pack of 4']:,.0f}",
                f"{rate['pack of 4'] / rate['tutorial']:.2f}" if "tutorial" in rate else "-",
                f"{rate['pack of 4'] / rate['alone']:.2f}",
            ]
        )
    print(table(
        ("two cores", "two tutorials, images/s", "two trials", "two packs of 4", "packs / tutorials", "packs / trials"),
        rows,
    ))  # fmt: skip


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
        step, images = work_of(name, 0 if kind == "alone" else 4)
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
