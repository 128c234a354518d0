"""YAML text to nodes that know where they were written. The only module that imports a YAML library.

ruamel.yaml only splits the text into events. What an unquoted scalar means, which keys, tags and aliases are
allowed, and how much of them, is decided here, so that no text can build an object, exhaust memory or the
stack, or change its meaning from text to a date.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator._fields import KeyPath
from orchestrator._scalars import Scalar, resolve, text_value

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 50

CORE = "tag:yaml.org,2002:"
_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float),
}  # fmt: skip
_CONTROL = re.compile("[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column from 1 in the file, or in `source` when that is not empty."""

    line: int = 1
    column: int = 1
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A value, where it is written, and where the keys of a mapping are. `size`: nodes, aliases expanded.

    `broken`: a fault was reported for it, and its value means nothing.
    """

    value: Any
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)
    size: int = 1
    broken: bool = False

    def child(self, part: str | int) -> Node | None:
        """The value under a key or index, or None."""
        found: Node | None = None
        if isinstance(self.value, dict):
            found = self.value.get(part)
        elif isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            found = self.value[part]
        return found

    def children(self) -> Iterator[tuple[str | int, Node]]:
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)

    def plain(self) -> Any:
        """The value as dictionaries, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the text itself. `text`: the scalar that the message may quote."""

    place: Place
    path: KeyPath
    message: str
    text: str = ""


class UnreadableError(Exception):
    """The text cannot be read on after this fault."""

    def __init__(self, place: Place, message: str, path: KeyPath = ()) -> None:
        super().__init__(message)
        self.fault = Fault(place, path, message)


def decode(data: bytes) -> str:
    """The text of a file; raises UnreadableError for what is not a small UTF-8 text. A BOM is fine."""
    start = Place()
    if len(data) > MAX_BYTES:
        raise UnreadableError(start, f"is larger than {MAX_BYTES // 1_000_000} MB; is this a study file?")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or re.match(rb"\0[^\0]|[^\0]\0", data):
        raise UnreadableError(start, "is UTF-16, not UTF-8; save it as UTF-8")
    if b"\0" in data:
        raise UnreadableError(start, "is binary, not text (it holds a NUL byte)")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode(errors="replace")) + 1
        message = f"is not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8"
        raise UnreadableError(Place(line, column), message) from None
    return text.removeprefix("\ufeff")


def compose(text: str, source: str = "", at: KeyPath = ()) -> tuple[Node | None, list[Fault]]:
    """The one document in `text`, None for none, and what is wrong with its parts.

    `source` and `at`: where the text comes from and its path, when it is not a whole file.
    Raises UnreadableError where nothing sensible can follow.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if bad := _CONTROL.search(text):
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        message = f"holds the control character U+{ord(bad[0]):04X}; remove it"
        raise UnreadableError(Place(line, column, source), message, at)
    composer = _Composer(source, at)
    for kind, event in _events(text, source, at):
        composer.take(kind, event)
    return composer.root, composer.faults


def _events(text: str, source: str, at: KeyPath) -> Iterator[tuple[str, Any]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            yield type(event).__name__, event
    except UnreadableError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1, source) if mark else Place(source=source)
        raise UnreadableError(place, _syntax_words(error), at) from None
    except Exception as error:
        # The scanner also fails with IndexError, ValueError and others on hostile text: all the same to us.
        raise UnreadableError(
            Place(source=source), f"is not valid YAML ({type(error).__name__})", at
        ) from None


def _syntax_words(error: Any) -> str:
    problem = str(error.problem or error.context or "syntax error").splitlines()[0]
    since = f" that starts at line {error.context_mark.line + 1}" if error.context_mark else ""
    if "'\\t'" in problem:
        return "is not valid YAML: a tab cannot be used here; use spaces"
    if problem.startswith("mapping values are not allowed"):
        return (
            "is not valid YAML: a second ':' in one value, or wrong indentation; quote text that holds ': '"
        )
    if closing := re.match(r"expected ',' or '([\]}])'", problem):
        return f"is not valid YAML: '{closing[1]}' or ',' is missing in the value{since}"
    if "end of stream" in problem and "quoted" in (error.context or ""):
        return f"is not valid YAML: the closing quote is missing in the text{since}"
    return f"is not valid YAML: {problem}" + (f" ({error.context}{since})" if error.context else "")


@dataclass(slots=True)
class _Frame:
    """A list or mapping still open. `key`: the key whose value comes next; `kept`: whether that counts."""

    value: list[Node] | dict[str, Node]
    place: Place
    anchor: str | None
    keys: dict[str, Place] = field(default_factory=dict)
    key: str | None = None
    kept: bool = True
    size: int = 1


class _Composer:
    """Turns events into nodes without recursion."""

    def __init__(self, source: str, at: KeyPath) -> None:
        self.root: Node | None = None
        self.faults: list[Fault] = []
        self._source, self._at = source, at
        self._open: list[_Frame] = []
        self._anchors: dict[str, Node | None] = {}  # None: still open
        self._size = 0

    def take(self, kind: str, event: Any) -> None:
        place = Place(event.start_mark.line + 1, event.start_mark.column + 1, self._source)
        if kind == "DocumentStartEvent":
            if self.root is not None:
                raise UnreadableError(place, "holds more than one document; a file is one study", self._at)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._close()
        elif kind in ("MappingStartEvent", "SequenceStartEvent", "ScalarEvent", "AliasEvent"):
            frame = self._open[-1] if self._open else None
            if frame and isinstance(frame.value, dict) and frame.key is None:
                self._key(frame, kind, event, place)
            elif kind == "ScalarEvent":
                self._grow(1, place)
                self._add(self._scalar(event, place), event.anchor)
            elif kind == "AliasEvent":
                node = self._alias(event.anchor, place)
                self._grow(node.size, place)
                self._add(node, None)
            else:
                self._start(kind, event, place)

    def _path(self) -> KeyPath:
        parts = (frame.key if frame.key is not None else len(frame.value) for frame in self._open)
        return (*self._at, *parts)

    def _fault(self, place: Place, message: str) -> None:
        self.faults.append(Fault(place, self._path(), message))

    def _grow(self, size: int, place: Place) -> None:
        self._size += size
        if self._size > MAX_NODES:
            raise UnreadableError(place, f"has more than {MAX_NODES:,} values (aliases expanded)", self._at)

    def _key(self, frame: _Frame, kind: str, event: Any, place: Place) -> None:
        if kind != "ScalarEvent":
            raise UnreadableError(place, "a key must be text", self._path()[:-1])
        frame.key, frame.kept = str(event.value), True
        if event.tag not in (None, "!", CORE + "str"):
            self._fault(place, f"tag {_shown_tag(event.tag)} is not allowed on a key")
        if frame.key in frame.keys:
            frame.kept = False
            self._fault(
                place, f"the key is given twice (first at line {frame.keys[frame.key].line}); remove one"
            )
        elif frame.key == "<<" and event.style is None:
            frame.kept = False
            self._fault(place, "merge keys (<<) are not supported; write the keys out")
        else:
            frame.keys[frame.key] = place

    def _start(self, kind: str, event: Any, place: Place) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise UnreadableError(place, f"is nested deeper than {MAX_DEPTH}", self._at)
        self._grow(1, place)
        is_mapping = kind == "MappingStartEvent"
        if event.tag not in (None, "!", CORE + ("map" if is_mapping else "seq")):
            self._fault(place, f"tag {_shown_tag(event.tag)} is not allowed")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append(_Frame({} if is_mapping else [], place, event.anchor))

    def _close(self) -> None:
        frame = self._open.pop()
        self._add(Node(value=frame.value, place=frame.place, keys=frame.keys, size=frame.size), frame.anchor)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        frame = self._open[-1]
        frame.size += node.size
        if isinstance(frame.value, list):
            frame.value.append(node)
        elif frame.key is not None:
            if frame.kept:
                frame.value[frame.key] = node
            frame.key = None

    def _alias(self, name: str, place: Place) -> Node:
        node = self._anchors.get(name)
        if node is None:
            wrong = "stands inside its own value" if name in self._anchors else "has no anchor before it"
            self._fault(place, f"alias *{name} {wrong}")
        return node or Node(value=None, place=place, broken=True)

    def _scalar(self, event: Any, place: Place) -> Node:
        tag = "" if event.tag is None else str(event.tag).removeprefix(CORE)
        text = str(event.value)
        value: Scalar
        try:
            if tag in ("!", "str") or (not tag and event.style is not None):
                value = text_value(text)
            elif not tag or tag in _KINDS:
                value = resolve(text)
                if tag and not isinstance(value, _KINDS[tag]):
                    raise ValueError(f"is tagged !!{tag}, which it is not")
            else:
                raise ValueError(f"tag {_shown_tag(str(event.tag))} is not allowed")
        except ValueError as error:
            self.faults.append(Fault(place, self._path(), str(error), text))
            return Node(value=text, place=place, broken=True)
        return Node(value=value, place=place)


def _shown_tag(tag: str) -> str:
    return tag.replace(CORE, "!!", 1)[:80]
