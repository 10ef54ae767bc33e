"""What a forward does not read at the example's sizes may be read at others, and stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.errors import StructureError
from secateurs.structure import check_plan
from secateurs.testing.structure import verdict

WORDS = torch.randint(0, 40, (1, 12), generator=torch.Generator().manual_seed(1))


class Words(nn.Module):
    """Learned positions for at most 32 tokens; a subclass says how they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(40, 12), nn.Parameter(torch.randn(32, 12))
        self.mix, self.fc = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x):
        return self.fc(F.gelu(self.mix(self.table(x) + self.read(x.shape[1]))))

    def read(self, length):
        return self.positions[:length]


class Narrowed(Words):
    def read(self, length):
        return torch.narrow(self.positions, 0, 0, length)


class ByIndex(Words):
    def read(self, length):
        return self.positions[torch.arange(length)]


class Split(Words):
    def read(self, length):
        return self.positions.split([length, 32 - length])[0]


class Scaled(Words):
    def read(self, length):
        return self.positions.detach()[None, :length].mul(0.5)


@pytest.mark.parametrize("cls", [Words, Narrowed, ByIndex, Split, Scaled])
def test_positions_beyond_the_example_stay(cls: type[Words]) -> None:
    torch.manual_seed(0)
    model = cls().eval()
    graph = sc.trace(model, WORDS)
    assert [group.name for group in graph.groups] == ["table:out", "mix:out"]
    plan = graph.plan({group.name: range(group.units // 2) for group in graph.groups})
    small = sc.apply(model, plan, WORDS)
    assert small.positions.shape == (32, 6)
    assert small(torch.randint(0, 40, (1, 32))).shape == (1, 32, 4)
    assert verdict(model, WORDS, graph=graph).outcome == "right"


def test_the_check_looks_at_longer_inputs() -> None:
    model = Words().eval()
    graph = sc.trace(model, WORDS)
    plan = graph.plan({"mix:out": range(10)})
    shorter = plan.model_copy(update={"slices": {**plan.slices, "positions": {0: tuple(range(12))}}})
    with pytest.raises(StructureError, match="does not run on random inputs"):
        check_plan(model, shorter, WORDS, graph=graph)


def test_axes_that_are_read_whole_or_computed_with_lose_units() -> None:
    class LowRank(nn.Module):
        """A product of two weights, and a weight of which two halves are read apart."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(16, 6)), nn.Parameter(torch.randn(6, 5))
            self.halves, self.fc = nn.Parameter(torch.randn(24, 16)), nn.Linear(24, 3)

        def forward(self, x):
            x = F.linear(x, self.up @ self.down)
            return self.fc(torch.cat([F.linear(x, self.halves[:12]), F.linear(x, self.halves[12:])], -1).relu())

    model, example = LowRank().eval(), torch.randn(2, 5)
    graph = sc.trace(model, example)
    units = {group.name: group.units for group in graph.groups}
    assert sorted(units.values()) == [6, 16, 24]
    assert verdict(model, example, graph=graph).outcome == "right"
