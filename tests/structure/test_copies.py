"""Modules that say themselves how they are copied."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.errors import StructureError
from secateurs.structure.copies import deep_copy
from secateurs.testing.structure import random_cut

EXAMPLE = torch.randn(2, 3, 6, 6)


class Inner(nn.Module):
    """A layer between two others."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.layer(x)


class MadeAnew(Inner):
    """Its copy has another width and other weights."""

    def __deepcopy__(self, memo):
        return type(self)()


class WantsAnArgument(Inner):
    """Its constructor has no defaults."""

    def __init__(self, width) -> None:
        super().__init__(width)

    def __deepcopy__(self, memo):
        return type(self)()


class KeepsItsWeights(Inner):
    """Right for whoever copies it alone, but it copies what should stand for its weights as well."""

    def __deepcopy__(self, memo):
        fresh = type(self)(self.layer.out_channels)
        fresh.load_state_dict(self.state_dict())
        return fresh


class IsShared(Inner):
    """There is one of it only."""

    def __deepcopy__(self, memo):
        return self


class Proper(Inner):
    """Copies what it holds, and counts."""

    copies = 0

    def __deepcopy__(self, memo):
        type(self).copies += 1
        fresh = memo[id(self)] = type(self).__new__(type(self))
        fresh.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return fresh


class Locked(Inner):
    """Beside its layer, in one dictionary, lies what nobody can copy."""

    def __init__(self, width) -> None:
        super().__init__(width)
        self.table = {"layer": self.layer, "lock": threading.Lock()}

    def __deepcopy__(self, memo):
        return type(self)()


def net(kind: type[Inner]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), kind(8), nn.Conv2d(8, 2, 1)).eval()


@pytest.mark.parametrize("kind", [MadeAnew, WantsAnArgument, KeepsItsWeights, IsShared, Proper])
def test_a_way_of_their_own_is_no_obstacle(kind: type[Inner]) -> None:
    model = net(kind)
    graph = sc.trace(model, EXAMPLE)
    small = sc.apply(model, graph.plan(random_cut(graph, 0.5, 0)), EXAMPLE)
    assert type(small[1]) is kind
    assert small[1].layer.weight.shape == (4, 4, 1, 1)
    assert model[1].layer.weight.shape == (8, 8, 1, 1)
    assert not {id(p) for p in small.parameters()} & {id(p) for p in model.parameters()}


def test_a_way_that_does_what_it_should_is_used() -> None:
    before = Proper.copies
    copied = deep_copy(net(Proper), {})
    assert Proper.copies == before + 1
    assert torch.equal(copied[1].layer.weight, net(Proper)[1].layer.weight)


def test_what_cannot_be_copied_is_named() -> None:
    words = r"1 \(Locked\) cannot be copied: TypeError.*test_copies.py.*Let its __deepcopy__ copy what the module holds"
    with pytest.raises(StructureError, match=words):
        deep_copy(net(Locked), {})


class Hooked(nn.Module):
    """Hooks enclose the network itself: its parameter scales, its table keeps a map; a forward calls what it hides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(14, 2, 1)
        self.gain, self.kept = nn.Parameter(torch.rand(8) + 0.5), {}
        self.a.register_forward_hook(lambda module, given, found: found * self.gain[:, None, None])

        def keep(module, given, found):
            self.kept["a"] = given[0]

        self.b.register_forward_pre_hook(lambda module, given: (given[0].relu(),))
        self.b.register_forward_hook(keep)
        inner = self.c.forward
        self.c.forward = lambda x: inner(x * 2)

    def forward(self, x):
        y = self.b(self.a(x))
        return self.c(torch.cat([y, self.kept.pop("a")], 1))


def test_hooks_of_a_copy_reach_into_the_copy() -> None:
    torch.manual_seed(0)
    model = Hooked().eval()
    graph = sc.trace(model, EXAMPLE)
    plan = graph.plan(random_cut(graph, 0.5, 0))
    assert plan.rebuild is None
    small = sc.apply(model, plan, EXAMPLE)
    before = small(EXAMPLE)
    with torch.no_grad():
        model.gain.zero_()
    assert torch.equal(small(EXAMPLE), before)
    assert model.kept == {}


class Calls(nn.Module):
    """Its forward calls what it was given, which reaches its layer by another way than the attribute."""

    def __init__(self, give: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.given = give(self.a)

    def forward(self, x):
        return self.b(self.call(x, self.given))

    def call(self, x, given):
        if isinstance(given, dict):
            given = given["one"]
        return given[0](x) if isinstance(given, (list, tuple)) else given(x)


class Helper:
    """A plain object of the network's own that keeps a function."""

    def __init__(self, function) -> None:
        self.function = function

    def __call__(self, x):
        return self.function(x)


def scaled(x, scale, layer):
    return layer(x) * scale


def keyword(layer):
    def call(x, *, layer=layer):
        return layer(x)

    return call


def wrapped(layer):
    @functools.wraps(layer.forward)
    def call(*given):
        return call.__wrapped__(*given)

    return call


WAYS: dict[str, Callable[[nn.Module], object]] = {
    "encloses": lambda layer: lambda x: layer(x),
    "encloses a list": lambda layer: (lambda layers: lambda x: layers[0](x))([layer]),
    "encloses a function": lambda layer: (lambda inner: lambda x: inner(x))(lambda x: layer(x)),
    "encloses a method": lambda layer: (lambda inner: lambda x: inner(x))(layer.forward),
    "encloses a helper": lambda layer: (lambda inner: lambda x: inner(x))(Helper(layer)),
    "a default": lambda layer: lambda x, layer=layer: layer(x),
    "a keyword's default": keyword,
    "wraps": wrapped,
    "a partial": lambda layer: functools.partial(scaled, scale=2, layer=layer),
    "a partial of one that encloses": lambda layer: functools.partial(lambda s, x: layer(x) * s, 2),
    "in a list": lambda layer: [lambda x: layer(x)],
    "in a tuple": lambda layer: (lambda x: layer(x),),
    "in a list in a dictionary": lambda layer: {"one": [lambda x: layer(x)]},
    "in a helper": lambda layer: Helper(lambda x: layer(x)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_reaches_nothing_of_the_original(way: str) -> None:
    model = Calls(WAYS[way]).eval()
    wanted = model(EXAMPLE)
    copied = deep_copy(model, {})
    assert torch.equal(copied(EXAMPLE), wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(copied(EXAMPLE), wanted)


@pytest.mark.parametrize("way", WAYS)
def test_what_functions_reach_is_cut(way: str) -> None:
    model = Calls(WAYS[way]).eval()
    graph = sc.trace(model, EXAMPLE)
    plan = graph.plan(random_cut(graph, 0.5, 0))
    small = sc.apply(model, plan, EXAMPLE)
    assert small.a.weight.shape == (4, 3, 1, 1)
    before = small(EXAMPLE)
    with torch.no_grad():
        model.a.weight.zero_()
    assert torch.equal(small(EXAMPLE), before)


def test_what_is_not_the_networks_is_shared() -> None:
    """A hook's counter and log are the user's: a copy counts in the same place."""
    seen, log = [], threading.Lock()
    model = net(Inner)

    def count(module, given, found, model=model):
        with log:
            seen.append(found.shape)

    model[0].register_forward_hook(count)
    deep_copy(model, {})(EXAMPLE)
    assert len(seen) == 1


class MadeLate(nn.Module):
    """Its buffer exists from the first run on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        if "ramp" not in self._buffers:
            self.register_buffer("ramp", torch.arange(x.shape[-1]).to(x), persistent=False)
        return self.b(self.a(x) + self.ramp)


def test_a_plan_fits_a_network_that_has_run_since() -> None:
    model = MadeLate().eval()
    graph = sc.trace(model, EXAMPLE)
    plan = graph.plan(random_cut(graph, 0.5, 0))
    model(EXAMPLE)
    assert sc.apply(model, plan, EXAMPLE)(EXAMPLE).shape == (2, 2, 6, 6)
