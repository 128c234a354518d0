"""Learning-rate schedules and the stages of progressive growing."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials.schedule import Stage, grown_after, growth, parse, stage_at

FISH = "100:1e-4 300:5e-5 400:2e-5..6e-5 300:2.5e-5 1400:2e-5"


@pytest.mark.parametrize(
    ("epoch", "rates"),
    [(0, (1e-4, 1e-4)), (99, (1e-4, 1e-4)), (100, (5e-5, 5e-5)), (400, (2e-5, 6e-5)), (800, (2.5e-5, 2.5e-5)),
     (1100, (2e-5, 2e-5)), (2499, (2e-5, 2e-5))],
)  # fmt: skip
@pytest.mark.parametrize("steps_per_epoch", [1, 49])
def test_stages_begin_at_their_epochs(epoch: int, rates: tuple[float, float], steps_per_epoch: int) -> None:
    stage = stage_at(parse(FISH), epoch * steps_per_epoch, 2500 * steps_per_epoch)
    assert (stage.low, stage.high) == rates


@given(steps=st.integers(50, 2000))
def test_a_shorter_budget_keeps_the_stages_shares(steps: int) -> None:
    stages = parse(FISH)
    at = [stage_at(stages, step, steps) for step in range(steps)]
    changes = [step for step in range(1, steps) if at[step] != at[step - 1]]
    assert changes == pytest.approx([share * steps for share in (0.04, 0.16, 0.32, 0.44)], abs=1)


@pytest.mark.parametrize(
    ("draw", "transform"),
    [("inverse_uniform", lambda r: 1 / r), ("uniform", lambda r: r), ("log_uniform", np.log)],
)
def test_random_rates_are_uniform_in_what_their_name_says(draw: str, transform: object) -> None:
    stage = Stage(length=1, low=2e-5, high=6e-5, draw=draw)  # type: ignore[arg-type]
    drawn = np.array([stage.rate(u) for u in np.linspace(0, 1, 1001)])
    assert drawn.min() == pytest.approx(2e-5)
    assert drawn.max() == pytest.approx(6e-5)
    steps = np.diff(transform(drawn))  # type: ignore[operator]
    assert steps == pytest.approx(steps[0], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one stage"),
        ("100", "stage 1 is '100'; write LENGTH:RATE"),
        ("100:1e-4 50:fast", "stage 2 is '50:fast'"),
        ("0:1e-4", "its length must be > 0"),
        ("10:0", "rates must be > 0"),
        ("10:6e-5..2e-5", "the lower one first"),
        ("10:11", "<= 10"),
        ("10:1e-5..1e-4/normal", "stage 1 is"),
    ],
)
def test_a_schedule_that_cannot_be_read_says_which_stage_and_how_to_write_it(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


@given(n=st.integers(1, 7), train=st.floats(1, 1e4), fade=st.floats(1, 1e4), images=st.integers(0, 10**6))
def test_growing_never_goes_back_and_fades_from_0_to_1(
    n: int, train: float, fade: float, images: int
) -> None:
    level, alpha = growth(n, images, train, fade)
    later, alpha_later = growth(n, images + 1, train, fade)
    assert 0 <= level < n
    assert 0 <= alpha <= 1
    assert (later, alpha_later) >= (level, alpha) or later > level
    if images >= grown_after(n, train, fade) * (1 + 1e-9):
        assert (level, alpha) == (n - 1, 1.0)
