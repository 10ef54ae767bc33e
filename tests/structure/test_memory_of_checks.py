"""Copies for the check of a large network: half the memory, the same verdicts, and no value longer than needed."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.structure import check_plan
from secateurs.structure import scratch as copies
from secateurs.structure.interpreter import last_uses


class Picky(nn.Module):
    """Compares number types, which narrow weights would fail."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().mean((2, 3))
        if x.dtype != self.fc.weight.dtype:
            raise TypeError("mixed number types")
        return self.fc(x)


class Normed(nn.Module):
    """A statistic over units, so that the interpreter judges."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 24), nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.up(x)))


CASES = {"normed": (Normed, (2, 6)), "picky": (Picky, (2, 3, 8, 8))}


def test_weights_are_held_narrow_and_used_wide() -> None:
    narrow = copies.scratch(Normed(), 3, narrow=True)
    assert (narrow.up.weight.dtype, narrow.up.bias.dtype) == (torch.float32, torch.float64)
    assert copies.scratch(Normed(), 3).up.weight.dtype == torch.float64
    assert torch.equal(narrow.up.weight, copies.scratch(Normed(), 3).up.weight.float())


@pytest.mark.parametrize("name", CASES)
def test_large_networks_are_checked_as_small_ones_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "LARGE", 0)
    torch.manual_seed(0)
    kind, shape = CASES[name]
    model, example = kind().eval(), torch.randn(*shape)
    graph = sc.trace(model, example)
    plan = graph.plan({group.name: range(group.units // 2) for group in graph.groups})
    assert check_plan(model, plan, example) < 1e-9
    assert check_plan(model, plan, example, graph=graph) < 1e-9
    assert check_plan(model, plan, example, graph=graph) < 1e-9  # with what is known of the first time
    [(weight, axes)] = [(n, a) for n, a in plan.slices.items() if n.endswith(("fc.weight", "down.weight"))]
    kept = [*axes[1][:-1], max(axes[1]) + 1]  # another unit than its producer keeps
    with pytest.raises(sc.StructureError, match="computes something else"):
        check_plan(model, plan.model_copy(update={"slices": {**plan.slices, weight: {1: tuple(kept)}}}), example)


def test_every_value_is_let_go_after_its_last_use() -> None:
    program = torch.export.export(Normed().eval(), (torch.randn(2, 6),))
    ends = last_uses(program.graph)
    order = {node.name: place for place, node in enumerate(program.graph.nodes)}
    assert sorted(name for names in ends.values() for name in names) == sorted(order)
    for node in program.graph.nodes:
        last = max([order[user.name] for user in node.users], default=order[node.name])
        assert node.name in ends[list(order)[last]]
    first, *_, end = order
    assert first in last_uses(program.graph, {end: first})[end]


def test_an_error_that_is_kept_holds_no_network() -> None:
    held: list[weakref.ref[nn.Module]] = []

    def fails() -> None:
        network = Normed()
        held.append(weakref.ref(network))
        raise ValueError("no")

    try:
        fails()
    except ValueError as error:
        kept = error
    assert held[0]() is not None
    copies.let_go(kept)
    assert held[0]() is None
