"""The closed loop against a made-up machine: models that err, plans with gaps, budgets out of reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from secateurs.closed_loop import Goal, close
from secateurs.errors import InfeasibleBudgetError
from secateurs.plan import Measurement


@dataclass(frozen=True)
class Net:
    """A network known by its model latency."""

    predicted: float

    @property
    def key(self) -> str:
        return f"{self.predicted:.6f}"


def planner(step: float = 0.004, fastest: float = 0.3) -> Callable[[float], Net]:
    """The best plan for a limit: plans exist at multiples of ``step`` from ``fastest`` to 1."""

    def solve(limit: float) -> Net:
        if limit < fastest:
            raise InfeasibleBudgetError("below the fastest")
        return Net(fastest + step * int((min(limit, 1.0) - fastest) / step))

    return solve


def machine(truth: Callable[[float], float], width: float = 0.004) -> Callable[[Net], Measurement]:
    def measure(net: Net) -> Measurement:
        value = truth(net.predicted)
        return Measurement(value * 10, 0.02, 100, value, value * (1 + width))

    return measure


@pytest.mark.parametrize("error", [0.85, 0.93, 1.0, 1.04, 1.1, 1.25])
@pytest.mark.parametrize("limit", [0.4, 0.5, 0.6, 0.8])
def test_a_wrong_model_still_hits_the_window(error: float, limit: float) -> None:
    goal = Goal(limit)
    accepted, attempts = close(goal, planner(fastest=0.2), machine(lambda predicted: predicted * error))
    assert accepted.measured.ratio_upper <= limit
    assert accepted.measured.ratio >= 0.94 * limit
    assert len(attempts) <= 4


def test_an_error_that_changes_with_size_converges() -> None:
    accepted, attempts = close(Goal(0.5), planner(), machine(lambda p: 0.1 + 0.9 * p**1.3))
    assert 0.94 * 0.5 <= accepted.measured.ratio <= 0.5
    assert len(attempts) <= 5


def test_a_gap_between_legal_plans_ends_below_it() -> None:
    accepted, _ = close(Goal(0.6), planner(step=0.2, fastest=0.3), machine(lambda p: p))
    assert accepted.choice.predicted == pytest.approx(0.5)


def test_a_plan_just_over_the_limit_is_never_accepted() -> None:
    # Plans at 0.30 and 0.505 only: the second is 1 % over.
    accepted, _ = close(Goal(0.5), planner(step=0.205, fastest=0.3), machine(lambda p: p))
    assert accepted.choice.predicted == pytest.approx(0.3)


def test_out_of_reach_by_the_model_is_passed_on() -> None:
    with pytest.raises(InfeasibleBudgetError, match="below the fastest"):
        close(Goal(0.25), planner(fastest=0.3), machine(lambda p: p))


def test_out_of_reach_when_measured_names_the_nearest() -> None:
    def solve(limit: float) -> Net:
        return Net(0.45)

    with pytest.raises(InfeasibleBudgetError, match=r"nearest took 60\.0%"):
        close(Goal(0.5), solve, machine(lambda p: 0.6))


def test_noise_does_not_make_it_run_for_ever() -> None:
    wobble = iter([1.0, 1.05, 0.95, 1.03, 0.97] * 10)
    accepted, attempts = close(Goal(0.5), planner(step=0.01), machine(lambda p: p * next(wobble)), rounds=8)
    assert len(attempts) <= 8
    assert accepted.measured.ratio_upper <= 0.5
