"""A latency model by the target's name, and the plans that it is refined with."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import secateurs as sc
from secateurs.errors import PlanError, TargetUnavailableError
from secateurs.latency import model
from secateurs.latency.store import Store
from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.measure.profile import profile, typical_plans
from secateurs.testing.latency import FakeTarget

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.fixture(scope="module")
def costs(graph: sc.Graph, fake_target: str) -> sc.LatencyModel:
    return profile(graph, fake_target)


def test_it_predicts_what_the_target_takes(graph: sc.Graph, costs: sc.LatencyModel, fake: FakeTarget) -> None:
    from secateurs.measure.networks import measured_latencies

    rng = np.random.default_rng(1)
    networks = [np.array([rng.integers(2, group.units + 1) for group in graph.groups]) for _ in range(6)]
    measured = measured_latencies(graph, costs, [(widths, ()) for widths in networks], fake)
    predicted = [costs.predict(widths) for widths in networks]
    assert predicted == pytest.approx(measured.tolist(), rel=0.03)
    assert costs.error.mean_abs < 0.02


def test_the_network_stays_as_it_was(graph: sc.Graph, fake_target: str) -> None:
    graph.model.train()
    state = copy.deepcopy(graph.model.state_dict())
    try:
        profile(graph, fake_target, seed=7)
        assert all(module.training for module in graph.model.modules())
        assert all(torch.equal(tensor, state[name]) for name, tensor in graph.model.state_dict().items())
    finally:
        graph.model.eval()


def test_a_second_profile_measures_nothing_and_is_the_same(graph: sc.Graph, fake: FakeTarget, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        first = profile(graph, fake, store=store)
    loads = fake.loads
    again = profile(graph, fake, store=path)  # a path opens the same store
    assert fake.loads == loads
    widths = graph.spec.dense_widths // 2
    assert again.predict(widths) == first.predict(widths)
    profile(graph, fake, store=path, again=True)
    assert fake.loads > loads


def test_an_unknown_target_and_one_that_is_not_here_are_told(graph: sc.Graph) -> None:
    class Away(FakeTarget):
        def available(self) -> str | None:
            return "the board is not plugged in"

    with pytest.raises(PlanError, match="Unknown target 'abacus'"):
        profile(graph, "abacus")
    with pytest.raises(TargetUnavailableError, match="not plugged in"):
        profile(graph, Away(lambda content: {}))


def test_the_default_target_is_the_registrys(graph: sc.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(*arguments: object, **settings: object) -> None:
        asked.append(arguments[2].name)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "profile", refuse)
    with pytest.raises(KeyboardInterrupt):
        profile(graph)
    assert asked == [DEFAULT_TARGET]


def test_typical_plans_are_legal_and_by_seed(graph: sc.Graph, costs: sc.LatencyModel) -> None:
    plans = typical_plans(graph, costs, 3, 0)
    assert 6 <= len(plans) <= 12
    dense = costs.predict(graph.spec.dense_widths)
    for widths, removed in plans:
        assert np.all((widths >= 1) & (widths <= graph.spec.dense_widths))
        assert not removed  # there are no blocks
        assert costs.predict(widths) <= 0.85 * dense * (1 + 1e-6)
    assert len({tuple(widths) for widths, _ in plans}) > len(plans) / 2

    def numbers(found: list[tuple[np.ndarray, frozenset[int]]]) -> list[list[int]]:
        return [widths.tolist() for widths, _ in found]

    assert numbers(typical_plans(graph, costs, 3, 0)) == numbers(plans)
    assert numbers(typical_plans(graph, costs, 4, 0)) != numbers(plans)
    assert numbers(typical_plans(graph, costs, 3, 1)) != numbers(plans)
    assert len(typical_plans(graph, costs, 3, 0, count=2)) <= 2


def test_a_network_of_which_nothing_can_go_has_no_typical_plans(costs: sc.LatencyModel) -> None:
    bare = sc.trace(torch.nn.Sequential(torch.nn.Linear(4, 2)).eval(), torch.randn(1, 4))
    assert typical_plans(bare, costs, 0, 0) == []
