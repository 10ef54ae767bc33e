from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.cost import CostModel
from secateurs.errors import TargetError
from secateurs.export.variants import OnnxVariants
from secateurs.latency.model import LatencyModel, Profiler, profile
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.plan import ElementPattern
from secateurs.testing.latency import FakeTarget, FakeVariants, network, staircase_costs

SPEC = network()


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    return profile(SPEC, FakeVariants(SPEC), FakeTarget(staircase_costs), samples=96)


def truth(widths: np.ndarray, removed: frozenset[int] = frozenset()) -> float:
    return sum(staircase_costs(FakeVariants(SPEC).build(widths, removed)).values()) + 0.1


def test_it_predicts_unseen_widths(model: LatencyModel) -> None:
    rng = np.random.default_rng(5)
    widths = np.array([[rng.integers(8, 65) for _ in SPEC.groups] for _ in range(40)])
    wanted = np.array([truth(row) for row in widths])
    assert np.abs(model.predict(widths) / wanted - 1).mean() < 0.02
    assert model.error.mean_abs < 0.04
    assert model.error.spearman > 0.98


def test_removed_blocks_cost_nothing(model: LatencyModel) -> None:
    widths = np.array([48, 32, 32, 64])
    assert model.predict(widths, frozenset({0})) == pytest.approx(truth(widths, frozenset({0})), rel=0.04)


def test_terms_and_offset_make_the_prediction(model: LatencyModel) -> None:
    widths = np.array([[64, 48, 32, 16], [16, 32, 48, 64]])
    summed = CostModel("ms", model.offset_ms, model.terms()).evaluate(widths, frozenset({0}))
    assert np.allclose(summed, model.predict(widths, frozenset({0})))
    assert model.predict({"c1:out": 48}) == pytest.approx(model.predict([64, 48, 64, 64]))


def test_json_round_trip(model: LatencyModel) -> None:
    again = LatencyModel.from_json(model.to_json())
    widths = np.random.default_rng(0).integers(1, 65, (20, 4))
    assert np.array_equal(again.predict(widths), model.predict(widths))
    assert again.error == model.error
    with pytest.raises(TargetError, match="profile"):
        LatencyModel.from_json("{}")


def test_calibration_by_measured_plans(model: LatencyModel) -> None:
    widths = np.array([32, 32, 32, 32])
    corrected = model.calibrate([(widths, frozenset(), 1.1 * model.predict(widths))])
    assert corrected.predict(widths) == pytest.approx(1.1 * model.predict(widths))
    assert model.calibrate([]) is model


def test_a_second_profile_measures_nothing(tmp_path) -> None:
    target = FakeTarget(staircase_costs)
    with Store(tmp_path / "s.sqlite3") as store:
        first = profile(SPEC, FakeVariants(SPEC), target, store=store)
        loads = target.loads
        second = profile(SPEC, FakeVariants(SPEC), target, store=store)
    assert target.loads == loads > 0
    assert second.to_json() == first.to_json()


def test_an_interrupted_profile_resumes(tmp_path) -> None:
    target = FakeTarget(staircase_costs, fail_after=80)
    with Store(tmp_path / "s.sqlite3") as store:
        with pytest.raises(KeyboardInterrupt):
            profile(SPEC, FakeVariants(SPEC), target, store=store, samples=48)
        stored = sum(1 for _ in store.rows())
        assert 20 < stored < 49
        target.fail_after = None
        target.loads = 0
        profile(SPEC, FakeVariants(SPEC), target, store=store, samples=48)
        # What was stored is not loaded again; the dense anchor comes once more per block, and all is loaded twice.
        assert target.loads <= 2 * (49 - stored + 5)


def test_a_hopeless_machine_is_refused() -> None:
    factors = itertools.cycle([1.0, 3.0, 1.0, 1.0, 2.0, 1.0, 5.0])
    target = FakeTarget(staircase_costs, disturb=lambda: next(factors))
    draws = np.random.default_rng(0)
    target.costs = lambda content: {k: v * draws.uniform(0.2, 3) for k, v in staircase_costs(content).items()}
    with pytest.raises(TargetError, match="unseen networks"):
        profile(SPEC, FakeVariants(SPEC), target, samples=48)


def test_plans_join_the_fit(model: LatencyModel) -> None:
    profiler = Profiler(SPEC, FakeVariants(SPEC), FakeTarget(staircase_costs))
    profiler.run(samples=48)
    refitted = profiler.add_plans([(np.array([16, 16, 16, 16]), ())])
    assert refitted.predict([16, 16, 16, 16]) == pytest.approx(truth(np.array([16, 16, 16, 16])), rel=0.05)


def test_wrong_number_of_groups_is_told(model: LatencyModel) -> None:
    with pytest.raises(TargetError, match="4 groups"):
        model.predict([1, 2, 3])


class Small(nn.Module):
    """Two residual blocks that can go, between a stem and a head."""

    def __init__(self, hidden: int = 8, kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Branch(hidden, kernel) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Branch(nn.Module):
    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, hidden, 3, padding=1), nn.Conv2d(hidden, 8, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(self.a(x).relu())).relu()


@pytest.fixture(scope="module")
def small(fake_target: str) -> tuple[sc.Graph, LatencyModel]:
    graph = sc.trace(Small(), torch.randn(1, 3, 8, 8))
    return graph, profile(graph.spec, OnnxVariants(graph), open_target(fake_target), samples=24)


def test_a_plan_is_predicted(small: tuple[sc.Graph, LatencyModel]) -> None:
    """Widths, and blocks that go; also after a JSON round trip of plan and model."""
    graph, costs = small
    names = [group.name for group in graph.groups]
    plan = graph.plan({names[0]: range(5), names[1]: range(3)})
    widths = {name: len(plan.groups[name]) for name in names}
    assert costs.predict(plan) == costs.predict(widths) < costs.predict(graph.plan({}))
    assert costs.predict(graph.plan({})) == costs.predict(costs.dense_widths)
    assert costs.uncertainty(widths=plan) == costs.uncertainty(widths=widths)
    assert costs.predict(widths=plan) == costs.predict(plan)
    for number, block in enumerate(graph.spec.blocks):
        gone = graph.plan({}, [block.name])
        assert costs.predict(gone) == costs.predict(costs.dense_widths, {number}) < costs.predict(costs.dense_widths)
    both = graph.plan({}, [block.name for block in graph.spec.blocks])
    again = LatencyModel.from_json(costs.to_json())
    assert again.predict(sc.Plan.from_json(both.to_json())) == costs.predict(both)
    assert costs.predict(sc.plan(graph, costs, latency="70%", criterion="l2")) < 0.75 * costs.dense_ms


def test_a_plan_of_another_network_is_refused(small: tuple[sc.Graph, LatencyModel]) -> None:
    graph, costs = small
    for other, part in (
        (Small(hidden=12), r"group blocks\.0\.a:out of 12 units, which here has 8 units"),
        (Small(kernel=1), "other layers or shapes differ"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), "group 0:out .* is not among"),
    ):
        plan = sc.trace(other, torch.randn(1, 3, 8, 8)).plan({})
        with pytest.raises(sc.PlanMismatchError, match=part):
            costs.predict(plan)
    gone = graph.plan({}, [graph.spec.blocks[0].name])
    with pytest.raises(sc.PlanMismatchError, match="removes block"):
        replace(costs, blocks=()).predict(gone)
    with pytest.raises(TargetError, match="leave removed= out"):
        costs.predict(gone, {0})
    pattern = ElementPattern(scope="layer", pattern=((0, 1, 2),))
    with pytest.raises(TargetError, match="kernel elements of 1 layers"):
        costs.predict(gone.model_copy(update={"elements": {"stem.weight": pattern}}))


def test_widths_that_no_network_has(model: LatencyModel) -> None:
    with pytest.raises(TargetError, match="no group 'c9:out'; its groups are c0:out"):
        model.predict({"c9:out": 3})
    for width in (-1, 65):
        with pytest.raises(TargetError, match=f"c1:out has 64 units, so its width cannot be {width}"):
            model.predict([64, width, 64, 64])
