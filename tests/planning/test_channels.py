"""Widths and blocks as a space: options, models and values come from the network's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateurs.errors import PlanError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.planning.channels import Channels
from secateurs.progress import silent
from secateurs.search.legal import Legal
from secateurs.structure import Graph, trace


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(CifarResNet(8, classes=4).eval(), torch.randn(1, 3, 16, 16))


def test_options_are_legal_and_end_where_a_step_of_the_cost_does(graph: Graph) -> None:
    space = Channels(graph, legal=Legal(min_width=4, widest={graph.groups[0].name: 8}))
    options = space.options([space.model("macs")])
    for group, found in zip(graph.spec.groups, options, strict=True):
        assert found[0] >= 4
        assert found[-1] == (8 if group.name == graph.groups[0].name else group.units)
        assert np.all(np.diff(found) > 0)
    pinned = space.allowing(Legal(pinned=(graph.groups[1].name,))).options([space.model("macs")])
    assert pinned[1].tolist() == [graph.groups[1].units]
    kept = space.allowing(Legal(channels=False)).options([space.model("macs")])
    assert [found.tolist() for found in kept] == [[group.units] for group in graph.spec.groups]


def test_values_are_sums_of_the_best_scores(graph: Graph) -> None:
    scores = {group.name: np.arange(group.units, dtype=np.float64) for group in graph.groups}
    for group, curve in zip(graph.groups, Channels(graph).values(scores, None, None, silent), strict=True):
        assert curve[0] == 0
        assert curve[1] == group.units - 1
        assert curve[-1] == group.units * (group.units - 1) / 2


def test_every_resource_has_a_model_and_latency_needs_a_measured_one(graph: Graph) -> None:
    space, dense = Channels(graph, dense={"file_size": 4e6}), graph.spec.dense_widths
    assert space.model("macs").evaluate(dense) == graph.spec.macs(dense)
    assert float(space.model("file_size").evaluate(dense)) == pytest.approx(4e6)
    assert space.model("memory").evaluate(dense) > space.model("memory").evaluate(dense // 2)
    with pytest.raises(PlanError, match="A latency budget needs a latency model"):
        space.model("latency")


def test_the_plan_of_units_is_the_whole_plan(graph: Graph) -> None:
    plan = graph.plan({}, ())
    assert Channels(graph).finished(plan, graph.spec.dense_widths) is plan
