"""The language of a claim's check: what it can say, and what is said about a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator._fields import Choices, Range
from orchestrator.claims import (
    FUNCTIONS,
    MAX_DEPTH,
    Best,
    Calculation,
    CheckError,
    Comparison,
    Condition,
    Logic,
    Measure,
    Number,
    parse,
)
from orchestrator.errors import InvalidStudyError
from orchestrator.loader import load_study, load_text
from orchestrator.study import axes
from trials.reports import EVAL_METRICS

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
AXES: dict[str, Choices | Range] = {
    "arm": Choices(choices=["ttur", "all"]),
    "lr": Choices(choices=[2e-5, 2e-4, 1]),
    "optimizer": Choices(choices=["adam", "sgd"]),
    "augment": Choices(choices=[True, False]),
    "layers": Range(low=1, high=3),
    "beta1": Range(low=0.0, high=0.9),
}


def shipped() -> Iterator[tuple[Path, str, str]]:
    for path in STUDIES:
        for claim in load_study(path).claims:
            if claim.check:
                yield path, claim.id, claim.check


@pytest.mark.parametrize(("path", "check"), [pytest.param(p, c, id=f"{p.stem}-{i}") for p, i, c in shipped()])
def test_a_shipped_check_is_read(path: Path, check: str) -> None:
    assert isinstance(parse(check, axes(load_study(path))), Comparison | Logic)


def test_a_comparison_may_be_chained_and_calculate() -> None:
    accuracy = Measure("final", ("d_acc",), (), (("arm", "ttur"), ("lr", 2e-5)))
    half = Calculation("/", (accuracy, Number(2.0)))
    least = Calculation("min", (Number(1.0), Calculation("-", (Measure("sd100", ("g_loss",)),))))
    assert parse("0.1 <= final(d_acc, arm=ttur, lr=2e-5) / 2 < min(1, -sd100(g_loss))", AXES) == Comparison(
        (Number(0.1), half, least), ("<=", "<")
    )


def test_conditions_are_joined_as_in_python() -> None:
    a, b, c = (parse(text, {}) for text in ("diverged() == 0", "final(g_loss) < 1", "final(d_acc) != 2"))
    text = "diverged() == 0 or final(g_loss) < 1 and not final(d_acc) != 2"
    assert parse(text, {}) == Logic("or", (a, Logic("and", (b, Logic("not", (c,))))))


def test_metrics_of_evaluations_are_written_with_a_dot_or_as_they_are_recorded() -> None:
    expected = Comparison((Measure("last", ("eval/swd",)), Number(1.0)), ("<",))
    assert parse("last(eval.swd) < 1", {}) == parse("last('eval/swd') < 1", {}) == expected


def test_arguments_that_are_left_out_take_their_defaults_and_written_ones_may_be_calculated() -> None:
    def numbers(text: str) -> tuple[float, ...]:
        condition = parse(f"{text} < 1", {})
        assert isinstance(condition, Comparison)
        assert isinstance(condition.parts[0], Measure)
        return condition.parts[0].numbers

    assert numbers("mean(d_acc)") == (0.0, 1.0)
    assert numbers("mean(d_acc, 0.5)") == (0.5, 1.0)
    assert numbers("mean(d_acc, 100/350, 1 - 0.5)") == (100 / 350, 0.5)
    assert numbers("band_fraction(d_acc, -1, 1)") == (-1.0, 1.0, 0.0)
    assert numbers("first(d_acc)") == (0.05,)


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("lr=2e-5", 2e-5),
        ("lr=0.00002", 2e-5),
        ("lr=1.0", 1),
        ("optimizer=sgd", "sgd"),
        ("optimizer='sgd'", "sgd"),
        ("augment=true", True),
        ("augment=False", False),
        ("layers=2", 2),
        ("arm=all", "all"),
    ],
)
def test_a_selector_gives_the_value_of_the_study(selector: str, value: object) -> None:
    condition = parse(f"final(d_acc, {selector}) < 1", AXES)
    assert isinstance(condition, Comparison)
    assert isinstance(condition.parts[0], Measure)
    ((_, found),) = condition.parts[0].arms
    assert (found, type(found)) == (value, type(value))


def test_best_is_a_number_of_the_best_arm() -> None:
    assert parse("best(lr) < best(beta1)", AXES) == Comparison((Best("lr"), Best("beta1")), ("<",))


def test_lines_and_spaces_around_do_not_matter() -> None:
    assert parse("\n final(d_acc)\n   < 1\t\n", {}) == parse("final(d_acc) < 1", {})


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("d_acc < 1", "say which value of d_acc is meant, as final(d_acc) (character 1)"),
        ("0 < 1", "compares nothing that is measured (character 1)"),
        ("final(d_acc)", "states no comparison; write as final(d_acc) < 0.6 (character 1)"),
        ("final(d_acc) < 1 and 2", "states no comparison; write as final(d_acc) < 0.6 (character 22)"),
        ("final(d_acc) = 1", "cannot be read: write == to compare (character 14)"),
        ("(final(d_acc) < 1", "cannot be read: '(' was never closed (character 1)"),
        ("finl(d_acc) < 1", "unknown function 'finl'; did you mean final? known: abs, band_fraction, best,"),
        ("0 < 1 + finl(d_acc)", "unknown function 'finl'; did you mean final?"),
        ("final(d_ac) < 1", "unknown metric 'd_ac'; did you mean d_acc? (character 7)"),
        ("final(zzzzz) < 1", "unknown metric 'zzzzz'; known: d_acc, d_acc_fake,"),
        ("final(swd) < 1", "swd is a metric of evaluations; write eval.swd (character 7)"),
        ("final(eval.swdd) < 1", "unknown metric 'eval.swdd'; did you mean eval.swd? (character 7)"),
        ("final('train/d_acc') < 1", "write d_acc without train (character 7)"),
        ("final(train.d_acc) < 1", "write d_acc without train (character 7)"),
        ("final(0.5) < 1", "must be a metric, as d_acc or eval.swd (character 7)"),
        ("last(d_acc) < 1", "last is of metrics of evaluations; write final(d_acc) (character 1)"),
        ("final() < 1", "write final(metric), with arms as keywords (got 0 arguments) (character 1)"),
        ("mean(d_acc, 0, 1, 2) < 1", "write mean(metric, [start], [stop]), with arms as keywords (got 4"),
        ("corr(d_acc) < 1", "write corr(metric, metric), with arms as keywords (got 1"),
        ("steps_above(d_acc) < 1", "write steps_above(metric, level), with arms as keywords (got 1"),
        ("diverged(d_acc) < 1", "write diverged(), with arms as keywords (got 1"),
        ("mean(d_acc, 5) < 1", "start is a share of the training, from 0 to 1 (got 5) (character 1)"),
        ("mean(d_acc, 0.5, 0.2) < 1", "start must be before stop, and before the end (character 1)"),
        ("sd(d_acc, 1) < 1", "start must be before stop, and before the end (character 1)"),
        ("first(d_acc, 0) < 1", "share must be above 0 (character 1)"),
        ("band_fraction(d_acc, 1, 0) < 1", "low must be below high (character 1)"),
        ("mean(d_acc, final(d_acc)) < 1", "must be a written number (character 13)"),
        ("mean(d_acc, 1/0) < 1", "must be a finite number (character 13)"),
        ("mean(d_acc, 1e200*1e200) < 1", "must be a finite number (character 13)"),
        ("abs() < 1", "abs takes one number (character 1)"),
        ("max(final(d_acc)) < 1", "max takes two numbers or more (character 1)"),
        ("max(1, final(d_acc), lr=1) < 1", "max takes two numbers or more (character 1)"),
        (
            "final(d_acc, arm=tur) < 1",
            "unknown arm 'tur'; did you mean ttur? known: all, ttur (character 18)",
        ),
        ("final(d_acc, lr=1e-5) < 1", "unknown value of lr '1e-05'; did you mean 2e-05?"),
        ("final(d_acc, augment=1) < 1", "unknown value of augment '1'; known: false, true (character 22)"),
        ("final(d_acc, foo=1) < 1", "unknown hyperparameter of the space 'foo'; known: arm, augment,"),
        ("final(d_acc, lr=1, lr=2e-5) < 1", "lr is given twice (character 20)"),
        ("final(d_acc, lr=1+1) < 1", "must be a number or a word; put other text in quotes (character 17)"),
        ("final(d_acc, **lr) < 1", "write arms as keywords, as lr=1e-4 (character 16)"),
        ("final(d_acc, beta1=0.5) < 1", "beta1 has no values that are known beforehand; leave it out"),
        ("best(optimizer) < 1", "best is of numbers, and optimizer is none (character 6)"),
        ("best(lrr) < 1", "unknown hyperparameter of the space 'lrr'; did you mean lr?"),
        ("best('lr') < 1", "write best(hyperparameter) (character 1)"),
        ("(final(d_acc) < 1) < 1", "is a condition where a number is needed (character 2)"),
        ("final(d_acc) < True", "'True' is no number (character 16)"),
        ("final(d_acc) < '1'", "'1' is no number (character 16)"),
        ("final(d_acc) < 1j", "'1j' is no number (character 16)"),
        ("final(d_acc) < 1e999", "must be a finite number (character 16)"),
        ("final(d_acc) in 1", "compare with one of < <= > >= == != (character 17)"),
        ("final(d_acc) ** 2 < 1", "calculate with one of + - * / (character 1)"),
        ("final(d_acc) // 2 < 1", "calculate with one of + - * / (character 1)"),
        ("1 if final(d_acc) < 1 else 0", "is no number (character 1)"),
    ],
)
def test_a_mistake_is_named_with_its_place(check: str, message: str) -> None:
    with pytest.raises(CheckError) as caught:
        parse(check, AXES)
    assert str(caught.value).startswith(message)


def test_in_a_study_of_one_arm_a_selector_selects_nothing() -> None:
    with pytest.raises(CheckError, match="the study has one arm only, so 'lr' selects nothing"):
        parse("final(d_acc, lr=1e-4) < 1", {})


@pytest.mark.parametrize(
    "check",
    [
        "__import__('os').abort() < 1",
        "().__class__ < 1",
        "final.__globals__ < 1",
        "final(d_acc).__class__ < 1",
        "eval.swd < 1",
        "eval('1') < 1",
        "exec('1') < 1",
        "open('x') < 1",
        "final(d_acc) < 9**9**9**9**9",
        "mean(d_acc, 9**9**9**9) < 1",
        f"final(d_acc) < {'9' * 1000}",
        f"final(d_acc) < {'9' * 5000}",
        "[i for i in 'x'] == 1",
        "(i := 1) < final(d_acc)",
        "lambda: final(d_acc) < 1",
        "f'{final}' < 1",
        "final(d_acc) < 1 # comment",
        "final(d_acc) < 1; 2",
        "final(d_acc) < \\\n1",
        "final(d_acc) < \x00",
        "fina\u212a(d_acc) < 1",
        "(" * 1000,
        "(" * 150 + "final(d_acc)" + ")" * 150 + " < " + "-" * 150 + "1",
        "-" * 1900 + "1 < final(d_acc)",
        "not " * 400 + "final(d_acc) < 1",
        "abs(" * 90 + "final(d_acc)" + ")" * 90 + " < 1",
        "final(d_acc) < " + "1+" * 500 + "1",
        "x" * 3000,
        "1or 2",
        "0x10 < final(d_acc)." * 3,
        "yield 1",
        "await final(d_acc) < 1",
        "*final(d_acc) < 1",
        "final(*d_acc) < 1",
        "final(d_acc), 1 < 2",
        "... < final(d_acc)",
    ],
)
def test_what_is_no_check_is_refused_and_never_executed(check: str) -> None:
    with pytest.raises(CheckError):
        parse(check, AXES)


def test_the_deepest_check_is_read() -> None:
    sum_ = " + ".join(["1"] * (MAX_DEPTH - 2))
    assert parse(f"final(d_acc) < {sum_}", {})
    with pytest.raises(CheckError, match="nested too deeply"):
        parse(f"final(d_acc) < {sum_} + 1 + 1", {})


WORDS = st.sampled_from(
    (
        *"()<>=+-*/,.'\" 0123456789exj_",
        *("final(d_acc)", "mean(", "d_acc", "eval.", "swd", " < ", " <= ", " and ", " or ", " not ", "lr=", "arm="),
        *("2e-5", "adam", "optimizer=", "best(", "lambda", ":=", "**", " if ", " else ", " in ", " is ", "'", "\\"),
    )
)  # fmt: skip


def complaint(text: str) -> str:
    try:
        parse(text, AXES)
    except CheckError as error:
        return str(error)
    return ""


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=30).map("".join)))
def test_random_text_is_read_or_refused_in_one_line(text: str) -> None:
    assert complaint(text).isprintable()


def quantities(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(children, children)
    return st.one_of(
        st.builds(lambda pair, sign: f"({pair[0]} {sign} {pair[1]})", pairs, st.sampled_from("+-*/")),
        pairs.map(lambda pair: f"max({pair[0]}, {pair[1]})"),
        children.map(lambda child: f"abs(-{child})"),
    )


MEASURES = st.sampled_from(
    ["final(d_acc)", "sd(w_dist, 0.8, arm=ttur)", "last(eval.fd, lr=1, optimizer=adam)", "best(lr)"]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(repr)
QUANTITIES = st.recursive(st.one_of(MEASURES, NUMBERS), quantities, max_leaves=6)


@settings(max_examples=60)
@given(MEASURES, QUANTITIES, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
def test_whatever_can_be_said_is_read(measure: str, quantity: str, sign: str) -> None:
    comparison = parse(f"{measure} {sign} {quantity}", AXES)
    assert isinstance(comparison, Comparison)
    assert comparison.signs == (sign,)
    assert is_hashable(parse(f"not ({measure} {sign} {quantity}) or {measure} > 1", AXES))


def is_hashable(condition: Condition) -> bool:
    return isinstance(hash(condition), int)


def test_everything_is_documented() -> None:
    assert all(function.doc for function in FUNCTIONS.values())
    assert all(EVAL_METRICS.values())


HEAD = """version: 1
name: s
model: obs_mlp
dataset: mnist
space: {lr: {choices: [1e-4, 2e-4]}}
claims:
  - {id: a, says: words alone}
  - id: b
    says: with a check
    check: CHECK
"""


def lines(text: str, *overrides: str) -> list[str]:
    try:
        load_text(text.encode(), overrides=overrides)
    except InvalidStudyError as error:
        return list(error.lines)
    return []


def test_a_study_with_a_wrong_check_is_refused_with_its_place() -> None:
    assert lines(HEAD.replace("CHECK", "final(d_acc, lr=2e-4) < 0.6")) == []
    assert lines(HEAD.replace("CHECK", "final(d_ac) < 0.6")) == [
        "study.yaml:10:12: claims[1].check: unknown metric 'd_ac'; did you mean d_acc? (character 7)"
    ]


def test_a_check_must_fit_the_arms_of_every_budget_but_not_of_a_changed_study() -> None:
    text = HEAD.replace("CHECK", "final(d_acc, lr=2e-4) < 0.6")
    assert lines(text, "space.lr.choices=[1e-4]") == []
    (line,) = lines(text + "budgets: {short: {space: {lr: {choices: [1e-4]}}}}\n")
    assert line.startswith("study.yaml:10:12: claims[1].check: unknown value of lr '0.0002'; ")
    assert line.endswith("(in budget short)")


def test_a_claim_names_the_budgets_that_its_check_is_meant_for() -> None:
    text = HEAD.replace("CHECK", "final(d_acc) < 0.6")
    claims = load_text((text + "    holds_for: [full]\n").encode()).claims
    assert [claim.holds_for for claim in claims] == [["full", "short"], ["full"]]
    (line,) = lines(text + "    holds_for: [smoke]\n")
    assert "claims[1].holds_for[0]: must be full or short" in line
