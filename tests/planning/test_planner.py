"""The planner puts a space, scores and a strategy together, and scores only once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.importance.scoring import Scorer
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.progress import silent
from secateurs.search.legal import Legal, find_strategy
from secateurs.structure import Graph, trace


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(CifarResNet(8, classes=4).eval(), torch.randn(1, 3, 16, 16))


def planner(graph: Graph, **more: object) -> Planner:
    return Planner(Channels(graph), Scorer(graph, "l2"), resources=("macs",), **more)  # type: ignore[arg-type]


def test_a_looser_limit_is_worth_no_less_and_limits_hold(graph: Graph) -> None:
    made, before = planner(graph), -np.inf
    for limit in (0.3, 0.5, 0.7):
        choice = made.solve({"macs": limit})
        assert choice.predicted["macs"] <= limit * (1 + 1e-9)
        assert choice.solution.value >= before
        before = choice.solution.value
    assert made.solve({"macs": 0.5}).key == made.solve({"macs": 0.5}).key


def test_scores_that_are_known_are_not_computed_again(graph: Graph) -> None:
    made = planner(graph)
    turned = {name: found[::-1].copy() for name, found in made.scores.items()}
    known = made.knowing(turned, silent)
    assert known.scores.keys() == turned.keys()
    assert all(np.array_equal(known.scores[name], turned[name]) for name in turned)
    assert known.criterion == made.criterion
    widths = made.solve({"macs": 0.5}).solution.widths
    assert known.solve({"macs": 0.5}).solution.widths.tolist() == widths.tolist()
    first = graph.groups[0]
    kept = known.plan(known.solve({"macs": 0.5})).groups[first.name]
    assert kept == tuple(sorted(np.argsort(-turned[first.name], kind="stable")[: len(kept)].tolist()))


def test_blocks_stay_where_they_may_not_go(graph: Graph) -> None:
    free = planner(graph)
    held = free.allowing(Legal(blocks=False))
    assert not held.solve({"macs": 0.3}).solution.removed
    assert free.legal.blocks


def test_what_no_network_reaches_is_told_before_the_search(graph: Graph) -> None:
    made = planner(graph)
    (one,) = made.reach
    assert 0 < one["ratio"] < 0.3
    with pytest.raises(InfeasibleBudgetError):
        made.solve({"macs": 0.9 * one["ratio"]})
    least = made.least("macs")
    assert least.predicted["macs"] == pytest.approx(one["ratio"])


def test_a_strategy_with_a_criterion_of_its_own_takes_no_other(graph: Graph) -> None:
    own = find_strategy("splamp")
    with pytest.raises(PlanError, match=r"'splamp' works with criterion .* only, not 'l2'"):
        Planner(Channels(graph), Scorer(graph, "l2"), own, ("macs",))
    assert Planner(Channels(graph), Scorer(graph), own, ("macs",)).criterion == own.criterion


def test_a_network_without_groups_is_refused_with_the_place_to_look(graph: Graph) -> None:
    whole = trace(graph.model, graph.args, keep=("*",))
    with pytest.raises(PlanError, match="secateurs doctor"):
        planner(whole).solve({"macs": 0.5})
