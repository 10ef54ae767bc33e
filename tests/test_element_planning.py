"""Widths and kernel elements in one problem: exact, dense where sparse does not pay, and whole in the main job."""

from __future__ import annotations

import io
import itertools
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import secateurs as sc
from secateurs import registry
from secateurs.bench import Bench
from secateurs.cli.app import app
from secateurs.cost import CostModel, CostTerm
from secateurs.data import Data, open_data
from secateurs.element_choices import ElementSpace
from secateurs.element_losses import measured_losses
from secateurs.element_planning import check_elements, element_space, measured_space, rectangle_space
from secateurs.element_refinement import refined
from secateurs.elements.patterns import SCOPES as PATTERN_SCOPES
from secateurs.elements.rectangles import deployable
from secateurs.elements.selection import eligible, patterns
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.kernel_times import KernelTimes, Point
from secateurs.latency.targets import open_target
from secateurs.models import Loaded
from secateurs.planning import Planner
from secateurs.pruning import Place, as_loaded, run
from secateurs.report import Record
from secateurs.search.rows import MemoryRows
from secateurs.search_options import Legal
from secateurs.settings import Settings
from secateurs.structure import apply
from secateurs.structure.kernel_elements import macs_left, masks_of
from secateurs.testing.latency import FakeTarget

PER_WEIGHT, PER_LAYER, DENSE_MS = 2e-5, 0.005, 0.3


def formula(point: Point) -> float:
    """5 µs and 20 ns per kept weight; sparse kernels lose a quarter of their speed."""
    whole = point.shape.positions
    slower = 1.0 if point.count == whole else 1.25
    return PER_LAYER + slower * PER_WEIGHT * point.channels * point.filters * point.count


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take what the formula says."""

    def ms(self: KernelTimes, points: Sequence[Point]) -> np.ndarray:
        return np.array([formula(point) for point in points])

    monkeypatch.setattr(KernelTimes, "ms", ms)
    monkeypatch.setattr(KernelTimes, "fingerprint", {"target": "sparse", "threads": 1})


def kept_costs(content: bytes) -> dict[str, float]:
    """The formula for every weight in a file of the sparse target's format."""
    weights = torch.export.load(io.BytesIO(content)).state_dict
    costs = {}
    for name, weight in weights.items():
        if weight.dim() > 1:
            slower = 1.25 if weight.dim() == 4 and bool((weight == 0).any()) else 1.0
            costs[name] = PER_LAYER + slower * PER_WEIGHT * int(weight.count_nonzero())
    return costs


class FakeSparse(FakeTarget):
    skips_pruned_elements = True


@pytest.fixture
def fake_sparse(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a target that counts the weights that are not zero."""
    module = types.ModuleType("secateurs_fake_sparse")
    made = FakeSparse(kept_costs, base_ms=0.02, name="fake-sparse", artifact="pt2")
    module.make = lambda: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "secateurs_fake_sparse", module)
    monkeypatch.setitem(registry._BUILT_IN["targets"], "fake-sparse", "secateurs_fake_sparse:make")
    return "fake-sparse"


class Chain(nn.Module):
    """Two free groups of 32 units, a layer that can be sparse between and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.middle = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.last = nn.Conv2d(32, 12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(F.relu(self.middle(F.relu(self.stem(x))))).mean((2, 3)))


def chain_space(legal: Legal | None = None, scope: str = "block") -> ElementSpace:
    torch.manual_seed(0)
    graph = sc.trace(Chain().eval(), torch.randn(1, 3, 12, 12))
    return element_space(graph, KernelTimes(), DENSE_MS, scope=scope, legal=legal or Legal())


def planner(space: ElementSpace, **more: object) -> Planner:
    return Planner(space.graph, None, "knapsack", "l2", elements=space, **more)  # type: ignore[arg-type]


def test_groups_of_elements_stand_behind_the_networks_own() -> None:
    space = chain_space()
    own = [group.name for group in space.graph.spec.groups]
    assert [group.name for group in space.spec.groups] == [*own, "middle.weight:elements", "last.weight:elements"]
    assert [group.units for group in space.spec.groups[-2:]] == [9, 9]
    assert float(space.model.evaluate(space.spec.dense_widths)) == pytest.approx(DENSE_MS)


def test_counts_that_do_not_pay_are_not_offered() -> None:
    # Eight of nine elements at 1.25 times the price are dearer than all nine.
    space = chain_space()
    assert space.options[-1].tolist() == [1, 2, 3, 4, 5, 6, 7, 9]


@pytest.mark.parametrize("limit", [0.75, 0.5, 0.35])
def test_the_joint_optimum_is_that_of_brute_force(limit: float) -> None:
    space = chain_space()
    made = planner(space)
    solution = made.solve({"latency": limit}).solution
    values = space.values(made.scores)
    best = -np.inf
    for widths in itertools.product(*space.options):
        cost = float(space.model.evaluate(np.array(widths)))
        if cost <= limit * DENSE_MS * (1 + 1e-9):
            best = max(best, sum(float(curve[w]) for curve, w in zip(values, widths, strict=True)))
    assert solution.value == pytest.approx(best, rel=1e-5)
    assert float(space.model.evaluate(solution.widths)) <= limit * DENSE_MS * (1 + 1e-9)


def test_counts_alone_keep_every_unit() -> None:
    space = chain_space(Legal(channels=False))
    solution = planner(space, legal=Legal(channels=False)).solve({"latency": 0.6}).solution
    assert solution.widths[:-2].tolist() == [group.units for group in space.graph.spec.groups]
    assert solution.widths[-2:].min() < 9


def test_the_plan_holds_patterns_for_the_weights_as_channels_leave_them() -> None:
    space = chain_space()
    narrow, few = np.array([16]), np.array([2, 3, 4])
    space = replace(space, options=tuple(narrow if 16 in options else few for options in space.options))
    made = planner(space)
    choice = made.solve({"latency": 0.6})
    plan = made.plan(choice, "60%")
    assert plan.removed()
    assert plan.elements
    again = sc.Plan.from_json(plan.to_json())
    assert again == plan
    small = sc.apply(space.graph.model, again)
    counts = space.counts(choice.solution.widths)
    for name, mask in masks_of(small, plan.elements).items():
        assert int(mask.sum()) == counts[name] * mask.shape[0] * mask.shape[1]
        assert not dict(small.named_parameters())[name][~mask].any()
    assert {name for name, count in counts.items() if count < 9} == set(plan.elements)
    told = sorted(f"{count} of 9 in" for count in counts.values())
    assert all(text in space.note(plan) for text in told)
    assert plan.provenance["elements"]["counts"] == counts
    bare = plan.model_copy(update={"elements": {}})
    less = sum(
        int((~m).sum()) * {"middle.weight": 36, "last.weight": 16}[n] for n, m in masks_of(small, plan.elements).items()
    )
    assert macs_left(space.graph, small, plan) == macs_left(space.graph, small, bare) - less


def test_layers_that_are_kept_whole_keep_their_elements() -> None:
    torch.manual_seed(0)
    graph = sc.trace(Chain().eval(), torch.randn(1, 3, 12, 12), keep=("middle",))
    assert element_space(graph, KernelTimes(), 2.0, legal=Legal()).layers == ("last.weight",)


class Pointed(nn.Module):
    """A 1×1 convolution between one that reads the image and a grouped one, whose times nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 1)
        self.grouped, self.head = nn.Conv2d(64, 32, 3, groups=2), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.point(F.relu(self.stem(x)))))).mean((2, 3)))


def pointed_space(**more: str) -> ElementSpace:
    torch.manual_seed(0)
    graph = sc.trace(Pointed().eval(), torch.randn(1, 3, 12, 12))
    return element_space(graph, KernelTimes(), DENSE_MS, legal=Legal(channels=False), **more)  # type: ignore[arg-type]


def test_blocks_of_a_pointwise_convolution_lose_input_channels() -> None:
    space = pointed_space()
    assert space.layers == ("point.weight",)
    # By the formula seven eighths at 1.25 times the price are dearer than all.
    assert space.options[-1].tolist() == [1, 2, 3, 4, 5, 6, 8]
    values = space.values(planner(space).scores)
    weight = space.graph.model.get_parameter("point.weight").detach().double().square()
    by_channel = torch.stack([weight[:32].sum(0), weight[32:].sum(0)]).flatten(1)
    half = float(by_channel.sort(descending=True).values[:, :16].sum() / by_channel.sum())
    assert values[-1][4] == pytest.approx(half - 1.0)
    made = planner(space, legal=Legal(channels=False))
    choice = replace(made.solve({"latency": 0.99}))
    widths = np.array([*space.graph.spec.dense_widths, 4])
    plan = made.plan(replace(choice, solution=replace(choice.solution, widths=widths)))
    assert plan.provenance["elements"]["counts"] == {"point.weight": 0.5}
    mask = masks_of(sc.apply(space.graph.model, plan), plan.elements)["point.weight"]
    for block in (mask[:32], mask[32:]):
        assert int(block[0].sum()) == 16
        assert torch.equal(block, block[:1].expand_as(block))


def test_a_pointwise_convolution_stays_dense_where_its_zeros_save_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelTimes, "ms", lambda self, points: np.array([1.0 for point in points]))
    assert pointed_space().options[-1].tolist() == [8]


def test_networks_and_targets_without_elements_to_lose_say_so() -> None:
    with pytest.raises(PlanError, match=r"No convolution .* in scope in_channel: all are 1×1, grouped"):
        pointed_space(scope="in_channel")
    stem = sc.trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(PlanError, match=r"in scope block: all are grouped.* kept whole. Leave --elements out"):
        element_space(sc.trace(stem.model, stem.args, keep=("2",)), KernelTimes(), 1.0, legal=Legal())
    # What cannot be is refused before the network is exported.
    with pytest.raises(PlanError, match=r"in scope layer: all are 1×1.*or give --elements block"):
        measured_space(pointed_space().graph, FakeSparse(kept_costs), "layer", Legal())
    with pytest.raises(PlanError, match=r"onnxruntime-cpu multiplies by pruned kernel elements.*torch-sparse-cpu"):
        check_elements(open_target("onnxruntime-cpu"), "block")
    with pytest.raises(PlanError, match="scope 'kernel' runs fast nowhere"):
        check_elements(open_target("onnxruntime-cpu"), "kernel")
    with pytest.raises(PlanError, match="scope 'kernels' is unknown"):
        check_elements(open_target("onnxruntime-cpu"), "kernels")


def test_budgets_that_elements_cannot_serve_are_refused() -> None:
    space = chain_space()
    with pytest.raises(InfeasibleBudgetError):
        planner(space).solve({"latency": 0.01})
    with pytest.raises(PlanError, match="With kernel elements only latency can be limited, not macs"):
        planner(space, resources=("macs",)).solve({"macs": 0.5})
    with pytest.raises(PlanError, match=r"'lap' judges widths only"):
        Planner(space.graph, None, "lap", "l2", elements=space).solve({"latency": 0.5})


class Residual(nn.Module):
    """Three groups of units, a block that may go, and four layers that can be sparse."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"stem": (3, 32), "first": (32, 32), "second": (32, 32), "wider": (32, 48), "last": (48, 32)}
        for name, (inputs, outputs) in sizes.items():
            layer = nn.Conv2d(inputs, outputs, 3, padding=1, stride=1 + (name == "wider"), bias=False)
            self.add_module(name, nn.Sequential(layer, nn.BatchNorm2d(outputs)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.last(F.relu(self.wider(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Loaded:
    torch.manual_seed(3)
    return as_loaded(Residual().eval(), torch.randn(1, 3, 12, 12))


@pytest.fixture(scope="module")
def data(network: Loaded) -> Data:
    data = open_data("digits", network)
    few = {part: getattr(data, part).take(64) for part in ("train", "calibration", "validation", "test")}
    return replace(data, **few)


def test_losses_are_measured_once_and_blocks_count_as_measured(network: Loaded, data: Data) -> None:
    graph = sc.trace(network.module, network.example())
    space = element_space(graph, KernelTimes(), 5.0, legal=Legal())
    scores, rows = planner(space).scores, MemoryRows()
    losses = measured_losses(space, scores, data, rows=rows)
    names = {group.name for group in space.spec.groups} | {block.name for block in graph.spec.blocks}
    assert set(losses) == names
    assert min(min(found) for found in losses.values()) > 0
    assert all(len(losses[group.name]) == 2 for group in space.spec.groups)
    assert measured_losses(space, scores, data, rows=rows) == losses
    values = space.values(scores, losses)
    for number, block in enumerate(space.spec.blocks):
        inner = space.spec.blocks[number].groups
        gone = sum(float(values[g][-1] - values[g][0]) for g in inner)
        assert gone >= losses[block.name][0] * (1 - 1e-9)
    for curve, options in zip(values, space.options, strict=True):
        legal = curve[[0, *options]]
        assert legal[-1] == 0
        assert np.all(np.diff(legal) >= -1e-12)


@pytest.mark.parametrize("scope", PATTERN_SCOPES)
def test_images_refine_patterns_of_every_scope(network: Loaded, data: Data, scope: str) -> None:
    model = network.module
    found = patterns(model, dict.fromkeys(eligible(model), 4), scope=scope)
    plan = sc.trace(model, network.example()).plan({}, ()).model_copy(update={"elements": found})
    done = refined(model, plan, data, network.example())
    assert done.elements.keys() == found.keys()
    small = apply(model, plan, network.example(), check=False)
    before, after = masks_of(small, found), masks_of(small, done.elements)
    for name, pattern in done.elements.items():
        assert pattern.scope == scope
        assert int(after[name].sum()) == int(before[name].sum())
    same = [torch.equal(before[name], after[name]) for name in found]
    assert all(same) if scope in ("layer", "filter", "kernel") else not all(same)


def test_values_go_through_the_measured_losses_and_grow_at_least_with_the_square(network: Loaded) -> None:
    space = element_space(sc.trace(network.module, network.example()), KernelTimes(), 5.0, legal=Legal())
    scores = planner(space).scores
    name = next(group.name for group in space.spec.groups if group.name.endswith(":elements"))
    number = [group.name for group in space.spec.groups].index(name)
    near, far = space.anchors()[number]
    assert near > far
    lost = -space.values(scores)[number]

    def found(less: float, more: float) -> np.ndarray:
        losses = {group.name: (1.0, 1.0) for group in space.spec.groups} | {name: (less, more)}
        losses |= {block.name: (1e-6,) for block in space.spec.blocks}
        return -space.values(scores, losses)[number]

    ratio = float(lost[far] / lost[near])
    steep = found(0.1, 0.1 * ratio**3)
    assert steep[near] == pytest.approx(0.1)
    assert steep[far] == pytest.approx(0.1 * ratio**3)
    flat = found(0.1, 0.1)
    assert flat[near] == pytest.approx(0.1)
    assert flat[far] == pytest.approx(0.1 * ratio**2)


@pytest.mark.parametrize(("channels", "penalty"), [(True, 0.0), (False, 0.5)])
def test_the_main_job_prunes_channels_and_elements_to_the_budget(
    network: Loaded, data: Data, fake_sparse: str, tmp_path: Path, channels: bool, penalty: float
) -> None:
    settings = Settings(
        latency="45%", target=fake_sparse, epochs=1, train_batch=16, criterion="l2", precision="fp32",
        elements="block", penalty=penalty, repair="statistics",
        channels=channels, blocks=channels,
    )  # fmt: skip
    result = run(network, data, settings, Place(tmp_path / "run", store=tmp_path / "store.sqlite3"))
    record = Record.load(tmp_path / "run" / "result.json")
    assert record.pruned_within_budget
    assert any(note.startswith("Kernel elements (scope block) that stay: ") for note in record.notes)
    assert result.plan.elements or channels
    assert bool(result.plan.removed()) == channels
    weights = load_file(tmp_path / "run" / "model.safetensors")
    masks = masks_of(result.module, result.plan.elements)
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert record.pruned.params == sum(p.numel() for p in result.module.parameters()) - zeros
    assert record.pruned.macs < record.dense.macs


def test_the_command_line_refuses_what_cannot_be(tmp_path: Path) -> None:
    runner = CliRunner()
    given = ["plan", "digits-resnet", "-o", str(tmp_path / "plan.json"), "--elements", "block"]
    wrong = runner.invoke(app, [*given, "--latency", "60%"])
    assert wrong.exit_code == 1
    assert "multiplies by pruned kernel elements" in wrong.output.replace("\n", " ")
    assert runner.invoke(app, [*given, "--macs", "60%"]).exit_code == 2


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(PlanError, match="decided by measured time"):
        Settings(macs="60%", elements="block")
    with pytest.raises(PlanError, match="the cut comes once"):
        Settings(latency="60%", elements="block", schedule="gradual")
    with pytest.raises(PlanError, match="A penalty lets kernel elements decay"):
        Settings(latency="60%", penalty=0.3)
    with pytest.raises(PlanError, match="Neither channels nor blocks"):
        Settings(latency="60%", channels=False, blocks=False)


def test_rectangles_run_as_smaller_convolutions_on_any_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 3, 12, 12)
    graph = sc.trace(Chain().eval(), example)
    by_layer = {"stem": (3, 32), "middle": (32, 32), "last": (32, 12)}
    terms = tuple(
        CostTerm(layer.name, layer.inputs, layer.outputs, lambda i, o: 1e-4 * i * o + 0.0 * o, layer.blocks)
        for layer in graph.spec.layers
        if layer.name in by_layer
    )
    model = CostModel("ms", 0.02, terms)
    dense_ms = float(model.evaluate(graph.spec.dense_widths))
    costs = SimpleNamespace(cost_model=lambda: model, target={"target": "fake"}, dense_ms=dense_ms)
    ratios = {1 / 9: 0.4, 4 / 9: 0.6, 6 / 9: 1.0}
    space = rectangle_space(graph, costs, ratios, legal=Legal(channels=False))  # type: ignore[arg-type]
    # What takes as long as the whole kernel is not offered; 5, 7 and 8 of 9 positions are no rectangle.
    assert [options.tolist() for options in space.options[-2:]] == [[1, 2, 3, 4, 9]] * 2
    everywhere = np.array([*space.graph.spec.dense_widths, 4, 4])
    assert float(space.model.evaluate(everywhere)) == pytest.approx(0.6 * dense_ms)
    made = planner(space, legal=Legal(channels=False))
    plan = made.plan(made.solve({"latency": 0.8}))
    assert plan.elements
    small = sc.apply(graph.model, plan)

    # Kernels that skip zeros take them as they are, everything else takes smaller convolutions.
    Bench(FakeSparse(kept_costs, artifact="pt2"), tmp_path, example).export(small, tmp_path / "zeros.pt2", plan)
    held = torch.export.load(tmp_path / "zeros.pt2").state_dict.values()
    zeros = [tensor.detach().numpy() for tensor in held if tensor.dim() == 4]
    assert all(weight.shape[2:] == (3, 3) for weight in zeros)
    Bench(FakeTarget(kept_costs), tmp_path, example).export(small, tmp_path / "small.onnx", plan)
    initial = onnx.load(tmp_path / "small.onnx").graph.initializer
    smaller = [numpy_helper.to_array(tensor) for tensor in initial if len(tensor.dims) == 4]
    assert min(weight.shape[2:] for weight in smaller) < (3, 3)
    assert sum(np.count_nonzero(weight) for weight in zeros) == sum(weight.size for weight in smaller)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    image = torch.randn(1, 3, 12, 12)
    [found] = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), small(image), rtol=1e-4, atol=1e-5)


def test_a_network_without_rectangles_is_deployed_as_it_is() -> None:
    space, legal = chain_space(Legal(channels=False)), Legal(channels=False)
    plan = planner(space, legal=legal).plan(planner(space, legal=legal).solve({"latency": 0.4}))
    small = sc.apply(space.graph.model, plan)
    assert plan.elements
    assert deployable(small, plan) is small
