"""About a hundred small networks, one graph trait each; importing this module registers them all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TRAITS: dict[str, Trait] = {}
FAMILIES = (
    "traits_channels", "traits_movement", "traits_layers", "traits_attention", "traits_heads", "traits_parameters",
    "traits_recurrent", "traits_forms", "traits_blocks", "traits_statistics", "traits_parametrised",
    "traits_pooled", "traits_scales",
)  # fmt: skip


@dataclass(frozen=True)
class Trait:
    """One network: how it is built, its example, and what must become of a 40 % cut.

    ``least``: share of the parameters that must go at least; 0 with ``pinned``: nothing may go, and a pin or barrier
    whose text contains ``pinned`` says why.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    least: float
    pinned: str


def image(*shape: int) -> Callable[[], Any]:
    """One random tensor; [2, 3, 12, 12] by default."""
    size = shape or (2, 3, 12, 12)
    return lambda: torch.randn(*size)


def trait(
    example: Callable[[], Any] | None = None, least: float = 0.25, pinned: str = ""
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module class as the trait of its name."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")
        TRAITS[name] = Trait(name, cls, example or image(), 0.0 if pinned else least, pinned)
        return cls

    return register


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Head(nn.Module):
    """Global average pooling and a classifier."""

    def __init__(self, inputs: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))


def load_all() -> dict[str, Trait]:
    """Every trait by name."""
    for family in FAMILIES:
        importlib.import_module(family)
    return TRAITS
