"""The fastest network within a loss, against brute force on made-up curves of accuracy over latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from secateurs.errors import InfeasibleBudgetError
from secateurs.plan import Measurement
from secateurs.planning.closed_loop import Limits, goal_for
from secateurs.planning.fastest import RESOLUTION, FastestSearch, Found, Tried, bisect, steps_left
from secateurs.progress import Task, silent

Curve = Callable[[float], float]


@dataclass(frozen=True)
class Net:
    """A network known by its model latency and its file's share of dense."""

    latency: float
    size: float = 1.0

    @property
    def predicted(self) -> dict[str, float]:
        return {"latency": self.latency, "file_size": self.size}

    @property
    def key(self) -> str:
        return f"{self.latency:.9f}/{self.size:.9f}"


def monotone(seed: int) -> Curve:
    """An accuracy that never falls with the latency, with one steep place."""
    rng = np.random.default_rng(seed)
    knee, width = rng.uniform(0.25, 0.95), rng.uniform(0.01, 0.2)
    return lambda latency: 0.1 + 0.85 / (1 + np.exp(-(latency - knee) / width))


def jagged(seed: int) -> Curve:
    """The same with noise of some points, the same at every call."""
    smooth = monotone(seed)
    return lambda latency: smooth(latency) + 0.03 * np.sin(1e4 * latency * (seed + 1))


def on(curve: Curve, least: float, reach: float = 0.2, step: float = 1e-6) -> Callable[[float], Tried[Net]]:
    """Plans exist from ``reach`` on at multiples of ``step``."""

    def attempt(limit: float) -> Tried[Net]:
        if limit < reach:
            raise InfeasibleBudgetError("below the fastest")
        net = Net(reach + step * int((limit - reach) / step + 1e-9))
        accuracy = curve(net.latency)
        return Tried(limit, net, accuracy, accuracy >= least)

    return attempt


def fastest(tried: list[Tried[Net]]) -> float:
    return min((one.choice.latency for one in tried if one.holds), default=1.0)


def brute_force(curve: Curve, least: float, reach: float = 0.2) -> float:
    grid = np.linspace(reach, 1.0, 20_001)
    return float(min((one for one in grid if curve(float(one)) >= least), default=1.0))


@pytest.mark.parametrize("seed", range(25))
def test_on_a_monotone_curve_it_is_the_fastest_network_there_is(seed: int) -> None:
    curve = monotone(seed)
    for least in (0.3, 0.6, 0.9, 0.94):
        best = brute_force(curve, least)
        found = fastest(bisect(on(curve, least), 0.2))
        assert best - 1e-4 <= found <= best + RESOLUTION + 1e-4


@pytest.mark.parametrize("seed", range(25))
def test_on_a_jagged_curve_it_holds_and_one_just_below_does_not(seed: int) -> None:
    curve, least = jagged(seed), 0.8
    tried = bisect(on(curve, least), 0.2)
    found = fastest(tried)
    assert found == 1.0 or curve(found) >= least
    below = [one for one in tried if not one.holds and one.limit < found]
    assert found < 0.2 + 1e-6 or found - max(one.limit for one in below) <= RESOLUTION
    assert found >= brute_force(curve, least) - 1e-4
    assert len(tried) <= 1 + steps_left(0.2, 1.0)


def test_where_every_network_holds_the_fastest_legal_one_is_tried_last() -> None:
    tried = bisect(on(lambda latency: 0.9, 0.5), 0.2)
    assert tried[-1].choice.latency == 0.2
    assert fastest(tried) == 0.2


def test_gaps_between_plans_are_skipped() -> None:
    tried = bisect(on(lambda latency: latency, 0.45, step=0.2), 0.2)
    assert fastest(tried) == pytest.approx(0.6)
    found = [round(one.choice.latency, 6) for one in tried]
    assert found.count(0.6) == 1, "what a plan leaves unused is not searched again"


def test_how_many_may_still_come_is_told_and_ends_at_none() -> None:
    left: list[int] = []
    bisect(on(lambda latency: latency, 0.613), 0.2, told=lambda tried, more: left.append(more))
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert len(left) == left[0] + 1


def search(curve: Curve, least: float, machine: Curve = lambda latency: latency, reach: float = 0.2) -> Found[Net]:
    judged: list[str] = []

    def judge(net: Net) -> float:
        assert net.key not in judged, "no network is judged twice"
        judged.append(net.key)
        return curve(net.latency)

    attempt = on(curve, least, reach)
    return FastestSearch(
        solve=lambda limits: attempt(limits["latency"]).choice,
        judge=judge,
        measure=lambda net: Measurement(1.0, 0.0, 9, machine(net.latency), machine(net.latency)),
        dense=curve(1.0),
        least=least,
    ).run(reach)


def test_the_network_is_measured_and_its_like_beside_it() -> None:
    found = search(lambda latency: latency, 0.5)
    assert found.accepted.choice.latency == pytest.approx(0.5, abs=RESOLUTION)
    assert 1 <= len(found.attempts) <= 3
    assert all(one.choice.latency <= 1.05 * found.accepted.choice.latency for one in found.attempts)


def test_of_networks_that_the_model_does_not_tell_apart_the_faster_one_by_measurement_is_taken() -> None:
    exact = search(lambda latency: latency, 0.48)
    slower = max(one.choice.latency for one in exact.attempts)
    assert slower > exact.accepted.choice.latency
    found = search(lambda latency: latency, 0.48, machine=lambda latency: 0.5 if latency == slower else 0.6)
    assert found.accepted.choice.latency == slower


def test_a_network_that_is_planned_again_is_told_once() -> None:
    lines: list[str] = []

    class Talk:
        def task(self, name: str, total: int | None = None) -> Task:
            return silent.task(name, total)

        def say(self, message: str) -> None:
            lines.append(message)

    attempt = on(lambda latency: latency, 0.45, step=0.2)
    found = FastestSearch(
        lambda limits: attempt(limits["latency"]).choice,
        lambda net: net.latency,
        lambda net: Measurement(1.0, 0.0, 9, net.latency, net.latency),
        1.0,
        0.45,
        progress=Talk(),
    ).run(0.2)
    assert [round(one.choice.latency, 6) for one in found.tried] == [0.6, 0.4]
    assert [line.partition(",")[0] for line in lines] == ["Network 1", "Network 2", "Measured: 60.0% of dense latency"]
    assert "15.00 points to spare; " in lines[0]
    assert "5.00 points too few" in lines[1]


def test_a_curve_that_no_network_holds_names_the_nearest() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"keeps a validation accuracy of 99.90%.*has 9\d\.\d\d%") as caught:
        search(lambda latency: latency, 0.999)
    assert caught.value.details["nearest"] == pytest.approx(0.995, abs=0.01)
    assert caught.value.exit_code == 3


def test_a_strategy_that_finds_nothing_is_told() -> None:
    def nothing(limits: Limits) -> Net:
        raise InfeasibleBudgetError("none")

    searching = FastestSearch(nothing, lambda net: 1.0, lambda net: Measurement(1.0, 0.0, 9, 1.0, 1.0), 0.9, 0.8)
    with pytest.raises(InfeasibleBudgetError, match="finds no network that is faster than dense"):
        searching.run(0.2)


def files(real: float, accuracy: float = 0.9) -> FastestSearch[Net]:
    """The file's share of dense follows its limit; real files are ``real`` times as large as the model says."""

    def solve(limits: Limits) -> Net:
        size = limits["file_size"]
        if size < 0.1 or limits["latency"] < 0.5 * size:
            raise InfeasibleBudgetError("none is within both")
        return Net(max(0.5 * size, limits["latency"] - 0.001), size)

    def measure(net: Net) -> Measurement:
        return Measurement(1.0, 0.0, 9, net.latency, net.latency, file_bytes=int(1000 * real * net.size))

    goals = (goal_for("file_size", 0.4, 1000.0),)
    return FastestSearch(solve, lambda net: accuracy, measure, 0.95, 0.8, goals)


@pytest.mark.parametrize("real", [0.8, 1.0, 1.3])
def test_other_budgets_hold_when_measured(real: float) -> None:
    found = files(real).run(0.05)
    assert found.accepted.measured.file_bytes is not None
    assert found.accepted.measured.file_bytes <= 400
    assert found.accepted.choice.latency <= 0.2 + RESOLUTION
    assert found.tried[0].limit == 1.0, "under other budgets the slowest network is not dense"


def test_other_budgets_that_leave_too_little_accuracy_are_out_of_reach() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"None of 1 networks within the other budgets .*raise --file-size"):
        files(1.0, accuracy=0.7).run(0.05)
    with pytest.raises(InfeasibleBudgetError, match="none is within both"):
        files(5.0).run(0.05)
