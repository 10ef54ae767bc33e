"""A small network and a target without a clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.latency.targets import make_target
from secateurs.testing.latency import FakeTarget


@pytest.fixture(scope="module")
def graph() -> sc.Graph:
    """Four groups of different sizes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 5)]
    return sc.trace(nn.Sequential(*layers, *head).eval(), torch.randn(1, 3, 10, 10))


@pytest.fixture
def fake(fake_target: str) -> FakeTarget:
    """The target itself; counts what it loads."""
    found = make_target(fake_target)
    assert isinstance(found, FakeTarget)
    return found
