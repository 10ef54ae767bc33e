"""Small networks after public reports of pruning and export tools; what must become of each.

Each network is written anew from what its report describes: the trait that broke another tool, and as little around it
as the trait needs. ``load_all`` imports the families.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

REPORTS: dict[str, Report] = {}
FAMILIES = (
    "reported_detectors", "reported_attention", "reported_dense", "reported_restoration", "reported_sequences",
    "reported_language", "reported_efficient", "reported_containers",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """One network and the report it is after.

    ``example``: inputs for a batch of that size, in any form that ``trace`` takes;
    ``expected``: ``cut`` (in its own class), ``cut rebuilt``, or ``refused: TEXT`` (TEXT stands in the message);
    ``barriers``: names of modules that stay whole; ``least``: share of the parameters that must go at least at
    ``keep=0.6``.
    """

    name: str
    repository: str
    number: int
    trait: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Any]
    expected: str
    barriers: tuple[str, ...]
    least: float

    @property
    def family(self) -> str:
        """Part of the name of the file that holds the network."""
        return self.build.__module__.removeprefix("reported_")


def image(*shape: int) -> Callable[[int], Any]:
    """Random tensors of a shape, [3, 32, 32] by default, as many as are asked for."""
    size = shape or (3, 32, 32)
    return lambda count: torch.randn(count, *size)


def reported(
    repository: str,
    number: int,
    trait: str,
    example: Callable[[int], Any] | None = None,
    *,
    expected: str = "cut",
    barriers: tuple[str, ...] = (),
    least: float = 0.2,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module class as the network after a report."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")
        REPORTS[name] = Report(
            name,
            repository,
            number,
            trait,
            cls,
            example or image(),
            expected,
            barriers,
            0.0 if ":" in expected else least,
        )
        return cls

    return register


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, SiLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


def load_all() -> dict[str, Report]:
    """Every report by the name of its network."""
    for family in FAMILIES:
        importlib.import_module(family)
    return REPORTS
