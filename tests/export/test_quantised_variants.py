"""Int8 files of any widths: sliced from one file, they are what the quantizer makes of a file of those widths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from secateurs.export.artifacts import variants
from secateurs.export.quantised import quantised
from secateurs.export.quantised_variants import QuantisedVariants
from secateurs.export.variants import OnnxVariants
from secateurs.models import load
from secateurs.structure import Graph, trace


def structure(model: onnx.ModelProto) -> tuple[Counter[tuple[str, str]], Counter[tuple[int, int, tuple[int, ...]]]]:
    """Nodes by type and output; tensors by type, element count and shape, scalars and vectors of one alike."""
    nodes = Counter((node.op_type, node.output[0]) for node in model.graph.node)
    used = {value for node in model.graph.node for value in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    sizes = Counter(
        (tensor.data_type, int(np.prod(tensor.dims)), tuple(size for size in tensor.dims if size != 1))
        for tensor in tensors
    )
    return nodes, sizes


def draw(graph: Graph, rng: np.random.Generator, share: float) -> tuple[np.ndarray, frozenset[int]]:
    widths = np.array([rng.integers(max(1, group.min_units), group.units + 1) for group in graph.spec.groups])
    return widths, frozenset(np.flatnonzero(rng.random(len(graph.spec.blocks)) < share).tolist())


@pytest.mark.parametrize("name", ["cifar-resnet20", pytest.param("mobilenet-v2?width=0.35", marks=pytest.mark.long)])
def test_slicing_the_quantised_file_is_quantising_the_sliced_one(name: str) -> None:
    graph = trace(load(name).module, torch.randn(1, 3, 32, 32))
    int8, floats = QuantisedVariants(graph), OnnxVariants(graph)
    rng = np.random.default_rng(4)
    for share in (0.0, 0.0, 0.3, 0.6):
        widths, removed = draw(graph, rng, share)
        found = onnx.load_model_from_string(int8.build(widths, removed))
        expected = quantised(onnx.load_model_from_string(floats.build(widths, removed)), int8._ranges)
        assert structure(found) == structure(expected)
        onnx.checker.check_model(found, full_check=True)


def test_the_form_that_tensorrt_reads_is_sliced_alike() -> None:
    graph = trace(load("cifar-resnet20").module, torch.randn(1, 3, 32, 32))
    int8, floats = variants("onnx:int8-signed", graph), OnnxVariants(graph)
    widths, removed = draw(graph, np.random.default_rng(4), 0.3)
    found = onnx.load_model_from_string(int8.build(widths, removed))
    expected = quantised(onnx.load_model_from_string(floats.build(widths, removed)), int8._ranges, signed=True)
    assert structure(found) == structure(expected)


def test_half_precision_is_sliced_alike() -> None:
    graph = trace(load("cifar-resnet20").module, torch.randn(1, 3, 32, 32))
    built, floats = variants("onnx:fp16", graph), OnnxVariants(graph)
    widths, removed = draw(graph, np.random.default_rng(4), 0.3)
    found, float_file = (onnx.load_model_from_string(one.build(widths, removed)) for one in (built, floats))
    held = {tensor.name: tuple(tensor.dims) for tensor in float_file.graph.initializer}
    halves = {tensor.name: tuple(tensor.dims) for tensor in found.graph.initializer if tensor.data_type == 10}
    assert len(halves) > 20
    assert halves.items() <= held.items()


def test_units_are_drawn_alike_in_weights_scales_and_biases() -> None:
    """A convolution without padding behind another: each kept filter has its own scale, and its own bias."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 6, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 2),
    )
    graph = trace(model.eval(), torch.randn(1, 3, 6, 6))
    built = QuantisedVariants(graph)
    widths = graph.spec.dense_widths // 2
    dense = onnx.load_model_from_string(built.dense_bytes)
    small = onnx.load_model_from_string(built.build(widths, rng=np.random.default_rng(1)))

    def rows(model: onnx.ModelProto) -> dict[bytes, tuple[float, int]]:
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        weight, scale, bias = (held[f"0.{name}"] for name in ("weight_quantized", "weight_scale", "bias_quantized"))
        return {w.tobytes(): (float(s), int(b)) for w, s, b in zip(weight, scale, bias, strict=True)}

    before, after = rows(dense), rows(small)
    assert len(after) == 6
    assert after.items() <= before.items()
    assert list(after) != list(before)[:6], "not the first ones"


def test_the_door_gives_them_and_the_dense_file_is_quantised() -> None:
    graph = trace(load("cifar-resnet20").module, torch.randn(1, 3, 32, 32))
    built = variants("onnx:int8", graph, 2)
    assert isinstance(built, QuantisedVariants)
    dense = onnx.load_model_from_string(built.dense_bytes)
    assert dense.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in dense.graph.initializer) > 20
    assert built.operators == variants("onnx", graph, 2).operators
