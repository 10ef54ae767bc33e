"""``sc.plan``: budgets or a ratio, never both, and a plan that says how it came about."""

from __future__ import annotations

import pytest
import torch

import secateurs as sc
from secateurs.errors import PlanError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.structure import Graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return sc.trace(CifarResNet(8, classes=4).eval(), torch.randn(1, 3, 16, 16))


def test_a_ratio_keeps_that_share_of_every_group(graph: Graph) -> None:
    plan = sc.plan(graph, keep=0.6, criterion="random", seed=1)
    for group in graph.groups:
        assert len(plan.groups[group.name]) == max(1, int(0.6 * group.units + 0.5))
    assert plan.provenance["strategy"] == "uniform"
    assert plan.provenance["criterion"] == "random"
    assert sc.plan(graph, keep=0.6, criterion="random", seed=1) == plan
    assert sc.plan(graph, keep=0.6, criterion="random", seed=2).groups != plan.groups


def test_several_budgets_hold_together(graph: Graph) -> None:
    plan = sc.plan(graph, macs="50%", file_size="60%", criterion="l2")
    assert plan.provenance["budget"] == "file size 60%, macs 50%"
    assert set(plan.provenance["predicted"]) == {"file_size", "macs"}
    small = sc.apply(graph.model, plan)
    counts = [sum(p.numel() for p in module.parameters()) for module in (small, graph.model)]
    assert counts[0] < 0.62 * counts[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "Give either budgets"),
        ({"macs": "50%", "keep": 0.5}, "Give either budgets"),
        ({"keep": 0.5, "strategy": "knapsack"}, "only strategy='uniform' does"),
        ({"keep": 1.5}, r"keep=1.5 must lie in \(0, 1\]"),
        ({"latency": "50%"}, "A latency budget needs a latency model"),
        ({"macs": "999G"}, "there is nothing to prune"),
    ],
)
def test_what_does_not_go_together_is_refused(graph: Graph, options: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        sc.plan(graph, criterion="l2", **options)  # type: ignore[arg-type]
