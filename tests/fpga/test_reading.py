"""What a quantised file becomes, and what it may not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from secateurs.errors import ExportError
from secateurs.export.quantised import Quantising, export_onnx_int8
from secateurs.export.quantised_variants import QuantisedVariants
from secateurs.fpga.layers import IntegerLayer, LayerStep, Move
from secateurs.fpga.reading import read
from secateurs.models import load
from secateurs.structure import apply, trace


def test_layers_moves_and_additions(quantised_file: Path) -> None:
    network = read(onnx.load(quantised_file))
    names = [step.layer.name for step in network.steps if isinstance(step, LayerStep)]
    assert names == ["stem", "one", "down", "deep", "last", "mean", "head"]
    by_name = {layer.name: layer for layer in network.layers}
    assert [name for name in names if by_name[name].add is not None] == ["one", "down"]
    assert by_name["down"].stride == 2
    assert by_name["deep"].groups == 12
    assert by_name["mean"].mean
    assert by_name["head"].weight.shape == (5, 16, 1, 1)
    moves = [step for step in network.steps if isinstance(step, Move)]
    assert (moves[-1].front, moves[-1].behind) == (2, 2)
    assert {move.steps for move in moves} >= {(2, 1), (1, 2)}
    assert network.shape == (3, 10, 10)


def test_an_order_of_filters_is_kept(quantised_file: Path) -> None:
    order = tuple(range(8))[::-1]
    network = read(onnx.load(quantised_file), {"one": order})
    assert {layer.name: layer.order for layer in network.layers}["one"] == order


def quantised(operator: str, **more: object) -> onnx.ModelProto:
    """One operator between quantised tensors."""
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(3), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node(operator, ["xd"], ["y"], **more),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["out"]),
    ]
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("x", "out"))
    return helper.make_model(helper.make_graph(nodes, "g", [x], [out], [scale, zero]))


def floated(model: onnx.ModelProto) -> None:
    """The stem's weight in float."""
    node = next(one for one in model.graph.node if one.output[0].startswith("stem.weight_Dequantize"))
    model.graph.node.remove(node)
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), node.output[0])
    model.graph.initializer.append(weight)


def dilated(model: onnx.ModelProto) -> None:
    node = next(one for one in model.graph.node if one.op_type == "Conv")
    next(one for one in node.attribute if one.name == "dilations").ints[:] = [2, 2]


def signed(model: onnx.ModelProto) -> None:
    for one in model.graph.initializer:
        if one.data_type == TensorProto.UINT8:
            one.CopyFrom(numpy_helper.from_array(np.int8(0), one.name))


def unquantised(model: onnx.ModelProto) -> None:
    quantiser = next(one for one in model.graph.node if one.op_type == "QuantizeLinear")
    quantiser.op_type = "Identity"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (floated, "Weight stem.weight_DequantizeLinear_Output is not quantised"),
        (dilated, r"Convolution stem .* has no hardware"),
        (signed, "not quantised to unsigned bytes"),
        (unquantised, "no quantised activation"),
    ],
)
def test_what_has_no_hardware_is_named(
    quantised_file: Path, damage: Callable[[onnx.ModelProto], None], said: str
) -> None:
    model = onnx.load(quantised_file)
    damage(model)
    with pytest.raises(ExportError, match=said):
        read(model)


@pytest.mark.parametrize("operator", ["Sigmoid", "MaxPool", "Softmax"])
def test_an_operator_without_hardware(operator: str) -> None:
    given = {"kernel_shape": [1, 1]} if operator == "MaxPool" else {}
    with pytest.raises(ExportError, match=f"operator {operator}, for which the engine has no hardware"):
        read(quantised(operator, **given))


@pytest.mark.parametrize("how", ["variant", "export"])
def test_a_block_behind_a_padded_shortcut_may_be_gone(how: str, tmp_path: Path) -> None:
    """The shortcut's zeros stay moves of bytes: the ReLU behind the addition that is gone has nothing to do."""
    module, example = load("cifar-resnet20?width=0.5").module.eval(), torch.randn(1, 3, 32, 32)
    graph = trace(module, example)
    names = [block.name for block in graph.spec.blocks]
    shrunk = frozenset(number for number, name in enumerate(names) if name in ("layer2.0", "layer3.0"))
    assert shrunk, names
    if how == "variant":
        made = onnx.load_model_from_string(QuantisedVariants(graph).build(graph.spec.dense_widths, shrunk))
    else:
        small = apply(module, graph.plan({}, [names[number] for number in shrunk]), example)
        calibration = [torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        export_onnx_int8(small, example, tmp_path / "m.onnx", quantising=Quantising(calibration))
        made = onnx.load(tmp_path / "m.onnx")
    network = read(made)
    assert len(network.layers) == 20 - 2 * len(shrunk) + 1  # the mean is a layer, too


def test_layers_of_other_shapes_are_refused() -> None:
    numbers = {"bias": np.zeros(1), "multiplier": np.ones(1), "shift": np.ones(1), "input_hw": (9, 9)}
    for weight, stride, said in (
        (np.ones((1, 1, 9, 9), np.int8), 1, "kernel of 9×9"),
        (np.ones((1, 5000, 1, 1), np.int8), 1, "5000 input channels"),
        (np.ones((1, 1, 3, 3), np.int8), 3, "stride 3"),
    ):
        with pytest.raises(ExportError, match=said):
            IntegerLayer("x", weight, output_hw=(1, 1), stride=stride, **numbers)  # type: ignore[arg-type]
