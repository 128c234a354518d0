"""Partial documents laid over a study, its budgets and `--set`, and its lists of models and datasets made into arms.

Pure functions of nodes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator._fields import MOST_LISTED, NAME_PATTERN, STUDY_FIELDS, KeyPath
from orchestrator._yaml import Node, Place

IN_BUDGET = tuple(name for name in STUDY_FIELDS if name not in ("version", "name", "budgets"))
"""What a budget can change."""

_BOUNDS = ("low", "high", "step", "log")
_RIVALS: Mapping[str, Sequence[str]] = {
    "epochs": ("steps",), "steps": ("epochs",), "choices": _BOUNDS, **dict.fromkeys(_BOUNDS, ("choices",)),
}  # fmt: skip
"""Keys of train and of an axis that make way when the overriding document gives the key."""


@dataclass(frozen=True, slots=True)
class Change:
    """One `--set`: the value at `path` is to be `value`."""

    path: tuple[str, ...]
    value: Node


def budgets(root: Node) -> dict[str, Node]:
    """The budgets that a study declares, as they are written."""
    declared = root.child("budgets")
    nodes = {name: declared and declared.child(name) for name in ("short", "smoke")}
    return {name: node for name, node in nodes.items() if node and isinstance(node.value, dict)}


def variant(root: Node, budget: str, changes: Sequence[Change] = ()) -> Node:
    """The document that `budget` and `--set` make of a study. A budget other than full joins the name."""
    merged = root = changed(root, changes)
    if budget == "full":
        return root
    if partial := budgets(root).get(budget):
        known = {key: node for key, node in partial.value.items() if key in IN_BUDGET}
        keys = {key: place for key, place in partial.keys.items() if key in IN_BUDGET}
        merged = _lay_over(root, replace(partial, value=known, keys=keys))
    merged = changed(merged, changes)  # again, as it wins over the budget
    children = {key: node for key, node in merged.value.items() if key != "budgets"}
    name = children.get("name")
    # A name that is wrong already is left alone and reported as it was written.
    if name and isinstance(name.value, str) and not name.broken and re.fullmatch(NAME_PATTERN, name.value):
        children["name"] = replace(name, value=f"{name.value}-{budget}")
    return replace(merged, value=children)


def with_lists_as_arms(root: Node) -> tuple[Node, dict[KeyPath, KeyPath]]:
    """The document with every model and dataset of a list in a named arm of its own, crossed with the arms it names.

    An arm that says itself what a list gives is not crossed with that list. Also returned: where the new parts are
    written, by their paths. A list that is too long or empty is left as it is.
    """
    lists = {key: node for key in ("model", "dataset") if (node := root.child(key)) and _is_list(node)}
    declared = root.child("arms")
    if not lists or (declared and not isinstance(declared.value, dict)):
        return root, {}
    origin: dict[KeyPath, KeyPath] = {(key,): (key, 0) for key in lists}
    firsts = {key: node.value[0] for key, node in lists.items()}
    lists = {key: node for key, node in lists.items() if len(node.value) > 1}
    if not lists:
        return replace(root, value={**root.value, **firsts}), origin
    arms: dict[str, Node] = {}
    places: dict[str, Place] = {}
    for name, arm in declared.value.items() if declared else [("", None)]:
        own = arm.value if arm and isinstance(arm.value, dict) else {}
        crossed = [key for key in lists if key not in own and (arm is None or isinstance(arm.value, dict))]
        for chosen in itertools.product(*(range(len(lists[key].value)) for key in crossed)):
            nodes = {key: lists[key].value[i] for key, i in zip(crossed, chosen, strict=True)}
            parts = [_part_name(node, i) for node, i in zip(nodes.values(), chosen, strict=True)]
            new = _free("-".join(filter(None, [name, *parts])), arms)
            written: list[KeyPath] = [(key, i) for key, i in zip(crossed, chosen, strict=True)]
            arms[new] = replace(arm, value={**own, **nodes}) if arm and crossed else arm or _mapping(nodes)
            places[new] = declared.keys[name] if declared else next(iter(nodes.values())).place
            origin[("arms", new)] = ("arms", name) if declared else written[0]
            origin |= {("arms", new, str(path[0])): path for path in written}
    whole = replace(declared, value=arms, keys=places) if declared else _mapping(arms, places, root.place)
    return replace(root, value={**root.value, **firsts, "arms": whole}), origin


def _is_list(node: Node) -> bool:
    return isinstance(node.value, list) and 1 <= len(node.value) <= MOST_LISTED


def _mapping(
    children: Mapping[str, Node], keys: Mapping[str, Place] | None = None, place: Place | None = None
) -> Node:
    at = place or next(iter(children.values())).place
    return Node(value=dict(children), place=at, keys=keys or {k: node.place for k, node in children.items()})


def _part_name(node: Node, i: int) -> str:
    """What a model or dataset adds to the name of its arm."""
    text = node.value
    if isinstance(text, dict):
        named = node.child("name") or node.child("folder")
        text = str(named.value).rstrip("/").rpartition("/")[2] if named else ""
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-._")[:25] or str(i + 1)


def _free(name: str, taken: Collection[str]) -> str:
    name, n = name[:60], 1
    while (free := name if n == 1 else f"{name}-{n}") in taken:
        n += 1
    return free


def written_path(path: KeyPath, origin: Mapping[KeyPath, KeyPath]) -> KeyPath:
    """Where a path into the document that `with_lists_as_arms` made is written."""
    for n in range(len(path), 0, -1):
        if path[:n] in origin:
            return (*origin[path[:n]], *path[n:])
    return path


def changed(root: Node, changes: Sequence[Change]) -> Node:
    for change in changes:
        root = _set(root, change.path, change.value)
    return root


def _lay_over(base: Node, over: Node, path: KeyPath = ()) -> Node:
    """Mappings merge; a dataset, an axis and everything else is replaced."""
    is_unit = (path[-1:] == ("dataset",) and len(path) in (1, 3)) or (len(path) == 2 and path[0] == "space")
    if is_unit or not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    children = {
        key: node if (below := base.child(key)) is None else _lay_over(below, node, (*path, key))
        for key, node in over.value.items()
    }
    return _update(base, children, over.keys, path)


def _set(base: Node, path: Sequence[str], value: Node, above: KeyPath = ()) -> Node:
    """`base` with the value at `path` replaced, and mappings made on the way to it."""
    if not path:
        return value
    if not isinstance(base.value, dict):
        # `dataset: mnist` is short for {name: mnist}.
        children = {"name": base} if above[-1:] == ("dataset",) and isinstance(base.value, str) else {}
        base = Node(value=children, place=value.place, keys=dict.fromkeys(children, base.place))
    head = path[0]
    below = base.child(head) or Node(value={}, place=value.place)
    return _update(base, {head: _set(below, path[1:], value, (*above, head))}, {head: value.place}, above)


def _update(base: Node, children: Mapping[str, Node], keys: Mapping[str, Place], path: KeyPath) -> Node:
    """The mapping `base` with some children replaced or added, and without their rivals."""
    inside = path[2:] if path[:1] == ("budgets",) else path
    is_train = inside == ("train",) or (len(inside) == 3 and inside[0] == "arms" and inside[2] == "train")
    has_rivals = is_train or (len(inside) == 2 and inside[0] == "space")
    rivals = {rival for key in children for rival in _RIVALS.get(key, ())} if has_rivals else set()
    kept = {key: node for key, node in base.value.items() if key in children or key not in rivals}
    return replace(base, value={**kept, **children}, keys={**base.keys, **keys})
