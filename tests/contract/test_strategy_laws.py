"""Each law of the strategies' contract can fail: for each there is a strategy that breaks it, and an honest one keeps
them all."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateurs.errors import InfeasibleBudgetError
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.testing.judges import Killed
from secateurs.testing.problems import enumerate_all
from secateurs.testing.strategies import StrategyContract


@dataclass
class Honest(Strategy):
    """Tries every network, those of a random order first where several are worth the same."""

    name: str = "honest"

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        widths, gone = enumerate_all(problem)
        order = np.random.default_rng(seed).permutation(len(widths))
        widths, gone = widths[order], gone[order]
        with progress.task("try", 1) as task:
            worth = self.worth(problem, widths, gone)
            task.advance()
        fits = np.flatnonzero(problem.fits(widths, gone))
        if not len(fits):
            raise InfeasibleBudgetError("No legal network is within the limits. Raise the budget.")
        best = fits[np.argmax(worth[fits])]
        return answer(problem, widths[best], frozenset(np.flatnonzero(gone[best]).tolist()))

    def worth(self, problem: Problem, widths: np.ndarray, gone: np.ndarray) -> np.ndarray:
        return problem.value(widths, gone)


@dataclass
class Judging(Honest):
    """The same by real evaluations of some of them."""

    name: str = "judging"
    evaluates: bool = True

    def worth(self, problem: Problem, widths: np.ndarray, gone: np.ndarray) -> np.ndarray:
        worth = np.zeros(len(widths))
        for place in np.flatnonzero(problem.fits(widths, gone))[:12]:
            removed = frozenset(np.flatnonzero(gone[place]).tolist())
            worth[place] = self.judged(problem, widths[place], removed)
        return worth

    def judged(self, problem: Problem, widths: np.ndarray, removed: frozenset[int]) -> float:
        return problem.evaluate(widths, removed).accuracy


def answer(problem: Problem, widths: np.ndarray, removed: frozenset[int] = frozenset(), **other: Any) -> Solution:
    best = problem.candidate(widths, removed)
    return Solution(best.widths, best.removed, best.value, best.predicted, None, 0.0, **other)


Answer = Callable[[Problem], Solution]


@dataclass
class Broken(Strategy):
    """``wrong``: what it answers; else as an honest one."""

    wrong: Answer
    name: str = "broken"
    criterion: str | None = None

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        return self.wrong(problem)


def honest(problem: Problem, seed: int = 0) -> Solution:
    return Honest().solve(problem, seed=seed)


def off_the_options(problem: Problem) -> Solution:
    found = honest(problem)
    return replace(found, widths=found.widths + 1)


def floating(problem: Problem) -> Solution:
    found = honest(problem)
    return replace(found, widths=found.widths.astype(float))


def with_blocks_that_must_stay(problem: Problem) -> Solution:
    return replace(honest(problem), removed=frozenset({0, 1, 2}))


def illegal_candidate(problem: Problem) -> Solution:
    whole = problem.candidate(problem.widest)
    return replace(honest(problem), candidates=(replace(whole, widths=whole.widths + 1),))


def over_the_limit(problem: Problem) -> Solution:
    return answer(problem, problem.widest)


def lazy(problem: Problem) -> Solution:
    raise InfeasibleBudgetError("This strategy finds nothing. Try another one.")


def proud(problem: Problem) -> Solution:
    found = honest(problem)
    return replace(found, value=found.value + 1e-3)


def cheap(problem: Problem) -> Solution:
    found = honest(problem)
    return replace(found, predicted={name: 0.5 * cost for name, cost in found.predicted.items()})


def needs_a_budget(problem: Problem) -> Solution:
    first = problem.constraints[0]
    return honest(replace(problem, constraints=(first, *problem.constraints[1:])))


def least(problem: Problem) -> Solution:
    return answer(problem, problem.narrowest, problem.removable)


def wordless(problem: Problem) -> Solution:
    try:
        return honest(problem)
    except InfeasibleBudgetError:
        raise InfeasibleBudgetError("no") from None


def drawn_globally(problem: Problem) -> Solution:
    np.random.random()
    return honest(problem)


def drawn_anew(problem: Problem) -> Solution:
    widths, gone = enumerate_all(problem)
    fits = np.flatnonzero(problem.fits(widths, gone))
    if not len(fits):
        return honest(problem)
    place = np.random.default_rng().choice(fits)
    return answer(problem, widths[place], frozenset(np.flatnonzero(gone[place]).tolist()))


def writes_options(problem: Problem) -> Solution:
    found = honest(problem)
    np.asarray(problem.values[0])[-1] += 1.0
    return found


def with_arrays(problem: Problem) -> Solution:
    return replace(honest(problem), details={"history": np.zeros(3)})


def with_not_a_number(problem: Problem) -> Solution:
    return replace(honest(problem), details={"history": float("nan")})


@dataclass
class Remembering(Honest):
    """Answers what it answered first."""

    said: list[Solution] = field(default_factory=list)

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        self.said.append(self.said[0] if self.said else super().solve(problem, seed=seed))
        return self.said[-1]


class Deaf(Honest):
    """Goes on whatever its progress raises."""

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        with suppress(BaseException):
            progress.task("try", 1)
        return super().solve(problem, seed=seed)


class Torn(Honest):
    """What an interrupted search leaves behind spoils the next one."""

    spoilt = False

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        if Torn.spoilt:
            return least(problem)
        try:
            return super().solve(problem, seed=seed, progress=progress)
        except Killed:
            Torn.spoilt = True
            raise


class Forgetful(Judging):
    """Judges without keeping rows, and twice."""

    def judged(self, problem: Problem, widths: np.ndarray, removed: frozenset[int]) -> float:
        assert problem.evaluator is not None
        problem.evaluator(widths, removed)
        return problem.evaluator(widths, removed).accuracy


class Unkillable(Judging):
    """Takes a network whose evaluation was killed for a bad one."""

    def judged(self, problem: Problem, widths: np.ndarray, removed: frozenset[int]) -> float:
        with suppress(Killed):
            return super().judged(problem, widths, removed)
        return 0.0


class Fresh(Judging):
    """Another search after every kill."""

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        known = len(list(problem.rows)) if problem.rows is not None else 0  # type: ignore[call-overload]
        return super().solve(problem, seed=seed + known, progress=progress)


BROKEN: dict[str, list[Callable[[], Strategy]]] = {
    "test_it_says_what_it_is": [
        lambda: Broken(honest, name=" broken"),
        lambda: Broken(honest, name=""),
        lambda: Broken(honest, criterion="no-such-criterion"),
        lambda: Judging(evaluates="yes"),  # type: ignore[arg-type]
    ],
    "test_networks_are_legal_and_within_the_budget": [
        lambda: Broken(off_the_options),
        lambda: Broken(floating),
        lambda: Broken(with_blocks_that_must_stay),
        lambda: Broken(illegal_candidate),
        lambda: Broken(over_the_limit),
        lambda: Broken(lazy),
    ],
    "test_figures_are_those_of_the_problem": [lambda: Broken(proud), lambda: Broken(cheap)],
    "test_it_is_never_better_than_the_exact_one": [lambda: Broken(proud), lambda: Broken(over_the_limit)],
    "test_a_budget_out_of_reach_is_refused": [lambda: Broken(least), lambda: Broken(wordless)],
    "test_without_a_budget_it_answers_or_says_so": [lambda: Broken(needs_a_budget)],
    "test_a_loose_budget_removes_nothing": [lambda: Broken(least)],
    "test_the_same_seed_gives_the_same_network": [lambda: Broken(drawn_globally), lambda: Broken(drawn_anew)],
    "test_one_object_solves_for_several_limits_in_turn": [Remembering],
    "test_the_problem_is_left_as_it_was": [lambda: Broken(writes_options)],
    "test_details_are_json": [lambda: Broken(with_arrays), lambda: Broken(with_not_a_number)],
    "test_it_can_be_cancelled": [Deaf, Torn],
    "test_a_killed_search_is_resumed": [Forgetful, Unkillable, Fresh],
    "test_no_candidate_is_judged_twice": [Forgetful],
    "test_it_is_loaded_without_torch": [],
}


class Trial(StrategyContract):
    """``make``: gives the strategy on trial."""

    def __init__(self, make: Callable[[], Strategy]) -> None:
        self.make = make

    def strategy(self, problem: Problem, folder: Path) -> Strategy:
        return self.make()


Trial.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("law", "make"),
    [pytest.param(law, make, id=f"{law}-{n}") for law, fakes in BROKEN.items() for n, make in enumerate(fakes)],
)
def test_a_law_can_fail(law: str, make: Callable[[], Strategy]) -> None:
    fault = IndexError if law == "test_without_a_budget_it_answers_or_says_so" else AssertionError
    with pytest.raises(fault):
        getattr(Trial(make), law)()


@pytest.mark.parametrize("law", BROKEN)
@pytest.mark.parametrize("make", [Honest, Judging])
def test_an_honest_strategy_keeps_every_law(law: str, make: Callable[[], Strategy]) -> None:
    getattr(Trial(make), law)()


def test_every_law_is_shown_to_fail() -> None:
    laws = {name for name in dir(StrategyContract) if name.startswith("test_")}
    assert set(BROKEN) == laws
    assert {law for law, fakes in BROKEN.items() if not fakes} == {"test_it_is_loaded_without_torch"}  # the next test


def test_a_strategy_that_imports_torch_is_told(tmp_path: Path) -> None:
    text = "import torch\nfrom secateurs.search.knapsack import Knapsack\n\nclass Heavy(Knapsack):\n"
    text += "    def solve(self, problem, *, seed=0, progress=None):\n        return super().solve(problem)\n"
    (tmp_path / "heavy.py").write_text(text)
    spec = importlib.util.spec_from_file_location("heavy", tmp_path / "heavy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["heavy"] = module
    try:
        spec.loader.exec_module(module)
        with pytest.raises(AssertionError, match="cannot be imported without torch"):
            Trial(module.Heavy).test_it_is_loaded_without_torch()
    finally:
        del sys.modules["heavy"]


def test_a_contract_without_a_strategy_says_what_to_do() -> None:
    with pytest.raises(AssertionError, match="override strategy"):
        StrategyContract().test_details_are_json()
