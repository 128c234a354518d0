"""The language of a claim's `check`: what must hold of a study's results for the claim to be true.

    final(d_acc, lr=2e-5) > max(final(d_acc, lr=2e-4), final(d_acc, lr=2e-3)) and 0.6 <= final(g_loss) <= 1

A check compares numbers (`<`, `<=`, `>`, `>=`, `==`, `!=`, chained too) and joins comparisons with `and`, `or` and
`not`. A number is written out, made by `+ - * /`, `abs`, `min`, `max`, or measured: a function of a metric's series,
computed for every seed by itself and then averaged over the seeds of the selected arms. Keywords select arms: by
name (`arm=ttur`) or by the value of a searched hyperparameter (`lr=2e-5, optimizer=adam`); without any, all arms.

Training metrics are written by their names; metrics of evaluations as `eval.swd` or "eval/swd". Times are shares of
the training, from 0 to 1, so that a check means the same in every budget.

This module reads checks, and says what is wrong with them. Nothing in a check is ever executed. docs/claims.md tells
people of it.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

from models import Value
from orchestrator._fields import MAX_ARMS, Choices, Range, nearest, unknown
from trials.reports import EVAL_METRICS, EXTRA_METRICS, TRAIN_METRICS

MAX_LENGTH = 2000
MAX_DEPTH = 40


class CheckError(ValueError):
    """What is wrong with a check, and where in it."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written."""

    value: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A function of the series of `metrics` (as they are recorded: `d_acc`, `eval/swd`).

    `numbers`: all of the function's further arguments, in order. `arms`: (axis, value) pairs that an arm has to
    have to be meant; the mean over all such arms is taken.
    """

    function: str
    metrics: tuple[str, ...]
    numbers: tuple[float, ...] = ()
    arms: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True, slots=True)
class Best:
    """The value of a hyperparameter in the arm with the best objective."""

    axis: str


@dataclass(frozen=True, slots=True)
class Calculation:
    """A function of numbers; `-` of one part is its negative."""

    function: Literal["+", "-", "*", "/", "abs", "min", "max"]
    parts: tuple[Quantity, ...]


Quantity = Number | Measure | Best | Calculation


@dataclass(frozen=True, slots=True)
class Comparison:
    """parts[0] signs[0] parts[1] signs[1] parts[2] ...: all of these hold."""

    parts: tuple[Quantity, ...]
    signs: tuple[Literal["<", "<=", ">", ">=", "==", "!="], ...]


@dataclass(frozen=True, slots=True)
class Logic:
    """`not` has one part, `and` and `or` at least two."""

    operator: Literal["and", "or", "not"]
    parts: tuple[Condition, ...]


Condition = Comparison | Logic


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What a function of the language takes: metrics first, then numbers, of which those with a default may be
    left out."""

    doc: str
    metrics: int = 1
    numbers: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()

    @property
    def form(self) -> str:
        names = ["metric"] * self.metrics + list(self.numbers)
        return ", ".join([*names[: len(names) - len(self.defaults)], *(f"[{n}]" for n in self._optional)])

    @property
    def _optional(self) -> tuple[str, ...]:
        return self.numbers[len(self.numbers) - len(self.defaults) :]


FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "mean": Function(doc="mean between two times", numbers=("start", "stop"), defaults=(0.0, 1.0)),
        "first": Function(doc="mean over the first share", numbers=("share",), defaults=(0.05,)),
        "final": Function(doc="mean over the last tenth"),
        "last": Function(doc="last value of a metric of evaluations"),
        "lowest": Function(doc="lowest value of the smoothed series"),
        "highest": Function(doc="highest value of the smoothed series"),
        "steps_above": Function(doc="steps that the smoothed series is above a level", numbers=("level",)),
        "steps_below": Function(doc="steps that the smoothed series is below a level", numbers=("level",)),
        "sd": Function(doc="sd between two times", numbers=("start", "stop"), defaults=(0.0, 1.0)),
        "sd100": Function(doc="sd of the means of 100 steps over the last half, without its straight trend"),
        "slope": Function(
            doc="change of the straight line through the values between two times, per whole training",
            numbers=("start", "stop"), defaults=(0.0, 1.0),
        ),
        "band_fraction": Function(
            doc="share of the values after a time that are within [low, high]",
            numbers=("low", "high", "start"), defaults=(0.0,),
        ),
        "time_to_plateau": Function(
            doc="time after which the smoothed series stays within 2 sd of the mean of its last quarter"
        ),
        "corr": Function(doc="correlation of two series", metrics=2),
        "diverged": Function(doc="share of the trials that diverged", metrics=0),
    }
)  # fmt: skip
"""The functions of results. `best(hyperparameter)` is one more: its value in the arm with the best objective."""

_TRAIN = (*TRAIN_METRICS, *EXTRA_METRICS)
_EVAL = tuple(EVAL_METRICS)
_KNOWN = (*FUNCTIONS, "best", "abs", "min", "max")
_ARITHMETIC: Mapping[type[ast.operator], Literal["+", "-", "*", "/"]] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
}  # fmt: skip
_SIGNS: Mapping[type[ast.cmpop], Literal["<", "<=", ">", ">=", "==", "!="]] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip


def parse(check: str, axes: Mapping[str, Choices | Range]) -> Condition:
    """The condition that `check` states of a study with these axes (`study.axes`). Raises CheckError."""
    text = "".join(" " if c.isspace() else c for c in check.strip())
    if not text:
        raise CheckError("is empty")
    if len(text) > MAX_LENGTH:
        raise CheckError(f"is too long: {len(text)} characters; at most {MAX_LENGTH}")
    for i, character in enumerate(text, start=1):
        if not (character.isascii() and (character.isalnum() or character in " _.,()+-*/<>=!'\"")):
            raise CheckError(f"{character!r} means nothing here (character {i})")
    return _Reader(axes).condition(_syntax(text), 0)


def _syntax(text: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as about `1or 2`
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        at = error.offset or 1
        reason = "write == to compare" if text[at - 1 : at] == "=" else error.msg
        raise CheckError(f"cannot be read: {reason} (character {at})") from None
    except (ValueError, RecursionError, MemoryError):
        raise CheckError(f"is nested too deeply; at most {MAX_DEPTH} levels") from None


def _fault(node: ast.AST, message: str) -> CheckError:
    return CheckError(f"{message} (character {getattr(node, 'col_offset', 0) + 1})")


def _deeper(node: ast.expr, depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise _fault(node, f"is nested too deeply; at most {MAX_DEPTH} levels")
    return depth + 1


@dataclass(frozen=True, slots=True)
class _Reader:
    """From Python's syntax tree to a condition. What is not named here is refused."""

    axes: Mapping[str, Choices | Range]

    def condition(self, node: ast.expr, depth: int) -> Condition:
        depth = _deeper(node, depth)
        match node:
            case ast.BoolOp(op=operator, values=values):
                parts = tuple(self.condition(value, depth) for value in values)
                return Logic("and" if isinstance(operator, ast.And) else "or", parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Logic("not", (self.condition(operand, depth),))
            case ast.Compare(left=left, ops=operators, comparators=others):
                quantities = tuple(self.quantity(part, depth) for part in (left, *others))
                if all(_is_constant(part) for part in quantities):
                    raise _fault(node, "compares nothing that is measured")
                for sign, other in zip(operators, others, strict=True):
                    if type(sign) not in _SIGNS:
                        raise _fault(other, f"compare with one of {' '.join(_SIGNS.values())}")
                return Comparison(quantities, tuple(_SIGNS[type(sign)] for sign in operators))
        self.quantity(node, depth)  # a mistake inside it is told first
        raise _fault(node, "states no comparison; write as final(d_acc) < 0.6")

    def quantity(self, node: ast.expr, depth: int) -> Quantity:
        depth = _deeper(node, depth)
        match node:
            case ast.Constant(value=value):
                return Number(_finite(node, value))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return Calculation("-", (self.quantity(operand, depth),))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                parts = (self.quantity(left, depth), self.quantity(right, depth))
                return Calculation(_ARITHMETIC[type(operator)], parts)
            case ast.BinOp(op=operator):
                raise _fault(node, "calculate with one of + - * /")
            case ast.Call(func=ast.Name(id=name)):
                return self.call(node, name, depth)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                if name in _TRAIN or name in _EVAL:
                    raise _fault(node, f"say which value of {name} is meant, as final({name})")
                raise _fault(
                    node, f"{name[:80]!r} is no number; write a number or a function such as final(d_acc)"
                )
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp():
                raise _fault(node, "is a condition where a number is needed")
        raise _fault(node, "is no number")

    def call(self, node: ast.Call, name: str, depth: int) -> Quantity:
        if name in ("abs", "min", "max"):
            least = 1 if name == "abs" else 2
            if node.keywords or len(node.args) < least or (name == "abs" and len(node.args) > 1):
                raise _fault(node, f"{name} takes {'one number' if name == 'abs' else 'two numbers or more'}")
            parts = tuple(self.quantity(argument, depth) for argument in node.args)
            return Calculation(cast(Literal["abs", "min", "max"], name), parts)
        if name == "best":
            return self.best(node)
        if name not in FUNCTIONS:
            raise _fault(node, unknown("function", name, _KNOWN))
        function = FUNCTIONS[name]
        n_given, n_all = len(node.args), function.metrics + len(function.numbers)
        if not n_all - len(function.defaults) <= n_given <= n_all:
            raise _fault(
                node, f"write {name}({function.form}), with arms as keywords (got {n_given} arguments)"
            )
        metrics = tuple(_metric(argument) for argument in node.args[: function.metrics])
        if name == "last" and not metrics[0].startswith("eval/"):
            raise _fault(node, f"last is of metrics of evaluations; write final({metrics[0]})")
        numbers = tuple(self.constant(argument, depth) for argument in node.args[function.metrics :])
        numbers += function.defaults[len(function.defaults) - (n_all - n_given) :]
        _check_numbers(node, function, numbers)
        return Measure(name, metrics, numbers, tuple(self.arms(node.keywords)))

    def best(self, node: ast.Call) -> Best:
        if len(node.args) != 1 or node.keywords or not isinstance(node.args[0], ast.Name):
            raise _fault(node, "write best(hyperparameter)")
        name = node.args[0].id
        if name not in self.axes:
            raise _fault(node.args[0], self._unknown_axis(name))
        axis = self.axes[name]
        values = axis.choices if isinstance(axis, Choices) else []
        if any(isinstance(value, bool | str) for value in values):
            raise _fault(node.args[0], f"best is of numbers, and {name} is none")
        return Best(name)

    def arms(self, keywords: Sequence[ast.keyword]) -> Iterator[tuple[str, Value]]:
        seen: set[str | None] = set()
        for keyword in keywords:
            if keyword.arg in seen:
                raise _fault(keyword, f"{keyword.arg} is given twice")
            seen.add(keyword.arg)
            yield self.selector(keyword)

    def selector(self, keyword: ast.keyword) -> tuple[str, Value]:
        name = keyword.arg
        if name is None:
            raise _fault(keyword.value, "write arms as keywords, as lr=1e-4")
        if name not in self.axes:
            raise _fault(keyword, self._unknown_axis(name))
        value = _value(keyword.value)
        axis = self.axes[name]
        values = _known_values(axis)
        if values is None:
            raise _fault(keyword, f"{name} has no values that are known beforehand; leave it out")
        for known in values:
            if type(known) is type(value) and known == value:
                return name, known
            if not isinstance(known, bool | str) and isinstance(value, float) and math.isclose(known, value):
                return name, known
        kind = "arm" if name == "arm" else f"value of {name}"
        raise _fault(keyword.value, unknown(kind, _shown(value), [_shown(known) for known in values]))

    def constant(self, node: ast.expr, depth: int) -> float:
        """The number that an expression of written numbers comes to."""
        quantity = self.quantity(node, depth)
        if not _is_constant(quantity):
            raise _fault(node, "must be a written number")
        try:
            return _finite(node, _worked_out(quantity))
        except (ZeroDivisionError, OverflowError):
            raise _fault(node, "must be a finite number") from None

    def _unknown_axis(self, name: str) -> str:
        if not self.axes:
            return f"the study has one arm only, so {name[:80]!r} selects nothing"
        return unknown("hyperparameter of the space", name, self.axes)


def _metric(node: ast.expr) -> str:
    """The recorded name of the metric that is written there."""
    match node:
        case ast.Name(id=name) | ast.Constant(value=str(name)) if "/" not in name:
            if name in _TRAIN:
                return name
            if name in _EVAL:
                raise _fault(node, f"{name} is a metric of evaluations; write eval.{name}")
        case ast.Attribute(value=ast.Name(id=section), attr=metric):
            name = f"{section}/{metric}"
        case ast.Constant(value=str(name)):
            pass
        case _:
            raise _fault(node, "must be a metric, as d_acc or eval.swd")
    section, _, metric = name.rpartition("/")
    if section == "eval" and metric in _EVAL:
        return name
    if section in ("train", "final") and metric in _TRAIN:
        raise _fault(node, f"write {metric} without {section}")
    known = (*_TRAIN, *(f"eval.{metric}" for metric in _EVAL))
    name = name.replace("/", ".")
    hint = nearest(name, known)  # the list is long, so it is shown only where nothing is near
    raise _fault(node, f"unknown metric {name[:80]!r}; {hint}" if hint else unknown("metric", name, known))


def _value(node: ast.expr) -> Value:
    """A value as it is written in a selector; numbers are all floats."""
    match node:
        case ast.Constant(value=bool(value)):
            return value
        case ast.Constant(value=int() | float() as value):
            return _finite(node, value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -_finite(node, value)
        case ast.Name(id="true" | "false" as word):
            return word == "true"
        case ast.Name(id=text) | ast.Constant(value=str(text)):
            return text
    raise _fault(node, "must be a number or a word; put other text in quotes")


def _finite(node: ast.AST, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fault(node, f"{str(value)[:80]!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _fault(node, "must be a finite number")
    return number


def _is_constant(quantity: Quantity) -> bool:
    return isinstance(quantity, Number) or (
        isinstance(quantity, Calculation) and all(_is_constant(part) for part in quantity.parts)
    )


def _worked_out(quantity: Quantity) -> float:
    if isinstance(quantity, Number):
        return quantity.value
    assert isinstance(quantity, Calculation)
    parts = [_worked_out(part) for part in quantity.parts]
    match quantity.function:
        case "+":
            return parts[0] + parts[1]
        case "-":
            return parts[0] - parts[1] if len(parts) == 2 else -parts[0]
        case "*":
            return parts[0] * parts[1]
        case "/":
            return parts[0] / parts[1]
        case "abs":
            return abs(parts[0])
        case "min":
            return min(parts)
        case "max":
            return max(parts)


def _check_numbers(node: ast.AST, function: Function, numbers: Sequence[float]) -> None:
    given = dict(zip(function.numbers, numbers, strict=True))
    for name in ("start", "stop", "share"):
        if name in given and not 0 <= given[name] <= 1:
            raise _fault(node, f"{name} is a share of the training, from 0 to 1 (got {given[name]:g})")
    if given.get("share") == 0:
        raise _fault(node, "share must be above 0")
    if given.get("start", 0.0) >= given.get("stop", 1.0 + given.get("start", 0.0)) or given.get("start") == 1:
        raise _fault(node, "start must be before stop, and before the end")
    if given.get("low", -math.inf) >= given.get("high", math.inf):
        raise _fault(node, "low must be below high")


def _known_values(axis: Choices | Range) -> list[Value] | None:
    """What a grid visits; None when that is too much, or everything between two bounds."""
    return axis.values() if isinstance(axis, Choices) or (axis.size or math.inf) <= MAX_ARMS else None


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"
