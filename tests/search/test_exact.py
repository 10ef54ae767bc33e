"""The exact solver against enumeration, its laws, and its error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, NetworkSpec
from secateurs.search.exact import Effort, solve_exact
from secateurs.search.knapsack import Knapsack
from secateurs.search.labels import TooManyLabels, best_labels
from secateurs.search.lagrangian import relax, solve_dual
from secateurs.search.problem import Constraint, Problem, widths_of
from secateurs.search.reach import fastest, frugal, reach
from secateurs.search.splamp import SpLamp
from secateurs.testing.problems import (
    GridCost,
    brute_force,
    enumerate_all,
    random_problem,
    resnet50_like,
    staircase_problem,
)

TIGHT = Effort(gap=1e-9)
KINDS = ("linear", "staircase", "rough")


@pytest.mark.parametrize(
    ("seed", "budgets"), [(s, 1 + s % 2) for s in range(216)] + [(s, 3 + s % 2) for s in range(300, 345)]
)
def test_equals_brute_force(seed: int, budgets: int) -> None:
    problem = random_problem(
        seed,
        kind=KINDS[seed % 3],
        groups=3 + seed % 3,
        constraints=budgets,
        blocks=seed % 4 != 3,
        sums=seed % 5 != 4,
        tightness=(0.0, 0.2, 0.5, 0.8)[seed // 2 % 4],
    )
    best = brute_force(problem)
    if best is None:
        with pytest.raises(InfeasibleBudgetError):
            solve_exact(problem, TIGHT)
        return
    found = solve_exact(problem, TIGHT)
    assert found.value == pytest.approx(best, abs=1e-9)
    assert bool(problem.fits(found.widths, found.removed))
    assert found.gap is not None
    assert found.gap <= 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_a_budget_that_does_not_bind_changes_nothing(seed: int) -> None:
    problem = random_problem(seed, constraints=2, tightness=0.5)
    loose = replace(problem.constraints[1], limit=1e9)
    both = solve_exact(replace(problem, constraints=(problem.constraints[0], loose)), TIGHT)
    alone = solve_exact(replace(problem, constraints=problem.constraints[:1]), TIGHT)
    assert both.value == pytest.approx(alone.value, abs=1e-9)
    assert set(both.predicted) == {"cost0", "cost1"}
    assert both.gap is not None
    assert both.gap <= 1e-6


def test_a_network_within_several_limits_is_found_without_a_search() -> None:
    found = 0
    for seed in range(40):
        problem = random_problem(seed, constraints=3, kind=KINDS[seed % 3], tightness=0.5)
        point = frugal(problem, relax(problem))
        found += bool(problem.fits(point.widths, point.removed))
    assert found >= 36


@pytest.mark.parametrize("seed", range(8))
def test_reach_is_the_least_of_every_cost(seed: int) -> None:
    problem = random_problem(seed, constraints=3, kind=KINDS[seed % 3])
    widths, gone = enumerate_all(problem)
    least = problem.costs(widths, gone).min(axis=0)
    for index, one in enumerate(reach(problem)):
        assert one["constraint"] == f"cost{index}"
        assert one["fastest"] == pytest.approx(least[index])
        assert one["at_minimum"] is not None
        assert len(one["costliest"]) <= 3


def test_limits_that_exclude_each_other_are_told() -> None:
    here, there = (CostTerm("t", None, AxisSpec(0, ((g, 1),)), GridCost(np.arange(9.0)[None, :])) for g in (0, 1))
    spec = NetworkSpec((GroupSpec("g0", 4), GroupSpec("g1", 4)), (), (), (), "pull")
    falling = CostTerm("f", None, AxisSpec(0, ((0, 1),)), GridCost(np.arange(9.0)[None, ::-1]))
    options, values = (np.arange(1, 5),) * 2, (np.arange(5.0),) * 2
    constraints = (
        Constraint("latency", CostModel("ms", 0.0, (here, there)), 3.0),
        Constraint("memory", CostModel("bytes", 0.0, (falling,)), 5.0),
    )
    with pytest.raises(InfeasibleBudgetError, match=r"all limits at once .* each can be met alone") as caught:
        solve_exact(Problem(spec, options, values, constraints), TIGHT)
    assert caught.value.details["conflict"]


@pytest.mark.parametrize("seed", range(40))
def test_label_lists_and_highs_agree(seed: int) -> None:
    problem = staircase_problem(seed, groups=7, units=40, most=9)
    lists = solve_exact(problem, TIGHT)
    program = solve_exact(problem, Effort(gap=1e-9, method="milp"))
    assert lists.value == pytest.approx(program.value, rel=1e-8)
    assert bool(problem.fits(lists.widths, lists.removed))
    assert bool(problem.fits(program.widths, program.removed))


@pytest.mark.parametrize("seed", range(60))
def test_highs_alone_equals_brute_force(seed: int) -> None:
    problem = random_problem(seed, kind=KINDS[seed % 3], constraints=1 + seed % 2, tightness=(0.2, 0.5, 0.8)[seed % 3])
    best = brute_force(problem)
    assert best is not None
    assert solve_exact(problem, Effort(gap=1e-9, method="milp")).value == pytest.approx(best, abs=1e-6)


def test_beam_finds_legal_networks_and_admits_what_it_cut() -> None:
    problem = resnet50_like(most=8)
    elimination = relax(problem)
    price = float(solve_dual(elimination).prices[0])
    narrow = best_labels(elimination, [price], 0.0, beam=2)
    whole = best_labels(elimination, [price, 0.5 * price], narrow.value - 1e-6)
    assert not narrow.complete
    assert whole.complete
    assert narrow.states is not None
    assert whole.states is not None
    assert narrow.value <= whole.value
    assert whole.value == pytest.approx(solve_exact(problem, TIGHT).value)
    assert bool(problem.fits(widths_of(problem, narrow.states), narrow.removed))


def test_label_lists_give_up_in_time() -> None:
    problem = resnet50_like(most=8)
    with pytest.raises(TooManyLabels):
        best_labels(relax(problem), [1.0], 0.0, until=0.0)
    assert solve_exact(problem, Effort(seconds=1.0)).value > 0


def test_a_network_of_real_size_is_solved_to_the_optimum() -> None:
    problem = resnet50_like(most=16, removable=True, latency_ratio=0.5)
    found = solve_exact(problem)
    assert found.gap is not None
    assert found.gap <= 1e-5
    assert 0.99 * problem.limits[0] < found.predicted["latency"] <= problem.limits[0]


@pytest.mark.parametrize("seed", range(12))
def test_rounded_sums_stay_within_budget_and_near_the_optimum(seed: int) -> None:
    problem = random_problem(seed, kind="staircase", groups=5, units=6, blocks=False)
    best = brute_force(problem)
    assert best is not None
    found = solve_exact(problem, Effort(gap=1e-9, breakpoints=6))
    assert bool(problem.fits(found.widths, found.removed))
    assert found.value >= 0.9 * best
    assert found.value <= best + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_value_is_monotone_in_the_budget(kind: str) -> None:
    problem = random_problem(7, kind=kind, groups=5)
    limit = problem.constraints[0].limit
    values = []
    for factor in (1.0, 1.1, 1.25, 1.5, 2.0, 4.0):
        wider = replace(problem.constraints[0], limit=limit * factor)
        values.append(solve_exact(replace(problem, constraints=(wider,)), TIGHT).value)
    assert values == sorted(values)


def test_same_seed_same_result() -> None:
    problem = random_problem(3, groups=5)
    first, second = (Knapsack().solve(problem, seed=5) for _ in range(2))
    assert np.array_equal(first.widths, second.widths)
    assert first.removed == second.removed


@pytest.mark.parametrize("seed", range(8))
def test_costs_that_ignore_the_input_reduce_to_the_plain_knapsack(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(3, 6, 4)
    rows = [generator.uniform(0.1, 2.0, n + 1) for n in sizes]
    spec = NetworkSpec(tuple(GroupSpec(f"g{i}", int(n)) for i, n in enumerate(sizes)), (), (), (), "t4")
    axes = [AxisSpec(0, ((g, 1),)) for g in range(4)]
    pairwise = tuple(
        CostTerm(f"t{g}", axes[g - 1] if g else None, axes[g], GridCost(np.tile(rows[g], (9, 1)))) for g in range(4)
    )
    plain = tuple(CostTerm(f"t{g}", None, axes[g], GridCost(rows[g][None, :])) for g in range(4))
    options = tuple(np.arange(1, n + 1) for n in sizes)
    values = tuple(np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))]) for n in sizes)
    found = []
    for terms in (pairwise, plain):
        problem = Problem(spec, options, values, (Constraint("ms", CostModel("ms", 0.0, terms), 4.0),))
        best = brute_force(problem)
        assert best is not None
        found.append(solve_exact(problem, TIGHT).value)
        assert found[-1] == pytest.approx(best, abs=1e-9)
    assert found[0] == pytest.approx(found[1], abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_splamp_never_empties_a_group_nor_removes_a_block(seed: int) -> None:
    problem = random_problem(seed, kind=KINDS[seed % 3])
    kept = replace(problem, removable=frozenset())
    widths, gone = enumerate_all(kept)
    tight = replace(kept.constraints[0], limit=float(kept.costs(widths, gone).min()))
    found = SpLamp().solve(replace(problem, constraints=(tight,)))
    assert found.removed == frozenset()
    assert np.all(found.widths >= 1)


@pytest.mark.parametrize("seed", range(30))
def test_fastest_is_the_cheapest_of_all(seed: int) -> None:
    problem = random_problem(seed, kind=KINDS[seed % 3])
    widths, gone = enumerate_all(problem)
    point = fastest(problem)
    assert point.predicted["cost0"] == pytest.approx(float(problem.costs(widths, gone)[:, 0].min()), rel=1e-6)


def test_unreachable_budget_names_the_fastest_point_and_what_limits_it() -> None:
    axis = AxisSpec(0, ((0, 1),))
    terms = (
        CostTerm("stem", None, axis, GridCost(np.array([[0.0, 1.0, 2.0]]))),
        CostTerm("head", None, None, GridCost(np.array([[3.0]]))),
        CostTerm("branch", None, None, GridCost(np.array([[5.0]])), (0,)),
    )
    spec = NetworkSpec((GroupSpec("stem:out", 2),), (), (BlockSpec("block", (), (), "add"),), (), "x")
    limit = Constraint("latency", CostModel("ms", 0.5, terms), 4.0, "fake, 1 thread")
    problem = Problem(spec, (np.array([1, 2]),), (np.array([0.0, 1.0, 2.0]),), (limit,), None, frozenset({0}))
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve_exact(problem)
    message, details = str(caught.value), caught.value.details
    assert "Budget 4 ms of latency is below the fastest legal network, 4.5 ms (fake, 1 thread)" in message
    assert "1 of 1 groups" in message
    assert "head (3 ms)" in message
    assert "Raise the budget" in message
    assert details["fastest"] == pytest.approx(4.5)
    assert details["at_minimum"] == ["stem:out"]
    assert details["removed"] == ["block"]
    assert details["costliest"][0] == ("head", 3.0)
    assert caught.value.exit_code == 3


def test_limits_that_only_conflict_say_so() -> None:
    axis = AxisSpec(0, ((0, 1),))
    up, down = np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 2.0, 1.0]])
    models = [CostModel("ms", 0.0, (CostTerm("t", None, axis, GridCost(grid)),)) for grid in (up, down)]
    limits = tuple(Constraint(name, model, 1.0) for name, model in zip(("a", "b"), models, strict=True))
    spec = NetworkSpec((GroupSpec("g", 2),), (), (), (), "x")
    problem = Problem(spec, (np.array([1, 2]),), (np.arange(3.0),), limits)
    with pytest.raises(InfeasibleBudgetError, match="at once") as caught:
        solve_exact(problem)
    assert caught.value.details["conflict"] is True


def test_no_budget_is_refused() -> None:
    spec = NetworkSpec((GroupSpec("g", 2),), (), (), (), "x")
    with pytest.raises(PlanError, match="needs a budget"):
        solve_exact(Problem(spec, (np.array([1, 2]),), (np.arange(3.0),)))


def test_a_wider_option_may_be_the_faster_one() -> None:
    axis = AxisSpec(0, ((0, 1),))
    model = CostModel("ms", 0.0, (CostTerm("t", None, axis, GridCost(np.array([[9.0, 2.0, 1.0, 3.0]]))),))
    spec = NetworkSpec((GroupSpec("g", 3),), (), (), (), "x")
    problem = Problem(spec, (np.arange(1, 4),), (np.arange(4.0),), (Constraint("ms", model, 1.5),))
    assert fastest(problem).widths.tolist() == [2]
    assert solve_exact(problem).widths.tolist() == [2]
