"""What a hyperparameter accepts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Param


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(min_value=0.001, max_value=1e6))
def test_a_number_is_accepted_exactly_when_it_lies_in_the_range(value: float, width: float) -> None:
    param = Param(kind=float, default=0.0, low=-1.0, high=-1.0 + width, high_open=True)
    assert (param.problem(value) is None) == (-1.0 <= value < -1.0 + width)


@pytest.mark.parametrize("value", [True, "3", 2.5, math.nan, math.inf, None, [1]])
def test_a_whole_number_takes_nothing_else(value: object) -> None:
    assert Param(kind=int, default=1, low=0).problem(value) == f"must be a whole number >= 0 (got {value!r})"


def test_a_number_takes_whole_numbers_too() -> None:
    assert Param(kind=float, default=1.0).problem(3) is None


def test_text_must_be_one_of_the_choices() -> None:
    param = Param(kind=str, default="a", choices=("a", "b"))
    assert param.problem("b") is None
    assert param.problem("c") == "must be one of a, b (got 'c')"


def test_true_is_no_number_and_one_is_no_boolean() -> None:
    assert Param(kind=float, default=0.0).problem(True) is not None
    assert Param(kind=bool, default=False).problem(1) is not None
    assert Param(kind=bool, default=False).problem(True) is None
