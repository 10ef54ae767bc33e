"""The FPGA as a target: what the formula predicts is what a file takes, at any widths and with elements pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from secateurs.errors import PlanError, TargetError
from secateurs.export.artifacts import variants
from secateurs.export.quantised import Quantising, export_onnx_int8
from secateurs.latency.model import LatencyModel
from secateurs.latency.targets.fpga import Fpga, amount, with_limits
from secateurs.latency.targets.opening import make_target, open_target
from secateurs.latency.timing import compare
from secateurs.measure.profile import profile
from secateurs.planning.elements.costs import measured_space
from secateurs.search.legal import Legal
from secateurs.structure import Graph, trace


class Net(nn.Module):
    """Convolutions with a residual branch, a mean and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.two, self.down = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 3, 2, padding=1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, 4] of images [n, 3, 12, 12]."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.two(torch.relu(self.one(x))) + x)
        found: torch.Tensor = self.head(torch.relu(self.down(x)).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(1, 3, 12, 12))


@pytest.fixture(scope="module")
def costs(graph: Graph) -> LatencyModel:
    return profile(graph, "fpga:ecp5-85f")


@pytest.mark.parametrize("lanes", ["", "?lanes=16x8", "?lanes=8x4"])
def test_nothing_is_measured_and_nothing_errs(graph: Graph, lanes: str) -> None:
    target = f"fpga:ecp5-85f{lanes}"
    costs = profile(graph, target)
    assert (costs.error.mean_abs, costs.error.count) == (0.0, 0)
    spec, built = graph.spec, variants("onnx:int8", graph, 1)
    narrow, block = np.maximum(spec.dense_widths // 2, 1), frozenset(range(len(spec.blocks)))
    files = {"dense": built.dense_bytes, "narrow": built.build(narrow), "cut": built.build(spec.dense_widths, block)}
    measured = {name: one.latency_ms for name, one in compare(open_target(target), files).items()}
    predicted = {
        "dense": costs.dense_ms,
        "narrow": costs.predict(narrow),
        "cut": costs.predict(spec.dense_widths, block),
    }
    assert measured["dense"] == pytest.approx(predicted["dense"], rel=1e-12)
    if lanes:
        assert measured == pytest.approx(predicted, rel=1e-12)
    else:  # a smaller network may find a faster engine than the dense one's
        assert all(measured[name] <= predicted[name] * (1 + 1e-12) for name in files)


def test_the_model_is_written_and_read(graph: Graph, costs: LatencyModel) -> None:
    back = LatencyModel.from_json(costs.to_json())
    widths = graph.spec.dense_widths - 1
    assert back.predict(widths) == costs.predict(widths)


def test_elements_are_rated_by_the_formula(graph: Graph, costs: LatencyModel, tmp_path: Path) -> None:
    space = measured_space(graph, open_target("fpga:ecp5-85f"), "block", Legal())
    dense = space.spec.dense_widths
    assert float(space.latency.evaluate(dense)) == pytest.approx(costs.dense_ms)
    own, half = len(graph.spec.groups), np.array(dense)
    half[own:] = [options[np.searchsorted(options, options[-1] / 2)] for options in space.offered[own:]]
    assert 0.4 * costs.dense_ms < float(space.latency.evaluate(half)) < 0.75 * costs.dense_ms


def test_a_file_runs_as_the_runtime_runs_it(graph: Graph, tmp_path: Path) -> None:
    samples = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "net.onnx"
    export_onnx_int8(graph.model, samples[:1], file, quantising=Quantising([samples], seven_bits=True))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = [session.run(None, {session.get_inputs()[0].name: one[None].numpy()})[0][0] for one in samples[:5]]
    target = open_target("fpga")
    with target.start() as worker:
        worker.load("net", file, target.settings(threads=1, batch=1, profile=False))
        (found,) = worker.infer("net", [samples[:5].numpy()])
    np.testing.assert_array_equal(found, np.stack(wanted))


def test_what_has_no_hardware_is_the_targets_error(tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Erf", ["x"], ["y"])], "g", [x], [y]))
    file = tmp_path / "float.onnx"
    onnx.save(model, file)
    target = open_target("fpga")
    with target.start() as worker, pytest.raises(TargetError, match=r"stays in float|not quantised"):
        worker.load("net", file, target.settings(threads=1, batch=1, profile=False))


def test_names_and_limits() -> None:
    assert make_target("fpga").name == "fpga:ecp5-85f"
    limited = with_limits("fpga", {"multipliers": "64", "block-ram": "900kbit"})
    assert limited == "fpga:ecp5-85f?multipliers=64&block-ram=900kbit"
    device = Fpga(limited.partition(":")[2]).given_device()
    assert (device.multipliers, device.block_ram_blocks) == (64, 900_000 // 18432)
    assert with_limits("torch-cpu", {"multipliers": None, "block-ram": None}) == "torch-cpu"
    assert make_target(limited).fingerprint(1) != make_target("fpga").fingerprint(1)
    assert not make_target("fpga").mixes


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: make_target("fpga:ice40"), "Known: artix7-100t, ecp5-85f"),
        (lambda: make_target("fpga:ecp5-85f?pixels=3"), "option 'pixels' is unknown"),
        (lambda: make_target("fpga:ecp5-85f?lanes=3"), "such as 16x8"),
        (lambda: make_target("fpga:ecp5-85f?lanes=16x7"), "such as 16x8"),
        (lambda: make_target("fpga:ecp5-85f?multipliers=9999"), "Allow 1 to 156"),
        (lambda: with_limits("torch-cpu", {"multipliers": "64"}), "the target is torch-cpu"),
        (lambda: amount("multipliers", "64kbit"), "is not understood"),
        (lambda: amount("block-ram", "much"), "900kbit"),
    ],
)
def test_what_is_asked_wrongly(ask: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        ask()


def test_a_batch_is_refused(graph: Graph) -> None:
    with pytest.raises(PlanError, match="one sample at a time, not 2"):
        Fpga().formula(graph.spec, variants("onnx:int8", graph, 1).dense_bytes, threads=1, batch=2)
