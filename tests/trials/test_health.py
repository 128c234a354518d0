"""Flags of trainings that go wrong: what raises them, when, and what a trial does about it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trials.helpers import (
    final_state,
    images_for,
    labels_for,
    rows_of,
    same,
    small_spec,
    start,
    store_for,
)
from trials import feed
from trials.errors import DivergedError, UnhealthyError
from trials.health import Watch, check_every, reach
from trials.loop import Spread, _spared, training
from trials.reports import FLAGS, Assignment, Flag, Report
from trials.spec import TrialSpec, evenly_spaced_steps
from trials.state import fresh_state
from trials.step import Trainer
from trials.worker import Attempts

CPU = torch.device("cpu")
FINE = {"g": 0.9, "d": 0.6, "acc": 0.7}
CONDITIONS: dict[str, tuple[dict[str, float], list[dict[str, float]]]] = {
    "d_win": (
        {"g": 9.0, "d": 0.0499, "acc": 0.9901},
        [{"g": 9.0, "d": 0.05, "acc": 0.9901}, {"g": 9.0, "d": 0.0499, "acc": 0.99}],
    ),
    "d_lost": ({"g": 0.1, "d": 2.0, "acc": 0.2999}, [{"g": 0.1, "d": 2.0, "acc": 0.3}]),
}
"""Of flags on rows: what just fulfils the condition, and what just does not."""
ONE_CLASS = {"share": 0.901, "tv": 0.501, "confidence": 0.701}


def row(g: float, d: float, acc: float) -> dict[str, float]:
    return {"train/g_loss": g, "train/d_loss_mean": d, "train/d_acc": acc}


def told(watch: Watch, values: Iterable[dict[str, float]], *, every: int = 10, start: int = 0) -> list[Flag]:
    """What the watch says of rows of `every` steps each; the losses of a row differ from those of the last one."""
    flags: list[Flag] = []
    for i, value in enumerate(values):
        wobble = 1 + 1e-3 * (i % 2)
        changed = row(value["g"] * wobble, value["d"], value["acc"])
        flags += watch.row(start + (i + 1) * every, every, changed)
    return flags


def facts(flags: list[Flag]) -> list[tuple[str, int, int]]:
    return [(flag.name, flag.since, flag.step) for flag in flags]


# Conditions at their border


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_counts_just_inside_its_border_and_not_just_outside(name: str) -> None:
    inside, outside = CONDITIONS[name]
    assert facts(told(Watch(steps=10_000, confirm=100), [inside] * 50)) == [(name, 0, 100)]
    for values in outside:
        assert told(Watch(steps=10_000, confirm=100), [values] * 50) == []


def test_generated_images_alike_are_a_collapse_just_below_a_twentieth() -> None:
    for value, expected in ((0.0499, [("collapse", 0, 300)]), (0.05, []), (0.0, [("collapse", 0, 300)])):
        watch = Watch(steps=10_000, confirm=200)
        assert facts([f for step in (100, 200, 300, 400) for f in watch.diversity(step, value)]) == expected


@pytest.mark.parametrize("outside", [{}, {"share": 0.9}, {"tv": 0.5}, {"confidence": 0.7}])
def test_one_class_is_a_collapse_when_the_data_has_others_and_the_classifier_is_sure(
    outside: dict[str, float],
) -> None:
    watch = Watch(steps=10_000, confirm=200)
    found = [f for step in (300, 600) for f in watch.classes(step, **{**ONE_CLASS, **outside})]
    assert facts(found) == ([] if outside else [("collapse", 0, 600)])


def level(g: float, steps: int) -> list[dict[str, float]]:
    """Rows of 10 steps with one loss of the generator."""
    return [{**FINE, "g": g}] * (steps // 10)


@pytest.mark.parametrize(
    ("before", "after", "jumps"),
    [(1.0, 2.001, True), (1.0, 1.999, False), (2.0, 0.999, True), (2.0, 1.001, False), (0.2, 0.69, False),
     (0.2, 0.71, True)],
)  # fmt: skip
def test_a_loss_jumps_when_it_doubles_or_halves_and_by_half_at_least(
    before: float, after: float, jumps: bool
) -> None:
    flags = told(Watch(steps=10_000), [*level(before, 2000), *level(after, 2000)])
    assert facts(flags) == ([("jump", 2000, 2500)] if jumps else [])
    if jumps:
        assert flags[0].words.startswith(
            f"jump: generator's loss from {before:.2f} to {after:.2f} since step 2,000"
        )


def test_what_comes_back_is_slow_or_early_is_no_jump() -> None:
    back = [*level(1.0, 2000), *level(4.0, 400), *level(1.0, 2000)]
    slow = [{**FINE, "g": 1.0 + i / 100} for i in range(500)]  # doubles within 1,000 steps
    early = [*level(1.0, 800), *level(4.0, 3000)]
    for values in (back, slow, early):
        assert told(Watch(steps=10_000), values) == []
    late = [*level(1.0, 1200), *level(4.0, 3000)]
    assert facts(told(Watch(steps=10_000), late)) == [("jump", 1200, 1700)]


def test_after_a_jump_its_new_level_is_the_usual_one() -> None:
    values = [*level(1.0, 2000), *level(3.0, 2000), *level(1.0, 2000)]
    assert facts(told(Watch(steps=10_000), values)) == [("jump", 2000, 2500), ("jump", 4000, 4500)]


@pytest.mark.parametrize("critic", [False, True])
def test_losses_are_frozen_when_they_stay_within_a_ten_thousandth(critic: bool) -> None:
    for change, expected in ((0.9e-4, [("frozen", 0, 100)]), (1.1e-4, [])):
        for name in ("train/g_loss", "train/d_loss_mean"):
            watch, flags = Watch(steps=10_000, confirm=100, critic=critic), []
            for i in range(1, 30):
                flags += watch.row(10 * i, 10, {**row(0.7, 0.7, 0.5), name: 0.7 * (1 + change * (i % 2))})
            assert facts(flags) == expected


def test_means_over_long_intervals_are_frozen_only_when_four_agree() -> None:
    watch = Watch(steps=100_000)
    found = [watch.row(1000 * i, 1000, row(0.7, 0.7, 0.5)) for i in range(1, 6)]
    assert [facts(flags) for flags in found] == [[], [], [], [("frozen", 0, 4000)], []]


def test_a_critic_can_only_collapse_or_freeze() -> None:
    bad = [CONDITIONS["d_win"][0], CONDITIONS["d_lost"][0]]
    values = [*level(1.0, 2000), *level(9.0, 2000), *(value for value in bad for _ in range(200))]
    assert told(Watch(steps=10_000, critic=True), values) == []
    assert {flag.name for flag in told(Watch(steps=10_000), values)} == {"jump", "d_win", "d_lost"}
    watch = Watch(steps=10_000, critic=True)
    assert facts([*watch.diversity(100, 0.0), *watch.diversity(600, 0.0)]) == [("collapse", 0, 600)]


# Windows and episodes


@given(every=st.integers(1, 300), begins=st.integers(0, 3000), confirm=st.integers(1, 1500))
def test_windows_are_steps_whatever_the_logging_interval(every: int, begins: int, confirm: int) -> None:
    values = [
        CONDITIONS["d_win"][0] if step - every >= begins else FINE for step in range(every, 6000, every)
    ]
    flags = [f for f in told(Watch(steps=10**6, confirm=confirm), values, every=every) if f.name == "d_win"]
    assert len(flags) == 1
    assert begins <= flags[0].since < begins + every
    assert 0 <= flags[0].step - flags[0].since - confirm < every


def test_a_flag_is_raised_once_an_episode() -> None:
    bad = [CONDITIONS["d_lost"][0]]
    values = [*bad * 100, FINE, *bad * 9, FINE, *bad * 100]
    flags = told(Watch(steps=10_000, confirm=100), values)
    assert facts(flags) == [("d_lost", 0, 100), ("d_lost", 1110, 1210)]
    assert flags[1].words == "d_lost: accuracy 0.30, loss 2.000 since step 1,110"


def test_both_kinds_of_collapse_are_one_flag() -> None:
    watch = Watch(steps=10_000, confirm=100)
    assert watch.diversity(100, 0.01) == watch.classes(100, **ONE_CLASS) == []
    assert facts(watch.diversity(200, 0.01)) == [("collapse", 0, 200)]
    assert watch.classes(200, **ONE_CLASS) == []
    assert watch.classes(300, **ONE_CLASS) == []


@given(
    values=st.lists(st.sampled_from([FINE, *(inside for inside, _ in CONDITIONS.values())]), max_size=40),
    repeats=st.integers(1, 12), cut=st.integers(0, 480),
)  # fmt: skip
def test_a_watch_goes_on_from_its_state_as_if_it_had_not_stopped(
    values: list[dict[str, float]], repeats: int, cut: int
) -> None:
    many = [value for value in values for _ in range(repeats)]
    whole = Watch(steps=2000, confirm=60)
    expected = told(whole, many)
    first, second = Watch(steps=2000, confirm=60), Watch(steps=2000, confirm=60)
    flags = told(first, many[: 2 * (cut // 2)])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.state_dict() == second.state_dict()
    flags += told(second, many[2 * (cut // 2) :], start=20 * (cut // 2))
    assert flags == expected
    assert second.state_dict() == whole.state_dict()


@given(
    every=st.integers(1, 3000), confirm=st.integers(1, 3000), steps=st.integers(100, 100_000), begins=st.integers(0, 9),
    g=st.sampled_from([0.05, 0.9, 9.0]), critic=st.booleans(),
)  # fmt: skip
def test_no_condition_began_longer_ago_than_a_rollback_can_reach(
    every: int, confirm: int, steps: int, begins: int, g: float, critic: bool
) -> None:
    spec = dataclasses.replace(small_spec(steps=steps), log_every=every, confirm=confirm)
    watch, flags = Watch(steps=steps, confirm=confirm, critic=critic), []
    for i, step in enumerate(range(every, min(steps, 500 * every) + 1, every)):
        bad = i >= begins
        flags += watch.row(step, every, row(g, 0.01, 1.0) if bad else row(0.9 + 0.1 * i, 0.6, 0.7))
        if step % check_every(spec) == 0:
            flags += watch.diversity(step, 0.0 if bad else 1.0)
    assert all(0 <= flag.step - flag.since <= reach(spec) for flag in flags)


@pytest.mark.parametrize(
    ("steps", "every", "expected"), [(100, 20, 100), (50_000, 20, 500), (50_000, 30, 510)]
)
def test_samples_are_checked_once_a_hundredth_of_training(steps: int, every: int, expected: int) -> None:
    assert check_every(dataclasses.replace(small_spec(steps=steps), log_every=every)) == expected


# Samples


def test_the_spread_of_samples_is_that_of_real_images_of_which_it_is_one() -> None:
    gan = fresh_state(small_spec(), (1, 8, 8), CPU).gan
    images = images_for(small_spec())

    class Fixed(torch.nn.Module):
        def __init__(self, made: torch.Tensor) -> None:
            super().__init__()
            self.made = made

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.made[: len(z)]

    real = images.repeat(2, 1, 1, 1)[:64].float() / 127.5 - 1
    spread = Spread(images, None)
    assert spread.of(gan, Fixed(real))["health/diversity"] == pytest.approx(1, rel=0.05)
    assert spread.of(gan, Fixed(0.5 * real))["health/diversity"] == pytest.approx(0.5, rel=0.05)
    assert spread.of(gan, Fixed(real[:1].expand(64, -1, -1, -1))) == {"health/diversity": 0}
    assert spread.of(gan, Fixed(real * float("nan"))) == {}
    assert Spread(images[:1].expand(40, -1, -1, -1), None).of(gan, Fixed(real)) == {}
    assert Spread(images[:1], None).of(gan, Fixed(real)) == {}


@pytest.mark.parametrize("model", ["obs_mlp", "obs_dcgan"])
def test_a_check_of_samples_changes_nothing(model: str) -> None:
    spec = small_spec(model)
    state = fresh_state(spec, (1, 8, 8), CPU)
    state.gan.generator.train()
    before = copy.deepcopy(state.state_dict())
    assert Spread(images_for(spec), None).of(state.gan, state.shown)
    assert same(state.state_dict(), before)
    assert state.gan.generator.training


# Trials


WINS: dict[str, Any] = {"steps": 80, "lr_d": 0.03, "lr_g": 1e-6}
"""Of a trial whose discriminator wins at about step 36."""


def winning(**changes: Any) -> TrialSpec:
    return dataclasses.replace(small_spec(**WINS), confirm=20, **changes)


def notes_of(reports: list[Report]) -> list[str]:
    return [note for report in reports for note in report.notes]


def flags_of(reports: list[Report]) -> list[Flag]:
    return [flag for report in reports for flag in report.flags]


def attempt(
    spec: TrialSpec, directory: Path, number: int = 1, *, reports: int | None = None, clean: bool = False,
    flags: Iterable[str] = tuple(FLAGS), until: int | None = None,
) -> tuple[list[Report], Exception | None]:  # fmt: skip
    """Train by itself, at most so many reports; then vanish, or stop cleanly."""
    images = images_for(spec)
    running = training(
        spec, images, labels_for(images), store_for(spec, directory, number), directory, never,
        checkpoint_every=8, report_every_s=0.0, flags=tuple(flags), until=until,
    )  # fmt: skip
    said: list[Report] = []
    answer = None
    try:
        while True:
            now, answer = running.send(answer), None
            if isinstance(now, Trainer):
                now.step()
                continue
            said.append(now)
            if len(said) == reports:
                if clean:
                    running.send(True)
                running.close()
                return said, None
    except StopIteration:
        return said, None
    except (DivergedError, UnhealthyError) as error:
        return said, error


def never() -> Any:
    raise AssertionError("this trial is not evaluated")


def test_by_default_a_flag_is_said_and_changes_nothing(tmp_path: Path) -> None:
    loud, _ = attempt(winning(), tmp_path / "loud")
    assert [flag.name for flag in flags_of(loud)] == ["d_win"]
    quiet, _ = attempt(winning(), tmp_path / "quiet", flags=())
    assert flags_of(quiet) == []
    assert rows_of(quiet) == rows_of(loud)
    assert same(final_state(winning(), tmp_path / "quiet"), final_state(winning(), tmp_path / "loud"))


def test_a_flag_that_ends_the_trial_is_said_even_when_it_is_not_asked_for(tmp_path: Path) -> None:
    reports, error = attempt(winning(stops=("d_win",)), tmp_path, flags=())
    (flag,) = flags_of(reports)
    assert isinstance(error, UnhealthyError)
    assert str(error) == flag.words == f"d_win: accuracy 1.00, loss 0.004 since step {flag.since}"
    assert reports[-1].step == flag.step < 80
    newest = store_for(winning(), tmp_path, 9).latest()
    assert newest is not None
    assert int(newest.name.removeprefix("step_")) < flag.step


def test_another_flag_does_not_end_the_trial(tmp_path: Path) -> None:
    reports, error = attempt(winning(stops=("d_lost", "frozen", "collapse", "jump")), tmp_path)
    assert error is None
    assert reports[-1].step == 80


def test_a_rollback_goes_to_the_last_checkpoint_before_the_flag_with_lower_rates(tmp_path: Path) -> None:
    spec = winning(stops=("d_win",), rollback=(1, 0.25))
    images = images_for(spec)
    running = training(
        spec, images, None, store_for(spec, tmp_path), tmp_path, never, checkpoint_every=8, report_every_s=0.0
    )
    seen: list[tuple[int, float, float]] = []
    said: list[Report] = []
    with contextlib.suppress(UnhealthyError):  # the lower rates are still too high
        for now in running:
            if isinstance(now, Trainer):
                nets = (now.state.g_optimizer, now.state.d_optimizer)
                g, d = (float(net.param_groups[0]["lr"]) for net in nets)
                seen.append((now.state.step, g, d))
                now.step()
            else:
                said.append(now)
    flag = flags_of(said)[0]
    back = flag.since // 8 * 8
    assert flag.since < flag.step - 20 + 2
    assert back + 8 < flag.step, "there is no newer checkpoint: this shows nothing"
    again = flag.step  # as many trainers were seen as steps were taken
    assert [step for step, *_ in seen[:again]] == list(range(flag.step))
    assert {(g, d) for _, g, d in seen[:again]} == {(1e-6, 0.03)}
    assert [step for step, *_ in seen[again:]] == list(range(back, back + len(seen) - again))
    assert {(g, d) for _, g, d in seen[again:]} == {(2.5e-7, 0.0075)}
    words = f"rolled back from step {flag.step} (d_win) to step {back}, learning rates x 0.25 (1 of 1)"
    assert notes_of(said) == [words]


def test_the_state_it_goes_back_to_is_bit_for_bit_that_of_the_checkpoint(tmp_path: Path) -> None:
    spec = winning(stops=("d_win",), rollback=(1, 0.25))
    running = start(spec, store_for(spec, tmp_path), tmp_path, checkpoint_every=8, report_every_s=0.0)
    kept: dict[int, dict[str, Any]] = {}
    for report in running:
        state = store_for(spec, tmp_path).load_latest(CPU)[0]
        if state is not None and not state["rollbacks"]:
            kept[state["step"]] = state
        if report.notes:
            break
    next(running)
    after = store_for(spec, tmp_path).load_latest(CPU)[0]
    assert after is not None
    assert (after["rollbacks"], after["lr_scale"]) == (1, 0.25)
    before = kept[after["step"]]
    changed = {name for name in before if name != "train_s" and not same(before[name], after[name])}
    assert changed == {"rollbacks", "lr_scale", "g_optimizer", "d_optimizer"}
    for net in ("g_optimizer", "d_optimizer"):
        assert same(before[net]["state"], after[net]["state"])


@pytest.mark.parametrize("rollback", [None, (1, 0.5), (3, 0.1)], ids=["none", "once", "thrice"])
@given(stops=st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=4))
def test_resumed_equals_uninterrupted_with_flags_and_rollbacks(
    tmp_path_factory: pytest.TempPathFactory,
    rollback: tuple[int, float] | None,
    stops: list[tuple[int, bool]],
) -> None:
    spec = winning(stops=("d_win",), rollback=rollback)
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    expected, end = attempt(spec, whole)
    seen: list[Report] = []
    ended = None
    for number, (reports, clean) in enumerate(stops, start=1):
        said, ended = attempt(spec, parts, number, reports=reports, clean=clean)
        seen += said
        if ended:
            break
    if ended is None:
        torch.manual_seed(123)
        said, ended = attempt(spec, parts, len(stops) + 1)
        seen += said
    assert str(ended) == str(end)
    assert set(flags_of(seen)) == set(flags_of(expected))
    assert set(notes_of(seen)) == set(notes_of(expected))
    if end is None:
        assert same(final_state(spec, parts), final_state(spec, whole))
    # What is recorded of a step is what was said first: so must it be, however often the trial was stopped.
    assert first_rows(seen) == first_rows(expected)


def first_rows(reports: list[Report]) -> dict[int, dict[str, float]]:
    """step -> metrics, of steps that are trodden again the first."""
    return {step: row for report in reversed(reports) for step, row in rows_of([report]).items()}


def test_a_trial_that_is_stopped_by_the_report_of_its_rollback_has_gone_back(tmp_path: Path) -> None:
    spec = winning(stops=("d_win",), rollback=(1, 0.25))
    everything, _ = attempt(spec, tmp_path / "whole")
    n = next(i for i, report in enumerate(everything, start=1) if report.notes)
    attempt(spec, tmp_path / "parts", reports=n, clean=True)
    state = final_state(spec, tmp_path / "parts")
    assert state["rollbacks"] == 1
    assert state["step"] < everything[n - 1].step


def test_a_trial_pauses_and_goes_on_with_what_its_watch_knows(tmp_path: Path) -> None:
    spec = winning(stops=("d_win",), rollback=(1, 0.25))
    expected, end = attempt(spec, tmp_path / "whole")
    (flag, *_) = flags_of(expected)
    until = (flag.since + flag.step) // 2 | 1  # inside the bad stretch, and no step of a regular checkpoint
    first, error = attempt(spec, tmp_path / "parts", until=until)
    assert error is None
    assert first[-1].step == until
    rest, error = attempt(spec, tmp_path / "parts", 2)
    assert str(error) == str(end)
    assert flags_of(first) + flags_of(rest) == flags_of(expected)
    assert notes_of(first) + notes_of(rest) == notes_of(expected)


def test_a_training_that_diverges_is_rescued_by_lower_rates_or_ends_with_its_reason(tmp_path: Path) -> None:
    spec = dataclasses.replace(small_spec(steps=60, lr=10.0, optimizer="sgd"), rollback=(3, 0.1))
    reports, error = attempt(spec, tmp_path / "rescued")
    assert error is None
    assert reports[-1].step == 60
    assert notes_of(reports)[0].endswith("(not finite) to step 0, learning rates x 0.1 (1 of 3)")
    reports, error = attempt(dataclasses.replace(spec, rollback=(2, 0.99)), tmp_path / "lost")
    assert isinstance(error, DivergedError)
    assert len(notes_of(reports)) == 2


def test_what_may_have_been_spoilt_by_the_last_finite_step_is_not_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of the step whose update made weights infinite has finite losses."""
    spec = dataclasses.replace(small_spec(steps=24), rollback=(1, 0.5), picture_steps=())
    step = Trainer.step

    def spoil(self: Trainer) -> None:
        step(self)
        if self.state.step == 16 and not self.state.rollbacks:
            for weight in self.gan.generator.parameters():
                weight.data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "step", spoil)
    reports, error = attempt(spec, tmp_path)
    assert error is None
    assert notes_of(reports) == [
        "rolled back from step 18 (not finite) to step 8, learning rates x 0.5 (1 of 1)"
    ]


def test_from_the_last_step_a_trial_does_not_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values would be those of the stretch that was left, as each step is recorded once."""
    spec = dataclasses.replace(small_spec(steps=24), rollback=(1, 0.5), picture_steps=())
    step = Trainer.step

    def spoil(self: Trainer) -> None:
        step(self)
        if self.state.step == 23:
            for weight in self.gan.generator.parameters():
                weight.data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "step", spoil)
    reports, error = attempt(spec, tmp_path)
    assert isinstance(error, DivergedError)
    assert "step 24" in str(error)
    assert notes_of(reports) == []


def test_scheduled_rates_are_lower_after_a_rollback() -> None:
    spec = small_spec(lr_schedule="1:1e-3 1:1e-4..1e-3")
    state = fresh_state(spec, (1, 8, 8), CPU)
    plain = feed.Feed(spec, state.gan, 40, CPU, rates=True)
    state.scale_rates(0.25)
    lower = Trainer(spec, state, images_for(spec), None).feed
    for net in ("g", "d"):
        for step in range(12):
            assert lower.rate(net, step, 0) == plain.rate(net, step, 0) * 0.25


def test_rates_are_scaled_from_the_options_not_from_the_last_ones() -> None:
    state = fresh_state(small_spec(lr=8e-4, lr_d=4e-4), (1, 8, 8), CPU)
    for scale in (0.5, 0.25, 1.0):
        state.scale_rates(scale)
        assert state.g_optimizer.param_groups[0]["lr"] == pytest.approx(8e-4 * scale, rel=1e-12)
        assert state.d_optimizer.param_groups[0]["lr"] == pytest.approx(4e-4 * scale, rel=1e-12)


def test_checkpoints_from_before_there_were_flags_still_load() -> None:
    spec = dataclasses.replace(small_spec(steps=10_000), confirm=100)
    state = fresh_state(spec, (1, 8, 8), CPU)
    old = {k: v for k, v in state.state_dict().items() if k not in ("health", "rollbacks", "lr_scale")}
    state.load_state_dict({**old, "step": 5000})
    assert (state.rollbacks, state.lr_scale) == (0, 1.0)
    assert facts(told(state.watch, [CONDITIONS["d_lost"][0]] * 20, start=5000)) == [("d_lost", 5000, 5100)]


def test_only_what_changes_training_is_part_of_a_trial_s_key() -> None:
    plain = small_spec()
    assert dataclasses.replace(plain, stops=(), confirm=500, rollback=None).key == plain.key
    changes: list[dict[str, Any]] = [{"stops": ("nan",)}, {"confirm": 501}, {"rollback": (1, 0.5)}]
    keys = {dataclasses.replace(plain, **change).key for change in changes}
    assert len(keys | {plain.key}) == 4


@given(
    steps=st.integers(100, 10**6),
    evaluations=st.integers(0, 10),
    every=st.integers(1, 5000),
    at=st.integers(0, 10**6),
)
def test_checkpoints_that_a_rollback_may_need_are_spared(
    steps: int, evaluations: int, every: int, at: int
) -> None:
    spec = small_spec(steps=steps)
    judged = evenly_spaced_steps(steps, evaluations) if evaluations else ()
    spec = dataclasses.replace(spec, eval_steps=judged, rollback=(1, 0.5))
    spared = _spared(spec, at, every)
    since = max(0, at - reach(spec))
    assert since // every * every in spared
    assert at // every * every in spared
    assert all(step % every == 0 and step <= at for step in spared[:3])
    assert list(_spared(dataclasses.replace(spec, rollback=None), at, every)) == []


def test_a_trial_in_a_pack_is_flagged_and_goes_back_as_it_does_alone(tmp_path: Path) -> None:
    specs = [winning(stops=("d_win",), rollback=(1, 0.25), seed=seed) for seed in (0, 1)]
    np.save(tmp_path / "images.npy", images_for(specs[0]).numpy())
    np.save(tmp_path / "labels.npy", labels_for(images_for(specs[0])).numpy().astype(np.uint8))

    def assignment(spec: TrialSpec, name: str) -> Assignment:
        return Assignment(
            key=spec.key, attempt=1, spec=spec, directory=tmp_path / name / spec.key, images=tmp_path / "images.npy",
            labels=tmp_path / "labels.npy", features=tmp_path, checkpoint_every=8,
        )  # fmt: skip

    def said(assignments: list[Assignment]) -> dict[str, list[Any]]:
        attempts, heard = Attempts(assignments), {spec.key: list[Any]() for spec in specs}
        while not attempts.ended:
            for key, _, what in attempts.advance():
                if isinstance(what, Report):
                    heard[key] += [*facts(list(what.flags)), *what.notes]
                else:
                    heard[key].append((what.state, what.step))
        return heard

    alone = {
        key: words for spec in specs for key, words in said([assignment(spec, "alone")]).items() if words
    }
    assert said([assignment(spec, "pack") for spec in specs]) == alone
    assert all(any("rolled back" in str(word) for word in words) for words in alone.values())


# The stored trainings that people have labelled


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = (31, 11)
"""All, and the healthy ones."""
MEASURED = {
    "d_win": (7, 0, 3, 0),
    "d_lost": (0, 0, 2, 0),
    "collapse": (4, 0, 3, 0),
    "jump": (3, 2, 0, 1),
    "frozen": (0, 0, 3, 0),
    "nan": (2, 0, 0, 0),
}
"""Of each flag at 500 steps: as in benchmarks/health.md and docs/health.md."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("benchmarks_health", BENCHMARKS / "health.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks are not part of what was installed")
def test_flags_are_as_precise_as_the_table_says(benchmark: ModuleType) -> None:
    """By flag: runs that failed so and were flagged, that did not and were, that were missed; false alarms."""
    scores = benchmark.scores()
    assert {name: (s.true, s.false, s.missed, s.alarms) for name, s in scores.items()} == MEASURED
    labels = benchmark.stored_labels()
    runs = {label.run for label in labels}
    healthy = {label.run for label in labels if label.failure == benchmark.HEALTHY}
    assert runs == benchmark.stored_runs().keys()
    assert (len(runs), len(healthy)) == RUNS
