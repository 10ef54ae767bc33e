"""ONNX files in int8: what they compute, what they are made of, and what is refused before anything is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from secateurs.errors import ExportError
from secateurs.export.artifacts import export_artifact, formats
from secateurs.export.onnx import run_onnx, to_model
from secateurs.export.quantised import LEAST, Quantising, export_onnx_int8, quantised, ranges_of, samples


class Residual(nn.Module):
    """A residual block between a stem and a head: what ONNX Runtime can run in int8 from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def optimised(path: Path, folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_the_file_answers_as_the_network_does(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    report = export_onnx_int8(
        network, images[:1], path, batch=4, quantising=Quantising([(images, None)], seven_bits=True)
    )
    assert report.size_bytes == path.stat().st_size
    assert report.max_rel_error < 1e-4, "of the float file"
    for batch in images.split(4):
        expected = network(batch).detach().numpy()
        found = run_onnx(path, [batch.numpy()])[0]
        assert 0 < np.abs(found - expected).max() < 0.08 * np.abs(expected).max()


def test_every_layer_runs_in_int8_and_the_residual_stream_too(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    export_onnx_int8(network, images[:1], path, quantising=Quantising([images]))
    found = optimised(path, tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (3, 1)
    assert found["QLinearAdd"] == 1
    assert not any(name in found for name in ("Conv", "FusedConv", "Add", "Relu", "Gemm"))


@pytest.mark.parametrize(("seven_bits", "most"), [(False, 127), (True, 64)])
def test_weights_have_a_scale_per_channel_and_the_bits_that_the_processor_bears(
    network: nn.Module, images: Tensor, *, seven_bits: bool, most: int
) -> None:
    model = to_model(network, images[:1])
    made = quantised(model, ranges_of(model, samples([images], 1)), seven_bits=seven_bits)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    weights = {name: array for name, array in held.items() if name.endswith("weight_quantized")}
    assert len(weights) == 4
    for name, array in weights.items():
        assert array.dtype == np.int8
        assert most - 2 <= np.abs(array.astype(int)).max() <= most
        assert held[name.replace("_quantized", "_scale")].shape == (len(array),)


def test_the_form_that_tensorrt_reads_is_signed_and_around_zero(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "signed.onnx"
    report = export_artifact("onnx:int8-signed", network, images[:1], path, quantising=Quantising([images]))
    assert report.size_bytes == path.stat().st_size
    model = onnx.load(path)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steps = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in steps:
        assert held[node.input[2]].dtype == np.int8
        assert not held[node.input[2]].any()
    made_by = {value: node for node in model.graph.node for value in node.output}
    quantised_weights = {node.input[0] for node in steps} & {"stem.weight", "inner.weight", "outer.weight"}
    assert len(quantised_weights) == 3
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [made_by[value].op_type for value in node.input[:2]] == ["DequantizeLinear"] * 2
            assert held[node.input[2]].dtype == np.float32, "biases stay float"
        if node.op_type == "Relu":
            assert made_by[node.input[0]].op_type in ("Conv", "Add"), "nothing between an operator and its activation"
    expected = network(images[:1]).detach().numpy()
    assert np.abs(run_onnx(path, [images[:1].numpy()])[0] - expected).max() < 0.08 * np.abs(expected).max()


def test_half_precision_is_in_the_file_and_inputs_stay_single(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    report = export_artifact("onnx:fp16", network, images[:1], path)
    assert 0 < report.max_rel_error < 0.01
    model = onnx.load(path)
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1} == {
        onnx.TensorProto.FLOAT16
    }
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_float_model_is_left_as_it_was(network: nn.Module, images: Tensor) -> None:
    model = to_model(network, images[:1])
    before = model.SerializeToString()
    quantised(model, ranges_of(model, samples([images], 1)))
    assert model.SerializeToString() == before


def test_ranges_are_those_of_the_samples(network: nn.Module, images: Tensor) -> None:
    model = to_model(network, images[:1], batch=8)
    found = ranges_of(model, samples([images[:32], images[32:] * 2], 8))
    name = model.graph.input[0].name
    low, high = min(images[:32].min(), 2 * images[32:].min()), max(images[:32].max(), 2 * images[32:].max())
    assert found[name] == pytest.approx((float(low), float(high)))


def test_samples_come_in_the_files_batches_and_no_more_than_are_wanted() -> None:
    batches = [(torch.arange(10.0)[:, None] + 10 * number, torch.zeros(10)) for number in range(3)]
    given = list(samples(batches, 4, most=14))
    assert [array.shape for (array,) in given] == [(4, 1)] * 4
    # The tenth is followed by the first of its rest, repeated to a whole batch.
    assert given[2][0].ravel().tolist() == [8, 9, 8, 9]
    assert given[3][0].ravel().tolist() == [10, 11, 12, 13]


def test_inputs_that_no_batch_divides_are_the_same_for_all() -> None:
    batches = [((torch.arange(6.0)[:, None], torch.tensor(0.5)), None)]
    assert [[array.shape for array in arrays] for arrays in samples(batches, 2)] == [[(2, 1), ()]] * 3


def test_too_few_samples_are_refused_and_nothing_is_written(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{LEAST - 1} calibration samples tell too little"):
        export_onnx_int8(network, images[:1], tmp_path / "int8.onnx", quantising=Quantising([images[: LEAST - 1]]))
    with pytest.raises(ExportError, match="needs calibration samples"):
        export_onnx_int8(network, images[:1], tmp_path / "int8.onnx")
    assert not list(tmp_path.iterdir())


def test_a_tensor_without_a_range_is_named(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    broken = images.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(ExportError, match="Tensor x is not finite in calibration samples 3 to 3"):
        export_onnx_int8(network, images[:1], tmp_path / "int8.onnx", quantising=Quantising([broken]))
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_never_varies_is_named(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Tensor x is 0 on all calibration samples"):
        export_onnx_int8(network, images[:1], tmp_path / "a.onnx", quantising=Quantising([images * 0]))
    nn.init.zeros_(network.get_parameter("inner.weight"))
    nn.init.zeros_(network.get_parameter("inner.bias"))
    with pytest.raises(ExportError, match="is 0 on all calibration samples"):
        export_onnx_int8(network, images[:1], tmp_path / "a.onnx", quantising=Quantising([images]))


def test_samples_of_another_kind_are_refused(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="calibration samples cannot be run"):
        export_onnx_int8(network, images[:1], tmp_path / "a.onnx", quantising=Quantising([images[:, :2]]))


def test_the_door_knows_the_precision_and_formats_are_without_it(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    assert formats() == ["onnx", "pt2", "pte", "xml"]
    report = export_artifact("onnx:int8", network, images[:1], tmp_path / "a.onnx", quantising=Quantising([images]))
    export_artifact("onnx", network, images[:1], tmp_path / "b.onnx")
    assert report.size_bytes < 0.7 * (tmp_path / "b.onnx").stat().st_size
