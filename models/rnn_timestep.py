"""Family `rnn_timestep`: an LSTM GAN that writes and reads a picture section by section, told the class.

Source: "RNN GAN experiment" on MNIST (code of the four-quadrant model; other partitions use the same networks).
Axes besides those of the package: T sections of a picture, F pixels of a section, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models._batched import Stack, forward
from models._gan import Gan, ImageShape, Param, Preset
from models._layers import MinibatchStddev, ReadLabel, Squeeze, UniformLatent, drop

PRESETS = (
    Preset(
        name="rnn_timestep",
        doc="LSTM GAN over image sections: G six layers of 600, D two of 400, both given the class",
        source="RNN GAN experiment (MNIST)",
        pixels="unit",
        conditional=True,
        recurrent=True,
        channels=(1,),
        params={
            "latent_dim": Param(kind=int, default=100, low=1, high=4096, doc="dimensions of z"),
            "sections": Param(
                kind=str, default="tiles", choices=("tiles", "rows"),
                doc="what a time step is: a tile of a square grid, or a row of pixels",
            ),
            "timesteps": Param(
                kind=int, default=4, low=1, high=65536,
                doc="tiles of a picture, a square number whose root divides both sides; not used with rows",
            ),
            "g_layers": Param(kind=int, default=6, low=1, high=16, doc="LSTM layers of G"),
            "d_layers": Param(kind=int, default=2, low=1, high=16, doc="LSTM layers of D"),
            "g_hidden": Param(kind=int, default=600, low=1, high=4096, doc="units of a layer of G"),
            "d_hidden": Param(kind=int, default=400, low=1, high=4096, doc="units of a layer of D"),
            "head": Param(
                kind=str, default="two_way", choices=("two_way", "sigmoid"),
                doc="D's output: the difference of a logit for real and one for fake, or a single logit",
            ),
            "d_input_proj": Param(
                kind=bool, default=False, doc="a linear layer between a section and D's first LSTM layer"
            ),
            "d_all_layers": Param(
                kind=bool, default=False, doc="D's head sees the last output of every layer, not of the top one"
            ),
        },
        recipe={
            "lr": 1e-4, "optimizer": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
            "batch_size": 64, "batch_size_g": 128, "n_critic": 2, "real_batch": "fresh", "d_update": "mixed",
            "d_reduction": "mean", "grad_clip": 10.0, "l2": 1e-5, "dropout": 0.5,
            "steps": 833333,  # two updates of D and one of G each: 2.5 million updates in all
        },
        refuses={
            "pixel_norm": "its hidden activations are inside LSTM cells, where a normalisation has no place",
            "multi_scale": "it writes a picture section by section, at one resolution only",
            "progressive": "it writes a picture section by section, at one resolution only",
        },
        tiny={"latent_dim": 4, "g_layers": 2, "d_layers": 2, "g_hidden": 8, "d_hidden": 8},
    ),
)  # fmt: skip


def build(preset: Preset, image_shape: ImageShape, params: Mapping[str, Any], n_classes: int) -> Gan:
    """Networks for images of (1, H, W) and `n_classes` classes, initialised from torch's global generator."""
    _, height, width = image_shape
    root = math.isqrt(params["timesteps"])
    grid = (height, 1) if params["sections"] == "rows" else (root, root)
    generator = _Generator((height, width), grid, params, n_classes)
    discriminator = _Discriminator((height, width), grid, params, n_classes)
    _init(generator)
    _init(discriminator)
    return Gan(
        generator=generator,
        discriminator=discriminator,
        pixels=preset.pixels,
        latent=UniformLatent(params["latent_dim"]),
        n_classes=n_classes,
    )


def problem(image_shape: ImageShape, params: Mapping[str, Any]) -> str | None:
    """Why `timesteps` square tiles do not fill images of (C, H, W), or None."""
    (_, height, width), steps = image_shape, params["timesteps"]
    root = math.isqrt(steps)
    if params["sections"] == "rows" or (root * root == steps and not height % root and not width % root):
        return None
    fitting = [g * g for g in range(1, math.gcd(height, width) + 1) if not (height % g or width % g)]
    return (
        f"timesteps must be a square number whose root divides both sides of {height}x{width}: "
        f"one of {', '.join(map(str, fitting))} (got {steps})"
    )


def sections(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut (N, 1, H, W) into rows x columns equal tiles, in raster order: (N, T, F).

    A tile's pixels are in raster order too. The grid (H, 1) cuts into rows of pixels.
    """
    n, _, height, width = images.shape
    rows, columns = grid
    tiles = images.reshape(n, rows, height // rows, columns, width // columns).transpose(2, 3)
    return tiles.reshape(n, rows * columns, -1)


def assemble(tiles: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `sections`: (N, T, F) -> (N, 1, H, W), for a picture of `size` (H, W)."""
    rows, columns = grid
    height, width = size
    cut = tiles.reshape(len(tiles), rows, columns, height // rows, width // columns)
    return cut.transpose(2, 3).reshape(len(tiles), 1, height, width)


def one_hot(labels: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    """(..., ) int64 -> (..., n_classes). Unlike torch's own it fetches no number from the device to check it."""
    return (labels[..., None] == torch.arange(n_classes, device=labels.device)).to(dtype)


def normalise_tiles(raw: Tensor) -> Tensor:
    """max(y, 0) over its own maximum + 1e-7, in every tile: (..., F) -> (..., F) in [0, 1].

    A tile without a positive value becomes all zeros. A tile of one pixel is 0 or about 1, with next to no
    gradient.
    """
    positive = raw.relu()
    return positive / (positive.amax(dim=-1, keepdim=True) + 1e-7)


class _Generator(nn.Module):
    """(N, Z), labels (N,) -> (N, 1, H, W) in [0, 1]. Each step is given the tile before and the class."""

    def __init__(
        self, size: tuple[int, int], grid: tuple[int, int], params: Mapping[str, Any], n_classes: int
    ) -> None:
        super().__init__()
        self.size, self.grid, self.n_classes = size, grid, n_classes
        self.steps = grid[0] * grid[1]
        self.pixels = size[0] * size[1] // self.steps  # F
        hidden = params["g_hidden"]
        self.from_latent = nn.Linear(params["latent_dim"], hidden)
        self.from_tile_and_label = nn.Linear(self.pixels + n_classes, hidden)
        # Cells, not nn.LSTM: a step needs the step before, and one-step calls of nn.LSTM are slower on a CPU.
        self.layers = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(params["g_layers"]))
        self.to_tile = nn.Linear(hidden, self.pixels)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        start = self.from_latent(z)  # (N, hidden), of every layer both the hidden and the cell state
        states = [(start, start) for _ in self.layers]
        # Weights are read once, not once a step: reading a spectrally normalised one is a power iteration.
        weight_in = self.from_tile_and_label.weight
        weight_out, bias_out = self.to_tile.weight, self.to_tile.bias
        # The label's share of the input is the same at every step.
        from_label = linear(
            one_hot(labels, self.n_classes, z.dtype),
            weight_in[:, self.pixels :],
            self.from_tile_and_label.bias,
        )
        weight_tile = weight_in[:, : self.pixels]
        tile = z.new_zeros(len(z), self.pixels)
        raw: list[Tensor] = []
        for _ in range(self.steps):
            output = (from_label + linear(tile, weight_tile)).relu()  # (N, hidden)
            for i, layer in enumerate(self.layers):
                states[i] = layer(output, states[i])
                output = states[i][0]
            tile = linear(output, weight_out, bias_out)  # (N, F), fed back without the normalisation
            raw.append(tile)
        return assemble(normalise_tiles(torch.stack(raw, dim=1)), self.grid, self.size)


class _Discriminator(nn.Module):
    """(N, 1, H, W), labels (N,) -> (N,) logits. The class is the initial state of every layer."""

    def __init__(
        self, size: tuple[int, int], grid: tuple[int, int], params: Mapping[str, Any], n_classes: int
    ) -> None:
        super().__init__()
        self.grid, self.n_classes, self.all_layers = grid, n_classes, params["d_all_layers"]
        pixels, hidden = size[0] * size[1] // (grid[0] * grid[1]), params["d_hidden"]
        self.rate = params["dropout"]
        self.from_label = ReadLabel(n_classes, hidden)
        self.from_tile = nn.Linear(pixels, hidden) if params["d_input_proj"] else nn.Identity()
        first = hidden if params["d_input_proj"] else pixels
        # One nn.LSTM a layer: the dropout inside nn.LSTM leaves out the top layer, and on a GPU it draws from
        # a random state of cuDNN's own, which no checkpoint holds.
        self.layers = nn.ModuleList(
            nn.LSTM(hidden if i else first, hidden, batch_first=True) for i in range(params["d_layers"])
        )
        self.drops = nn.ModuleList(nn.Sequential(*drop(params["dropout"])) for _ in self.layers)
        features = hidden * (params["d_layers"] if self.all_layers else 1) + params["minibatch_stddev"]
        two_way = params["head"] == "two_way"
        self.head = nn.Sequential(
            *([MinibatchStddev(params["minibatch_stddev_group"])] if params["minibatch_stddev"] else []),
            nn.Linear(features, 2 if two_way else 1),
            _RealMinusFake() if two_way else Squeeze(),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        start = self.from_label(one_hot(labels, self.n_classes, images.dtype))[None]  # (1, N, hidden)
        output = self.from_tile(sections(images, self.grid))  # (N, T, F), or (N, T, hidden)
        last: list[Tensor] = []
        for layer, dropout in zip(self.layers, self.drops, strict=True):
            output = dropout(layer(output, (start, start))[0])  # (N, T, hidden)
            last.append(output[:, -1])
        logits: Tensor = self.head(torch.cat(last, dim=1) if self.all_layers else last[-1])
        return logits


class _RealMinusFake(nn.Module):
    """(N, 2) -> (N,): the logit whose sigmoid is the softmax's probability of real, the first of the two."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, 0] - logits[:, 1]


@forward.register(_Generator)
def _batched_generator(module: _Generator, stack: Stack, z: Tensor, labels: Tensor) -> Tensor:
    """(K, Z, N), labels (K, N) -> (K, 1, H, W, N)."""
    start = forward(module.from_latent, stack.of("from_latent"), z)
    states = [(start, start) for _ in module.layers]
    classes = one_hot(labels, module.n_classes, z.dtype).transpose(1, 2)  # (K, classes, N)
    # Weights are read once, as alone.
    weight_in = stack.of("from_tile_and_label").weight(module.from_tile_and_label)
    weight_tile, weight_label = weight_in.split((module.pixels, module.n_classes), 2)
    weight_out, bias_out = stack.of("to_tile").weight(module.to_tile), stack["to_tile.bias"][:, :, None]
    from_label = torch.baddbmm(stack["from_tile_and_label.bias"][:, :, None], weight_label, classes)
    tile = z.new_zeros(len(z), module.pixels, z.shape[2])
    raw: list[Tensor] = []
    for _ in range(module.steps):
        output = torch.baddbmm(from_label, weight_tile, tile).relu()  # (K, hidden, N)
        for i in range(len(module.layers)):
            mine = stack.of(f"layers.{i}")
            gates = torch.baddbmm((mine["bias_ih"] + mine["bias_hh"])[:, :, None], mine["weight_ih"], output)
            states[i] = _cell(gates, mine["weight_hh"], *states[i])
            output = states[i][0]
        tile = torch.baddbmm(bias_out, weight_out, output)
        raw.append(tile)
    tiles = normalise_tiles(torch.stack(raw, dim=-1).permute(0, 3, 2, 1))  # (K, T, N, F)
    (rows, columns), (height, width) = module.grid, module.size
    k, _, n, _ = tiles.shape
    cut = tiles.reshape(k, rows, columns, n, height // rows, width // columns)
    return cut.permute(0, 1, 4, 2, 5, 3).reshape(k, 1, height, width, n)


@forward.register(_Discriminator)
def _batched_discriminator(module: _Discriminator, stack: Stack, images: Tensor, labels: Tensor) -> Tensor:
    """(K, 1, H, W, N), labels (K, N) -> (K, N)."""
    k, _, height, width, n = images.shape
    rows, columns = module.grid
    classes = one_hot(labels, module.n_classes, images.dtype).transpose(1, 2)  # (K, classes, N)
    start = forward(module.from_label, stack.of("from_label"), classes)  # (K, hidden, N)
    cut = images.reshape(k, rows, height // rows, columns, width // columns, n)
    steps = rows * columns
    output = cut.permute(0, 2, 4, 1, 3, 5).reshape(k, -1, steps * n)  # (K, F, T N)
    output = forward(module.from_tile, stack.of("from_tile"), output)
    last: list[Tensor] = []
    for i in range(len(module.layers)):
        mine = stack.of(f"layers.{i}")
        bias = (mine["bias_ih_l0"] + mine["bias_hh_l0"])[:, :, None]
        gates = torch.baddbmm(bias, mine["weight_ih_l0"], output).view(k, -1, steps, n)  # of all time steps
        h = c = start
        made: list[Tensor] = []
        for step in range(steps):
            h, c = _cell(gates[:, :, step], mine["weight_hh_l0"], h, c)
            made.append(h)
        output = torch.stack(made, dim=2)  # (K, hidden, T, N)
        if module.rate:
            # nn.LSTM lays its output out as (T, N, hidden), and dropout draws its mask in that order.
            mask = stack.of(f"drops.{i}.0").mask((steps, n, output.shape[1]))
            output = output * mask.permute(0, 3, 1, 2)
        last.append(output[:, :, -1])
        output = output.flatten(2)
    features = torch.cat(last, dim=1) if module.all_layers else last[-1]
    return forward(module.head, stack.of("head"), features)


def _cell(gates: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: what the input adds to the gates (K, 4 hidden, N), and the state before, to the state."""
    i, f, g, o = torch.baddbmm(gates, recurrent, h).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@forward.register(_RealMinusFake)
def _batched_difference(module: _RealMinusFake, stack: Stack, logits: Tensor) -> Tensor:
    """(K, 2, N) -> (K, N)."""
    return logits[:, 0] - logits[:, 1]


@torch.no_grad()
def _init(module: nn.Module) -> None:
    """U(-0.01, 0.01), the biases of LSTM layers 0 (in place)."""
    for layer in module.modules():
        recurrent = isinstance(layer, nn.LSTM | nn.LSTMCell)
        for name, parameter in layer.named_parameters(recurse=False):
            if recurrent and name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -0.01, 0.01)
