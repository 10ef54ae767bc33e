"""Variable elimination against enumeration: exact without copies, an upper bound with them."""

from __future__ import annotations

import numpy as np
import pytest

from secateurs.search.elimination import Elimination
from secateurs.search.lagrangian import cheapest, relax, solve_dual
from secateurs.search.tables import tabulate
from secateurs.testing.problems import brute_force, enumerate_all, random_problem, resnet50_like

KINDS = ("linear", "staircase", "rough")


@pytest.mark.parametrize("largest", [1 << 20, 30])
@pytest.mark.parametrize("seed", range(30))
def test_maximum_and_marginals(seed: int, largest: int) -> None:
    problem = random_problem(seed, kind=KINDS[seed % 3], constraints=1 + seed % 2, groups=3 + seed % 3)
    widths, gone = enumerate_all(problem)
    prices = np.random.default_rng(seed).uniform(0, 0.3, len(problem.constraints))
    total = problem.value(widths, gone) - (problem.costs(widths, gone) - problem.limits) @ prices
    best, marginals = Elimination(tabulate(problem), largest=largest).solve(prices, marginals=True)
    exact = largest > 30
    assert best.bound >= total.max() - 1e-6
    if exact:
        assert best.bound == pytest.approx(total.max(), abs=1e-6)
        assert best.proper
    for group, options in enumerate(problem.options):
        inner = sorted(problem.inner_blocks[group])
        alive = ~gone[:, inner].any(axis=1)
        for state, width in enumerate(options):
            here = total[(widths[:, group] == width) & alive].max()
            assert marginals[group][state] >= here - 1e-3
            if exact:
                assert marginals[group][state] == pytest.approx(here, abs=1e-3)


@pytest.mark.parametrize("seed", range(40))
def test_dual_bounds_every_option(seed: int) -> None:
    problem = random_problem(seed, kind=KINDS[seed % 3], constraints=1 + seed % 2)
    best = brute_force(problem)
    if best is None:
        return
    dual = solve_dual(relax(problem, breakpoints=5 if seed % 4 == 0 else 256))
    assert dual.bound >= best - 1e-6
    widths, gone = enumerate_all(problem)
    fits, values = problem.fits(widths, gone), problem.value(widths, gone)
    for group, options in enumerate(problem.options):
        alive = fits & ~gone[:, sorted(problem.inner_blocks[group])].any(axis=1)
        for state, width in enumerate(options):
            uses = alive & (widths[:, group] == width)
            if uses.any():
                assert dual.marginals[group][state] >= values[uses].max() - 1e-6


def test_cheapest_is_exact_without_copies() -> None:
    problem = random_problem(5, kind="rough")
    widths, gone = enumerate_all(problem)
    found = cheapest(Elimination(tabulate(problem)), 0)
    assert found.costs[0] == pytest.approx(problem.costs(widths, gone)[:, 0].min(), rel=1e-9)


def test_a_real_network_needs_small_tables_only() -> None:
    elimination = relax(resnet50_like())
    assert not elimination.split
    assert elimination.entries < 1_000_000
