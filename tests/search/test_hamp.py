"""The memetic search: archive, seeds, a useless surrogate, stored evaluations, limits, and its parts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymoo")

from secateurs.errors import PlanError
from secateurs.search.hamp import search as engine
from secateurs.search.hamp.archive import Archive, Box, dominates
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.hamp.local_search import Local
from secateurs.search.hamp.operators import crossover, neighbours, offspring, random_genomes, transfer
from secateurs.search.hamp.search import HampSettings, Outcome, Search
from secateurs.search.hamp.selection import FLOOR, PORTFOLIO, select, updated_quotas
from secateurs.search.hamp.strategy import Hamp
from secateurs.search.hamp.surrogate import Quadratic, candidates, train
from secateurs.search.problem import Problem, Rows
from secateurs.search.rows import FileRows, MemoryRows
from secateurs.testing.judges import Formula, Killed
from secateurs.testing.problems import random_problem, resnet50_like

FEW = Local(starts=3, neighbours=40, hops=3, most=6)
QUICK = HampSettings(population=12, evaluations=90, stagnation=0, local=FEW, local_every=2, surrogate_after=1)


def made(seed: int = 3, rows: Rows | None = None, **changes: object) -> Problem:
    """A problem of some groups and blocks, without limits that bind, with a formula for the accuracy."""
    problem = random_problem(seed, groups=6, units=16)
    free = tuple(replace(c, limit=float(c.model.evaluate(problem.widest))) for c in problem.constraints)
    judge = Formula(problem, **changes)  # type: ignore[arg-type]
    return replace(problem, constraints=free, evaluator=judge, rows=MemoryRows() if rows is None else rows)


def front(outcome: Outcome) -> list[tuple[list[int], list[float]]]:
    return [(g.tolist(), o.tolist()) for g, o in zip(outcome.archive.genes, outcome.archive.objectives, strict=True)]


@pytest.fixture(autouse=True)
def only_a_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other surrogates cost seconds; they have tests of their own."""
    monkeypatch.setattr(engine, "candidates", lambda points, seed: [Quadratic()])


def test_archive_holds_evaluated_nondominated_points_only() -> None:
    problem = made()
    search = Search(problem, QUICK, seed=1)
    outcome = search.go()
    judge = problem.evaluator
    assert isinstance(judge, Formula)
    assert len(judge.calls) == len(set(judge.calls)) == outcome.evaluations == 90
    for genome, objectives in zip(outcome.archive.genes, outcome.archive.objectives, strict=True):
        widths, removed = search.encoding.network(genome)
        assert f"{problem.canonical(widths, removed).tolist()} {sorted(removed)}" in judge.calls
        assert objectives[0] == 1 - Formula(problem)(widths, removed).accuracy
        assert objectives[1] == pytest.approx(problem.predicted(widths, removed)["cost0"])
    for one, other in itertools.permutations(outcome.archive.objectives, 2):
        assert not dominates(one, other)


def test_hypervolume_never_falls_and_grows() -> None:
    history = Search(made(), QUICK, seed=2).go().history
    volumes = [line.hypervolume for line in history]
    assert all(b >= a for a, b in itertools.pairwise(volumes))
    assert volumes[-1] > volumes[0]
    assert [line.evaluations for line in history] == sorted(line.evaluations for line in history)


def test_same_seed_same_front_and_another_seed_another() -> None:
    first, second, other = (front(Search(made(), QUICK, seed=s).go()) for s in (5, 5, 6))
    assert first == second
    assert first != other


class Guess:
    """A surrogate that knows nothing."""

    name = "random"

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def fit(self, features: np.ndarray, errors: np.ndarray) -> None:
        pass

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.generator.random(len(features)), np.ones(len(features))


@pytest.mark.parametrize("seed", range(3))
def test_a_random_surrogate_is_shut_out(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    without = replace(QUICK, surrogate_after=10_000)
    monkeypatch.setattr(engine, "candidates", lambda points, seed: [Guess()])
    outcome = Search(made(), QUICK, seed).go()
    assert all(line.model is None for line in outcome.history)
    assert any(line.correlations for line in outcome.history)
    reference = Search(made(), without, seed).go()
    # Same fallback, but the folds of the cross-validation were drawn from the generator, so only the quality compares.
    assert outcome.history[-1].hypervolume >= 0.98 * reference.history[-1].hypervolume


def test_a_good_surrogate_helps() -> None:
    base = resnet50_like(most=8, latency_ratio=1.0)
    gains = []
    for seed in range(2):
        volumes = []
        for after in (1, 10_000):
            problem = replace(base, evaluator=Formula(base), rows=MemoryRows())
            settings = HampSettings(
                population=16, evaluations=200, stagnation=0, local=FEW, local_every=1, surrogate_after=after
            )
            volumes.append(Search(problem, settings, seed).go().history[-1].hypervolume)
        gains.append(volumes[0] - volumes[1])
    assert min(gains) > 0


@pytest.mark.parametrize("after", [5, 60, 89])
def test_a_killed_search_continues_bit_for_bit(tmp_path: Path, after: int) -> None:
    whole = Search(made(rows=FileRows(tmp_path / "whole.sqlite3")), QUICK, seed=4).go()
    broken = made(rows=FileRows(tmp_path / "rows.sqlite3"), stop_after=after)
    with pytest.raises(Killed):
        Search(broken, QUICK, seed=4).go()
    resumed = made(rows=FileRows(tmp_path / "rows.sqlite3"))
    outcome = Search(resumed, QUICK, seed=4).go()
    assert front(outcome) == front(whole)
    assert [replace(line, seconds=0) for line in outcome.history] == [
        replace(line, seconds=0) for line in whole.history
    ]
    assert isinstance(resumed.evaluator, Formula)
    assert len(resumed.evaluator.calls) == outcome.computed == 90 - after


def test_a_second_search_starts_from_what_is_known(tmp_path: Path) -> None:
    rows = FileRows(tmp_path / "rows.sqlite3")
    first = Search(made(rows=rows), QUICK, seed=1).go()
    second = Search(made(rows=rows), replace(QUICK, evaluations=30), seed=2).go()
    assert second.history[0].hypervolume >= first.history[-1].hypervolume
    assert second.evaluations == 30
    again = Search(made(rows=rows), replace(QUICK, evaluations=30), seed=2).go()
    assert front(again) == front(second)
    assert again.computed == 0
    fresh = Search(made(rows=rows), replace(QUICK, evaluations=30, start_from_known=False), seed=2).go()
    assert fresh.history[0].hypervolume < first.history[-1].hypervolume


def test_evaluations_of_another_file_are_taken_over(tmp_path: Path) -> None:
    first = Search(made(rows=FileRows(tmp_path / "first.sqlite3")), QUICK, seed=1).go()
    rows = FileRows(tmp_path / "second?#.sqlite3")
    assert rows.adopt(tmp_path / "first.sqlite3") == first.evaluations == len(rows)
    assert rows.adopt(tmp_path / "first.sqlite3") == 0
    second = Search(made(rows=rows), replace(QUICK, evaluations=20), seed=2).go()
    assert second.history[0].hypervolume >= first.history[-1].hypervolume
    with pytest.raises(PlanError, match="no evaluations to start from"):
        rows.adopt(tmp_path / "nothing.sqlite3")


def test_rows_of_another_evaluator_are_not_used(tmp_path: Path) -> None:
    rows = FileRows(tmp_path / "rows.sqlite3")
    Search(made(rows=rows), replace(QUICK, evaluations=30), seed=1).go()
    other = made(rows=rows)
    judge = Formula(other, seed=9)
    outcome = Search(replace(other, evaluator=judge), replace(QUICK, evaluations=30), seed=1).go()
    assert len(judge.calls) == outcome.computed == 30


def test_limits_hold_for_the_whole_front() -> None:
    problem = made()
    low, high = (float(problem.costs(w[None])[0, 0]) for w in (problem.narrowest, problem.widest))
    tight = replace(problem, constraints=(replace(problem.constraints[0], limit=low + 0.6 * (high - low)),))
    found = Hamp(QUICK).solve(tight, seed=1)
    assert all(c.predicted["cost0"] <= tight.limits[0] * (1 + 1e-9) for c in found.candidates)
    accuracies = [c.accuracy for c in found.candidates]
    assert accuracies == sorted(accuracies, reverse=True)
    np.testing.assert_array_equal(found.widths, found.candidates[0].widths)


def test_three_objectives() -> None:
    problem = random_problem(1, groups=5, units=12, constraints=2)
    problem = replace(problem, evaluator=Formula(problem), rows=MemoryRows())
    outcome = Search(problem, replace(QUICK, evaluations=60), seed=0).go()
    assert outcome.archive.objectives.shape[1] == 3
    assert outcome.history[-1].hypervolume > 0


def test_screening_evaluates_a_part_in_full() -> None:
    problem = made()
    outcome = Search(problem, replace(QUICK, screen=50, local=None), seed=1).go()
    assert isinstance(problem.evaluator, Formula)
    assert len(problem.evaluator.calls) == outcome.evaluations < 80
    assert outcome.history[-1].hypervolume > outcome.history[0].hypervolume


def test_stops_when_nothing_improves_and_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(QUICK, evaluations=None, stagnation=2, local=None)
    assert Search(made(), settings, seed=1).go().stopped in ("stagnation", "no new networks")
    clock = itertools.count(0, 40.0)
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(clock))
    timed = Search(made(), replace(settings, stagnation=0, minutes=3.0), seed=1).go()
    assert timed.stopped == "minutes"
    assert timed.history[-1].seconds >= 180
    assert timed.history[-2].seconds < 180


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(PlanError, match="never end"):
        HampSettings(evaluations=None, stagnation=0)
    with pytest.raises(PlanError, match="Selection 'best'"):
        HampSettings(portfolio=("best",))
    with pytest.raises(PlanError, match="no data"):
        Search(replace(made(), evaluator=None), QUICK)
    with pytest.raises(PlanError, match="2 to 4 objectives"):
        Search(replace(made(), constraints=()), QUICK)


def test_genomes_and_networks_are_the_same_thing() -> None:
    problem = made()
    encoding, generator = Encoding(problem), np.random.default_rng(0)
    genes = random_genomes(encoding, 50, generator)
    for genome in genes:
        widths, removed = encoding.network(genome)
        assert all(w in options for w, options in zip(widths, problem.options, strict=True))
        np.testing.assert_array_equal(problem.canonical(widths, removed), widths)
        np.testing.assert_array_equal(encoding.genome(widths, removed), genome)
    assert encoding.is_block.sum() == len(problem.removable) == 2
    for block, gene in encoding.block_genes.items():
        first = min(problem.spec.blocks[block].groups)
        assert encoding.group_genes[first] == gene + 1


def test_variation_stays_legal_and_transfers_keep_the_cost() -> None:
    problem = resnet50_like(most=16, latency_ratio=1.0, removable=True)
    encoding, generator = Encoding(problem), np.random.default_rng(0)
    genes = random_genomes(encoding, 60, generator)
    children = offspring(encoding, np.stack([genes, genes[::-1]]), generator)
    np.testing.assert_array_equal(encoding.canonical(children), children)
    assert np.any(children != genes)
    mixed = crossover(np.stack([genes, genes[::-1]]), generator)
    assert np.all((mixed == genes) | (mixed == genes[::-1]))
    moved = transfer(encoding, genes, generator)
    changed = np.any(moved != genes, axis=1)
    before, after = encoding.costs(genes)[changed, 0], encoding.costs(moved)[changed, 0]
    assert changed.mean() > 0.9
    assert np.median(np.abs(after / before - 1)) < 0.01
    near = neighbours(encoding, genes[0], 100, generator)
    assert len(np.unique(near, axis=0)) == len(near)
    assert not np.any(np.all(near == genes[0], axis=1))


def test_archive_and_hypervolume_against_counting() -> None:
    box = Box(np.zeros(2), np.ones(2))
    archive = Archive(box, 1)
    points = [(0.5, 0.5), (0.2, 0.8), (0.6, 0.6), (0.5, 0.5), (0.1, 0.1)]
    gains = [archive.add(np.array([i]), np.array(p)) for i, p in enumerate(points)]
    assert gains[0] == pytest.approx(0.36)
    assert gains[1] == pytest.approx(0.3 * 0.3)
    assert gains[2] is None
    assert gains[3] is None
    assert archive.genes.tolist() == [[4]]
    assert archive.hypervolume == pytest.approx(1.0)
    assert box.hypervolume(np.array([[1.2, 0.0]])) == 0.0


def test_selections_share_the_slots() -> None:
    generator = np.random.default_rng(1)
    objectives, violations = generator.random((60, 2)), np.zeros(60)
    violations[::7] = generator.random(9) + 0.1
    box = Box(np.zeros(2), np.ones(2))
    rankings = list(PORTFOLIO.values())
    chosen = select(objectives, violations, 20, box, np.full(3, 1 / 3), rankings)
    assert len(set(chosen.indices.tolist())) == 20
    assert np.all(violations[chosen.indices] == 0)
    assert sum(bool(named) for named in chosen.nominators) >= 7
    everything = select(objectives, violations, 60, box, np.full(3, 1 / 3), rankings)
    worst = everything.indices[-1]
    assert violations[worst] == violations.max()
    for name, ranking in PORTFOLIO.items():
        order = ranking(objectives, 20)
        assert len(set(order.tolist())) == len(order) >= 20, name
        first = objectives[order[0]]
        assert not np.any(np.all(objectives < first, axis=1)), name


def test_a_selection_has_named_what_stands_first_within_its_quota() -> None:
    def in_order(objectives: np.ndarray, slots: int) -> np.ndarray:
        return np.arange(len(objectives))

    def from_behind(objectives: np.ndarray, slots: int) -> np.ndarray:
        return np.arange(len(objectives))[::-1]

    box, points = Box(np.zeros(2), np.ones(2)), np.full((20, 2), 0.5)
    agreed = select(points, np.zeros(20), 9, box, np.full(3, 1 / 3), [in_order] * 3)
    assert agreed.indices.tolist() == list(range(9))
    assert [len(named) for named in agreed.nominators] == [3, 3, 3, 0, 0, 0, 0, 0, 0]
    opposed = select(points, np.zeros(20), 9, box, np.array([2 / 3, 1 / 3]), [in_order, from_behind])
    named = dict(zip(opposed.indices.tolist(), opposed.nominators, strict=True))
    assert {point for point, who in named.items() if who == {0}} == set(range(6))
    assert {point for point, who in named.items() if who == {1}} == {17, 18, 19}


def test_offspring_are_chosen_by_the_predicted_error() -> None:
    base = resnet50_like(most=8, latency_ratio=1.0)
    for seed in range(2):
        volumes = []
        for bred in (1, 8):
            problem = replace(base, evaluator=Formula(base), rows=MemoryRows())
            settings = HampSettings(
                population=16, evaluations=200, stagnation=0, local=FEW, surrogate_after=1, local_every=2, bred=bred
            )
            volumes.append(Search(problem, settings, seed).go().history[-1].hypervolume)
        assert volumes[1] > volumes[0]


def test_credit_moves_the_quotas_but_none_below_the_floor() -> None:
    quotas = np.full(3, 1 / 3)
    for _ in range(50):
        quotas = updated_quotas(quotas, np.array([1.0, 0.0, 0.0]))
    assert quotas.sum() == pytest.approx(1)
    assert quotas[0] > 0.79
    assert quotas[1:] == pytest.approx([FLOOR, FLOOR], abs=1e-3)
    np.testing.assert_array_equal(updated_quotas(quotas, np.zeros(3)), quotas)


def test_every_surrogate_ranks_a_smooth_function_and_noise_shuts_the_gate() -> None:
    generator = np.random.default_rng(0)
    features = generator.random((120, 6))
    smooth = features @ np.array([3, 2, 1, 0.5, 0.2, 0.1]) + features[:, 0] ** 2
    found = train(features, smooth, candidates(120, 0), generator)
    assert found.model is not None
    assert min(found.correlations.values()) > 0.85
    mean, deviation = found.model.predict(features)
    assert np.corrcoef(mean, smooth)[0, 1] > 0.95
    assert np.all(deviation >= 0)
    noise = train(features, generator.random(120), candidates(120, 0), generator)
    assert noise.model is None
    assert len(candidates(5000, 0)) == 2
