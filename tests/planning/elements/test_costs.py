"""Widths and kernel elements in one problem: exact, dense where sparse does not pay, and whole in the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from chains import (
    Chain,
    FakeSparse,
    chain_space,
    kept_costs,
    planner,
    pointed_space,
)
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import secateurs as sc
from secateurs.cli.app import app
from secateurs.cost import CostModel, CostTerm
from secateurs.data import Data
from secateurs.elements.rectangles import deployable
from secateurs.errors import PlanError
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.latency.targets import open_target
from secateurs.measure.bench import Bench
from secateurs.measure.kernel_times import KernelTimes
from secateurs.models import Loaded
from secateurs.planning.elements.costs import check_elements, element_space, measured_space, rectangle_space
from secateurs.report import Record
from secateurs.search.legal import Legal
from secateurs.structure.kernel_elements import masks_of
from secateurs.testing.latency import FakeTarget


def test_layers_that_are_kept_whole_keep_their_elements() -> None:
    torch.manual_seed(0)
    graph = sc.trace(Chain().eval(), torch.randn(1, 3, 12, 12), keep=("middle",))
    assert element_space(graph, KernelTimes(), 2.0, legal=Legal()).layers == ("last.weight",)


def test_blocks_of_a_pointwise_convolution_lose_input_channels() -> None:
    space = pointed_space()
    assert space.layers == ("point.weight",)
    # By the formula seven eighths at 1.25 times the price are dearer than all.
    assert space.offered[-1].tolist() == [1, 2, 3, 4, 5, 6, 8]
    values = space.worth(planner(space).scores)
    weight = space.graph.model.get_parameter("point.weight").detach().double().square()
    by_channel = torch.stack([weight[:32].sum(0), weight[32:].sum(0)]).flatten(1)
    half = float(by_channel.sort(descending=True).values[:, :16].sum() / by_channel.sum())
    assert values[-1][4] == pytest.approx(half - 1.0)
    made = planner(space)
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
    assert pointed_space().offered[-1].tolist() == [8]


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


@pytest.mark.parametrize(("channels", "penalty"), [(True, 0.0), (False, 0.5)])
def test_the_main_job_prunes_channels_and_elements_to_the_budget(
    network: Loaded, data: Data, fake_sparse: str, tmp_path: Path, channels: bool, penalty: float
) -> None:
    settings = Settings(
        latency="45%", target=fake_sparse, epochs=1, train_batch=16, criterion="l2", precision="fp32",
        elements="block", penalty=penalty, repair="statistics",
        channels=channels, blocks=channels, allow_chance=True,
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
    assert [options.tolist() for options in space.offered[-2:]] == [[1, 2, 3, 4, 9]] * 2
    everywhere = np.array([*space.graph.spec.dense_widths, 4, 4])
    assert float(space.latency.evaluate(everywhere)) == pytest.approx(0.6 * dense_ms)
    made = planner(space)
    plan = made.plan(made.solve({"latency": 0.8}))
    assert plan.elements
    small = sc.apply(graph.model, plan)

    # Kernels that skip zeros take them as they are, everything else takes smaller convolutions.
    Bench.inside(tmp_path, FakeSparse(kept_costs, artifact="pt2"), example).export(small, tmp_path / "zeros.pt2", plan)
    held = torch.export.load(tmp_path / "zeros.pt2").state_dict.values()
    zeros = [tensor.detach().numpy() for tensor in held if tensor.dim() == 4]
    assert all(weight.shape[2:] == (3, 3) for weight in zeros)
    Bench.inside(tmp_path, FakeTarget(kept_costs), example).export(small, tmp_path / "small.onnx", plan)
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
    space = chain_space(Legal(channels=False))
    plan = planner(space).plan(planner(space).solve({"latency": 0.4}))
    small = sc.apply(space.graph.model, plan)
    assert plan.elements
    assert deployable(small, plan) is small
