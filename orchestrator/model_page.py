"""Models and datasets for people, as text of up to 100 columns that can be read in 80 too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models import STRUCTURE, Param
from orchestrator.catalogue import NETWORKS, PER_NET, Described
from trials.datasets import SUFFIXES
from trials.options import TRAINING

if TYPE_CHECKING:
    from trials.layers import Network

WIDTH = 100


def page(model: Described) -> Group:
    """Facts, hyperparameters by group, what is refused, and the layers of each network."""
    channels, height, width = model.image_shape
    title = f"{channels} x {height} x {width}" + (f", {model.n_classes} classes" if model.n_classes else "")
    title += "".join(f", {name} {show(value)}" for name, value in model.drawn.items())
    return Group(
        *_head(model.facts),
        *_hyperparameters(model),
        *_refused(model.preset.refuses),
        *(_layers(name, network, title, model.facts) for name, network in model.networks.items()),
    )


def _head(facts: Mapping[str, Any]) -> list[RenderableType]:
    sides = " or ".join(f"{side}x{side}" for side in facts["sizes"])
    multiple = (
        f"sides in multiples of {facts['size_multiple']}" if facts["size_multiple"] > 1 else "any sides"
    )
    least = f" of at least {facts['min_size']}" if facts["min_size"] > 1 else ""
    channels = " or ".join("grey" if c == 1 else "colour" for c in facts["channels"]) or "grey or colour"
    length = next(
        (f"{facts['recipe'][k]:,} {k}" for k in ("epochs", "steps") if k in facts["recipe"]), "1 epoch"
    )
    low, high = facts["pixels"]
    loss = "cross-entropy on logits" if facts["loss"] == "bce" else "Wasserstein: a critic's scores"
    table = Table.grid(padding=(0, 2))
    for name, words in (
        ("source", facts["source"]),
        ("images", f"{channels}, {sides or multiple + least}; pixels in [{low}, {high}]"),
        ("loss", loss + (", both nets are given the class" if facts["conditional"] else "")),
        ("trains", f"{length}, unless a study says otherwise"),
    ):
        table.add_row(Text(name, style="dim"), words)
    return [Text.assemble((facts["model"], "bold"), f": {facts['what']}"), table, Text()]


def dataset_page(rows: Sequence[Mapping[str, Any]]) -> Group:
    """The rows of `dataset_rows`, the last of which is that of folders."""
    table = Table.grid(padding=(0, 2, 1, 0))
    for row in rows[:-1]:
        classes = f"{row['classes']} classes" if row["classes"] else "no classes"
        place = "ships with gan-sweep" if row["ships"] else f"files in {row['files']}"
        facts = f"{row['images']:,} images of {row['shape']}, {classes}; {place}"
        table.add_row(
            Text(row["dataset"], style="bold"), f"{row['what']}\n{facts}\nlicence: {row['licence']}"
        )
    table.add_row(
        Text("a folder", style="bold"),
        f"pictures of any sizes ({', '.join(SUFFIXES)}), made square, with subfolders as classes:\n"
        f"dataset: {rows[-1]['dataset']}\nPATH lies beside the study file or in DIR",
    )
    return Group(
        table, Text("DIR is what --data-dir names, else data in gan-sweep's home (gan-sweep doctor).")
    )


def _hyperparameters(model: Described) -> list[RenderableType]:
    rows, params = model.rows, {**TRAINING, **STRUCTURE, **model.preset.params}
    parts: list[RenderableType] = [
        Text(
            "Hyperparameters, for fixed and space. * from the model's recipe; dim: off or not read by default."
        )
    ]
    for group in dict.fromkeys(str(row["group"]) for row in rows):
        here = [
            r for r in rows if r["group"] == group and (r["hyperparameter"] not in PER_NET or r["recipe"])
        ]
        if not here:
            continue
        title = f"{model.preset.name}'s own" if group == NETWORKS else group
        table = Table(
            box=box.SIMPLE_HEAD, expand=True, title=title, title_justify="left", title_style="bold",
            show_header=len(parts) == 1, pad_edge=False,
        )  # fmt: skip
        for name, width in (("hyperparameter", 22), ("default", 14)):
            table.add_column(name, width=width, overflow="fold")
        table.add_column("what; allowed", overflow="fold")
        for row in sorted(here, key=lambda r: bool(r["idle"])):
            what = str(row["what"]) + (f" ({row['source']})" if row["source"] else "")
            table.add_row(
                str(row["hyperparameter"]),
                show(row["default"]) + (" *" if row["recipe"] else ""),
                f"{what}; {allowed(params[str(row['hyperparameter'])])}",
                style="dim" if row["idle"] else "",
            )
        parts.append(table)
        if group == "optimiser":
            parts.append(
                Text(
                    "  Each but g_factor and lr_schedule also as NAME_g or NAME_d, for one net; default: NAME.\n"
                )
            )
    return parts


def _refused(refuses: Mapping[str, str]) -> list[RenderableType]:
    if not refuses:
        return []
    table = Table.grid(padding=(0, 2))
    table.add_column(width=22)
    reasons = dict.fromkeys(refuses.values())
    for reason in reasons:
        table.add_row(
            ", ".join(name for name, why in refuses.items() if why == reason), Text(reason), style="dim"
        )
    return [Text("Refused", style="bold"), table, Text()]


def _layers(name: str, network: Network, title: str, facts: Mapping[str, Any]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, expand=True, title=f"{name.capitalize()} ({title})", title_justify="left",
        title_style="bold", show_footer=True, pad_edge=False,
    )  # fmt: skip
    table.add_column("name", "total", overflow="fold", ratio=5)
    table.add_column("layer", overflow="fold", ratio=9)
    table.add_column("output", overflow="fold", ratio=6)
    table.add_column("parameters", f"{network.parameters:,}", justify="right", no_wrap=True)
    given = ["z" if name == "generator" else "image"] * (len(network.inputs) - bool(facts["conditional"]))
    low, high = facts["pixels"]
    made = f"image in [{low}, {high}]" if name == "generator" else "score" if name == "critic" else "logit"
    for what, shape in zip([*given, "class"], network.inputs, strict=False):
        table.add_row("", Text(what, style="italic"), shape, "")
    for i, layer in enumerate(network.layers):
        table.add_row(
            layer.name,
            layer.layer + (f", {layer.calls} times" if layer.calls > 1 else ""),
            ", ".join(layer.shapes) or "-",
            f"{layer.parameters:,}" if layer.parameters else "",
            style="" if layer.parameters else "dim",
            end_section=i == len(network.layers) - 1,
        )
    for shape in network.outputs:
        table.add_row("", Text(made, style="italic"), shape, "")
    if any(not layer.shapes for layer in network.layers):
        table.caption = "-: weights that are used without calling the layer, or not at full resolution\n"
        table.caption_justify = "left"
    return table


def show(value: object) -> str:
    """A default as people write it in a study."""
    if isinstance(value, bool) or value is None or value == "":
        return {True: "true", False: "false"}.get(value, "-") if isinstance(value, bool) else "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed(param: Param) -> str:
    """The type and range of a parameter in short: `int >= 1`, `adam | sgd`.

    >>> allowed(Param(kind=float, default=0.5, low=0, high=1, high_open=True))
    'float >= 0, < 1'
    """
    if param.choices:
        return " | ".join(param.choices)
    if param.kind is bool:
        return "true | false"
    low = "" if param.low is None else f"{'>' if param.low_open else '>='} {param.low:g}"
    high = "" if param.high is None else f"{'<' if param.high_open else '<='} {param.high:g}"
    return f"{'text' if param.kind is str else param.kind.__name__} {', '.join(filter(None, (low, high)))}".strip()
