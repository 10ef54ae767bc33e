"""Widths and precisions in one problem: against enumeration and one precision for all, and how mixes are explained."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import InfeasibleBudgetError
from secateurs.network import Passed
from secateurs.progress import Progress, silent
from secateurs.search.exact import Effort, solve_exact
from secateurs.search.knapsack import Knapsack
from secateurs.search.mixed import FLOAT, INT8, Conversions, Mix, NoWorse
from secateurs.search.problem import Constraint, Problem, Solution
from secateurs.testing.latency import network
from secateurs.testing.problems import brute_force, enumerate_all

TIGHT = Effort(gap=1e-9)


def chain(seed: int) -> tuple[Mix, Conversions]:
    """A chain of convolutions, one in a block, with tables of costs drawn at random: int8 pays mostly, not always."""
    rng = np.random.default_rng(seed)
    spec = network(depth=2 + seed % 2, units=4)

    def model(factor: float) -> CostModel:
        terms = []
        for layer in spec.layers:
            table = factor * rng.uniform(0.5, 1.5, (11, 11)) * np.add.outer(np.arange(11), np.arange(11))
            cost = lambda i, o, table=table: table[i, o]  # noqa: E731
            terms.append(CostTerm(layer.name, layer.inputs, layer.outputs, cost, layer.blocks))
        return CostModel("ms", 1.0, tuple(terms))

    names = [layer.name for layer in spec.layers]
    layers = tuple(name for name in names if rng.random() < 0.9) or (names[0],)
    passed = [Passed(a, b, int(rng.integers(1, 50))) for a, b in itertools.pairwise(names)]
    passed += [Passed(names[0], None, 7), Passed(None, names[-1], 9)] if seed % 3 == 0 else []
    drawn = rng.uniform(0, 0.05, 2), rng.uniform(0, 1.0, 2)
    conversions = Conversions(rng.uniform(0.8, 1.2), (drawn[1][0], drawn[0][0]), (drawn[1][1], drawn[0][1]))
    return Mix(spec, layers, tuple(passed), model(0.6), model(1.0)), conversions


def mixed_problem(seed: int) -> Problem:
    mix, conversions = chain(seed)
    rng, spec, model = np.random.default_rng([seed, 1]), mix.extended(), mix.model(conversions)
    own = len(mix.spec.groups)
    options = [np.array([1, 2, 4])[rng.integers(0, 2) :] for _ in range(own)] + [np.array([FLOAT, INT8])] * len(
        mix.layers
    )
    values = [np.concatenate([[0.0], np.cumsum(rng.uniform(0.1, 1.0, 4))]) for _ in range(own)]
    values += [np.array([0.0, 0.0, -rng.uniform(0.0, 0.6)]) for _ in mix.layers]
    limit = float(model.evaluate(spec.dense_widths)) * rng.uniform(0.5, 1.3)
    removable = frozenset({0}) if seed % 2 else frozenset[int]()
    constraint = Constraint("latency", model, limit)
    return Problem(spec, tuple(options), tuple(values), (constraint,), np.full(1, 0.3), removable)


def solved(problem: Problem) -> Solution | None:
    try:
        return solve_exact(problem, TIGHT)
    except InfeasibleBudgetError:
        return None


@pytest.mark.parametrize("first", range(0, 220, 20))
def test_equals_brute_force(first: int) -> None:
    for seed in range(first, first + 20):
        problem = mixed_problem(seed)
        best, found = brute_force(problem), solved(problem)
        assert (best is None) == (found is None), seed
        if best is not None and found is not None:
            assert found.value == pytest.approx(best, abs=1e-9), seed
            assert bool(problem.fits(found.widths, found.removed)), seed


def test_every_choice_costs_what_its_layers_and_conversions_do() -> None:
    for seed in range(6):
        mix, conversions = chain(seed)
        spec, model, first = mix.extended(), mix.model(conversions), len(mix.spec.groups)
        widths, gone = enumerate_all(mixed_problem(seed))
        for row, removed in list(zip(widths, gone, strict=True))[::37]:
            out = {b for b in range(len(spec.blocks)) if removed[b]}
            floats = {name for i, name in enumerate(mix.layers) if row[first + i] == FLOAT}
            expected = mix.int8.offset
            for number, layer in enumerate(mix.spec.layers):
                if out.isdisjoint(layer.blocks):
                    inside = layer.name in floats
                    term = (mix.in_float if inside else mix.int8).terms[number]
                    expected += float(term.evaluate(row[:first])) * (conversions.scale if inside else 1.0)
            for one in mix.passed:
                ends = [layer for layer in mix.spec.layers if layer.name in (one.source, one.reader)]
                known = [end for end in (one.source, one.reader) if end in mix.layers]
                blocks = {b for layer in ends if layer.name in known for b in layer.blocks}
                before, behind = one.source in floats, one.reader in floats
                if before == behind or not out.isdisjoint(blocks):
                    continue
                maker = next((la for la in ends if la.name == one.source and la.name in known), None)
                axis = maker.outputs if maker else next(la for la in ends if la.name in known).inputs
                share = float(axis.length(row[:first])) / float(axis.length(mix.spec.dense_widths))
                fixed, rate = conversions.to_int8 if before else conversions.to_float
                expected += fixed + rate * one.elements * share
            assert float(model.evaluate(row, out)) == pytest.approx(expected)


def test_quantised_throughout_it_is_the_int8_model() -> None:
    mix, conversions = chain(4)
    dense = mix.spec.dense_widths
    all_int8 = mix.extended().dense_widths
    assert mix.model(conversions).evaluate(all_int8) == pytest.approx(float(mix.int8.evaluate(dense)))


@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_a_mix_is_never_worse_than_one_precision_for_all(seed: int) -> None:
    problem = mixed_problem(seed)
    found = solved(problem)
    own = sum(not group.name.endswith(":int8") for group in problem.spec.groups)
    for precision in (INT8, FLOAT):
        options = tuple(o if g < own else np.array([precision]) for g, o in enumerate(problem.options))
        alone = solved(replace(problem, options=options))
        assert alone is None or (found is not None and found.value >= alone.value - 1e-9)


@dataclass(frozen=True)
class Hasty(Knapsack):
    """Stops at the first network that it can think of where there is a choice of precision."""

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        if all(len(options) < 2 for options in problem.options[-2:]):
            return super().solve(problem, seed=seed, progress=progress)
        point = problem.candidate(problem.narrowest)
        return Solution(point.widths, point.removed, point.value, point.predicted, 0.5, 0.0)


def test_a_search_that_stops_early_falls_back_to_one_precision() -> None:
    problem = mixed_problem(5)
    problem = replace(problem, constraints=(replace(problem.constraints[0], limit=1e9),))
    own = sum(not group.name.endswith(":int8") for group in problem.spec.groups)
    found = NoWorse(Hasty(), own).solve(problem)
    assert found.value == pytest.approx(brute_force(problem) or 0.0)
    assert NoWorse(Hasty(), own).name == "knapsack"


def test_what_mixes_cost_is_explained_by_conversions() -> None:
    mix, truth = chain(3)
    mix = replace(mix, layers=tuple(layer.name for layer in mix.spec.layers))
    first, rng = len(mix.spec.groups), np.random.default_rng(0)
    mixes = [frozenset(name for name in mix.layers if rng.random() < 0.5) for _ in range(40)]
    model, measured = mix.model(truth), []
    for floats in mixes:
        widths = mix.extended().dense_widths
        widths[first:] = [FLOAT if name in floats else INT8 for name in mix.layers]
        measured.append(float(model.evaluate(widths)))
    found = mix.model(mix.fitted(mixes, measured))
    again = []
    for floats in mixes:
        widths = mix.extended().dense_widths
        widths[first:] = [FLOAT if name in floats else INT8 for name in mix.layers]
        again.append(float(found.evaluate(widths)))
    assert again == pytest.approx(measured, rel=0.02)


def test_without_conversions_none_are_found() -> None:
    mix, _ = chain(3)
    model = mix.model(Conversions())
    mixes = [frozenset({name}) for name in mix.layers]
    first, measured = len(mix.spec.groups), []
    for floats in mixes:
        widths = mix.extended().dense_widths
        widths[first:] = [FLOAT if name in floats else INT8 for name in mix.layers]
        measured.append(float(model.evaluate(widths)))
    found = mix.fitted(mixes, measured)
    assert found.scale == pytest.approx(1.0)
    assert (*found.to_int8, *found.to_float) == pytest.approx((0.0, 0.0, 0.0, 0.0), abs=1e-9)
