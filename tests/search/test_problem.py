"""Problems: validation, values, fast costs, canonical candidates, stored evaluations; legal widths."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import PlanError
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, NetworkSpec
from secateurs.search.options import legal_widths, reachable_lengths, right_ends
from secateurs.search.problem import Constraint, Evaluation, Problem
from secateurs.search.rows import FileRows, MemoryRows
from secateurs.search.uniform import Uniform
from secateurs.testing.problems import GridCost, TiledCost, enumerate_all, random_problem


def small(units: tuple[int, ...] = (4, 6), blocks: tuple[BlockSpec, ...] = ()) -> NetworkSpec:
    return NetworkSpec(tuple(GroupSpec(f"g{i}", n) for i, n in enumerate(units)), (), blocks, (), "small")


@pytest.mark.parametrize("seed", range(20))
def test_batched_costs_equal_the_full_models(seed: int) -> None:
    problem = random_problem(seed, constraints=2, kind=("staircase", "rough")[seed % 2])
    widths, gone = enumerate_all(problem)
    widths = np.concatenate([widths, problem.spec.dense_widths[None, :]])
    gone = np.concatenate([gone, np.zeros((1, gone.shape[1]), dtype=bool)])
    batched = problem.costs(widths, gone)
    for row in range(0, len(widths), 7):
        removed = np.flatnonzero(gone[row]).tolist()
        single = [float(c.model.evaluate(widths[row], removed)) for c in problem.constraints]
        assert batched[row] == pytest.approx(single, rel=1e-12)


def test_costs_off_the_legal_widths_are_computed() -> None:
    axis = AxisSpec(0, ((0, 1),))
    model = CostModel("ms", 1.0, (CostTerm("t", None, axis, GridCost(np.array([[0.0, 1.0, 5.0, 7.0, 20.0]]))),))
    spec = small((4,))
    problem = Problem(spec, (np.array([2, 4]),), (np.arange(5.0),), (Constraint("ms", model, 9.0),))
    assert problem.costs(np.array([[2], [3], [4]]))[:, 0].tolist() == [6.0, 8.0, 21.0]


def test_removed_block_drops_terms_inner_values_and_block_value() -> None:
    spec = small((4, 6), (BlockSpec("b", (1,), (), "add"),))
    terms = (
        CostTerm("stays", None, AxisSpec(0, ((0, 1),)), GridCost(np.arange(9.0)[None, :])),
        CostTerm("goes", AxisSpec(0, ((0, 1),)), AxisSpec(0, ((1, 1),)), GridCost(np.ones((9, 9))), (0,)),
    )
    values = (np.arange(5.0), 10 * np.arange(7.0) - 7)
    limit = Constraint("ms", CostModel("ms", 0.0, terms), 9.0)
    options = (np.arange(1, 5), np.arange(1, 7))
    problem = Problem(spec, options, values, (limit,), np.array([100.0]), frozenset({0}))
    assert float(problem.value(np.array([3, 2]))) == 116.0
    assert float(problem.value(np.array([3, 2]), {0})) == -4.0
    assert problem.costs(np.array([3, 2]), {0}).tolist() == [3.0]
    assert problem.canonical([3, 2], {0}).tolist() == [3, 1]
    assert problem.key([3, 2], {0}) == problem.key([3, 5], {0})
    assert problem.key([3, 2]) != problem.key([3, 5])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"options": (np.array([1, 4]),)}, "2 groups"),
        ({"options": (np.array([4, 1]), np.array([6]))}, "g0"),
        ({"options": (np.array([0, 4]), np.array([6]))}, "g0"),
        ({"options": (np.array([1, 5]), np.array([6]))}, "within 1"),
        ({"values": (np.arange(5.0), np.full(7, np.nan))}, "g1 needs 7 finite"),
        ({"removable": frozenset({3})}, "removable"),
        ({"block_values": np.zeros(2)}, "block values"),
    ],
)
def test_wrong_problems_are_refused(change: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"options": (np.array([1, 4]), np.array([6])), "values": (np.arange(5.0), np.arange(7.0))}
    with pytest.raises(PlanError, match=match):
        Problem(small(), **{**given, **change})


class Judge:
    identity = "judge-1"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation:
        self.calls += 1
        return Evaluation(0.5 + 0.01 * int(widths.sum()), 0.1, {"loss": 1.0})


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_evaluations_are_stored_and_reused(kind: str, tmp_path: Path) -> None:
    judge = Judge()
    rows = MemoryRows() if kind == "memory" else FileRows(tmp_path / "rows.sqlite3")
    options, values = (np.array([1, 4]), np.array([3, 6])), (np.arange(5.0), np.arange(7.0))
    problem = Problem(small(), options, values, evaluator=judge, rows=rows)
    first = problem.evaluate([4, 6])
    assert problem.evaluate(np.array([4, 6])) == first
    assert judge.calls == 1
    assert next(iter(rows))["widths"] == [4, 6]
    assert len(rows) == 1
    with pytest.raises(PlanError, match="--data"):
        replace(problem, evaluator=None).evaluate([4, 6])


def test_stored_rows_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite3"
    first = FileRows(path)
    first.put("a", {"accuracy": 0.5, "seconds": 1.0, "details": {}})
    first.put("a", {"accuracy": 0.9, "seconds": 1.0, "details": {}})
    second = FileRows(path)
    row = second.get("a")
    assert row is not None
    assert row["accuracy"] == 0.5
    assert second.get("b") is None
    first.close()
    second.close()
    other = tmp_path / "other"
    other.write_text("not a database, certainly not one of ours")
    with pytest.raises(PlanError, match="cannot be kept"):
        FileRows(other).get("a")


def test_torn_rows_count_as_absent(tmp_path: Path) -> None:
    rows = FileRows(tmp_path / "rows.sqlite3")
    rows.put("a", {"accuracy": 0.5})
    with sqlite3.connect(tmp_path / "rows.sqlite3") as base:
        base.execute("UPDATE evaluations SET row = '{\"accuracy\": 0.'")
    base.close()
    assert rows.get("a") is None
    assert list(rows) == []
    rows.close()


def test_legal_widths() -> None:
    spec = NetworkSpec(
        (GroupSpec("a", 16), GroupSpec("b", 512, min_units=3), GroupSpec("c", 10), GroupSpec("d", 7)), (), (), (), "x"
    )
    widths = legal_widths(spec, minimum={"c": 4}, maximum={"c": 6}, pinned=["d"])
    assert widths[0].tolist() == list(range(1, 17))
    assert widths[1][:4].tolist() == [3, 4, 8, 16]
    assert widths[1][-1] == 512
    assert len(widths[1]) <= 64 + 8
    assert widths[2].tolist() == [4, 5, 6]
    assert widths[3].tolist() == [7]
    with pytest.raises(PlanError, match="'nope' is not a group"):
        legal_widths(spec, pinned=["nope"])
    with pytest.raises(PlanError, match="at least 8 but at most 6"):
        legal_widths(spec, minimum={"c": 8}, maximum={"c": 6})


def test_right_ends_keep_only_the_widest_of_a_plateau() -> None:
    axis = AxisSpec(0, ((0, 1),))
    model = CostModel("ms", 0.0, (CostTerm("t", None, axis, TiledCost(1.0, 4, 8)),))
    spec = small((32,))
    options = right_ends(spec, (np.arange(1, 33),), [model])
    assert options[0].tolist() == [1, 8, 16, 24, 32]


def test_right_ends_keep_a_width_that_saves_anything_limited() -> None:
    axis = AxisSpec(0, ((0, 1),))
    time = CostModel("ms", 0.0, (CostTerm("t", None, axis, TiledCost(1.0, 4, 8)),))
    size = CostModel("bytes", 0.0, (CostTerm("t", None, axis, GridCost(np.arange(33.0)[None, :] // 4)),))
    options = right_ends(small((32,)), (np.arange(1, 33),), [time, size])
    assert options[0].tolist() == [1, 3, 7, 8, 11, 15, 16, 19, 23, 24, 27, 31, 32]


def test_reachable_lengths() -> None:
    axis = AxisSpec(5, ((0, 1), (1, 2)))
    assert reachable_lengths(axis, [np.array([1, 2]), np.array([3])]).tolist() == [12, 13]
    assert reachable_lengths(None, []).tolist() == [0]


def test_uniform_keeps_one_ratio() -> None:
    spec = NetworkSpec((GroupSpec("a", 10), GroupSpec("b", 3), GroupSpec("c", 1)), (), (), (), "x")
    options, values = tuple(np.arange(1, n + 1) for n in (10, 3, 1)), tuple(np.arange(n + 1.0) for n in (10, 3, 1))
    problem = Problem(spec, options, values)
    assert Uniform(keep=0.6).solve(problem).widths.tolist() == [6, 2, 1]
    assert Uniform(keep=0.01).solve(problem).widths.tolist() == [1, 1, 1]
    with pytest.raises(PlanError, match="keep=0"):
        Uniform(keep=0)
    terms = tuple(CostTerm(f"t{g}", None, AxisSpec(0, ((g, 1),)), GridCost(np.arange(11.0)[None, :])) for g in range(3))
    limited = replace(problem, constraints=(Constraint("ms", CostModel("ms", 0.0, terms), 9.0),))
    found = Uniform().solve(limited)
    assert found.widths.tolist() == [6, 2, 1]
    assert found.predicted == {"ms": 9.0}


@pytest.mark.parametrize("seed", range(10))
def test_uniform_is_within_budget_and_never_better_than_exact(seed: int) -> None:
    from secateurs.search.exact import solve_exact

    problem = random_problem(seed, tightness=1.0)
    found = Uniform().solve(problem)
    assert bool(problem.fits(found.widths, found.removed))
    assert found.value <= solve_exact(problem).value * (1 + 1e-3) + 1e-9
