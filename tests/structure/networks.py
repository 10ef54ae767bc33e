"""Small networks and helpers that several structure tests share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from secateurs.structure import Graph
from secateurs.testing.structure import random_cut


class Residual(nn.Module):
    """``relu(x + branch(x))`` with an optional projection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


class PaddedResidual(nn.Module):
    """The option-A shortcut of CIFAR ResNets."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.extra = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(self.conv2(F.relu(self.conv1(x))) + short)


class ResNet(nn.Module):
    """Stem, three residual blocks, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList([Residual(16, 16), Residual(16, 24, 2), Residual(24, 24)])
        self.fc = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def image(batch: int = 2) -> torch.Tensor:
    """A small random batch of images."""
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def plan_of(graph: Graph, share: float = 0.4, seed: int = 0) -> Any:
    """A plan that removes ``share`` of every group at random."""
    return graph.plan(random_cut(graph, share, seed))


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Equal up to float32 rounding."""
    return first.shape == second.shape and bool((first - second).abs().max() <= tolerance * second.abs().max())
