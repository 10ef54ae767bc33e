"""Every space is one to the planner: what holds for one holds for all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.cost import CostModel, CostTerm
from secateurs.importance.scoring import Scorer
from secateurs.planning.channels import Channels
from secateurs.planning.elements.space import ElementSpace
from secateurs.planning.planner import Planner
from secateurs.planning.space import Space
from secateurs.progress import silent
from secateurs.structure import Graph, trace


def network() -> Graph:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3)
    )
    return trace(layers.eval(), torch.randn(1, 3, 8, 8))


def channels(graph: Graph) -> Space:
    return Channels(graph)


def joint(graph: Graph) -> Space:
    """Kernel positions of the middle layer as a further group, at a cost that follows the product of both."""
    from secateurs.measure.kernel_times import LayerTimes
    from secateurs.planning.elements.costs import _extended, _folded_term

    spec = _extended(graph, ("2.weight",))
    layer = next(one for one in graph.spec.layers if one.parameter == "2.weight")
    sides, counts = np.arange(1, 17), np.arange(1, 10)
    table = LayerTimes(sides, sides, counts, 1e-3 * sides[:, None, None] * sides[None, :, None] * counts)
    term = _folded_term(CostTerm(layer.name, layer.inputs, layer.outputs, None), spec, "2.weight", table)  # type: ignore[arg-type]
    offered = tuple(np.arange(1, group.units + 1) for group in spec.groups)
    return ElementSpace(graph, "layer", spec, ("2.weight",), offered, CostModel("ms", 0.1, (term,)), 2.4, "formula")


@pytest.fixture(params=[channels, joint])
def space(request: pytest.FixtureRequest) -> Space:
    found: Space = request.param(network())
    return found


def resource(space: Space) -> str:
    return "macs" if space.widths_only else "latency"


def test_the_networks_own_groups_come_first_and_options_lie_within_them(space: Space) -> None:
    own = space.graph.spec.groups
    assert space.spec.groups[: len(own)] == own
    options = space.options([space.model(resource(space))])
    assert len(options) == len(space.spec.groups)
    for group, found in zip(space.spec.groups, options, strict=True):
        assert 1 <= found[0] <= found[-1] == group.units


def test_values_cover_every_width_and_never_fall(space: Space) -> None:
    scores = Scorer(space.graph, "l2").scores
    for group, curve in zip(space.spec.groups, space.values(scores, None, None, silent), strict=True):
        assert curve.shape == (group.units + 1,)
        assert np.all(np.diff(curve) >= -1e-12)


def test_other_legal_networks_make_another_space_and_leave_this_one(space: Space) -> None:
    other = space.allowing(replace(space.legal, blocks=False))
    assert not other.legal.blocks
    assert space.legal.blocks
    assert other.spec == space.spec


def test_a_choice_within_limits_becomes_a_plan_that_can_be_carried_out(space: Space) -> None:
    name = resource(space)
    planner = Planner(space, Scorer(space.graph, "l2"), resources=(name,))
    choice = planner.solve({name: 0.5})
    assert choice.predicted[name] <= 0.5 * (1 + 1e-9)
    plan = planner.plan(choice, "50%")
    assert plan.provenance["budget"] == "50%"
    assert bool(plan.elements) <= (not space.widths_only)
    assert plan.removed() or plan.elements
