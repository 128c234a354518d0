"""How many trials run at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.machine import Machine, _memory_mb, refusal, slots, this_machine
from orchestrator.study import Resources


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpu", "gpu", "at_once"),
    [
        (8, 0, 1, 0, 8),
        (8, 0, 3, 0, 2),
        (2, 0, 0.5, 0, 4),
        (16, 1, 1, 0.25, 4),
        (16, 1, 1, 0.15, 6),  # floor(1/0.15) a device
        (16, 3, 1, 0.4, 6),
        (16, 4, 1, 2, 2),
        (3, 8, 1, 0.25, 3),  # the cores run out first
    ],
)
def test_cores_and_devices_bound_how_many_run_at_once(
    cpus: int, gpus: int, cpu: float, gpu: float, at_once: int
) -> None:
    assert slots(Resources(cpu=cpu, gpu=gpu), Machine(cpus=cpus, gpus=gpus), 100).count == at_once


@given(st.floats(0.05, 1), st.integers(1, 8))
def test_shares_of_a_gpu_never_exceed_it(share: float, gpus: int) -> None:
    found = slots(Resources(cpu=0.01, gpu=share), Machine(cpus=64, gpus=gpus), 10**6)
    assert found.count * share <= gpus + 1e-6


def test_no_more_slots_than_trials_and_one_thread_a_core() -> None:
    found = slots(Resources(cpu=2.5), Machine(cpus=64, gpus=0), 3)
    assert (found.count, found.threads) == (3, 2)
    assert slots(Resources(cpu=0.5), Machine(cpus=1, gpus=0), 9).threads == 1


@pytest.mark.parametrize(
    ("cpu", "gpu", "words"),
    [
        (3, 0, "a trial needs 3 CPU cores, this machine has 2"),
        (1, 1, "a trial needs 1 GPUs, this machine has 0; use --set resources.gpu=0"),
        (1, 1.5, "more than one GPU must be a whole number"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(cpu: float, gpu: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        slots(Resources(cpu=cpu, gpu=gpu), Machine(cpus=2, gpus=0), 1)


@given(at_once=st.integers(1, 9), cpus=st.integers(1, 9), n_trials=st.integers(1, 9))
def test_no_more_trials_run_at_once_than_the_study_says(at_once: int, cpus: int, n_trials: int) -> None:
    found = slots(Resources(at_once=at_once), Machine(cpus=cpus, gpus=0), n_trials)
    assert found.count == min(at_once, cpus, n_trials)


def test_a_refusal_is_told_without_raising() -> None:
    machine = Machine(cpus=2, gpus=0)
    assert refusal(Resources(cpu=2), machine) is None
    assert (
        refusal(Resources(cpu=3), machine) == "resources.cpu: a trial needs 3 CPU cores, this machine has 2"
    )


def test_a_container_s_limit_is_the_memory_there_is(tmp_path: Path) -> None:
    for name, content in (("limit", str(64 * 2**20)), ("none", "max"), ("higher", str(2**60))):
        (tmp_path / name).write_text(content)
    assert _memory_mb([tmp_path / "none", tmp_path / "limit", tmp_path / "not there"]) == 64
    assert 64 < _memory_mb([tmp_path / "none", tmp_path / "higher"]) < 2**30


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, n in (("", 0), ("-1", 0), ("0", 1), ("0,3", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert this_machine().gpus == n
