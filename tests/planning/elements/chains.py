"""Small networks whose kernel elements may go, and kernels that take what a formula says."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.importance.scoring import Scorer
from secateurs.measure.kernel_times import KernelPoint, KernelTimes
from secateurs.planning.elements.costs import element_space
from secateurs.planning.elements.space import ElementSpace
from secateurs.planning.planner import Planner
from secateurs.search.legal import Legal
from secateurs.testing.latency import FakeTarget

PER_WEIGHT, PER_LAYER, DENSE_MS = 2e-5, 0.005, 0.3


def formula(point: KernelPoint) -> float:
    """5 µs and 20 ns per kept weight; sparse kernels lose a quarter of their speed."""
    whole = point.shape.positions
    slower = 1.0 if point.count == whole else 1.25
    return PER_LAYER + slower * PER_WEIGHT * point.channels * point.filters * point.count


def kept_costs(content: bytes) -> dict[str, float]:
    """The formula for every weight in a file of the sparse target's format."""
    weights = torch.export.load(io.BytesIO(content)).state_dict
    costs = {}
    for name, weight in weights.items():
        if weight.dim() > 1:
            slower = 1.25 if weight.dim() == 4 and bool((weight == 0).any()) else 1.0
            costs[name] = PER_LAYER + slower * PER_WEIGHT * int(weight.count_nonzero())
    return costs


class FakeSparse(FakeTarget):
    skips_pruned_elements = True


class Chain(nn.Module):
    """Two free groups of 32 units, a layer that can be sparse between and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.middle = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.last = nn.Conv2d(32, 12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(F.relu(self.middle(F.relu(self.stem(x))))).mean((2, 3)))


def chain_space(legal: Legal | None = None, scope: str = "block") -> ElementSpace:
    torch.manual_seed(0)
    graph = sc.trace(Chain().eval(), torch.randn(1, 3, 12, 12))
    return element_space(graph, KernelTimes(), DENSE_MS, scope=scope, legal=legal or Legal())


def planner(space: ElementSpace, **more: object) -> Planner:
    return Planner(space, Scorer(space.graph, "l2"), **more)  # type: ignore[arg-type]


class Pointed(nn.Module):
    """A 1×1 convolution between one that reads the image and a grouped one, whose times nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 1)
        self.grouped, self.head = nn.Conv2d(64, 32, 3, groups=2), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.point(F.relu(self.stem(x)))))).mean((2, 3)))


def pointed_space(**more: str) -> ElementSpace:
    torch.manual_seed(0)
    graph = sc.trace(Pointed().eval(), torch.randn(1, 3, 12, 12))
    return element_space(graph, KernelTimes(), DENSE_MS, legal=Legal(channels=False), **more)  # type: ignore[arg-type]


class Residual(nn.Module):
    """Three groups of units, a block that may go, and four layers that can be sparse."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"stem": (3, 32), "first": (32, 32), "second": (32, 32), "wider": (32, 48), "last": (48, 32)}
        for name, (inputs, outputs) in sizes.items():
            layer = nn.Conv2d(inputs, outputs, 3, padding=1, stride=1 + (name == "wider"), bias=False)
            self.add_module(name, nn.Sequential(layer, nn.BatchNorm2d(outputs)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.last(F.relu(self.wider(x)))).mean((2, 3)))
