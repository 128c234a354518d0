"""Arithmetic of a process: what the probe accepts, and what precision means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.trials.test_step import after, begin
from trials import kernels
from trials.kernels import Matmul, keep_large_blocks, probe_matmul, use_matmul, use_precision

MKLDNN: Any = torch.backends.mkldnn


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    use_matmul("default")
    use_precision("float32")


def test_the_probe_chooses_what_it_measured_and_leaves_the_default() -> None:
    threads = torch.get_num_threads()
    probe = probe_matmul()
    better = probe.speedup >= kernels.LEAST_SPEEDUP and probe.error <= kernels.MOST_ERROR
    assert probe.matmul == ("onednn" if better else "default")
    assert 0 < probe.error < 1e-2
    assert MKLDNN.matmul.fp32_precision == "none"
    assert torch.get_num_threads() == threads


def test_without_onednn_there_is_the_default_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert probe_matmul().matmul == "default"
    use_matmul("onednn")
    assert MKLDNN.matmul.fp32_precision == "none"


@pytest.mark.parametrize(
    ("default_s", "onednn_s", "rounding", "chosen"),
    [
        (2.0, 1.0, 0.0, "onednn"),
        (1.1, 1.0, 0.0, "default"),
        (1.0, 2.0, 0.0, "default"),
        (2.0, 1.0, 1e-2, "default"),
    ],
)
def test_faster_kernels_are_taken_only_when_they_are_accurate(
    default_s: float, onednn_s: float, rounding: float, chosen: Matmul, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Matmul] = []
    monkeypatch.setattr(kernels, "use_matmul", used.append)
    monkeypatch.setattr(kernels, "_seconds", lambda _: onednn_s if used[-1] == "onednn" else default_s)
    exact = torch.nn.functional.linear
    monkeypatch.setattr(kernels, "linear", lambda x, weight: exact(x, weight) * (1 + rounding))
    assert probe_matmul().matmul == chosen


def test_precision_and_kernels_are_set_for_the_whole_process() -> None:
    use_precision("tf32")
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    use_precision("bf16")
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    use_matmul("onednn")
    assert MKLDNN.matmul.fp32_precision == "bf16"


def test_glibc_keeps_large_blocks_and_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_large_blocks() in (True, False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_large_blocks() is False


@pytest.mark.parametrize("model", ["obs_mlp", "obs_dcgan", "rnn_timestep", "rgan_v2", "wgan_gp_32"])
def test_bf16_rounds_products_and_keeps_weights_in_float32(model: str) -> None:
    """The first step's losses are those of float32 to about the 8 bits of bfloat16. (Dropout draws other masks.)"""
    full, half = begin(model, dropout=0.0), begin(model, dropout=0.0, precision="bf16")
    exact, rounded = after(full), after(half)
    for name in ("d_loss_real", "d_loss_fake", "g_loss"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.05, abs=0.05)
    assert any(abs(rounded[name] - exact[name]) > 1e-6 for name in ("d_loss_real", "d_loss_fake", "g_loss"))
    for net in (half.gan.generator, half.gan.discriminator):
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        assert all(p.grad is None or p.grad.dtype is torch.float32 for p in net.parameters())
    after(half, 5)
