"""A linear layer is one however it is written: counted, coupled, cut, and left out with its block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.structure import trace
from secateurs.testing.structure import verdict

SPELLINGS: dict[str, tuple[bool, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "linear": (True, lambda x, w, b: F.linear(x, w, b)),
    "matmul": (False, lambda x, w, b: x @ w + b),
    "transposed": (True, lambda x, w, b: x @ w.t() + b),
    "mm": (False, lambda x, w, b: torch.mm(x.flatten(0, 1), w).unflatten(0, (-1, 7)) + b),
    "addmm": (False, lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w).unflatten(0, (-1, 7))),
    "addmm, transposed": (True, lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w.t()).unflatten(0, (-1, 7))),
}
"""Whether the weight is [out, in], and the layer."""


class Spelt(nn.Module):
    """A linear layer with its own call."""

    def __init__(self, spelling: str, before: int, after: int) -> None:
        super().__init__()
        rows, self.call = SPELLINGS[spelling]
        self.weight = nn.Parameter(torch.randn(*((after, before) if rows else (before, after))) / before**0.5)
        self.bias = nn.Parameter(torch.randn(after))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight, self.bias)


class Branch(nn.Module):
    """A residual branch of two layers, and a head."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Spelt(spelling, 16, 32), Spelt(spelling, 32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.second(torch.relu(self.first(x)))).mean(1))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_linear_layer_is_one_however_it_is_written(spelling: str) -> None:
    model, example = Branch(spelling).eval(), torch.randn(2, 7, 16)
    graph = trace(model, example)
    dense = graph.spec.dense_widths
    counted = {layer.parameter: (layer.kind, int(layer.macs(dense))) for layer in graph.spec.layers}
    assert counted == {
        "first.weight": ("linear", 7 * 16 * 32),
        "second.weight": ("linear", 7 * 32 * 16),
        "head.weight": ("linear", 16 * 5),
    }
    assert [(group.name, group.units) for group in graph.groups] == [("first:out", 32)]
    assert [block.name for block in graph.removable_blocks] == ["second"]
    assert verdict(model, example, graph=graph).outcome == "right"
