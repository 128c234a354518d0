"""Fixtures that every test may use. No test touches the real home, and none reads this machine's settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gan-sweep home and a user home of the test's own; foreign settings removed."""
    home = tmp_path / "gan-sweep"
    monkeypatch.setenv("GAN_SWEEP_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors train fastest, and repeat bit for bit, on one thread."""
    torch.set_num_threads(1)
