"""Containers of classes that PyTorch does not know, as inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.errors import StructureError
from secateurs.structure import trace
from secateurs.structure.containers import make_known
from secateurs.structure.examples import split_example
from secateurs.testing.structure import random_cut


class Fields(OrderedDict):
    """Fields by attribute, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Mirror(dict):
    """Attributes are its items."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        self.__dict__ = self


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A value with a field that is no tensor, and one that the constructor computes."""

    image: torch.Tensor
    name: str = "x"
    count: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", self.image.shape[-1])


class Nested:
    """A plain object, as detectors pair images with their masks."""

    def __init__(self, tensors: torch.Tensor, mask: torch.Tensor | None, sizes: list[int]) -> None:
        self.tensors, self.mask, self.sizes = tensors, mask, sizes


class Rows(list):
    """A list of a class of its own."""


MADE = {
    "mapping": lambda x: Fields(image=x, other=x + 1),
    "mirror": lambda x: Mirror(image=x),
    "dataclass": lambda x: Frozen(x, "y"),
    "object": lambda x: Nested(x, x > 0, [3, 4]),
    "list": lambda x: Rows([x, 2 * x]),
    "nested": lambda x: {"a": [Nested(Frozen(x).image, None, []), Fields(b=Frozen(x))]},
    "distribution": lambda x: torch.distributions.Normal(x, x.exp(), validate_args=False),
}


@pytest.mark.parametrize("name", MADE)
def test_taken_apart_and_put_together(name: str) -> None:
    value = MADE[name](torch.randn(2, 3))
    make_known(value)
    assert make_known(value) == []
    leaves, spec = pytree.tree_flatten(value)
    assert any(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.clone(), value)
    assert type(again) is type(value)
    assert pytree.tree_structure(again) == spec
    ours, theirs = pytree.tree_leaves(again), leaves
    assert all(torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in zip(ours, theirs, strict=True))


def test_what_a_class_holds_beside_tensors_stays() -> None:
    value = Nested(torch.randn(2, 3), None, [3, 4])
    make_known(value)
    doubled = pytree.tree_map_only(torch.Tensor, lambda leaf: 2 * leaf, value)
    assert doubled.sizes == [3, 4]
    assert doubled.mask is None
    assert torch.equal(doubled.tensors, 2 * value.tensors)
    mirror = pytree.tree_map(lambda leaf: leaf + 1, (make_known(Mirror(a=torch.ones(1))), Mirror(a=torch.ones(1)))[1])
    assert mirror.a is mirror["a"]


def test_what_holds_no_tensor_or_is_known_is_left_alone() -> None:
    class Config:
        width = 3

    @dataclasses.dataclass
    class Known:
        x: torch.Tensor

    torch.export.register_dataclass(Known)
    assert make_known(Config(), {"a": [Config()]}, Known(torch.ones(1)), nn.Linear(2, 2), torch.Size([2])) == []
    assert Config not in pytree.SUPPORTED_NODES


class Net(nn.Module):
    """Takes and returns what ``MADE`` makes; ``fixed`` holds a width in its code, so that it must be rebuilt."""

    def __init__(self, name: str, fixed: bool) -> None:
        super().__init__()
        self.name, self.fixed = name, fixed
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, given: Any) -> Any:
        x = next(leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor))
        x = self.one(x).relu()
        if self.fixed:
            x = x.view(x.shape[0], 16, -1).view(x.shape[0], 16, *x.shape[2:])
        return MADE[self.name](self.two(x).mean((2, 3)))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_networks_that_take_and_return_them(name: str, fixed: bool) -> None:
    torch.manual_seed(0)
    model, example = Net(name, fixed).eval(), ((MADE[name](torch.randn(2, 3, 8, 8)),), {})
    graph = trace(model, example)
    small = sc.apply(model, graph.plan(random_cut(graph, 0.4, 0)), example)
    assert (type(small) is Net) is not fixed
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    other = MADE[name](torch.randn(3, 3, 8, 8))
    ours, theirs = small(other), model(other)
    assert type(ours) is type(theirs)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)


def test_one_object_is_an_example() -> None:
    value = Nested(torch.randn(2, 3), None, [])
    assert split_example(value) == ((value,), {})
    with pytest.raises(StructureError, match="The example is a str"):
        split_example("image")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float32(2), r"args\[1\] is a numpy.float32"),
        ({"to": torch.float64}, r"args\[1\]\['to'\] is a torch.dtype"),
        (lambda x: x, r"args\[1\] is a builtins.function"),
    ],
)
def test_what_the_exporter_does_not_take_is_named(value: Any, words: str) -> None:
    class Takes(nn.Module):
        """Takes anything beside a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor, other: Any) -> torch.Tensor:
            return self.a(x)

    with pytest.raises(StructureError, match=f"{words}, which torch.export does not take. Give tensors"):
        trace(Takes().eval(), (torch.randn(2, 4), value))
