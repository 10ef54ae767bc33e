"""What a joint search chooses from, and the plans that its choices make."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from chains import (
    DENSE_MS,
    chain_space,
    planner,
)

import secateurs as sc
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.search.legal import Legal, find_strategy
from secateurs.structure.kernel_elements import macs_left, masks_of


def test_groups_of_elements_stand_behind_the_networks_own() -> None:
    space = chain_space()
    own = [group.name for group in space.graph.spec.groups]
    assert [group.name for group in space.spec.groups] == [*own, "middle.weight:elements", "last.weight:elements"]
    assert [group.units for group in space.spec.groups[-2:]] == [9, 9]
    assert float(space.latency.evaluate(space.spec.dense_widths)) == pytest.approx(DENSE_MS)


def test_counts_that_do_not_pay_are_not_offered() -> None:
    # Eight of nine elements at 1.25 times the price are dearer than all nine.
    space = chain_space()
    assert space.offered[-1].tolist() == [1, 2, 3, 4, 5, 6, 7, 9]


@pytest.mark.parametrize("limit", [0.75, 0.5, 0.35])
def test_the_joint_optimum_is_that_of_brute_force(limit: float) -> None:
    space = chain_space()
    made = planner(space)
    solution = made.solve({"latency": limit}).solution
    values = space.worth(made.scores)
    best = -np.inf
    for widths in itertools.product(*space.offered):
        cost = float(space.latency.evaluate(np.array(widths)))
        if cost <= limit * DENSE_MS * (1 + 1e-9):
            best = max(best, sum(float(curve[w]) for curve, w in zip(values, widths, strict=True)))
    assert solution.value == pytest.approx(best, rel=1e-5)
    assert float(space.latency.evaluate(solution.widths)) <= limit * DENSE_MS * (1 + 1e-9)


def test_counts_alone_keep_every_unit() -> None:
    space = chain_space(Legal(channels=False))
    solution = planner(space).solve({"latency": 0.6}).solution
    assert solution.widths[:-2].tolist() == [group.units for group in space.graph.spec.groups]
    assert solution.widths[-2:].min() < 9


def test_the_plan_holds_patterns_for_the_weights_as_channels_leave_them() -> None:
    space = chain_space()
    narrow, few = np.array([16]), np.array([2, 3, 4])
    space = replace(space, offered=tuple(narrow if 16 in options else few for options in space.offered))
    made = planner(space)
    choice = made.solve({"latency": 0.6})
    plan = made.plan(choice, "60%")
    assert plan.removed()
    assert plan.elements
    again = sc.Plan.from_json(plan.to_json())
    assert again == plan
    small = sc.apply(space.graph.model, again)
    counts = space.counts(choice.solution.widths)
    for name, mask in masks_of(small, plan.elements).items():
        assert int(mask.sum()) == counts[name] * mask.shape[0] * mask.shape[1]
        assert not dict(small.named_parameters())[name][~mask].any()
    assert {name for name, count in counts.items() if count < 9} == set(plan.elements)
    told = sorted(f"{count} of 9 in" for count in counts.values())
    assert all(text in space.note(plan) for text in told)
    assert plan.provenance["elements"]["counts"] == counts
    bare = plan.model_copy(update={"elements": {}})
    less = sum(
        int((~m).sum()) * {"middle.weight": 36, "last.weight": 16}[n] for n, m in masks_of(small, plan.elements).items()
    )
    assert macs_left(space.graph, small, plan) == macs_left(space.graph, small, bare) - less


def test_budgets_that_elements_cannot_serve_are_refused() -> None:
    space = chain_space()
    with pytest.raises(InfeasibleBudgetError):
        planner(space).solve({"latency": 0.01})
    with pytest.raises(PlanError, match="With kernel elements only latency can be limited, not macs"):
        planner(space, resources=("macs",)).solve({"macs": 0.5})
    with pytest.raises(PlanError, match=r"'lap' judges widths only"):
        planner(space, search=find_strategy("lap")).solve({"latency": 0.5})
