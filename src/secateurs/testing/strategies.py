"""Contract of a search strategy: laws for a plug-in's tests to inherit. Numbers only, no torch."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateurs import registry
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.progress import Progress, silent
from secateurs.search.legal import find_strategy
from secateurs.search.problem import Candidate, Problem, Rows, Solution, Strategy
from secateurs.search.rows import FileRows, MemoryRows
from secateurs.testing.judges import Formula, Killed
from secateurs.testing.problems import brute_force, random_problem

_LOADED = """
import importlib, importlib.util, json, sys
name, file, paths = json.loads(sys.argv[1])
sys.path[:] = paths

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed here")

sys.meta_path.insert(0, Nowhere())
try:
    found = importlib.util.find_spec(name)
except (ImportError, ValueError):
    found = None
if found is not None and found.origin == file:
    importlib.import_module(name)
else:
    spec = importlib.util.spec_from_file_location("strategy_on_trial", file)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""


@dataclass
class Interrupting:
    """Progress that is interrupted when it is told something once more than ``after`` times."""

    after: int
    told: int = 0

    def _hear(self) -> None:
        self.told += 1
        if self.told > self.after:
            raise Killed

    def task(self, name: str, total: int | None = None) -> Interrupting:
        """One more."""
        self._hear()
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """One more."""
        self._hear()

    def say(self, message: str) -> None:
        """One more."""
        self._hear()

    def __enter__(self) -> Interrupting:
        return self

    def __exit__(self, *details: object) -> None:
        pass


class StrategyContract:
    """Contract of a strategy: inherit, override :meth:`strategy`, run with pytest.

    ::

        class TestMySearch(StrategyContract):
            def strategy(self, problem: Problem, folder: Path) -> Strategy:
                return MySearch()

    A strategy that judges candidates (``evaluates``) is given a formula for the accuracy; make it a short search.
    """

    problems = 12
    """Random problems, small enough to try everything, on which every law is tried."""
    solved = 0.5
    """Share of the problems with a solution for which one must be found; a heuristic may refuse the others."""

    def strategy(self, problem: Problem, folder: Path) -> Strategy:
        """The strategy on trial, a new object. ``folder``: where it keeps what a killed search resumes from, if it
        does; two objects of one folder are one search. Most strategies need neither argument."""
        raise AssertionError("override strategy(problem, folder) with the strategy on trial")

    def problem(self, seed: int) -> Problem:
        """One of the problems: tables of three kinds, one or two budgets, with and without removable blocks."""
        kind = ("linear", "staircase", "rough")[seed % 3]
        return random_problem(seed, kind=kind, constraints=1 + seed % 2, blocks=seed % 4 != 3, tightness=0.6)

    def test_it_says_what_it_is(self) -> None:
        """A name, the one criterion that it takes or none, and members of the declared types."""
        for folder, problem in self._cases():
            found = self._made(problem, folder)[0]
            assert isinstance(found.name, str), f"name is {found.name!r}"
            assert found.name.strip() == found.name != "", f"name is {found.name!r}"
            known = [None, *registry.names("criteria")]
            assert found.criterion in known, f"criterion {found.criterion!r} is none of {known}"
            for member in ("evaluates", "searches", "replans", "finalists"):
                assert type(getattr(found, member)) is bool, f"{member} is {getattr(found, member)!r}"
            assert found.picked is None or isinstance(found.picked, str), f"picked is {found.picked!r}"

    def test_networks_are_legal_and_within_the_budget(self) -> None:
        """Widths are legal ones, blocks removable ones, every cost is within its limit; also of further candidates'
        widths and blocks. At least :attr:`solved` of the problems that have a solution are solved."""
        feasible = found = 0
        for folder, problem in self._cases():
            solution = self._attempt(problem, folder)
            feasible += brute_force(problem) is not None
            if solution is None:
                continue
            found += 1
            for candidate in _every(solution):
                _require_legal(problem, candidate)
            assert bool(problem.fits(solution.widths, solution.removed)), (
                f"{_network(solution)} costs {problem.costs(solution.widths, solution.removed)}, "
                f"limits {problem.limits}"
            )
        assert found >= self.solved * feasible, f"{found} of {feasible} problems with a solution were solved"

    def test_figures_are_those_of_the_problem(self) -> None:
        """Value and predicted costs of the solution and of its candidates are what the problem says of them."""
        for folder, problem in self._cases():
            solution = self._attempt(problem, folder)
            for one in _every(solution):
                value = float(problem.value(one.widths, one.removed))
                predicted = problem.predicted(one.widths, one.removed)
                assert np.isclose(one.value, value, rtol=1e-9, atol=1e-12), f"value {one.value}, by the problem {value}"
                assert set(one.predicted) == set(predicted), f"predicted {set(one.predicted)}"
                for name, cost in predicted.items():
                    assert np.isclose(one.predicted[name], cost, rtol=1e-9), f"{name} {one.predicted[name]} is {cost}"

    def test_it_is_never_better_than_the_exact_one(self) -> None:
        """No value above that of the best of all networks within the limits, tried one by one."""
        for folder, problem in self._cases():
            best, solution = brute_force(problem), self._attempt(problem, folder)
            if solution is not None:
                assert best is not None, f"no network is within the limits, but {_network(solution)} came back"
                assert solution.value <= best + 1e-9, f"value {solution.value}, the best within the limits is {best}"

    def test_a_budget_out_of_reach_is_refused(self) -> None:
        """InfeasibleBudgetError, with a message, where no legal network is within the limits."""
        for folder, problem in self._cases():
            limits = tuple(replace(one, limit=0.0) for one in problem.constraints)
            try:
                met = self._solve(replace(problem, constraints=limits), folder)
            except InfeasibleBudgetError as error:
                _require_words(error)
                continue
            raise AssertionError(f"a budget of 0 was met by {_network(met)}")

    def test_without_a_budget_it_answers_or_says_so(self) -> None:
        """A problem without limits has a legal answer, or a PlanError that says what is missing."""
        for folder, problem in self._cases():
            free = replace(problem, constraints=())
            try:
                solution = self._solve(free, folder)
            except PlanError as error:
                _require_words(error)
                continue
            _require_legal(free, solution)

    def test_a_loose_budget_removes_nothing(self) -> None:
        """Where every network is within the limits and every unit is worth something, all of them stay. Not asked of
        strategies that judge by other values than the problem's, or pick from what was found before."""
        for folder, problem in self._cases():
            strategy, posed = self._made(problem, folder)
            if strategy.evaluates or not strategy.searches:
                return
            limits = tuple(replace(one, limit=1e9) for one in posed.constraints)
            solution = strategy.solve(replace(posed, constraints=limits))
            assert np.array_equal(solution.widths, problem.widest), f"{_network(solution)} of {problem.widest.tolist()}"
            assert not solution.removed, f"blocks {sorted(solution.removed)} went"

    def test_the_same_seed_gives_the_same_network(self) -> None:
        """Whatever random numbers others drew before; and theirs afterwards are what they would have been."""
        for folder, problem in self._cases():
            random.seed(1)
            np.random.seed(1)
            first = self._attempt(problem, folder / "first", seed=5)
            drawn = random.random(), np.random.random()
            random.seed(1)
            np.random.seed(1)
            assert drawn == (random.random(), np.random.random()), "it draws from the global generators"
            again = self._attempt(problem, folder / "again", seed=5)
            assert _same(first, again), f"{_network(first)}, and with the same seed {_network(again)}"

    def test_one_object_solves_for_several_limits_in_turn(self) -> None:
        """As the closed loop asks: every answer is within its limits, and without judging each is what a new object
        would say."""
        for folder, problem in self._cases():
            strategy, posed = self._made(problem, folder)
            for share in (1.0, 1.3, 1.1):
                limits = tuple(replace(one, limit=share * one.limit) for one in posed.constraints)
                asked = replace(posed, constraints=limits)
                solution = _attempt(strategy, asked)
                if solution is not None:
                    _require_legal(asked, solution)
                    assert bool(asked.fits(solution.widths, solution.removed)), f"{_network(solution)} is over a limit"
                if not strategy.evaluates:
                    fresh = _attempt(self._made(problem, folder)[0], asked)
                    assert _same(solution, fresh), f"{_network(solution)}, a new object says {_network(fresh)}"

    def test_the_problem_is_left_as_it_was(self) -> None:
        """Options, values and limits are the caller's own."""
        for folder, problem in self._cases():
            before = _numbers(problem)
            self._attempt(problem, folder)
            assert _numbers(problem) == before, "it wrote into the problem"

    def test_details_are_json(self) -> None:
        """They go into plan.json and result.json."""
        for folder, problem in self._cases():
            solution = self._attempt(problem, folder)
            if solution is not None:
                try:
                    json.dumps(dict(solution.details), allow_nan=False)
                except (TypeError, ValueError) as error:
                    raise AssertionError(f"details cannot be written: {error}") from error

    def test_it_can_be_cancelled(self) -> None:
        """What is raised where it reports progress comes out, and the next search is as if nothing had been."""
        for folder, problem in self._cases():
            listening = Interrupting(sys.maxsize)
            whole = self._attempt(problem, folder / "whole", progress=listening)
            for after in sorted({0, listening.told // 2, listening.told - 1} & set(range(listening.told))):
                place = folder / str(after)
                try:
                    self._solve(problem, place, progress=Interrupting(after))
                except Killed:
                    pass
                else:
                    raise AssertionError(f"it went on after it had been interrupted at report {after + 1}")
                again = self._attempt(problem, place)
                assert _same(whole, again), f"{_network(whole)}, after an interrupted search {_network(again)}"

    def test_a_killed_search_is_resumed(self) -> None:
        """A strategy that judges candidates finds, from rows and folder that a killed search left, the network that an
        undisturbed search finds, and judges no candidate again that was judged before."""
        for folder, problem in self._cases():
            if not self._made(problem, folder)[0].evaluates:
                return
            calls: list[str] = []
            whole = self._attempt(problem, folder / "whole", calls=calls)
            rows, first, second = FileRows(folder / "rows.sqlite3"), list[str](), list[str]()
            try:
                self._attempt(problem, folder / "cut", rows=rows, stop_after=len(calls) // 2, calls=first)
            except Killed:
                pass
            else:
                raise AssertionError("its evaluator was killed, and it went on")
            again = self._attempt(problem, folder / "cut", rows=rows, calls=second)
            rows.close()
            assert _same(whole, again), f"{_network(whole)}, resumed {_network(again)}"
            twice = set(first) & set(second)
            assert not twice, f"{len(twice)} of {len(first)} networks were judged a second time"

    def test_no_candidate_is_judged_twice(self) -> None:
        """Real evaluations take seconds each; the problem keeps their rows."""
        for folder, problem in self._cases():
            calls: list[str] = []
            self._attempt(problem, folder, calls=calls)
            assert len(calls) == len(set(calls)), f"{len(calls)} evaluations of {len(set(calls))} networks"

    def test_it_is_loaded_without_torch(self) -> None:
        """Its module can be imported where PyTorch is not there, so that names are listed at once."""
        for folder, problem in self._cases():
            module = sys.modules[self._made(problem, folder)[0].solve.__module__]
            facts = json.dumps([module.__name__, module.__file__, sys.path])
            environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
            run = subprocess.run(
                [sys.executable, "-c", _LOADED, facts], capture_output=True, text=True, env=environment
            )
            assert run.returncode == 0, f"{module.__name__} cannot be imported without torch: {run.stderr[-600:]}"
            return

    def _cases(self) -> Iterator[tuple[Path, Problem]]:
        for seed in range(self.problems):
            with tempfile.TemporaryDirectory(prefix="secateurs-contract-") as folder:
                yield Path(folder), self.problem(seed)

    def _made(
        self, problem: Problem, folder: Path, rows: Rows | None = None, stop_after: int | None = None
    ) -> tuple[Strategy, Problem]:
        """A new object, and the problem with a judge where it needs one."""
        folder.mkdir(exist_ok=True)
        strategy = find_strategy(self.strategy(problem, folder))
        if strategy.evaluates:
            judge = Formula(problem, stop_after=stop_after)
            problem = replace(problem, evaluator=judge, rows=MemoryRows() if rows is None else rows)
        return strategy, problem

    def _solve(self, problem: Problem, folder: Path, progress: Progress = silent) -> Solution:
        strategy, posed = self._made(problem, folder)
        return strategy.solve(posed, progress=progress)

    def _attempt(
        self,
        problem: Problem,
        folder: Path,
        *,
        seed: int = 0,
        progress: Progress = silent,
        rows: Rows | None = None,
        stop_after: int | None = None,
        calls: list[str] | None = None,
    ) -> Solution | None:
        """Its answer, None where it refuses the budget; ``calls``: where to note what was judged."""
        strategy, posed = self._made(problem, folder, rows, stop_after)
        try:
            return _attempt(strategy, posed, seed, progress)
        finally:
            if calls is not None and isinstance(posed.evaluator, Formula):
                calls += posed.evaluator.calls


def _attempt(strategy: Strategy, problem: Problem, seed: int = 0, progress: Progress = silent) -> Solution | None:
    try:
        return strategy.solve(problem, seed=seed, progress=progress)
    except InfeasibleBudgetError:
        return None


def _require_legal(problem: Problem, found: Solution | Candidate) -> None:
    widths = np.asarray(found.widths)
    assert widths.shape == (len(problem.options),), f"widths have shape {widths.shape}"
    assert np.issubdtype(widths.dtype, np.integer), f"widths are {widths.dtype}"
    for group, options, width in zip(problem.spec.groups, problem.options, widths.tolist(), strict=True):
        assert width in options, f"{group.name} keeps {width} units; legal are {options.tolist()}"
    assert isinstance(found.removed, frozenset), f"removed is a {type(found.removed).__name__}"
    assert found.removed <= problem.removable, f"blocks {sorted(found.removed)} went, not all of them may"
    narrowest = problem.canonical(widths, found.removed).tolist()
    assert widths.tolist() == narrowest, f"groups inside removed blocks: {widths.tolist()} is not {narrowest}"


def _require_words(error: PlanError) -> None:
    assert len(str(error)) > 20, f"it says {str(error)!r}"


def _every(solution: Solution | None) -> list[Solution | Candidate]:
    """The solution and its further candidates."""
    return [] if solution is None else [solution, *solution.candidates]


def _same(first: Solution | None, second: Solution | None) -> bool:
    return _network(first) == _network(second)


def _network(found: Solution | None) -> str:
    return "nothing" if found is None else f"widths {np.asarray(found.widths).tolist()} without {sorted(found.removed)}"


def _numbers(problem: Problem) -> list[Any]:
    arrays = [np.asarray(one).tolist() for one in (*problem.options, *problem.values)]
    kept = None if problem.block_values is None else np.asarray(problem.block_values).tolist()
    return [arrays, kept, problem.limits.tolist(), sorted(problem.removable)]
