"""Calls of two exports of one network: matched whatever each names them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from secateurs.export.alignment import aligned, takes_all
from secateurs.structure import trace
from secateurs.structure.fold import fold_batch_norm


class Sliced(nn.Module):
    """Slices that take everything, of which an export with a fixed batch has none, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.a(x)))
        y = torch.cat([y[:, 9:], y[:, :-7], y[:][:, :1], y[:, 1:2]], 1)
        return self.b(y[:, 2:]).mean((2, 3))


def test_slices_meet_those_of_the_same_bounds() -> None:
    model, example = Sliced().eval(), torch.randn(1, 3, 8, 8)
    graph = trace(model, example)
    program = torch.export.export(fold_batch_norm(graph), (example,), strict=False)
    found = aligned(program.graph, graph.program.graph)
    ours = {node.name: node for node in program.graph.nodes}
    slices = {name: theirs for name, theirs in found.items() if name.startswith("slice")}
    assert len(slices) == 5
    assert any(name != theirs for name, theirs in slices.items())  # as they are named they would not meet
    for name, theirs in slices.items():
        assert ours[name].args[1:] == graph.nodes[theirs].args[1:]
    assert sum(takes_all(node) for node in graph.nodes.values()) >= 5
    assert not any("norm" in theirs for theirs in found.values())
