"""Constraints between hyperparameters: `lr_g <= lr_d`, `optimizer != sgd or momentum > 0`.

Comparisons of names and literals with + - * / // %, joined by and, or, not. A text that is no name of a hyperparameter
may stand without quotes. Every expression is read into a tree of Python's own parser, of which only these parts are
taken, and its types are checked before it is ever computed. Pure.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from models import Value
from orchestrator._fields import MOST_CHARACTERS, nearest

MOST_DEEP = 30
Kind = type[bool] | type[float] | type[str]
_WORDS: Mapping[Kind, str] = {bool: "true or false", float: "a number", str: "text"}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUALITY: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FORM = "write comparisons such as lr_g <= lr_d, joined by and, or, not"


class ConstraintError(ValueError):
    """A constraint that cannot be read; says where and what would be right."""


class _Lacking(Exception):
    """A hyperparameter has no value here."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a constraint may name. `values`: all it can be, where they are listed."""

    kind: Kind
    values: tuple[Value, ...] | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint that was read."""

    text: str
    names: frozenset[str]
    _holds: Callable[[Mapping[str, Value]], Any]

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether it holds for these values.

        One about a hyperparameter that has no value there, as the arm's model does not take it, asks nothing of it.
        One that cannot be computed, as it divides by 0, does not hold.
        """
        try:
            return bool(self._holds(values))
        except _Lacking:
            return True
        except ArithmeticError:
            return False


def parse(text: str, known: Mapping[str, Name]) -> Constraint:
    """Read a constraint over the names `known`; raises ConstraintError."""
    return _Reader("".join(" " if c.isspace() else c for c in text).strip(), known).read()


class _Reader:
    """Reads one constraint."""

    def __init__(self, text: str, known: Mapping[str, Name]) -> None:
        self.text, self.known, self.named = text, known, set[str]()

    def read(self) -> Constraint:
        if not self.text:
            raise ConstraintError(f"is empty; {_FORM}")
        if len(self.text) > MOST_CHARACTERS:
            raise ConstraintError(f"must have at most {MOST_CHARACTERS} characters (got {len(self.text)})")
        try:
            with warnings.catch_warnings():  # of odd literals, which are refused below
                warnings.simplefilter("ignore")
                tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            # Python's own words name things of Python that have no place here.
            raise ConstraintError(
                f"cannot be read at character {max(1, error.offset or 1)}; {_FORM}"
            ) from None
        except (ValueError, MemoryError, RecursionError):
            raise ConstraintError(f"cannot be read; {_FORM}") from None
        if _depth(tree) > MOST_DEEP:
            raise ConstraintError(f"is nested deeper than {MOST_DEEP}")
        kind, compute = self._node(tree)
        if kind is not bool:
            raise self._error(tree, f"is {_WORDS[kind]}, not a comparison; {_FORM}")
        return Constraint(self.text, frozenset(self.named), compute)

    def _error(self, node: ast.expr, message: str) -> ConstraintError:
        start = len(self.text.encode()[: node.col_offset].decode(errors="replace"))
        written = ast.get_source_segment(self.text, node) or ""
        return ConstraintError(f"at character {start + 1}: {written[:80]} {message}")

    def _node(self, node: ast.expr) -> tuple[Kind, Callable[[Mapping[str, Value]], Any]]:
        match node:
            case ast.BoolOp(op, parts):
                each = [self._of_kind(part, bool) for part in parts]
                return bool, _all(each) if isinstance(op, ast.And) else _any(each)
            case ast.UnaryOp(ast.Not(), part):
                inner = self._of_kind(part, bool)
                return bool, lambda values: not inner(values)
            case ast.UnaryOp(ast.USub(), part):
                inner = self._of_kind(part, float)
                return float, lambda values: -inner(values)
            case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
                a, b, of = self._of_kind(left, float), self._of_kind(right, float), _ARITHMETIC[type(op)]
                return float, lambda values: of(a(values), b(values))
            case ast.Compare(left, ops, others):
                terms = [left, *others]
                steps = [self._comparison(*each) for each in zip(terms, ops, terms[1:], strict=False)]
                return bool, _all(steps)
            case ast.Constant(bool() | int() | float() | str() as value):
                return (_kind(value), lambda values: value)
            case ast.Name(name):
                return self._name(node, name)
        raise self._error(node, f"cannot be part of a constraint; {_FORM}")

    def _of_kind(self, node: ast.expr, wanted: Kind) -> Callable[[Mapping[str, Value]], Any]:
        kind, compute = self._node(node)
        if kind is not wanted:
            raise self._error(node, f"is {_WORDS[kind]}, where {_WORDS[wanted]} is needed")
        return compute

    def _name(self, node: ast.expr, name: str) -> tuple[Kind, Callable[[Mapping[str, Value]], Any]]:
        if name in self.known:
            self.named.add(name)

            def value(values: Mapping[str, Value]) -> Value:
                if name not in values:
                    raise _Lacking
                return values[name]

            return self.known[name].kind, value
        if name in ("true", "false"):
            return bool, lambda values: name == "true"
        near = nearest(name, self.known)
        hint = (
            near
            or "name hyperparameters of the study's models, model, dataset or arm, or compare with a word"
        )
        raise self._error(node, f"is no hyperparameter; {hint}")

    def _comparison(
        self, left: ast.expr, op: ast.cmpop, right: ast.expr
    ) -> Callable[[Mapping[str, Value]], bool]:
        if type(op) in _ORDER:
            a, b, of = self._of_kind(left, float), self._of_kind(right, float), _ORDER[type(op)]
            return lambda values: of(a(values), b(values))
        if type(op) not in _EQUALITY:
            raise self._error(right, "is compared with is; write == or !=")
        compare = _EQUALITY[type(op)]
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
                raise self._error(right, "is no list; write NAME in [VALUE, VALUE]")
            pairs = [self._alike(left, element) for element in right.elts]
            one, elements = pairs[0][0], [b for _, b in pairs]
            return lambda values: compare(one(values), [element(values) for element in elements])
        a, b = self._alike(left, right)
        return lambda values: compare(a(values), b(values))

    def _alike(
        self, left: ast.expr, right: ast.expr
    ) -> tuple[Callable[[Mapping[str, Value]], Any], Callable[[Mapping[str, Value]], Any]]:
        """Both sides of an equality; a bare word on one of them is a value of the other."""
        first, second = self._word(left, right), self._word(right, left)
        if first is not None or second is not None:
            return (
                (lambda values: first) if first is not None else self._node(left)[1],
                (lambda values: second) if second is not None else self._node(right)[1],
            )
        (kind, a), (other, b) = self._node(left), self._node(right)
        if kind is not other:
            raise self._error(right, f"is {_WORDS[other]}, and is compared with {_WORDS[kind]}")
        return a, b

    def _word(self, node: ast.expr, beside: ast.expr) -> str | None:
        """The text that `node` is when it is a word beside the name of a text; None for anything else."""
        if not isinstance(beside, ast.Name) or beside.id not in self.known:
            return None
        name = self.known[beside.id]
        if name.kind is not str:
            return None
        match node:
            case ast.Name(word) if word not in self.known:
                pass
            case ast.Constant(str() as word):
                pass
            case _:
                return None
        if name.values is not None and word not in name.values:
            raise self._error(
                node, f"is no value of {beside.id}; there is {', '.join(map(str, name.values))}"
            )
        return word


def _kind(value: Value) -> Kind:
    return bool if isinstance(value, bool) else str if isinstance(value, str) else float


def _all(parts: Collection[Callable[[Mapping[str, Value]], Any]]) -> Callable[[Mapping[str, Value]], bool]:
    return lambda values: all(part(values) for part in parts)


def _any(parts: Collection[Callable[[Mapping[str, Value]], Any]]) -> Callable[[Mapping[str, Value]], bool]:
    return lambda values: any(part(values) for part in parts)


def _depth(tree: ast.AST) -> int:
    deepest, left = 0, [(tree, 1)]
    while left:
        node, depth = left.pop()
        deepest = max(deepest, depth)
        left += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return deepest
