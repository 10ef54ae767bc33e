"""``sc.plan``: budgets or a ratio, never both, and a plan that says how it came about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.cost import CostModel
from secateurs.errors import PlanError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.resources import macs_model
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


def latency_model(graph: Graph, target: str, offset: float, *, batch: int = 1, host: str | None = None) -> Any:
    """A latency model whose figures are multiply-adds, beside a fixed part."""
    macs = macs_model(graph.spec)
    dense = float(macs.evaluate(graph.spec.dense_widths))
    model = CostModel("ms", offset * dense, macs.terms)
    about = {"target": target, "precision": "f32", "threads": 1, **({} if host is None else {"host": host})}
    return SimpleNamespace(target=about, batch=batch, cost_model=lambda: model)


def test_a_latency_model_that_says_little_of_its_target(graph: Graph) -> None:
    """As those of older versions, and one's own."""
    costs = latency_model(graph, "one", 0.0)
    costs.target = {}
    plan = sc.plan(graph, costs, latency="70%", file_size="60%", criterion="l2")
    assert set(plan.provenance["predicted"]) == {"latency", "file_size"}


def test_a_plan_within_the_latencies_of_two_targets(graph: Graph) -> None:
    """The second has a fixed part as large as the rest, so 80 % of it is 60 % of that."""
    one, two = latency_model(graph, "one", 0.0), latency_model(graph, "two", 1.0)
    both = sc.plan(graph, [one, two], latency=["90%", "80%"], criterion="l2")
    assert both.provenance["budget"] == "latency on one 90%, latency on two 80%"
    assert both.provenance["target"] == "one, 1 thread; two, 1 thread"
    predicted = both.provenance["predicted"]
    dense = {"one": float(one.cost_model().evaluate(graph.spec.dense_widths))}
    dense["two"] = 2 * dense["one"]
    assert predicted["latency@one"] <= 0.6 * dense["one"] * (1 + 1e-9)
    assert 0.78 * dense["two"] <= predicted["latency@two"] <= 0.8 * dense["two"] * (1 + 1e-9)
    assert both.provenance["predicted_ms"] == predicted["latency@one"]
    assert both.groups == sc.plan(graph, two, latency="80%", criterion="l2").groups


def test_two_targets_of_one_name_are_told_apart(graph: Graph) -> None:
    here, there = latency_model(graph, "cpu", 0.0), latency_model(graph, "cpu", 0.2, host="pi")
    plan = sc.plan(graph, (here, there), latency=("70%", "80%"), criterion="l2")
    assert set(plan.provenance["predicted"]) == {"latency@cpu", "latency@cpu at pi"}


def test_latency_models_that_do_not_go_together_are_refused(graph: Graph) -> None:
    one, two = latency_model(graph, "one", 0.0), latency_model(graph, "two", 0.0)
    with pytest.raises(PlanError, match=r"2 targets \(one, two\) and 1 latency \(60%\)"):
        sc.plan(graph, [one, two], latency="60%")
    with pytest.raises(PlanError, match=r"1 target \(one\) and 2 latencies"):
        sc.plan(graph, one, latency=["60%", "70%"])
    with pytest.raises(PlanError, match=r"Two latency models are of the same target \(one, 1 thread, one, 1 thread\)"):
        sc.plan(graph, [one, one], latency=["60%", "70%"])
    with pytest.raises(PlanError, match="batch sizes 1, 4"):
        sc.plan(graph, [one, latency_model(graph, "two", 0.0, batch=4)], latency=["60%", "70%"])
    with pytest.raises(sc.InfeasibleBudgetError, match="latency on two is below the fastest legal network"):
        sc.plan(graph, [one, latency_model(graph, "two", 1.0)], latency=["60%", "40%"], criterion="l2")
