"""The training loop: resume, determinism, what it reports and when."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import models
from tests.trials.helpers import (
    EVERYTHING,
    final_state,
    rows_of,
    run,
    same,
    small_spec,
    some_images,
    start,
    store_for,
)
from trials.errors import DivergedError, FencedError
from trials.feed import DataOrder
from trials.kept import best_checkpoint
from trials.loop import train
from trials.reports import (
    AT_THE_END,
    EVAL_METRICS,
    OF_CLASSES,
    OF_GALLERY,
    OF_HELD_OUT,
    TRAIN_METRICS,
    Report,
)
from trials.samples import FIXED_NOISE_SEED
from trials.spec import TrialSpec

OPTIMIZERS = ("adam", "rmsprop", "sgd")


def stop_after(
    spec: TrialSpec, directory: Path, n_reports: int, attempt: int, *, clean: bool
) -> list[Report]:
    """Train for some reports; then stop cleanly (which saves), or vanish like a killed worker (which does not)."""
    reports = []
    running = start(
        spec, store_for(spec, directory, attempt), directory,
        checkpoint_every=4, report_every_s=0.0,
    )  # fmt: skip
    for report in running:
        reports.append(report)
        if len(reports) == n_reports:
            break
    if clean:
        with contextlib.suppress(StopIteration):
            running.send(True)
    return reports


@pytest.mark.parametrize("model", ["obs_mlp", "obs_dcgan"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pictures", [(6, 12), (5, 11)], ids=["aligned", "inside an interval"])
@given(stops=st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=3))
def test_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    optimizer: str,
    pictures: tuple[int, ...],
    stops: list[tuple[int, bool]],
) -> None:
    spec = dataclasses.replace(
        small_spec(model, optimizer=optimizer, momentum=0.5), log_every=4, picture_steps=pictures
    )
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    expected = rows_of(run(spec, whole))
    seen = [
        stop_after(spec, parts, n, attempt, clean=clean) for attempt, (n, clean) in enumerate(stops, start=1)
    ]
    torch.manual_seed(123)  # resuming must not depend on what the process drew before
    seen.append(run(spec, parts, attempt=len(stops) + 1))
    for reports in seen:
        for step, metrics in rows_of(reports).items():
            assert metrics == expected[step]
    assert set().union(*(rows_of(reports) for reports in seen)) == set(expected)
    assert same(final_state(spec, parts), final_state(spec, whole))


@pytest.mark.parametrize("model", [*EVERYTHING, "progressive"])
def test_resumed_equals_uninterrupted_with_every_option(tmp_path: Path, model: str) -> None:
    if model == "progressive":
        spec = small_spec("wgan_gp_32", progressive=True, train_kimg=0.016, fade_kimg=0.016, ema=0.9)
    else:
        spec = small_spec(model, **EVERYTHING[model])
    spec = dataclasses.replace(spec, log_every=4, eval_steps=(6, 12))
    expected = rows_of(run(spec, tmp_path / "whole"))
    stop_after(spec, tmp_path / "parts", 1, 1, clean=True)
    stop_after(spec, tmp_path / "parts", 1, 2, clean=False)
    rows = rows_of(run(spec, tmp_path / "parts", attempt=3))
    assert rows.items() <= expected.items()
    assert same(final_state(spec, tmp_path / "parts"), final_state(spec, tmp_path / "whole"))


def test_training_ends_early_when_the_distance_stops_improving(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        small_spec("obs_dcgan", steps=40, lr=1e-30, patience=3), eval_steps=tuple(range(4, 41, 4))
    )
    reports = run(spec, tmp_path)
    assert reports[-1].step == 16  # the first evaluation is the best one, and three follow it
    assert reports[-1].notes == ("ended at step 16: no better eval/fd for 3 evaluations",)
    assert run(spec, tmp_path, attempt=2) == []  # going on with what has ended does nothing
    assert final_state(spec, tmp_path)["step"] == 16


def test_a_checkpoint_that_is_to_be_kept_outlives_the_others(tmp_path: Path) -> None:
    spec = dataclasses.replace(small_spec(steps=20), keep_steps=(7,), picture_steps=(7, 20))
    run(spec, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*")) == [
        "step_000000007",
        "step_000000020",
    ]


def test_the_best_checkpoint_stays_and_training_goes_on_from_the_newest(tmp_path: Path) -> None:
    # A rate at which the generator is spoilt after the first evaluation.
    spec = dataclasses.replace(small_spec(steps=24, lr=0.5), eval_steps=(4, 8, 12, 16, 20, 24))
    rows = rows_of(run(spec, tmp_path))
    judged = {step: row["eval/fd"] for step, row in rows.items() if "eval/fd" in row}
    best = min(judged, key=lambda step: judged[step])
    assert best != 24, "the last one is the best: this shows nothing"
    kept = best_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert int(kept.name.removeprefix("step_")) == best
    assert final_state(spec, tmp_path)["step"] == 24
    wanted = dataclasses.replace(spec, judged_by=("eval/fd", "max"))
    run(wanted, tmp_path / "max")
    worst = best_checkpoint(tmp_path / "max" / "checkpoints")
    assert worst is not None
    assert int(worst.name.removeprefix("step_")) == max(judged, key=lambda step: judged[step])


def test_a_checkpoint_of_the_best_step_that_is_written_again_stays_the_best(tmp_path: Path) -> None:
    spec = small_spec()
    store = store_for(spec, tmp_path)
    state: dict[str, object] = {"step": 4}
    store.save(state, 4, best=True)
    store.save(state, 4)  # by a stop that comes right after
    store.save(state, 8)
    kept = best_checkpoint(store.directory)
    assert kept is not None
    assert kept.name == "step_000000004"


def test_without_evaluations_there_is_a_gallery_all_the_same(tmp_path: Path) -> None:
    reports = run(dataclasses.replace(small_spec(), gallery=True), tmp_path)
    keys = {picture.key for report in reports for picture in report.pictures}
    assert {"latent/slerp", "neighbours/pairs", "samples/curated"} <= keys
    assert "neighbours/distances" not in keys
    assert not any(name.startswith("eval/fd") for row in rows_of(reports).values() for name in row)


def test_a_picture_that_cannot_be_drawn_is_a_note_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "gallery").write_text("a file where the directory belongs")
    reports = run(dataclasses.replace(small_spec(), gallery=True), tmp_path)
    assert reports[-1].step == 12
    assert any(note.startswith("the gallery could not be drawn") for note in reports[-1].notes)


def test_an_averaged_generator_makes_the_pictures_beside_the_raw_one(tmp_path: Path) -> None:
    reports = run(dataclasses.replace(small_spec(ema=0.9), eval_steps=(12,)), tmp_path)
    keys = {(p.key, p.step) for r in reports for p in r.pictures}
    assert keys == {(f"samples/{key}", step) for key in ("fixed", "raw") for step in (6, 12)}
    last = rows_of(reports)[12]
    assert last["eval/swd"] != last["eval/swd_raw"]
    assert last["eval/fd"] != last["eval/fd_raw"]


def test_a_conditional_model_s_grid_has_a_column_for_every_class(tmp_path: Path) -> None:
    spec = dataclasses.replace(small_spec("rnn_timestep"), picture_samples=6)
    (picture,) = run(dataclasses.replace(spec, picture_steps=(12,)), tmp_path)[-1].pictures
    with Image.open(tmp_path / picture.path) as image:
        assert image.width > image.height  # 3 columns, 2 rows


def test_images_larger_than_asked_for_are_averaged_down(tmp_path: Path) -> None:
    spec = dataclasses.replace(small_spec("obs_dcgan", augment=True), size=8)
    store = store_for(spec, tmp_path)
    images = some_images(shape=(1, 16, 16))
    reports = list(train(spec, images, None, store, tmp_path, checkpoint_every=100))
    assert reports[-1].step == 12


def test_the_same_seed_repeats_and_another_does_not(tmp_path: Path) -> None:
    a, b, c = (
        rows_of(run(small_spec(seed=s), tmp_path / name)) for s, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert a == b
    assert a != c


def test_pictures_and_evaluation_do_not_change_training(tmp_path: Path) -> None:
    without = dataclasses.replace(small_spec("obs_dcgan"), picture_steps=())
    spec = dataclasses.replace(without, picture_steps=(6, 12), eval_steps=(6, 12), gallery=True)
    judged, plain = rows_of(run(spec, tmp_path / "with")), rows_of(run(without, tmp_path / "without"))
    for step, row in plain.items():
        assert {name: judged[step][name] for name in row} == row
    states = [final_state(s, tmp_path / name) for s, name in ((spec, "with"), (without, "without"))]
    for state in states:
        del (
            state["best"],
            state["evaluations_since"],
            state["health"],
        )  # evaluations are checks of samples too
    assert same(*states)


def test_every_canonical_metric_is_logged_at_every_interval(tmp_path: Path) -> None:
    rows = rows_of(run(dataclasses.replace(small_spec(steps=7), eval_steps=(3, 7)), tmp_path))
    assert sorted(rows) == [2, 3, 4, 6, 7]  # 3 and 7 are picture steps; 7 is the end
    for step in (2, 4, 6, 7):
        assert {f"train/{name}" for name in TRAIN_METRICS} <= rows[step].keys()
    always = {f"eval/{name}" for name in EVAL_METRICS if name not in UNUSUAL}
    floors = {f"eval/{name}" for name in EVAL_METRICS if name.endswith("_floor")}
    nearest = {f"eval/{name}" for name in AT_THE_END - OF_GALLERY}
    assert {name for name in rows[3] if name.startswith("eval/")} == always | floors
    assert {name for name in rows[7] if name.startswith("eval/")} == always | nearest


UNUSUAL = (OF_CLASSES | OF_HELD_OUT | AT_THE_END
           | {"fd_raw", "swd_raw", "fd_floor", "kid_floor", "swd_floor"})  # fmt: skip
"""Metrics that not every evaluation has."""


def test_derived_metrics_agree_with_their_definitions(tmp_path: Path) -> None:
    for metrics in rows_of(run(small_spec(), tmp_path)).values():
        m = {name.removeprefix("train/"): value for name, value in metrics.items()}
        assert m["d_loss_sum"] == pytest.approx(m["d_loss_real"] + m["d_loss_fake"])
        assert m["d_loss_mean"] == pytest.approx(m["d_loss_sum"] / 2)
        assert m["d_acc"] == pytest.approx((m["d_acc_real"] + m["d_acc_fake"]) / 2)
        assert 0 <= m["d_acc"] <= 1
        assert 0 < m["real_score"] < 1


def test_a_row_holds_the_means_over_its_interval(tmp_path: Path) -> None:
    spec = small_spec(steps=6)
    fine = rows_of(run(dataclasses.replace(spec, log_every=1, picture_steps=()), tmp_path / "fine"))
    coarse = rows_of(run(dataclasses.replace(spec, log_every=3, picture_steps=()), tmp_path / "coarse"))
    for name in ("train/g_loss", "train/d_loss_mean", "train/real_score", "train/g_fool_rate"):
        assert coarse[3][name] == pytest.approx(np.mean([fine[s][name] for s in (1, 2, 3)]), rel=1e-5)
        assert coarse[6][name] == pytest.approx(np.mean([fine[s][name] for s in (4, 5, 6)]), rel=1e-5)


def test_a_report_comes_before_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    spec = small_spec(steps=8)
    store = store_for(spec, tmp_path)
    for report in start(spec, store, tmp_path, checkpoint_every=4, report_every_s=1e9):
        latest = store.latest()
        assert latest is None or int(latest.name.removeprefix("step_")) < report.step
    assert store.latest() == store.directory / "step_000000008"


def test_reports_gather_rows_until_the_clock_says_so(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    spec = dataclasses.replace(small_spec(steps=8), picture_steps=())
    reports = list(
        start(
            spec, store_for(spec, tmp_path), tmp_path,
            checkpoint_every=8, report_every_s=2.0, clock=lambda: next(ticks),
        )
    )  # fmt: skip
    assert [len(report.rows) for report in reports] == [2, 2]


def test_a_metric_that_is_not_finite_ends_the_trial_after_reporting_the_others(tmp_path: Path) -> None:
    spec = small_spec(steps=400, lr=10.0, optimizer="sgd")
    reports: list[Report] = []
    running = start(spec, store_for(spec, tmp_path), tmp_path, checkpoint_every=500)
    with pytest.raises(DivergedError, match="not finite at step"):
        reports.extend(running)
    values = [value for report in reports for row in report.rows for value in row.metrics.values()]
    assert np.isfinite(values).all()
    assert store_for(spec, tmp_path, 2).latest() is None


def test_an_attempt_that_was_replaced_writes_no_checkpoint(tmp_path: Path) -> None:
    spec = small_spec()
    running = start(spec, store_for(spec, tmp_path, 1), tmp_path, checkpoint_every=2, report_every_s=0)
    next(running)
    newer = store_for(spec, tmp_path, 2)
    with pytest.raises(FencedError, match=r"attempt 1 of trial .* was replaced by attempt 2"):
        next(running)
    assert newer.latest() is None


def test_grids_show_the_same_latents_in_every_trial_and_are_png(tmp_path: Path) -> None:
    drawn: list[torch.Tensor] = []
    for seed in (0, 1):
        spec = small_spec(seed=seed)
        reports = run(spec, tmp_path / str(seed))
        pictures = [picture for report in reports for picture in report.pictures]
        assert [(p.key, p.step) for p in pictures] == [("samples/fixed", 6), ("samples/fixed", 12)]
        with Image.open(tmp_path / str(seed) / pictures[0].path) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 480
        gan = models.build(spec.model, (1, 8, 8), spec.model_params)
        drawn.append(gan.latent(4, torch.Generator().manual_seed(FIXED_NOISE_SEED)))
    assert torch.equal(*drawn)


@given(n=st.integers(4, 60), batch=st.integers(2, 20), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_an_epoch_visits_images_at_most_once_and_drops_the_short_batch(
    n: int, batch: int, epochs: int, seed: int
) -> None:
    if batch > n:
        with pytest.raises(ValueError, match="larger than the dataset"):
            DataOrder(n, batch, seed, torch.device("cpu"))
        return
    order = DataOrder(n, batch, seed, torch.device("cpu"))
    per_epoch = n // batch
    for epoch in range(epochs):
        seen = torch.cat([order.batch(epoch * per_epoch + i) for i in range(per_epoch)])
        assert len(seen.unique()) == per_epoch * batch
    jumped = DataOrder(n, batch, seed, torch.device("cpu")).batch(epochs * per_epoch - 1)
    assert torch.equal(jumped, seen[-batch:])


def test_training_never_writes_into_the_shared_images(tmp_path: Path) -> None:
    spec, images = small_spec(), some_images()
    before = images.clone()
    list(train(spec, images, None, store_for(spec, tmp_path), tmp_path, checkpoint_every=100))
    assert torch.equal(images, before)


def test_the_fused_optimizer_computes_what_the_plain_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = rows_of(run(small_spec("obs_dcgan"), tmp_path / "fused"))
    from trials import state

    plain = torch.optim.Adam
    monkeypatch.setattr(state, "Adam", lambda *a, fused, **k: plain(*a, fused=False, **k))
    unfused = rows_of(run(small_spec("obs_dcgan"), tmp_path / "plain"))
    for step, metrics in unfused.items():
        for name in ("train/g_loss", "train/d_loss_mean"):
            if name in metrics:
                assert fused[step][name] == pytest.approx(metrics[name], rel=1e-4)
