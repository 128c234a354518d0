"""Arithmetic of a process: matrix kernels chosen by a probe, precision, and memory that is kept.

All of this is state of the whole process, set at the start of every attempt.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch.nn.functional import linear

Matmul = Literal["default", "onednn"]
"""Who multiplies float32 matrices on the CPU: torch's own choice (MKL), or oneDNN."""

SHAPES = ((128, 784, 512), (64, 256, 256), (64, 600, 2400))
"""N, inputs and outputs of the linear layers that the probe times: those of small GANs."""
LEAST_SPEEDUP = 1.15
MOST_ERROR = 2e-6
"""Relative to float64. float32 products of these shapes are at 2.5e-7 to 4e-7, bfloat16 ones at 2e-3."""
_REPEATS = 15
_BACKENDS: Any = torch.backends  # its parts are made when it is imported, unseen by type checkers


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What the probe chose, how much faster oneDNN is than the default, and its error relative to float64."""

    matmul: Matmul
    speedup: float
    error: float

    @property
    def words(self) -> str:
        """The figures for people."""
        return f"onednn {self.speedup:.2f}x as fast as default, relative error {self.error:.1e}"


def probe_matmul() -> Probe:
    """Time both kernels on this machine, one thread, about 50 ms; oneDNN if it is faster and as accurate.

    torch asks oneDNN for products "in bfloat16 or better". Without special units (AMX) it computes in float32 and
    on AMD processors beats MKL, which takes a slower path there; with them it would round to bfloat16: hence the
    check.
    """
    if not torch.backends.mkldnn.is_available():
        return Probe(matmul="default", speedup=1.0, error=0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    ratios, errors = [], []
    try:
        for n, n_in, n_out in SHAPES:
            x, weight = (torch.randn(rows, n_in, generator=draw) for rows in (n, n_out))
            times: dict[Matmul, list[float]] = {"default": [], "onednn": []}
            for _ in range(_REPEATS):  # in turn, so that a busy moment meets both
                for name, taken in times.items():
                    use_matmul(name)
                    taken.append(_seconds(lambda x=x, weight=weight: linear(x, weight)))  # type: ignore[misc]
            exact = x.double() @ weight.double().T
            errors.append(
                float((linear(x, weight) - exact).norm() / exact.norm())
            )  # of oneDNN, the last used
            ratios.append(median(times["default"][2:]) / median(times["onednn"][2:]))
    finally:
        use_matmul("default")
        torch.set_num_threads(threads)
    speedup, error = median(ratios), max(errors)
    chosen: Matmul = "onednn" if speedup >= LEAST_SPEEDUP and error <= MOST_ERROR else "default"
    return Probe(matmul=chosen, speedup=speedup, error=error)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def use_matmul(matmul: Matmul) -> None:
    """Multiply float32 matrices on the CPU so from now on; a torch without oneDNN has its default alone."""
    if not torch.backends.mkldnn.is_available():
        return
    _BACKENDS.mkldnn.matmul.fp32_precision = "bf16" if matmul == "onednn" else "none"


def use_precision(precision: str) -> None:
    """Products on CUDA in TensorFloat-32 for "tf32", else in float32. A CPU has no TensorFloat-32."""
    tf32 = "tf32" if precision == "tf32" else "ieee"
    _BACKENDS.cuda.matmul.fp32_precision = tf32
    _BACKENDS.cudnn.conv.fp32_precision = tf32
    _BACKENDS.cudnn.rnn.fp32_precision = tf32


def give_blocks_back() -> None:
    """Give freed memory back to the system, where the C library can."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def keep_large_blocks() -> bool:
    """Let glibc keep large blocks of freed memory; whether it does.

    By default it gives blocks of more than 32 MB back to the system, and every step that makes such a temporary
    pays for its pages anew: 29 ms for 64 MB instead of 3 ms.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))
