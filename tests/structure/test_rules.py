"""A rule for a custom operator, and what the contract suite says of good and bad ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs
from secateurs.structure import AfterCut, Call, Value, apply, move, pointwise, rule, trace
from secateurs.structure.operators import _OPERATORS, known_operators, rule_for
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
    before = dict(_OPERATORS)
    yield
    _OPERATORS.clear()
    _OPERATORS.update(before)


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


LIBRARY.define("turned(Tensor x, int first) -> Tensor")


@torch.library.impl(LIBRARY, "turned", "CompositeExplicitAutograd")
def turned(x: torch.Tensor, first: int) -> torch.Tensor:
    """The first channels behind the others."""
    return torch.cat([x[:, first:], x[:, :first]], 1)


@torch.library.register_fake("secateurs_test::turned", lib=LIBRARY)
def _(x: torch.Tensor, first: int) -> torch.Tensor:
    return torch.empty_like(x)


class Turned(nn.Module):
    """The number of channels that move is an attribute."""

    def __init__(self, first: int = 5) -> None:
        super().__init__()
        self.a, self.first, self.b = nn.Conv2d(3, 12, 3), first, nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.ops.secateurs_test.turned(self.a(x).relu(), self.first))


def first_after_cut(call: AfterCut) -> dict[str, Any]:
    """What of the channels that move is left."""
    return {"first": int(call.stays(call.input("x"), 1)[: call["first"]].sum())}


class TestTurned(RuleContract):
    """The contract suite on a rule with an integer that follows."""

    def network(self) -> nn.Module:
        rule("secateurs_test.turned", sizes=first_after_cut)(move)
        return Turned()

    def example(self) -> torch.Tensor:
        return torch.randn(2, 3, 10, 10)


@pytest.mark.parametrize("first", [1, 5, 11])
def test_an_attribute_follows_the_integer_of_an_operator_of_ones_own(first: int) -> None:
    rule("secateurs_test.turned", sizes=first_after_cut)(move)
    model, example = Turned(first), torch.randn(2, 3, 10, 10)
    kept = [0, 2, 3, 7, 8, 11]
    small = apply(model, trace(model, example).plan({"a:out": kept}), example)
    assert isinstance(small, Turned)
    assert small.first == sum(unit < first for unit in kept)


def test_without_sizes_the_operator_is_refused_not_wrong() -> None:
    rule("secateurs_test.turned")(move)
    found = verdict(Turned(), torch.randn(2, 3, 10, 10))
    assert found.outcome == "refused"


def test_operators_are_told_apart_in_one_place() -> None:
    name = r"str\(\w+(?:\.node)?\.target\)"
    asked = re.compile(rf"""\bin {name}|{name}(?: [!=]= | (?:not )?in |\.split\("\."\)\[|\.startswith)""")
    source = Path(secateurs.__file__).parent
    found = [
        f"{path.relative_to(source)}:{number}"
        for path in source.rglob("*.py")
        if path.parent.name != "engines"  # they run in workers that have PyTorch only
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asked.search(line)
    ]
    assert found == []
    assert asked.search('if "conv" in str(node.target):')  # it sees what it is looking for
    assert asked.search('if str(node.target) == "aten.view.default":')
    assert asked.search('name = str(call.node.target).split(".")[1]')


def test_known_operators_are_named() -> None:
    assert "aten.conv2d" in known_operators()
    assert rule_for(torch.ops.aten.conv2d.default) is rule_for(torch.ops.aten.conv2d.padding)
    assert rule_for(torch.ops.aten.histc.default) is None
    assert rule_for(torch.ops.aten.relu_.default) is rule_for(torch.ops.aten.relu.default)
