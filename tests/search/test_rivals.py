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


def ladders(seed: int, first: bool = False) -> Problem:
    """Groups whose widths lie on a ladder of powers of two, with staircases of their own; ``first``: the first group
    belongs to a layer that reads the network's input."""
    generator, options = np.random.default_rng(seed), np.array([1, 2, 4, 8, 16, 32])
    spec = NetworkSpec(tuple(GroupSpec(f"g{i}", 32) for i in range(4)), (), (), (), "ladders")
    terms = []
    for group in range(4):
        stairs = generator.uniform(0.1, 1.0) * np.ceil(np.arange(33) / generator.integers(2, 9))
        inputs = AxisSpec(3, ()) if first and group == 0 else None
        terms.append(CostTerm(f"t{group}", inputs, AxisSpec(0, ((group, 1),)), GridCost(np.tile(stairs, (4, 1)))))
    values = tuple(np.cumsum([0.0, *np.sort(generator.uniform(0.01, 1.0, 32))[::-1]]) for _ in range(4))
    model = CostModel("ms", 0.1, tuple(terms))
    free = Problem(spec, (options,) * 4, values, (Constraint("latency", model, 1e9),))
    least, most = (float(free.costs(widths)[0]) for widths in (free.narrowest, free.widest))
    limit = least + (most - least) * generator.uniform(0.2, 0.8)
    return Problem(spec, free.options, values, (Constraint("latency", model, limit),))


def test_halp_is_close_to_the_optimum_on_ladders_of_unequal_steps() -> None:
    found = [
        (Halp().solve(ladders(seed)).value, solve_exact(ladders(seed), Effort(gap=1e-9)).value) for seed in range(30)
    ]
    shares = np.array([ours / best for ours, best in found])
    assert shares.min() >= 0.9
    assert (shares >= 0.99).mean() >= 0.9


def test_halp_keeps_the_layer_that_reads_the_input() -> None:
    for seed in range(10):
        problem = ladders(seed, first=True)
        widths = Halp().solve(problem).widths
        assert widths[0] == 32 or not problem.fits(np.array([2 * widths[0], 1, 1, 1]))


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
