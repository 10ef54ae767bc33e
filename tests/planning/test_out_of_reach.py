"""The message for a budget that no legal network is within: what was measured, what limits it, what to do."""

from __future__ import annotations

import numpy as np

from secateurs.errors import InfeasibleBudgetError
from secateurs.plan import Measurement
from secateurs.planning.closed_loop import Attempt, goal_for
from secateurs.planning.out_of_reach import out_of_reach
from secateurs.planning.planner import Choice
from secateurs.search.problem import Solution

DETAILS = {
    "widths": {"a": 1, "b": 8}, "at_minimum": ["a"], "removed": ["block 1"], "costliest": [("head", 0.25)],
}  # fmt: skip


def attempt(measured: Measurement, predicted: dict[str, float]) -> Attempt[Choice]:
    solution = Solution(np.array([1, 8]), frozenset({0}), 0.0, {}, None, 0.0)
    return Attempt(Choice(solution, predicted), measured)


def test_latency_is_told_as_it_was_measured() -> None:
    tried = attempt(Measurement(0.6, 0.01, 100, ratio=0.4, ratio_upper=0.41), {"latency": 0.3})
    error = InfeasibleBudgetError("by the model", DETAILS)
    found = out_of_reach(error, goal_for("latency", 0.2, 1.5), tried, "20%", "onnxruntime-cpu, 1 thread")
    told = str(found)
    assert told.startswith("Latency budget 20% (0.3")
    assert "cannot be reached on onnxruntime-cpu, 1 thread: the fastest legal network takes 0.6" in told
    assert "40.0% of dense" in told
    assert "1 of 2 groups are at their minimum width, 1 blocks are removed" in told
    assert "what still costs most is head" in told
    assert "Raise --latency to 41%" in told
    assert found.details["measured_ratio"] == 0.4
    assert found.details["widths"] == DETAILS["widths"]


def test_what_is_counted_is_not_called_measured() -> None:
    tried = attempt(Measurement(0.6, 0.01, 100), {"macs": 0.4})
    error = InfeasibleBudgetError("by the model", {})
    told = str(out_of_reach(error, goal_for("macs", 0.2, 1e6), tried, "20%", "x"))
    assert "the smallest legal network takes 400" in told
    assert "when counted" in told
