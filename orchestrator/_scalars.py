"""What a scalar of a study file means: the core schema of YAML 1.2, and what we refuse."""

from __future__ import annotations

import math
import re

MAX_DIGITS = 20

Scalar = bool | int | float | str | None
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)(?:[:?=+-][^}]*)?\}")


def resolve(text: str) -> Scalar:
    """What unquoted text means in YAML 1.2; raises ValueError for numbers that we refuse.

    >>> [resolve(text) for text in ("1e-4", "0o17", "no", "12:30:45", "~")]
    [0.0001, 15, 'no', '12:30:45', None]
    """
    word = text.lower() if text in (text.upper(), text.capitalize()) else text
    if word in _WORDS:
        return _WORDS[word]
    if _INT.fullmatch(text):
        return _whole_number(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"must be finite (got {text})")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("must be finite (the number is too large)")
        return value
    return text_value(text)


def _whole_number(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"is a number of {len(digits)} digits; at most {MAX_DIGITS}")
    if digits[0] == "0" and digits.isdecimal() and len(digits) > 1:
        octal = f" or 0o{digits.lstrip('0') or 0} (octal)" if re.fullmatch("[0-7]+", digits) else ""
        raise ValueError(
            f"{text} has a leading zero; write {int(text)}{octal} for a number, '{text}' in quotes for text"
        )
    return int(text, 0)


def text_value(text: str) -> str:
    """`text` itself; raises ValueError when it asks for an environment variable."""
    if found := _VARIABLE.search(text):
        shown = f"${{{found[1][:80]}}}"
        raise ValueError(
            f"environment variables are not read in study files (found {shown}); write the value"
        )
    return text
