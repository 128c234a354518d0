"""Finds the families of this folder and their presets, without importing torch.

A family file declares `PRESETS = (Preset(...), ...)` using only literals, `Preset`, `Param` and constants in capitals
above it that are made of the same. The registry reads these expressions from the file's syntax tree; the file
itself, and with it torch, is imported only when a network is built. So a new GAN is one new file, and
`gan-sweep validate` still answers at once.

Where parameters and image shape must fit together, the file may also declare `problem(image_shape, params)`, a
function that says what is wrong or returns None and uses nothing but builtins and `math`.
"""

from __future__ import annotations
import __future__

import ast
import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from models._gan import Gan, ImageShape, Param, Preset, Value

_NAMES: dict[str, object] = {
    "Preset": Preset, "Param": Param, "bool": bool, "int": int, "float": float, "str": str,
}  # fmt: skip


class UnknownModelError(LookupError):
    """No family declares a preset of that name."""


@cache
def _presets() -> dict[str, tuple[str, Preset]]:
    """Preset name -> (family, preset), in alphabetical order."""
    found: dict[str, tuple[str, Preset]] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        for declared in _declared(path):
            if declared.name in found:
                raise ValueError(
                    f"{path.name}: preset {declared.name} is declared in {found[declared.name][0]} too"
                )
            found[declared.name] = (path.stem, declared)
    return dict(sorted(found.items()))


def _declared(path: Path) -> tuple[Preset, ...]:
    scope: dict[str, object] = {"__builtins__": {}, **_NAMES}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Name) or not target.id.isupper():
            continue
        try:
            scope[target.id] = eval(compile(ast.Expression(node.value), str(path), "eval"), scope)
        except NameError as error:
            if target.id != "PRESETS":
                continue  # a constant of the networks; PRESETS would name it if it needed it
            words = (
                "PRESETS may use only literals, Preset, Param and constants above it that are made of these"
            )
            raise ValueError(f"{path.name}: {words} ({error})") from None
        if target.id == "PRESETS":
            return cast(tuple[Preset, ...], scope["PRESETS"])
    raise ValueError(f"{path.name}: a family must declare PRESETS = (Preset(...), ...)")


@cache
def _rule(family: str) -> Callable[[ImageShape, Mapping[str, Value]], str | None] | None:
    """The family's `problem`, if it declares one, without importing its module."""
    path = Path(__file__).with_name(f"{family}.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "problem":
            names: dict[str, Any] = {"math": math}
            module = ast.Module([node], type_ignores=[])
            exec(compile(module, str(path), "exec", __future__.annotations.compiler_flag), names)
            return cast(Callable[[ImageShape, Mapping[str, Value]], str | None], names["problem"])
    return None


def problem(name: str, image_shape: ImageShape, params: Mapping[str, Value]) -> str | None:
    """Why the model `name` with all its `params` cannot make images of (C, H, W), or None."""
    rule = _rule(family(name))
    return preset(name).shape_problem(image_shape) or (rule(image_shape, params) if rule else None)


def names() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(_presets())


def preset(name: str) -> Preset:
    """The preset called `name`; raises UnknownModelError, which names the nearest one."""
    try:
        return _presets()[name][1]
    except KeyError:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownModelError(f"unknown model {name!r}; {hint}known: {', '.join(names())}") from None


def family(name: str) -> str:
    """The family (module name) that declares the preset `name`."""
    preset(name)
    return _presets()[name][0]


def build(
    name: str, image_shape: ImageShape, params: Mapping[str, Value] | None = None, n_classes: int = 0
) -> Gan:
    """Build the GAN `name` for images of (C, H, W), with `params` over the preset's defaults.

    A family's `build(preset, image_shape, params, n_classes)` is given the values of its own parameters and of
    the structural options that it does not refuse; spectral norm and equalised learning rates are added here.
    The networks are initialised from torch's global random generator: seed it first. `n_classes`: of the
    dataset, needed by conditional families.
    Raises UnknownModelError for the name and ValueError for a parameter or a shape that does not fit.
    """
    chosen = preset(name)
    problems: list[str | None] = []
    if chosen.conditional and n_classes < 2:
        problems.append(f"{name} is conditional: it needs a dataset with classes")
    build_params = chosen.build_params
    values = {key: param.default for key, param in build_params.items()}
    for key, value in (params or {}).items():
        known = build_params.get(key)
        problems.append(
            known.problem(value)
            if known is not None
            else f"{name} does not take {key}: {chosen.refuses[key]}"
            if key in chosen.refuses
            else f"{name} has no parameter {key!r}"
        )
        values[key] = value
    rule = None if any(problems) else problem(name, image_shape, cast(Mapping[str, Value], values))
    problems.insert(0, rule or chosen.shape_problem(image_shape))
    if found := [problem for problem in problems if problem]:
        raise ValueError("; ".join(found))
    module = importlib.import_module(f"models.{family(name)}")
    gan = cast(Gan, module.build(chosen, image_shape, values, n_classes))
    regularise = importlib.import_module("models._layers")  # imports torch, as the family has done by now
    for net, normalised in ((gan.generator, ("both",)), (gan.discriminator, ("d", "both"))):
        if values.get("equalized_lr"):
            regularise.add_equalized_lr(net)
        if values.get("spectral_norm") in normalised:
            regularise.add_spectral_norm(net)
    return gan
