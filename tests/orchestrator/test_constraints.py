"""Constraints between hyperparameters: what they say, what they refuse, and that they run nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Value
from orchestrator.constraints import MOST_DEEP, ConstraintError, Name, parse

KNOWN = {
    "lr_g": Name(float),
    "lr_d": Name(float),
    "width": Name(float),
    "optimizer": Name(str, ("adam", "sgd")),
    "schedule": Name(str),
    "augment": Name(bool),
}
VALUES: dict[str, Value] = {
    "lr_g": 1e-4, "lr_d": 2e-4, "width": 64, "optimizer": "sgd", "schedule": "100:1e-4", "augment": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr_g <= lr_d", True),
        ("lr_g > lr_d", False),
        ("1e-5 < lr_g < lr_d <= 2e-4", True),
        ("1e-5 < lr_g > lr_d", False),
        ("width * 2 + 1 == 129", True),
        ("width // 10 == 6 and width % 10 == 4", True),
        ("-width / 2 == -32.0", True),
        ("not (width > 64)", True),
        ("optimizer == sgd", True),
        ("optimizer != 'sgd' or width > 32", True),
        ("sgd == optimizer", True),
        ("optimizer in [adam, sgd]", True),
        ("optimizer not in (adam, 'sgd')", False),
        ("width in [32, 128]", False),
        ("schedule == '100:1e-4'", True),
        ("augment", True),
        ("augment == false", False),
        ("not augment or lr_g < 1", True),
        ("lr_g / 0 < 1", False),
        (" lr_g\n <=  lr_d ", True),
    ],
)
def test_a_constraint_says_what_it_says(text: str, expected: bool) -> None:
    assert parse(text, KNOWN).holds(VALUES) is expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("lr_g <= lrd", "at character 9: lrd is no hyperparameter; did you mean lr_d?"),
        ("lr_g <=", "cannot be read at character"),
        ("lr_g = lr_d", "cannot be read at character 6"),
        ("lr_g", "at character 1: lr_g is a number, not a comparison"),
        ("lr_g and lr_d", "at character 1: lr_g is a number, where true or false is needed"),
        ("lr_g < optimizer", "at character 8: optimizer is text, where a number is needed"),
        ("lr_g == 'a'", "at character 9: 'a' is text, and is compared with a number"),
        ("optimizer == sgdd", "at character 14: sgdd is no value of optimizer; there is adam, sgd"),
        ("optimizer in adam", "is no list; write NAME in [VALUE, VALUE]"),
        ("lr_g is lr_d", "write == or !="),
        ("augment < true", "at character 1: augment is true or false, where a number is needed"),
        ("'a' * 999999999 == optimizer", "at character 1: 'a' is text, where a number is needed"),
        ("width ** 9 < 1", "at character 1: width ** 9 cannot be part of a constraint"),
        ("open('x') == 1", "at character 1: open('x') cannot be part of a constraint"),
        ("width.real < 1", "cannot be part of a constraint"),
        ("(lambda: 1)() < 1", "cannot be part of a constraint"),
        ("[x for x in (1,)] == 1", "cannot be part of a constraint"),
        ("f'{width}' == 'a'", "cannot be part of a constraint"),
        ("(width := 3) < 1", "cannot be part of a constraint"),
        ("1j < width", "cannot be part of a constraint"),
        ("width < 1\0", "cannot be read"),
        ("not " * (MOST_DEEP + 1) + "augment", "is nested deeper than"),
        ("(" * 150 + "augment" + ")" * 150, "must have at most 300 characters"),
        ("'é' == optimizer or lrg < 1", "at character 1: 'é' is no value"),
        ("schedule == 'éé' or lrg < 1", "at character 21: lrg is no hyperparameter"),
    ],
)
def test_what_is_no_constraint_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse(text, KNOWN)
    assert words in str(caught.value)


def test_a_constraint_asks_nothing_of_an_arm_that_lacks_the_hyperparameter() -> None:
    constraint = parse("width < 8 and lr_g < lr_d", KNOWN)
    assert not constraint.holds(VALUES)
    assert constraint.holds({"lr_g": 1.0, "lr_d": 0.5})
    assert constraint.names == {"width", "lr_g", "lr_d"}


@given(
    st.text(alphabet="lr_gd width0123456789.<>=!+-*/%()[]{},'\"\\andortif:@ \n", max_size=40)
    | st.text(max_size=30)
)
def test_any_text_is_read_or_refused_and_never_anything_else(text: str) -> None:
    try:
        constraint = parse(text, KNOWN)
    except ConstraintError:
        return
    assert constraint.holds(VALUES) in (True, False)
