"""Every operator lets units pass where it can, and names itself where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from operators import ALL, Around1

from secateurs.structure import trace
from secateurs.testing.structure import pins, verdict


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", list(ALL))
def test_operator(name: str) -> None:
    operator = ALL[name]
    model, example = Around1(operator).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, example)
    mine = [group for group in graph.groups if "a" in group.layers]
    assert sum(group.units for group in mine) == operator.units, pins(graph)
    if operator.units:
        assert not graph.barriers
    else:
        assert operator.held in pins(graph, 9)
    found = verdict(model, example, graph=graph)
    assert found.outcome == "right", found
