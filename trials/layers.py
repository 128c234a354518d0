"""The layers of two networks as they are called: names, output shapes and parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models import Gan

_RECURRENT = nn.LSTM | nn.LSTMCell | nn.GRU | nn.GRUCell | nn.RNN
_CONV = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_SILENT = nn.Identity | nn.Sequential | nn.ModuleList | nn.ModuleDict
"""What computes nothing of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer: its name in the network, its class with the main sizes, output shapes with the batch as N.

    `shapes` is empty where the network uses the layer's weights without calling it, or not at all. `calls`: how
    often one pass calls it. `parameters`: its own, none that an earlier layer shares.
    """

    name: str
    layer: str
    shapes: tuple[str, ...]
    calls: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network's layers in the order of their first call. `parameters` is the number of all its parameters."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    parameters: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def networks(gan: Gan, group: int = 1) -> tuple[Network, Network]:
    """Generator and discriminator, each called with two batch sizes; `group` must divide a batch.

    Networks that grow are called at their full resolution. Leaves both in evaluation mode.
    """
    nets: tuple[Any, Any] = (gan.generator.eval(), gan.discriminator.eval())
    for net in nets if gan.levels else ():
        net.grow(len(gan.levels) - 1, 1.0)
    sizes = (2 * group, 4 * group)
    inputs = [(gan.latent(n, torch.Generator().manual_seed(0)), *_labels(gan, n)) for n in sizes]
    with torch.no_grad():
        images = [gan.generator(*given) for given in inputs]
    shown = [(made, *_labels(gan, n)) for made, n in zip(images, sizes, strict=True)]
    return _network(gan.generator, inputs, sizes), _network(gan.discriminator, shown, sizes)


def _labels(gan: Gan, n: int) -> tuple[Tensor, ...]:
    return (torch.arange(n) % gan.n_classes,) if gan.n_classes else ()


@torch.no_grad()
def _network(net: nn.Module, inputs: list[tuple[Any, ...]], sizes: tuple[int, int]) -> Network:
    calls: list[dict[str, list[Any]]] = []
    outputs = []
    for given in inputs:
        seen: dict[str, list[Any]] = {}
        handles = [
            module.register_forward_hook(partial(_note, seen, name)) for name, module in _own_layers(net)
        ]
        try:
            outputs.append(net(*given))
        finally:
            for handle in handles:
                handle.remove()
        calls.append(seen)

    def shapes(a: Any, b: Any) -> tuple[str, ...]:
        return tuple(_shape(x, y, sizes) for x, y in zip(_tensors(a), _tensors(b), strict=True))

    counted: set[nn.Parameter] = set()
    rows = {}
    for name, module in _own_layers(net):
        own = set(_own_parameters(module)) - counted
        counted |= own
        first, second = calls[0].get(name, []), calls[1].get(name, [])
        rows[name] = Layer(
            name=name,
            layer=words(module),
            # Of a recurrent layer the outputs; its states would be shapes of their own.
            shapes=shapes(first[0], second[0])[: 1 if isinstance(module, _RECURRENT) else None]
            if first
            else (),
            calls=len(first),
            parameters=sum(p.numel() for p in own),
        )
    ordered = [rows[name] for name in _order(list(rows), list(calls[0]))]
    return Network(
        inputs=tuple(itertools.chain(*(shapes(a, b) for a, b in zip(*inputs, strict=True)))),
        outputs=shapes(*outputs),
        layers=tuple(row for row in ordered if row.calls or row.parameters),
        parameters=sum(p.numel() for p in net.parameters()),
    )


def _note(seen: dict[str, list[Any]], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    seen.setdefault(name, []).append(output)


def _own_layers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that compute something of their own or hold parameters of their own."""
    for name, module in net.named_modules():
        inside = "parametrizations" in name.split(".")
        holds = any(True for _ in _own_parameters(module))
        leaf = all(child == "parametrizations" for child, _ in module.named_children())
        if not inside and (holds or (leaf and not isinstance(module, _SILENT))):
            yield name or "itself", module


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Those that lie in no other module, and the originals of reparametrised ones."""
    yield from module.parameters(recurse=False)
    if isinstance(originals := getattr(module, "parametrizations", None), nn.Module):
        yield from originals.parameters()


def _order(defined: list[str], called: list[str]) -> list[str]:
    """The called names in their order; the others each behind the one that is defined before it."""
    order = list(called)
    for i, name in enumerate(defined):
        if name not in order:
            order.insert(order.index(defined[i - 1]) + 1 if i else 0, name)
    return order


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _shape(a: Tensor, b: Tensor, sizes: tuple[int, int]) -> str:
    """The shape of `a`, N for a side that grows with the batch: `N x 64 x 7 x 7`."""
    sides = []
    for x, y in zip(a.shape, b.shape, strict=True):
        times = x // sizes[0]
        sides.append(str(x) if x == y else "N" if times == 1 else f"{times} N")
    return " x ".join(sides)


def words(module: nn.Module) -> str:
    """A layer's class and main sizes: `Conv2d 1 -> 64, 3x3, stride 2`."""
    name = type(module).__name__.removeprefix("Parametrized").lstrip("_")
    name += next((f" {text(module)}" for kind, text in _SIZES if isinstance(module, kind)), "")
    inside = getattr(module, "parametrizations", None)
    weight = getattr(inside, "weight", ()) if inside is not None else ()
    kinds = {type(part).__name__ for part in weight} if isinstance(weight, nn.ModuleList) else set()
    return name + (
        ", spectral norm" if "_SpectralNorm" in kinds else ", equalised" if "_Scale" in kinds else ""
    )


def _conv(module: Any) -> str:
    text = f"{module.in_channels} -> {module.out_channels}, {'x'.join(map(str, module.kernel_size))}"
    return text + (f", stride {module.stride[0]}" if module.stride[0] > 1 else "")


def _recurrent(module: Any) -> str:
    text = f"{module.input_size} -> {module.hidden_size}"
    return (
        text
        + (f", {module.num_layers} layers" if getattr(module, "num_layers", 1) > 1 else "")
        + (", both ways" if getattr(module, "bidirectional", False) else "")
    )


_SIZES: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (nn.Linear, lambda m: f"{m.in_features} -> {m.out_features}"),
    (_CONV, _conv),
    (_RECURRENT, _recurrent),
    (nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, lambda m: f"{m.num_features}"),
    (nn.Embedding, lambda m: f"{m.num_embeddings} -> {m.embedding_dim}"),
    (nn.LeakyReLU, lambda m: f"{m.negative_slope:g}"),
    (nn.Dropout | nn.Dropout1d | nn.Dropout2d, lambda m: f"{m.p:g}"),
    (nn.Upsample, lambda m: f"x{m.scale_factor:g}" if isinstance(m.scale_factor, int | float) else ""),
    (nn.Unflatten, lambda m: f"to {' x '.join(map(str, m.unflattened_size))}"),
    (nn.AvgPool2d | nn.MaxPool2d | nn.AvgPool1d | nn.MaxPool1d, lambda m: f"{m.kernel_size}"),
)
