"""One target among those of a run: names of limits, budgets as ratios, and what its latency model says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from secateurs.budgets import parse_budgets
from secateurs.measure.targeted import Modelled, Targeted, model_error, unsure
from secateurs.testing.latency import FakeTarget


def targeted(name: str, *budgets: Any, **more: Any) -> Targeted:
    bench = SimpleNamespace(target=FakeTarget(lambda content: {}), threads=2)
    return Targeted(name, budgets, bench, 1000.0, **more)  # type: ignore[arg-type]


def costs(mean_abs: float = 0.01) -> Any:
    pairs = ((5.0, 5.5), (7.0, 6.5))
    return SimpleNamespace(error=SimpleNamespace(mean_abs=mean_abs, p95=0.02, spearman=0.9, count=2, pairs=pairs))


def test_limits_are_called_by_the_target_where_there_are_several() -> None:
    assert targeted("").latency == "latency"
    assert targeted("board").latency == "latency@board"
    assert targeted("board").label == "fake, 2 threads"


def test_budgets_are_ratios_of_what_dense_takes_there() -> None:
    first, second = parse_budgets(["20%-of-float", "3ms"], targets=("a", "b"))
    assert targeted("a", first, float_ratio=2.0).ratios({"latency@a": 10.0}) == {"latency@a": pytest.approx(0.4)}
    assert targeted("b", second).ratios({"latency@b": 10.0}) == {"latency@b": pytest.approx(0.3)}


def test_what_a_model_says_of_the_plans() -> None:
    found = Modelled.of(costs(), 10.0, [(0.6, 0.7), (0.5, 0.55)], final=1)
    assert found.predicted_ms == 5.0
    assert [(one.kind, one.predicted_ms, one.measured_ms) for one in found.points] == [
        ("held-out", 5.0, 5.5),
        ("held-out", 7.0, 6.5),
        ("candidate", 6.0, 7.0),
        ("final", 5.0, 5.5),
    ]
    assert found.latency_model == model_error(costs())
    assert (found.latency_model.mean_abs, found.latency_model.p95, found.latency_model.networks) == (0.01, 0.02, 2)


def test_a_poor_model_is_told_with_its_target() -> None:
    (line,) = unsure({"a": costs(0.08), "b": costs()})
    assert line.startswith("The latency model of a is off by 8.0% on average")
    assert unsure({"": costs(0.06)})[0].startswith("The latency model is off by 6.0%")
