"""The forward as an exported program."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.structure import trace
from secateurs.testing.structure import random_cut


class Two(nn.Module):
    """Differs in its two inputs; ``fixed`` holds a width in its code, so that it must be rebuilt."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.one, self.two = fixed, nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = self.one(x).relu()
        return self.two((first.view(-1, 16) if self.fixed else first) - self.one(y).tanh())


@pytest.mark.parametrize("fixed", [False, True])
def test_one_tensor_given_twice_is_two_inputs(fixed: bool) -> None:
    torch.manual_seed(0)
    model, x = Two(fixed).eval(), torch.randn(2, 6)
    graph = trace(model, (x, x))
    plan = graph.plan(random_cut(graph, 0.4, 0))
    small = sc.apply(model, plan, (x, x))
    one, two = torch.randn(2, 6), torch.randn(2, 6)
    assert not torch.allclose(small(one, two), small(two, two))
    with torch.no_grad():
        stays = torch.zeros(16)
        stays[list(plan.slices["one.weight"][0])] = 1.0
        model.two.weight.mul_(stays)
    assert torch.allclose(small(one, two), model(one, two), atol=1e-5)


class Remembered(nn.Module):
    """Caches by whole shapes, which are no keys while a size is free."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.known = nn.Linear(6, 16), nn.Linear(16, 5), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x).relu()
        return self.two(y) + self.known.setdefault(y.shape, torch.arange(y.shape[1]))[:5]


def test_shapes_as_keys() -> None:
    """The exporter gives up on a free batch, and must not find the same inputs marked once more."""
    model, x = Remembered().eval(), torch.randn(2, 6)
    graph = trace(model, x)
    assert [group.units for group in graph.groups] == [16]
    assert not model.known
