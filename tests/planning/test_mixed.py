"""Widths and precisions as a space: what it offers, what precisions are worth, and the plans that it makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import PlanError
from secateurs.importance.scoring import Scorer
from secateurs.latency.targets import make_target
from secateurs.measure.mixed import MixedFiles
from secateurs.network import NetworkSpec
from secateurs.planning.channels import Channels
from secateurs.planning.mixed import MixedSpace, check_mixes, exchange_rate, mix_of
from secateurs.planning.planner import Planner
from secateurs.progress import silent
from secateurs.search.legal import find_strategy
from secateurs.search.mixed import FLOAT, INT8, Conversions, Mix
from secateurs.search.rows import MemoryRows
from secateurs.structure import Graph, trace

LAYERS = ("stem", "inner", "outer", "head")


class Residual(nn.Module):
    """A block that can go, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Residual().eval(), torch.randn(1, 3, 8, 8))


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4)]


def multiplying(spec: NetworkSpec, factors: dict[str, float]) -> CostModel:
    """A model that takes each layer's multiply-adds at dense positions times a factor of its own."""

    def term(number: int) -> CostTerm:
        layer = spec.layers[number]
        work = factors.get(layer.name, 1.0) * layer.positions * layer.kernel_elements * 1e-4
        return CostTerm(layer.name, layer.inputs, layer.outputs, lambda i, o: work * i * o, layer.blocks)

    return CostModel("ms", 0.1, tuple(term(number) for number in range(len(spec.layers))))


@pytest.fixture(scope="module")
def space(graph: Graph, batches: list[tuple[Tensor, Tensor]]) -> MixedSpace:
    """Int8 takes half as long, but three times as long in the stem."""
    files = MixedFiles.of(graph, batches)
    int8 = multiplying(graph.spec, {"stem": 3.0, "inner": 0.5, "outer": 0.5, "head": 0.5})
    passed = tuple(files.layers.passed)
    mix = Mix(graph.spec, LAYERS, passed, int8, multiplying(graph.spec, {}))
    return MixedSpace(Channels(graph), mix, Conversions(), files, batches)


def planner(space: MixedSpace, batches: list[tuple[Tensor, Tensor]], rows: MemoryRows | None = None) -> Planner:
    scorer = Scorer(space.graph, "fisher", batches)
    return Planner(space, scorer, space.search(find_strategy("knapsack")), rows=rows)


def test_latency_and_multiply_adds_can_be_limited_and_nothing_else(space: MixedSpace) -> None:
    dense = space.spec.dense_widths
    assert space.model("latency").evaluate(dense) == pytest.approx(
        float(space.mix.int8.evaluate(space.graph.spec.dense_widths))
    )
    assert float(space.model("macs").evaluate(dense)) == space.graph.spec.macs(space.graph.spec.dense_widths)
    with pytest.raises(PlanError, match=r"not file size\. Leave out --file-size, or --precision-mix"):
        space.model("file_size")


def test_every_layer_has_both_precisions_and_all_widths_that_int8_alone_offers(space: MixedSpace) -> None:
    offered = space.options([space.model("latency")])
    own = len(space.graph.spec.groups)
    assert all(options.tolist() == [FLOAT, INT8] for options in offered[own:])
    alone = space.channels.options([space.mix.int8])
    assert all(set(one.tolist()) <= set(more.tolist()) for one, more in zip(alone, offered, strict=False))


def test_strategies_that_do_not_solve_the_joint_problem_are_refused(space: MixedSpace) -> None:
    with pytest.raises(PlanError, match=r"which strategy 'greedy' does not\. Give --strategy knapsack or splamp"):
        space.search(find_strategy("greedy"))


def test_what_int8_costs_is_measured_once_and_float_costs_nothing(
    space: MixedSpace, batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, scores = MemoryRows(), Scorer(space.graph, "fisher", batches).scores
    found = space.values(scores, None, rows, silent)[len(space.graph.spec.groups) :]
    assert all(curve[0] == curve[FLOAT] == 0.0 for curve in found)
    assert all(-1.0 < curve[INT8] < 0.0 for curve in found)
    monkeypatch.setattr(MixedFiles, "only", lambda self, layer: pytest.fail("measured again"))
    again = space.values(scores, None, rows, silent)[len(space.graph.spec.groups) :]
    assert np.array_equal(np.array(found), np.array(again))


def test_losses_follow_the_scores_currency(space: MixedSpace, batches: list[tuple[Tensor, Tensor]]) -> None:
    from secateurs.importance.output_change import Answers

    scores = Scorer(space.graph, "fisher", batches).scores
    answers = Answers(space.graph, [(batches[0][0],)])
    rate = exchange_rate(space.graph, scores, answers)
    assert rate > 0
    tenfold = {name: 10 * found for name, found in scores.items()}
    assert exchange_rate(space.graph, tenfold, answers) == pytest.approx(10 * rate)


def test_a_layer_that_int8_slows_down_stays_in_float_and_is_named(
    space: MixedSpace, batches: list[tuple[Tensor, Tensor]]
) -> None:
    made = planner(space, batches)
    plan = made.plan(made.solve({"latency": 0.4}))
    assert "stem" in plan.precision
    assert "stem (no faster in int8)" in space.note(plan)
    assert plan.in_float == set(plan.precision)


def test_the_mix_is_never_worse_than_one_precision(space: MixedSpace, batches: list[tuple[Tensor, Tensor]]) -> None:
    made = planner(space, batches)
    own = len(space.graph.spec.groups)
    for limit in (0.3, 0.5, 0.8):
        problem, found = made.problem({"latency": limit}), made.solve({"latency": limit}).solution
        for precision in (INT8, FLOAT):
            options = tuple(o if g < own else np.array([precision]) for g, o in enumerate(problem.options))
            alone = find_strategy("knapsack").solve(replace(problem, options=options))
            assert found.value >= alone.value - 1e-9


def test_layers_of_a_removed_block_are_not_named(space: MixedSpace) -> None:
    graph = space.graph
    assert graph.spec.blocks
    plan = graph.plan({}, (graph.spec.blocks[0].name,))
    widths = space.spec.dense_widths
    widths[len(graph.spec.groups) :] = FLOAT
    assert list(space.finished(plan, widths).precision) == ["stem", "head"]
    assert "every layer in int8" in space.note(graph.plan({}, ()))


def test_values_that_pass_between_choosable_layers_are_kept(space: MixedSpace) -> None:
    class Model:
        def __init__(self, model: CostModel) -> None:
            self.cost_model = lambda: model

    models = Model(space.mix.int8), Model(space.mix.in_float)
    mix = mix_of(space.graph.spec, ("inner", "head"), space.files, *models)  # type: ignore[arg-type]
    assert {(one.source, one.reader) for one in mix.passed} == {("stem", "inner"), ("inner", "outer"), (None, "head")}


def test_files_that_cannot_hold_both_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(PlanError, match="hold no layers in float"):
        check_mixes(make_target("executorch-xnnpack:int8"))
    check_mixes(make_target("onnxruntime-cpu:int8"))
