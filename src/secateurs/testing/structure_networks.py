"""Random small networks that mix the traits of real ones, from any source of choices.

A network is a stem, a few nested nodes on a feature map, sometimes tokens, and a head. Hypothesis supplies choices that
shrink; a seed supplies the same distribution without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from secateurs.testing import structure_layers as layers

Pick = Callable[[int], int]
"""``pick(n)`` is a number from 0 to n − 1."""
SIZE = 8
"""Height and width of every feature map."""


def seeded(seed: int) -> Pick:
    """Choices from a seed."""
    generator = np.random.default_rng(seed)
    return lambda count: int(generator.integers(count))


def random_network(pick: Pick) -> nn.Module:
    """A network for images [batch, 3, 8, 8]; weights come from PyTorch's own generator."""
    channels = _width(pick)
    nodes: list[nn.Module] = []
    for _ in range(1 + pick(4)):
        node, channels_after = _node(pick, channels, 2)
        nodes.append(node)
        channels = channels_after
    first = _first_width(nodes, channels, pick)
    return RandomNetwork(nn.Conv2d(3, first, 3, padding=1), nodes, _head(pick, channels), pick(4) == 0)


class RandomNetwork(nn.Module):
    """Stem, nodes, head; optionally an inner map is an output too."""

    def __init__(self, stem: nn.Module, nodes: Sequence[nn.Module], head: nn.Module, shows: bool) -> None:
        super().__init__()
        self.stem, self.nodes, self.head, self.shows = stem, nn.ModuleList(nodes), head, shows

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """The head's result, or a dictionary with the middle map as well."""
        x = F.relu(self.stem(x))
        middle = x
        for number, node in enumerate(self.nodes):
            x = node(x)
            if number == len(self.nodes) // 2:
                middle = x
        result: torch.Tensor = self.head(x)
        return {"out": result, "energy": middle.pow(2).mean((2, 3))} if self.shows else result


def _first_width(nodes: Sequence[nn.Module], last: int, pick: Pick) -> int:
    return int(getattr(nodes[0], "takes", last))


def _width(pick: Pick) -> int:
    return (8, 12, 16, 24)[pick(4)]


class Node(nn.Module):
    """A node that knows how many channels it takes."""

    def __init__(self, takes: int) -> None:
        super().__init__()
        self.takes = takes


class Step(Node):
    """Layers one after the other."""

    def __init__(self, takes: int, *parts: nn.Module) -> None:
        super().__init__(takes)
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Through every layer."""
        for part in self.parts:
            x = part(x)
        return x


class Joined(Node):
    """Branches that are added, multiplied, concatenated, compared, or run twice."""

    def __init__(self, takes: int, kind: str, branches: Sequence[nn.Module]) -> None:
        super().__init__(takes)
        self.kind, self.branches = kind, nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The branches' results, joined."""
        if self.kind == "twice":
            return self.branches[0](self.branches[0](x))
        results = [branch(x) for branch in self.branches]
        if self.kind == "residual":
            return F.relu(x + results[0])
        if self.kind == "dense":
            return torch.cat([x, *results], 1)
        if self.kind == "concat":
            return torch.cat(results, 1)
        if self.kind == "padded":
            short = F.pad(x, (0, 0, 0, 0, 2, results[0].shape[1] - x.shape[1] - 2))
            return results[0] + short
        if self.kind == "gate":
            return results[0] * results[1].sigmoid()
        if self.kind == "stack":
            return torch.stack(results, 1).amax(1)
        return results[0] - results[1]


def _node(pick: Pick, channels: int, depth: int) -> tuple[nn.Module, int]:
    """A random node on ``channels`` channels and how many it gives."""
    if depth == 0 or pick(2) == 0:
        return _leaf(pick, channels)
    kind = ("residual", "dense", "concat", "padded", "gate", "stack", "minus", "twice")[pick(8)]
    if kind == "dense":
        inner, more = _node(pick, channels, depth - 1)
        return Joined(channels, kind, [inner]), channels + more
    if kind == "concat":
        first, one = _node(pick, channels, depth - 1)
        second, two = _node(pick, channels, depth - 1)
        return Joined(channels, kind, [first, second]), one + two
    if kind == "padded":
        after = channels + 4 + 2 * pick(3)
        return Joined(channels, kind, [_closed(pick, channels, after, depth)]), after
    after = channels if kind in ("residual", "twice") else _width(pick)
    count = 1 if kind in ("residual", "twice") else 2
    return Joined(channels, kind, [_closed(pick, channels, after, depth) for _ in range(count)]), after


def _closed(pick: Pick, channels: int, after: int, depth: int) -> nn.Module:
    """A branch whose last layer gives ``after`` channels."""
    inner, between = _node(pick, channels, depth - 1)
    norm = (nn.BatchNorm2d(after), nn.Identity(), nn.GroupNorm(1, after))[pick(3)]
    return Step(channels, inner, nn.Conv2d(between, after, 1 + 2 * pick(2), padding="same"), norm)


def _leaf(pick: Pick, channels: int) -> tuple[nn.Module, int]:
    after = _width(pick)
    makers: tuple[Callable[[], tuple[nn.Module, int]], ...] = (
        lambda: (_convolution(pick, channels, after), after),
        lambda: (_convolution(pick, channels, after), after),
        lambda: (_grouped(pick, channels), channels * (1 + pick(2))),
        lambda: (_normal(pick, channels), channels),
        lambda: (_same(pick, channels), channels),
        lambda: (_same(pick, channels), channels),
        lambda: (layers.Gated(channels, after, pick(3)), after),
        lambda: (layers.Selective(channels, 2 + pick(2)), channels),
    )
    layer, given = makers[pick(len(makers))]()
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        given = layer.out_channels
    return Step(channels, layer, _activation(pick, given)), given


def _convolution(pick: Pick, channels: int, after: int) -> nn.Module:
    kind = pick(6)
    if kind == 0:
        return parametrizations.weight_norm(nn.Conv2d(channels, after, 3, padding=1))
    if kind == 1:
        return nn.ConvTranspose2d(channels, after, 3, padding=1)
    if kind == 2:
        return nn.Sequential(nn.Conv2d(channels, after, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(after))
    if kind == 3:
        return nn.Conv2d(channels, after, 1)
    return nn.Sequential(nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after))


def _grouped(pick: Pick, channels: int) -> nn.Module:
    divisors = [groups for groups in range(2, channels + 1) if channels % groups == 0]
    groups = divisors[pick(len(divisors))]
    return nn.Conv2d(channels, channels * (1 + pick(2)), 3, padding=1, groups=groups)


def _normal(pick: Pick, channels: int) -> nn.Module:
    divisors = [groups for groups in range(1, channels + 1) if channels % groups == 0]
    kind = pick(5)
    if kind == 0:
        return nn.GroupNorm(divisors[pick(len(divisors))], channels)
    if kind == 1:
        return nn.InstanceNorm2d(channels, affine=True)
    if kind == 2:
        return nn.LocalResponseNorm(3)
    return layers.MapNorm(channels, kind == 3)


def _same(pick: Pick, channels: int) -> nn.Module:
    """A layer that keeps the number of channels."""
    halves = 2 if channels % 2 == 0 else 1
    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: layers.Shuffle(halves),
        lambda: nn.ChannelShuffle(halves),
        lambda: layers.Turn(pick(4)),
        lambda: layers.SqueezeExcite(channels, pick(2) == 0),
        lambda: layers.ChannelKernel(),
        lambda: layers.SpaceGate(),
        lambda: layers.Hierarchy(channels, 2 + pick(2)),
        lambda: layers.Partial(channels, max(2, channels // 4)),
        lambda: layers.ScaledBy(channels, SIZE, pick(3)),
        lambda: layers.Zoomed(channels, pick(3)),
        lambda: layers.SpaceAttention(channels, 1 + pick(4)),
    )
    return makers[pick(len(makers))]()


def _activation(pick: Pick, channels: int) -> nn.Module:
    return (nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.PReLU(channels), nn.Sigmoid(), nn.Identity())[pick(6)]


def _head(pick: Pick, channels: int) -> nn.Module:
    kind = pick(5)
    if kind == 0:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    if kind == 1:
        pooled = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 16), nn.ReLU())
        return nn.Sequential(pooled, nn.Linear(16, 5))
    if kind == 2:
        return nn.Conv2d(channels, 3, 1)
    return Tokens(pick, channels, last=kind == 3)


class Tokens(nn.Module):
    """Patches as tokens, a few attention and mixing layers, a class token or a flattened end."""

    def __init__(self, pick: Pick, channels: int, last: bool) -> None:
        super().__init__()
        features, self.last = (16, 24)[pick(2)], last
        count = 16 + last
        self.patch = nn.Conv2d(channels, features, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, features))
        self.place = nn.Parameter(torch.zeros(1, count, features))
        mixers: list[nn.Module] = []
        for _ in range(1 + pick(3)):
            if pick(2):
                mixers.append(layers.TokenAttention(features, (1, 2, 4, 8)[pick(4)], pick(3)))
            else:
                mixers.append(layers.TokenMlp(features, count, pick(3)))
        self.mixers = nn.ModuleList(mixers)
        self.norm = nn.LayerNorm(features)
        self.out = nn.Linear(features if last else features * count, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [batch, 5]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.last:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.place
        for mixer in self.mixers:
            x = mixer(x)
        x = self.norm(x)
        return self.out(x[:, 0] if self.last else x.flatten(1))  # type: ignore[no-any-return]
