"""A rule for a custom operator, and what the contract suite says of good and bad ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from secateurs.structure import Call, Value, pointwise, rule, trace
from secateurs.structure.analysis import _RULES, known_operators, rule_for
from secateurs.testing.structure import RuleContract, pins, verdict

LIBRARY = torch.library.Library("secateurs_test", "DEF")
LIBRARY.define("twice_halves(Tensor x) -> Tensor")
LIBRARY.define("doubled(Tensor x) -> Tensor")


@torch.library.impl(LIBRARY, "twice_halves", "CompositeExplicitAutograd")
def twice_halves(x: torch.Tensor) -> torch.Tensor:
    """The first half of the channels times the second."""
    half = x.shape[1] // 2
    return x[:, :half] * x[:, half:]


@torch.library.impl(LIBRARY, "doubled", "CompositeExplicitAutograd")
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Two times x."""
    return 2 * x


@torch.library.register_fake("secateurs_test::twice_halves", lib=LIBRARY)
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:])


@torch.library.register_fake("secateurs_test::doubled", lib=LIBRARY)
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Halves(nn.Module):
    """The custom operator between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.ops.secateurs_test.doubled(torch.ops.secateurs_test.twice_halves(self.a(x)))
        return self.c(torch.relu(self.b(x)))


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = dict(_RULES)
    yield
    _RULES.clear()
    _RULES.update(before)


def register() -> None:
    """What a user writes: unit i goes with unit i + n/2."""

    @rule("secateurs_test.twice_halves")
    def halves(call: Call) -> Value:
        value: Value = call["x"]
        half = value.shape[1] // 2
        for ids in value.along(1):
            call.ids.unify(ids[:half], ids[half:])
        first = [type(f)(f.dim, f.ids[:half] if f.dim == 1 else f.ids) for f in value.factors]
        return Value(call.shape, tuple(first))

    rule("secateurs_test.doubled")(pointwise)


class TestHalves(RuleContract):
    """The contract suite on the user's rule."""

    def network(self) -> nn.Module:
        register()
        return Halves()

    def example(self) -> torch.Tensor:
        return torch.randn(2, 3, 10, 10)


def test_without_a_rule_the_operator_is_a_named_barrier() -> None:
    graph = trace(Halves(), torch.randn(2, 3, 10, 10))
    assert any("secateurs_test.twice_halves" in str(barrier) for barrier in graph.barriers)
    assert "test_rules.py" in str(graph.barriers[0])
    assert "barrier" in pins(graph)
    assert verdict(Halves(), torch.randn(2, 3, 10, 10)).outcome == "right"


def test_a_wrong_rule_is_caught() -> None:
    register()
    rule("secateurs_test.twice_halves")(lambda call: Value(call.shape, ()))
    found = verdict(Halves(), torch.randn(2, 3, 10, 10))
    assert found.outcome == "refused"
    assert "does not run" in found.reason or "computes something else" in found.reason


def test_known_operators_are_named() -> None:
    assert "aten.conv2d" in known_operators()
    assert rule_for(torch.ops.aten.conv2d.default) is rule_for(torch.ops.aten.conv2d.padding)
    assert rule_for(torch.ops.aten.sort.default) is None
