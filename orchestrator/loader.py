"""From a study file to a `StudySpec`, or to the problems of the file. The edge that reads YAML.

What depends on a broken part is not checked, as it would be blamed for what is wrong elsewhere.

A study can hold budgets: partial documents that are laid over it, for a shorter run of the same study. The
file must be right with each of its budgets; `--set` then changes the chosen one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from orchestrator._fields import AS_WRITTEN, STUDY_FIELDS, KeyPath, StudySpec, unknown
from orchestrator._layers import IN_BUDGET, Change, budgets, variant, with_lists_as_arms, written_path
from orchestrator._words import Found, field_problems, got, is_secret, one_line, tidy, unknown_key
from orchestrator._yaml import MAX_BYTES, MAX_DEPTH, Fault, Node, Place, UnreadableError, compose, decode
from orchestrator.errors import InvalidStudyError
from orchestrator.study import problems, related

Budget = Literal["full", "short", "smoke"]

_STAND_INS: Mapping[str, Any] = {"version": 1, "name": "x", "model": "", "dataset": ""}
"""For required keys that are missing or wrong, so that the rest of the study can be checked."""


def load_study(path: Path, *, budget: Budget = "full", overrides: Sequence[str] = ()) -> StudySpec:
    """The study in the file `path`; raises InvalidStudyError with all of its problems.

    `overrides`: KEY=VALUE, KEY a dotted path and VALUE written as in the file; the last of one key counts.
    """
    try:
        if path.exists() and not path.is_file():  # a directory, or a pipe that would block
            raise InvalidStudyError([one_line(f"{path}: is not a file; give a study file")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidStudyError([one_line(f"{path}: cannot be read: {reason}")]) from None
    return load_text(data, str(path), budget=budget, overrides=overrides)


def load_text(
    data: bytes, filename: str = "study.yaml", *, budget: Budget = "full", overrides: Sequence[str] = ()
) -> StudySpec:
    """`load_study` for text that was read already; `filename` is only shown."""
    report = _Report(filename)
    changes = [change for text in overrides if (change := _change(text, report))]
    try:
        root = _document(data, report)
    except UnreadableError as error:
        report.fault(error.fault)
        raise report.error() from None
    _check_budget_keys(root, report)
    _check_changed_arms(root, changes, report)
    studies = {"full": _check(root, report)}
    for name, partial in budgets(root).items():
        studies[name] = _check(variant(root, name), report, budget=(name, partial))
    if budget not in studies:
        report.add(root.place, ("budgets",), f"there is no budget {budget}; there is {', '.join(studies)}")
    elif changes:
        context = "with " + ", ".join(change.value.place.source for change in changes)
        chosen = budgets(root).get(budget)
        merged = variant(root, budget, changes)
        studies[budget] = _check(merged, report, context, (budget, chosen) if chosen else None)
    study = studies.get(budget)
    if study is None or report.found:
        raise report.error()
    return study


@dataclass(slots=True)
class _Report:
    """The problems found so far, each once."""

    filename: str
    found: dict[tuple[Place, KeyPath, str], str] = field(default_factory=dict)

    def add(self, place: Place, path: KeyPath, message: str, context: str = "") -> None:
        """`context`: what the study was combined with; shown when the problem does not arise without it."""
        if place.source:
            place, context = Place(0, 0, place.source), ""
        self.found.setdefault((place, path, message), f" ({context})" if context else "")

    def fault(self, fault: Fault) -> None:
        self.add(fault.place, fault.path, tidy(fault.message, fault.path, fault.text))

    def error(self) -> InvalidStudyError:
        """All problems in the order of the file; those of `--set` come last."""
        rows = []
        for (place, path, message), context in self.found.items():
            where = place.source or f"{self.filename}:{place.line}:{place.column}"
            line = one_line(f"{where}: {dotted(path)}: {message}{context}")
            rows.append((place.source != "", place.line, place.column, line))
        return InvalidStudyError([row[3] for row in sorted(rows)])


def refuse_facts(study: StudySpec, path: Path) -> None:
    """Raise InvalidStudyError for what is wrong now that the study in the file `path` knows its images."""
    if wrong := problems(study):
        raise InvalidStudyError([one_line(f"{path}: {dotted(p.path)}: {p.message}") for p in wrong])


def dotted(path: KeyPath) -> str:
    """A path as it is shown; `study` for the whole document.

    >>> dotted(("space", "lr", "choices", 2))
    'space.lr.choices[2]'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in path)
    return "".join(parts).removeprefix(".") or "study"


def _document(data: bytes, report: _Report) -> Node:
    text = decode(data)
    root, faults = compose(text)
    for fault in faults:
        report.fault(fault)
    if root is None or root.value is None:
        raise UnreadableError(Place(), "is empty but for comments" if text.strip() else "is empty")
    if not isinstance(root.value, dict):
        message = f"must be a mapping with keys such as name and model (got {got(root.value)})"
        raise UnreadableError(root.place, message)
    return root


def _change(text: str, report: _Report) -> Change | None:
    """The `--set` KEY=VALUE, or None with its problems in the report."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    shown = (f"{key}=***" if equals else "***") if is_secret(key) else text
    source = f"--set {shown if len(shown) <= 80 else shown[:80] + '...'}"
    if not value.strip() or not all(path) or len(path) > MAX_DEPTH:
        report.add(Place(source=source), (), "must be KEY=VALUE, for example train.steps=100")
        return None
    try:
        node, faults = compose(value, source, path)
    except UnreadableError as error:
        report.fault(error.fault)
        return None
    for fault in faults:
        report.fault(fault)
    return Change(path, node or Node(value=None, place=Place(source=source)))


def _check_changed_arms(root: Node, changes: Sequence[Change], report: _Report) -> None:
    """A misspelt arm would otherwise become a new one; a whole arm may be added."""
    declared = root.child("arms")
    known = declared.value if declared and isinstance(declared.value, dict) else {}
    for change in changes:
        if change.path[0] == "arms" and len(change.path) > 2 and change.path[1] not in known:
            message = (
                f"{unknown('arm', change.path[1], known)}; to add it: --set arms.{change.path[1]}={{...}}"
            )
            report.add(change.value.place, change.path[:2], message)


def _check_budget_keys(root: Node, report: _Report) -> None:
    for name, partial in budgets(root).items():
        for key in partial.value.keys() - set(IN_BUDGET):
            fixed = f"a budget cannot change {key}; remove it"
            message = fixed if key in STUDY_FIELDS else unknown_key(key, IN_BUDGET)
            report.add(partial.keys[key], ("budgets", name, key), message)


def _check(
    root: Node, report: _Report, context: str = "", budget: tuple[str, Node] | None = None
) -> StudySpec | None:
    """The study in `root`, which means something only when it adds no problems to the report.

    `context`: of all its problems. `budget`: name and document of the budget in it, whose problems are shown
    where they are written.
    """
    root, origin = with_lists_as_arms(root)
    data = root.plain()
    broken = {path for path, node in _walk(root) if node.broken}
    study, found = _validate(data)
    found = [f for f in found if not any(related(f.path, path) for path in broken)]
    broken |= {f.path for f in found}
    if broken:
        study, _ = _validate(_without(data, broken))
    if study is not None:
        # What --set changes may leave out arms that a claim is about. The claims of the file were read without it.
        written = root.child("claims")
        unread = {("claims",)} if context and written and not written.place.source else set[KeyPath]()
        found += [Found(problem.path, problem.message) for problem in problems(study, broken | unread)]
    for f in found:
        place, path, nodes = _locate(root, f.path, f.at_key)
        is_whole, there = len(nodes) > len(path), written_path(path[: len(nodes) - 1], origin)
        path = written_path(path, origin)
        message = tidy(f.message, path, nodes[-1].plain() if is_whole else ...)
        if budget and len(nodes) > 1 and _leads_to(budget[1], there) is nodes[-1]:
            report.add(place, ("budgets", budget[0], *path), message, context)
        else:
            report.add(place, path, message, context or (f"in budget {budget[0]}" if budget else ""))
    return study


def _validate(data: Any) -> tuple[StudySpec | None, list[Found]]:
    try:
        return StudySpec.model_validate(data, context=AS_WRITTEN), []
    except ValidationError as error:
        return None, field_problems(error, data)


def _walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    yield path, node
    for part, child in node.children():
        yield from _walk(child, (*path, part))


def _without(data: Mapping[str, Any], broken: Collection[KeyPath]) -> dict[str, Any]:
    """`data` with the broken parts removed, or a stand-in for those that are required.

    A list and an axis go as a whole, so that paths into what stays count as they are written.
    """
    left = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for path in broken:
        section, key = str(path[0]), path[1] if len(path) > 1 else None
        inside = left.get(section)
        if isinstance(inside, dict) and key is not None and (section, key) != ("dataset", "name"):
            inside.pop(key, None)
        elif section in _STAND_INS:
            left[section] = _STAND_INS[section]
        else:
            left.pop(section, None)
    return left


def _leads_to(node: Node | None, path: KeyPath) -> Node | None:
    for part in path:
        node = node and node.child(part)
    return node


def _locate(root: Node, path: KeyPath, at_key: bool = False) -> tuple[Place, KeyPath, list[Node]]:
    """Where `path` is written, the part of it that can be written, and the nodes that lead to it.

    A value is shown at itself when it is on the line of its key, else at the key. What is missing is shown
    at the mapping that lacks it.
    """
    nodes, place = [root], root.place
    for i, part in enumerate(path):
        child = nodes[-1].child(part)
        if child is None:
            is_scalar = not isinstance(nodes[-1].value, dict | list)
            return place, path[:i] if is_scalar else path, nodes
        key = nodes[-1].keys.get(str(part)) if isinstance(part, str) else None
        on_one_line = key is None or (key.line, key.source) == (child.place.line, child.place.source)
        place = child.place if on_one_line and not (at_key and i == len(path) - 1) else key or child.place
        nodes.append(child)
    return place, path, nodes
