"""Latency sensitivity by networks that are cut and run, and a sample of it beside what a search used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateurs as sc
from secateurs.latency.store import Store
from secateurs.measure.profile import profile
from secateurs.measure.sensitivity import SAMPLED_GROUPS, measured_sensitivity, with_measured_sample
from secateurs.search.lap.sensitivity import RATIOS, agreement, modelled, single_cuts
from secateurs.testing.latency import FakeTarget


def by_formula(graph: sc.Graph, fake: FakeTarget, group: int) -> np.ndarray:
    """Saved shares [ratios], from files that are sliced and priced one by one."""
    from secateurs.export.artifacts import variants

    built = variants("onnx", graph, 1)

    def ms(widths: np.ndarray) -> float:
        return fake.base_ms + sum(fake.costs(built.build(widths)).values())

    dense = ms(graph.spec.dense_widths)
    return np.array([1 - ms(widths) / dense for widths in single_cuts(graph.spec, [group])[1][0]])


def test_every_ratio_is_measured_beside_dense(graph: sc.Graph, fake: FakeTarget) -> None:
    found = measured_sensitivity(graph, fake, [1, 3])
    assert found.groups == (1, 3)
    assert found.saved.shape == (2, len(RATIOS))
    for row, group in enumerate(found.groups):
        assert found.saved[row] == pytest.approx(by_formula(graph, fake, group), abs=2e-3)


def test_without_groups_all_are_measured(graph: sc.Graph, fake: FakeTarget, tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite3") as store:
        found = measured_sensitivity(graph, fake, store=store)
        assert found.groups == tuple(range(len(graph.groups)))
        loads = fake.loads
        again = measured_sensitivity(graph, fake, store=store)
    assert np.array_equal(again.saved, found.saved)
    assert fake.loads == loads


@pytest.mark.usefixtures("few_samples")
def test_it_agrees_with_the_model(graph: sc.Graph, fake: FakeTarget) -> None:
    """On a target whose times follow a formula both ways must rank groups alike."""
    expected = modelled(graph.spec, profile(graph, fake).cost_model())
    found = measured_sensitivity(graph, fake)
    assert agreement(expected, found) >= 0.9
    assert found.saved.max() > 0.01
    assert abs(found.saved - expected.saved).max() < 0.02


def details(graph: sc.Graph, **changes: Any) -> dict[str, Any]:
    """Of a search over all groups, whose sensitivities are made up."""
    kept, _ = single_cuts(graph.spec)
    saved = 0.1 * np.arange(1, 1 + len(graph.groups))[:, None] * (1 - kept / graph.spec.dense_widths[:, None])
    groups = [group.name for group in graph.groups]
    curves = {"widths": kept.tolist(), "saved": saved.tolist()}
    return {"summary": {"evaluations": 9}, "sensitivity": curves, "groups": groups, "unit": "ms", **changes}


def test_a_sample_is_measured_beside_what_the_search_used(graph: sc.Graph, fake: FakeTarget) -> None:
    given = details(graph)
    found = with_measured_sample(given, graph, fake, 1, 1, None)
    assert {name: value for name, value in found.items() if name != "measured"} == given
    measured = found["measured"]
    assert len(measured["groups"]) == len(measured["saved"]) == min(SAMPLED_GROUPS, len(graph.groups))
    for name, saved in zip(measured["groups"], measured["saved"], strict=True):
        assert saved == pytest.approx(by_formula(graph, fake, graph.group_index(name)), abs=2e-3)
    assert -1 <= measured["agreement"] <= 1


def test_two_groups_are_too_few_for_a_rank_correlation(graph: sc.Graph, fake: FakeTarget) -> None:
    whole = details(graph)
    curves = {name: rows[:2] for name, rows in whole["sensitivity"].items()}
    found = with_measured_sample(
        {**whole, "groups": whole["groups"][:2], "sensitivity": curves}, graph, fake, 1, 1, None
    )
    assert len(found["measured"]["groups"]) == 2
    assert found["measured"]["agreement"] is None


@pytest.mark.parametrize("change", [{"unit": "macs"}, {}])
def test_nothing_is_measured_where_there_is_nothing_to_compare(graph: sc.Graph, change: dict[str, Any]) -> None:
    nothing: Any = None
    given = details(graph, **change)
    if not change:
        del given["sensitivity"]
    assert with_measured_sample(given, nothing, nothing, 1, 1, None) == given


def test_a_solution_without_a_summary_has_no_details(graph: sc.Graph) -> None:
    nothing: Any = None
    assert with_measured_sample({"history": [1, 2]}, nothing, nothing, 1, 1, None) == {}
