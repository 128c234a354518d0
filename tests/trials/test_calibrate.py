"""Measuring steps: what is chosen, and that nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trials.helpers import run, small_spec
from tests.trials.test_recorded import tape
from trials import calibrate as module
from trials.calibrate import Calibration, Rest, calibrate, measure_classifier, measure_rest, why_alone
from trials.packs import Pack
from trials.recorded import Recorded
from trials.step import Trainer

SHAPE = (1, 8, 8)


@pytest.mark.parametrize(
    ("packed_ms", "size"),
    [
        ({}, 1),
        ({2: 9.8}, 1),
        ({2: 11.0, 4: 12.0}, 1),
        ({2: 9.0}, 2),
        ({2: 9.0, 4: 8.0, 8: 7.9}, 4),
        ({2: 9.0, 8: 5.0}, 8),
    ],
)
def test_the_smallest_pack_is_chosen_that_is_nearly_as_fast_as_the_fastest(
    packed_ms: dict[int, float], size: int
) -> None:
    found = Calibration(alone_ms=10.0, packed_ms=packed_ms)
    assert found.size == size
    assert found.step_ms == (packed_ms[size] if size > 1 else 10.0)


@pytest.mark.parametrize(("most", "sizes"), [(2, [2]), (3, [2]), (4, [2, 4]), (100, [2, 4, 8])])
def test_packs_are_measured_up_to_the_trials_there_are(most: int, sizes: list[int]) -> None:
    found = calibrate(small_spec("improved"), SHAPE, "default", most=most)
    assert list(found.packed_ms) == sizes
    assert found.alone_ms is not None
    assert all(ms > 0 for ms in (found.alone_ms, *found.packed_ms.values()))
    assert f"ms in packs of {sizes[-1]}" in found.words


def test_a_slow_trial_is_measured_once_next_to_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(work: Callable[[], object], repeats: int, _: torch.device) -> float:
        calls.append(repeats)
        return 1000.0

    monkeypatch.setattr(module, "_ms", slow)
    found = calibrate(small_spec("improved"), SHAPE, "default", most=8)
    assert (found.alone_ms, found.packed_ms) == (1000.0, {4: 250.0})
    assert calls == [1, 1, 1]


def test_long_steps_are_not_measured_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ms", lambda *_: 1000.0)
    found = calibrate(small_spec("improved"), SHAPE, "default", measure_alone=False)
    assert found.words == "alone, as its steps are too long to gain from packs"
    assert list(calibrate(small_spec("improved"), SHAPE, "default").packed_ms) == [4]


def test_what_cannot_or_need_not_be_packed_says_why() -> None:
    alone = calibrate(small_spec("improved"), SHAPE, "default", most=1)
    assert (alone.size, alone.reason) == (1, "there is no trial to share with")
    assert alone.alone_ms is not None
    short = calibrate(small_spec("improved"), SHAPE, "default", least_ms=1e9)
    assert short.words.startswith("alone, as the study is too short for packs to matter (")
    unwanted = calibrate(small_spec("improved"), SHAPE, "default", off=True)
    assert unwanted.words.startswith("alone, as execution.pack is off (")
    conv = calibrate(small_spec("obs_dcgan"), SHAPE, "default", measure_alone=False)
    assert conv.alone_ms is None
    assert conv.words == "alone, as there is no batched form of _DcganDiscriminator, _DcganGenerator"
    assert why_alone(small_spec("obs_dcgan"), SHAPE) == conv.reason
    assert why_alone(small_spec("obs_mlp"), SHAPE) == ""


def test_memory_is_measured_and_bounds_the_packs() -> None:
    found = calibrate(small_spec("obs_mlp", width=64), SHAPE, "default", most=8)
    least = module._state_mb(
        module._trainers(small_spec("obs_mlp", width=64), SHAPE, 1, torch.device("cpu"))[0]
    )
    assert list(found.memory_mb) == [1, 2, 4, 8]
    assert all(size * least <= mb < 100 + 100 * size * least for size, mb in found.memory_mb.items())
    assert "MB)" in found.words
    tight = calibrate(small_spec("obs_mlp", width=64), SHAPE, "default", most=8, budget_mb=0.0)
    assert (tight.size, tight.packed_ms) == (1, {})
    assert tight.reason == "two trials take more memory than the 0 MB that a worker has"


@pytest.mark.parametrize(("batch", "group"), [(16, 16), (20, 10), (16, 2)])
def test_groups_of_a_spread_need_not_divide_the_probe_s_batch(batch: int, group: int) -> None:
    spec = small_spec("improved", batch_size=batch, minibatch_stddev=True, minibatch_stddev_group=group)
    assert calibrate(spec, SHAPE, "default", most=2, measure_alone=False).alone_ms is not None


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recordings_that_are_the_steps_are_accepted_and_others_are_not(dropout: float) -> None:
    spec = small_spec("obs_mlp", dropout=dropout)
    cpu = torch.device("cpu")
    steps = {1: module._trainers(spec, SHAPE, 1, cpu)[0]}
    found, notes = module._recorded(spec, SHAPE, steps, cpu, lambda step: Recorded(step, tape))
    assert (list(found), notes) == ([1], ())

    def stuck(work: Callable[[], None]) -> Callable[[], None]:
        tape(work)
        return lambda: None

    found, notes = module._recorded(spec, SHAPE, steps, cpu, lambda step: Recorded(step, stuck))
    assert found == {}
    assert notes[0].startswith("not recorded, as recorded steps differ by")


def test_too_little_memory_ends_the_search_for_larger_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(trainers: list[Trainer]) -> Pack:
        if len(trainers) > 2:
            raise MemoryError
        return Pack(trainers)

    monkeypatch.setattr(module, "Pack", limited)
    found = calibrate(small_spec("improved"), SHAPE, "default", most=8)
    assert list(found.packed_ms) == [2]
    assert found.notes == ("packs of 4 take more memory than there is",)


@pytest.mark.parametrize(
    ("recorded_ms", "size", "recorded", "step_ms"),
    [
        ({1: 2.0, 4: 1.0}, 4, True, 1.0),
        ({1: 2.0, 4: 1.95}, 1, True, 2.0),
        ({1: 20.0, 4: 20.0}, 4, False, 5.0),
        ({1: 1.0}, 1, True, 1.0),
    ],
)
def test_a_recording_is_taken_where_it_is_faster(
    recorded_ms: dict[int, float], size: int, recorded: bool, step_ms: float
) -> None:
    found = Calibration(alone_ms=10.0, packed_ms={4: 5.0}, recorded_ms=recorded_ms)
    assert (found.size, found.recorded, found.step_ms) == (size, recorded, step_ms)
    assert ("recorded (" in found.words) is recorded


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"optimizer": "sgd"}, {"width": 64}])
def test_a_checkpoint_weighs_what_a_real_one_does(options: dict[str, Any], tmp_path: Path) -> None:
    spec = replace(small_spec("obs_mlp", steps=4, **options), picture_steps=())
    found = calibrate(spec, SHAPE, "default", most=1)
    run(spec, tmp_path)
    (real,) = (tmp_path / "checkpoints").glob("step_*")
    size = sum(path.stat().st_size for path in real.iterdir())
    assert found.checkpoint_mb * 2**20 == pytest.approx(size, rel=0.02)
    assert 0 < found.checkpoint_s < 60


def test_what_trials_take_beside_their_steps_is_measured_by_doing_it() -> None:
    spec = replace(small_spec("obs_mlp", steps=8), eval_steps=(4, 8), eval_samples=16, gallery=True)
    found = measure_rest(spec, SHAPE, 3, 40)
    assert all(value > 0 for value in asdict(found).values())
    assert found.gallery_mb > found.grid_mb
    idle = measure_rest(replace(spec, eval_steps=(), picture_steps=(), gallery=False), SHAPE, 3, 40)
    assert idle == Rest()


def test_an_evaluation_that_is_measured_with_fewer_images_counts_in_full() -> None:
    spec = replace(small_spec("obs_mlp"), eval_steps=(12,), eval_samples=16, picture_steps=())
    few, all_of_them = measure_rest(spec, SHAPE, 3, 40, most=8), measure_rest(spec, SHAPE, 3, 40)
    assert 0.1 < few.evaluation_s / all_of_them.evaluation_s < 10  # with half of the images


def test_a_trial_larger_than_the_memory_is_not_tried() -> None:
    spec = small_spec("obs_mlp", width=64)
    found = calibrate(spec, SHAPE, "default", memory_mb=0.01)
    assert (found.fits, found.alone_ms) == (False, None)
    assert "one trial takes more memory than there is" in found.words
    assert calibrate(spec, SHAPE, "default", most=1).fits


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_first_step_that_finds_no_memory_says_so(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> float:
        raise error

    monkeypatch.setattr(module, "_ms", fail)
    assert not calibrate(small_spec("obs_mlp"), SHAPE, "default").fits
    error = RuntimeError("another one")
    with pytest.raises(RuntimeError, match="another one"):
        calibrate(small_spec("obs_mlp"), SHAPE, "default")


def test_the_sizes_of_packs_can_be_asked_for() -> None:
    found = calibrate(small_spec("improved"), SHAPE, "default", most=8, packs=[3])
    assert list(found.packed_ms) == [3]


def test_a_step_alone_is_the_median_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([50.0, 50.0, 1.0, 9.0, 2.0, 3.0, 2.5])
    monkeypatch.setattr(module, "_ms", lambda *_: next(taken))
    assert calibrate(small_spec("obs_dcgan"), SHAPE, "default").alone_ms == 2.5


def test_the_training_of_a_classifier_is_measured_by_the_image() -> None:
    assert 1e-7 < measure_classifier(SHAPE, 3) < 1.0


def test_measuring_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    calibrate(small_spec("obs_mlp", precision="tf32"), SHAPE, "onednn", most=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
