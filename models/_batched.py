"""K networks of one structure as one: every layer's twin on weights that are stacked over the networks.

Axes: K networks, N images of a batch, F features. Images come last: activations are (K, F, N), pictures
(K, C, H, W, N). So a linear layer is one product of its weights (K, out, in), as they are kept, with its input
(K, in, N), and gradients come out in the layout of the weights.

`forward` dispatches on the layer's type. A family whose networks are more than a chain of known layers registers the
twins of its own modules beside them: `@forward.register`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, normalize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList

from models._layers import MinibatchStddev, PixelNorm, Squeeze, _Scale


class UnbatchableError(TypeError):
    """A layer has no twin; the message names it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Weights and buffers (K, ...) of the networks below `prefix`, and what their dropout draws from."""

    tensors: Mapping[str, Tensor]
    generators: Sequence[torch.Generator]
    rates: Mapping[str, Sequence[float]]
    """Dropout rates of every network, by the layer's name."""
    prefix: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def of(self, child: str) -> Stack:
        """What belongs to a child module."""
        return Stack(self.tensors, self.generators, self.rates, f"{self.prefix}{child}.")

    def weight(self, layer: nn.Module) -> Tensor:
        """The weight (K, out, in) that the layer computes with, which is the stored one unless a parametrization
        makes it. Read it once a forward, as the layer does: under spectral norm it takes a power iteration."""
        steps = _parametrizations(layer).get("weight")
        if steps is None:
            return self["weight"]
        mine = self.of("parametrizations.weight")
        weight = mine["original"]
        for name, step in steps.named_children():
            weight = forward(step, mine.of(name), weight)
        return weight

    def mask(self, shape: Sequence[int]) -> Tensor:
        """Dropout masks (K, *shape), scaled by 1/(1 - rate), each drawn as the network alone draws it on a CPU."""
        rates = self.rates[self.prefix.removesuffix(".")]
        kept = [
            torch.empty(tuple(shape), device=draw.device).bernoulli_(1 - rate, generator=draw).div_(1 - rate)
            for draw, rate in zip(self.generators, rates, strict=True)
        ]
        return torch.stack(kept)


@singledispatch
def forward(module: nn.Module, stack: Stack, *inputs: Tensor) -> Tensor:
    """The outputs of all networks in training mode, of which `module` is one. Raises UnbatchableError."""
    raise UnbatchableError(f"{type(module).__name__} has no batched twin")


@forward.register(nn.Sequential)
def _sequential(module: nn.Sequential, stack: Stack, x: Tensor) -> Tensor:
    for name, layer in module.named_children():
        x = forward(layer, stack.of(name), x)
    return x


@forward.register(nn.Linear)
def _linear(module: nn.Linear, stack: Stack, x: Tensor) -> Tensor:
    return torch.baddbmm(stack["bias"][:, :, None], stack.weight(module), x)


def _same(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
    """Layers that act on every number alone, or on axis 1, which holds the features here too."""
    out: Tensor = module(x)
    return out


for _type in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, PixelNorm, _Scale):
    forward.register(_type, _same)


@forward.register(_SpectralNorm)
def _spectral_norm(module: _SpectralNorm, stack: Stack, weight: Tensor) -> Tensor:
    """(K, out, in) -> the same over their largest singular values, after one power iteration."""
    u, v = stack["_u"], stack["_v"]  # (K, out), (K, in)
    # Alone these are products with vectors, which autocast on a CPU leaves in the precision of the weights.
    with torch.autocast(weight.device.type, enabled=False):
        with torch.no_grad():
            for _ in range(module.n_power_iterations):
                u.copy_(normalize((weight @ v[:, :, None]).squeeze(2), dim=1, eps=module.eps))
                v.copy_(normalize((u[:, None] @ weight).squeeze(1), dim=1, eps=module.eps))
        # Clones: a second forward changes the vectors that the first one's backward needs.
        sigma = u.clone()[:, None] @ (weight @ v.clone()[:, :, None])  # (K, 1, 1)
        return weight / sigma


@forward.register(nn.BatchNorm1d)
def _batch_norm(module: nn.BatchNorm1d, stack: Stack, x: Tensor) -> Tensor:
    k, features, n = x.shape
    assert module.momentum is not None
    stack["num_batches_tracked"].add_(1)
    normal = batch_norm(
        x.reshape(1, k * features, n), stack["running_mean"].view(-1), stack["running_var"].view(-1),
        stack["weight"].view(-1), stack["bias"].view(-1), True, module.momentum, module.eps,
    )  # fmt: skip
    return normal.view(k, features, n)


@forward.register(nn.Dropout)
def _dropout(module: nn.Dropout, stack: Stack, x: Tensor) -> Tensor:
    if x.dim() != 3:
        raise UnbatchableError("dropout of feature maps has no batched twin")
    _, features, n = x.shape
    return x * stack.mask((n, features)).transpose(1, 2)


@forward.register(nn.Flatten)
def _flatten(module: nn.Flatten, stack: Stack, x: Tensor) -> Tensor:
    return x.flatten(1, -2)


@forward.register(nn.Unflatten)
def _unflatten(module: nn.Unflatten, stack: Stack, x: Tensor) -> Tensor:
    k, _, n = x.shape
    return x.view(k, *module.unflattened_size, n)


@forward.register(Squeeze)
def _squeeze(module: Squeeze, stack: Stack, x: Tensor) -> Tensor:
    return x.squeeze(1)


@forward.register(MinibatchStddev)
def _minibatch_stddev(module: MinibatchStddev, stack: Stack, x: Tensor) -> Tensor:
    k, n = len(x), x.shape[-1]
    group = module.group or n
    grouped = x.reshape(k, -1, n // group, group)  # (K, C ..., G, group)
    sd = (grouped.var(dim=-1, correction=0) + 1e-8).sqrt().mean(dim=1)  # (K, G)
    row = sd.repeat_interleave(group, dim=1).view(k, *[1] * (x.dim() - 2), n)
    return torch.cat((x, row.expand(k, 1, *x.shape[2:])), dim=1)


class Batched:
    """K networks of one structure that train as one.

    Their parameters and buffers become views of the stacked ones, and they stay ordinary modules: what one of them
    does by itself, such as being evaluated, saved or loaded in place, acts on the stacked weights.
    """

    def __init__(self, networks: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        """`generators`: what each network's dropout draws from."""
        self._first = networks[0]
        own = [dict(network.named_parameters()) for network in networks]
        self.names = list(own[0])
        self.weights = {
            name: torch.stack([parameters[name].detach() for parameters in own]).requires_grad_()
            for name in self.names
        }
        self.parameters = [[parameters[name] for parameters in own] for name in self.names]
        buffers = [dict(network.named_buffers()) for network in networks]
        stacked = {name: torch.stack([mine[name] for mine in buffers]) for name in buffers[0]}
        with torch.no_grad():
            for name, of_all in zip(self.names, self.parameters, strict=True):
                for parameter, view in zip(of_all, self.weights[name].detach().unbind(0), strict=True):
                    parameter.data = view
            for name, whole in stacked.items():
                for mine, view in zip(buffers, whole.unbind(0), strict=True):
                    mine[name].data = view
        rates = {
            name: [_rate(network.get_submodule(name)) for network in networks]
            for name, layer in self._first.named_modules()
            if isinstance(layer, nn.Dropout)
        }
        self._stack = Stack({**self.weights, **stacked}, list(generators), rates)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return forward(self._first, self._stack, *inputs)

    def gradients_of(self, loss: Tensor) -> None:
        """Give every network's parameters their gradients of `loss`, the sum of the networks' own losses."""
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        seen = set[int]()
        for of_all, gradient in zip(self.parameters, gradients, strict=True):
            # The fused optimisers on a CPU take the strides of a gradient to be those of its parameter, unasked.
            # Being contiguous leaves the strides of axes of length 1 open; made of one axis they are the usual ones.
            # Two parameters that are only ever added, as an LSTM's biases, get one and the same gradient: clipping,
            # which works in place, must not reach it twice.
            address = gradient.data_ptr()
            whole = gradient.clone() if address in seen else gradient
            seen.add(address)
            whole = whole.contiguous().view(-1).view(gradient.shape)
            for parameter, mine in zip(of_all, whole.unbind(0), strict=True):
                parameter.grad = mine


def _rate(layer: nn.Module) -> float:
    assert isinstance(layer, nn.Dropout)
    return layer.p


def _parametrizations(layer: nn.Module) -> dict[str, ParametrizationList]:
    return dict(getattr(layer, "parametrizations", nn.ModuleDict()).items())


def _has_twin(module: nn.Module) -> bool:
    return forward.dispatch(type(module)) is not forward.dispatch(object)


def layers_without_twin(module: nn.Module) -> Iterator[str]:
    """The layers that `forward` does not know, by type. What a module with a twin holds is that twin's business."""
    for layer in module.modules():
        for name, steps in _parametrizations(layer).items():
            if name != "weight" or not all(map(_has_twin, steps)):
                yield f"{type(layer).__bases__[0].__name__} with a computed {name}"
    if not _has_twin(module):
        # A layer with a computed weight is of a type made for it, under the type that it was.
        yield (type(module).__bases__[0] if _parametrizations(module) else type(module)).__name__
    elif isinstance(module, nn.Sequential):
        for child in module:
            yield from layers_without_twin(child)
