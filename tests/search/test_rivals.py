"""No heuristic beats the exact solver, and every rival stays within the budget."""

from __future__ import annotations

import numpy as np
import pytest

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.network import AxisSpec, GroupSpec, NetworkSpec
from secateurs.search.exact import Effort, solve_exact
from secateurs.search.global_rank import GlobalRank
from secateurs.search.greedy import Greedy
from secateurs.search.halp import Halp
from secateurs.search.problem import Constraint, Problem, Solution, Strategy
from secateurs.search.uniform import Uniform
from secateurs.testing.problems import GridCost, brute_force, random_problem, staircase_problem

RIVALS: tuple[Strategy, ...] = (Greedy(), Halp(steps=4, buckets=400), Uniform(), GlobalRank())


@pytest.mark.parametrize("seed", range(60))
def test_never_worse_than_any_rival_on_staircases(seed: int) -> None:
    problem = staircase_problem(seed, groups=6, units=32, most=10)
    exact = solve_exact(problem, Effort(gap=1e-9))
    assert bool(problem.fits(exact.widths, exact.removed))
    for rival in RIVALS:
        found = attempt(rival, problem)
        if found is not None:
            assert bool(problem.fits(found.widths, found.removed)), rival.name
            assert found.value <= exact.value + 1e-9 * abs(exact.value), rival.name


def attempt(rival: Strategy, problem: Problem) -> Solution | None:
    try:
        return rival.solve(problem)
    except InfeasibleBudgetError:
        return None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rival", [Greedy(), Halp(steps=3, buckets=200)], ids=lambda r: r.name)
def test_rivals_on_small_rough_problems(rival: Greedy | Halp, seed: int) -> None:
    problem = random_problem(seed, kind="rough", constraints=1 + seed % 2, tightness=0.9)
    best, found = brute_force(problem), attempt(rival, problem)
    if found is not None:
        assert best is not None
        assert found.value <= best + 1e-9
        assert found.removed == frozenset()
        assert bool(problem.fits(found.widths))


def test_halp_equals_the_optimum_where_its_weak_points_do_not_matter() -> None:
    problem = staircase_problem(11, groups=3, units=8, most=4)
    found = Halp(steps=1, buckets=4000).solve(problem)
    assert found.value <= solve_exact(problem, Effort(gap=1e-9)).value + 1e-9
    assert np.all(found.widths >= problem.narrowest)


def test_rivals_need_a_budget() -> None:
    problem = random_problem(0)
    for rival in (Greedy(), Halp(), GlobalRank()):
        with pytest.raises(PlanError, match="needs a budget"):
            rival.solve(Problem(problem.spec, problem.options, problem.values))


def test_global_rank_keeps_what_scores_above_one_threshold() -> None:
    spec = NetworkSpec((GroupSpec("a", 3), GroupSpec("b", 3)), (), (), (), "x")
    axes = [AxisSpec(0, ((g, 1),)) for g in range(2)]
    model = CostModel("ms", 0.0, tuple(CostTerm("t", None, axis, GridCost(np.arange(4.0)[None, :])) for axis in axes))
    values = (np.array([0.0, 9.0, 17.0, 24.0]), np.array([0.0, 8.5, 9.5, 10.0]))
    problem = Problem(spec, (np.arange(1, 4),) * 2, values, (Constraint("ms", model, 4.0),))
    assert GlobalRank().solve(problem).widths.tolist() == [3, 1]
