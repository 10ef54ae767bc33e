"""Small networks with one trait each, and data for them: weights and images are the same on every machine.

Every number is a fraction with a small power of two below it, drawn as an integer by NumPy, so that no kernel of
PyTorch and no rounding plays a part. The command line opens them as ``replaying.networks:NAME``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def drawn(shape: tuple[int, ...], seed: int, *, span: int = 64) -> Tensor:
    """Numbers in [-1, 1] that are multiples of 1 / span."""
    numbers = np.random.default_rng(seed).integers(-span, span + 1, shape)
    return torch.from_numpy(numbers.astype(np.float32) / span)


def filled(module: nn.Module) -> nn.Module:
    """``module`` in evaluation mode with weights that are the same everywhere and no unit like another."""
    with torch.no_grad():
        tensors = [*module.named_parameters(), *module.named_buffers()]
        for number, (name, tensor) in enumerate(tensors):
            if not tensor.is_floating_point():
                continue
            values = drawn(tuple(tensor.shape), 1000 + number)
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                values = 1 + values / 2
            elif tensor.dim() > 1:
                fan_in = tensor[0].numel()
                values = values * 2.0 ** -int(np.log2(max(1, fan_in)) / 2)
            else:
                values = values / 8
            tensor.copy_(values)
    return module.eval()


def _conv(inputs: int, outputs: int, size: int = 3, **more: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Stages of residual blocks that can go as a whole."""

    def __init__(self, widths: tuple[int, ...] = (8, 16), depth: int = 2) -> None:
        super().__init__()
        self.stem = _conv(3, widths[0])
        self.downs = nn.ModuleList(_conv(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(_conv(w, w), nn.Conv2d(w, w, 3, padding=1)) for _ in range(depth))
            for w in widths
        )
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        for number, stage in enumerate(self.blocks):
            for block in stage:
                x = F.relu(x + block(x))
            if number < len(self.downs):
                x = self.downs[number](x)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Layers that read what all layers before them made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8)
        self.grown = nn.ModuleList(_conv(8 + 6 * number, 6) for number in range(3))
        self.last = _conv(26, 16, 1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        for layer in self.grown:
            x = torch.cat([x, layer(x)], 1)
        return self.head(self.last(x).mean((2, 3)))


class Attention(nn.Module):
    """Patches, two transformer blocks with heads, and a head."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.joins = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.rises = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.falls = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        for number in range(2):
            x = x + self._mixed(self.norms[2 * number](x), number)
            x = x + self.falls[number](F.gelu(self.rises[number](self.norms[2 * number + 1](x))))
        return self.head(x.mean(1))

    def _mixed(self, x: Tensor, number: int) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.mixes[number](x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.joins[number](mixed.transpose(1, 2).reshape(batch, tokens, width))


class Grouped(nn.Module):
    """Grouped convolutions with a shuffle in between, and a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16)
        self.first, self.second = _conv(16, 24, groups=4), _conv(24, 24, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.first(self.stem(x))
        x = self.second(x.unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head((x * gate).mean((2, 3)))


class Shared(nn.Module):
    """One convolution that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.wide = _conv(3, 12), _conv(12, 12), _conv(12, 20)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x)
        return self.head(self.wide(x).mean((2, 3)))


class Signal(nn.Module):
    """A 1-D network with dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, 12, 5, padding=2), nn.ReLU(), nn.Conv1d(12, 16, 3, padding=2, dilation=2), nn.BatchNorm1d(16),
            nn.ReLU(), nn.Conv1d(16, 20, 3, stride=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.layers(x).mean(2))


class Plain(nn.Module):
    """A small VGG: convolutions, pooling, and a classifier that reads positions."""

    def __init__(self, widths: tuple[int, ...] = (12, 16, 24)) -> None:
        super().__init__()
        sides = (3, *widths)
        parts = [part for a, b in zip(sides, widths, strict=False) for part in (_conv(a, b), nn.MaxPool2d(2))]
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Linear(widths[-1] * 4, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.classifier(self.features(x).flatten(1))


class Branches(nn.Module):
    """Two branches that are multiplied, a transposed convolution, and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 12, stride=2)
        self.left, self.right = nn.Conv2d(12, 16, 1), nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        x = self.norm(self.left(x) * self.right(x).sigmoid())
        return self.head(F.relu(self.up(x)).mean((2, 3)))


OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 16, 16)),
    "concat": (Dense, (3, 16, 16)),
    "attention": (Attention, (3, 16, 16)),
    "grouped": (Grouped, (3, 16, 16)),
    "shared": (Shared, (3, 16, 16)),
    "signal": (Signal, (4, 32)),
    "plain": (Plain, (3, 16, 16)),
    "branches": (Branches, (3, 16, 16)),
}
"""Networks by name, with the shape of one input."""

BUILT_IN = (
    "cifar-resnet20?width=0.5&size=16",
    "digits-resnet?width=0.5&size=16",
    "mobilenet-v1?width=0.25&size=64&classes=10",
    "mobilenet-v2?width=0.25&size=32&classes=10",
)
"""Networks of the package, as the command line names them."""


def tiny() -> nn.Module:
    """What most jobs prune: two stages of two removable blocks."""
    return filled(Residual())


def micro() -> nn.Module:
    """Three groups of few units, for searches that judge hundreds of networks."""
    return filled(Residual((4, 6), depth=1))


def wide() -> nn.Module:
    """Layers that are worth running sparse."""
    return filled(Plain((32, 48, 64)))


def data(count: int = 96) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """(training, test) loaders of images [3, 16, 16] whose class can be read off them."""
    return _loader(count, 1), _loader(count // 2, 2)


def few() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """As :func:`data`, of seven classes only."""
    return [[(x, y % 7) for x, y in part] for part in data()]  # type: ignore[return-value]


def _loader(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(count) % CLASSES
    marks = drawn((CLASSES, 3, 16, 16), 7)
    images = drawn((count, 3, 16, 16), seed) / 2 + marks[labels]
    return [(images[start : start + 16], labels[start : start + 16]) for start in range(0, count, 16)]


def batches(shape: tuple[int, ...], count: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Calibration batches of inputs of one shape."""
    labels = torch.arange(count) % CLASSES
    inputs = drawn((count, *shape), 3)
    return [(inputs[start : start + 8], labels[start : start + 8]) for start in range(0, count, 8)]
