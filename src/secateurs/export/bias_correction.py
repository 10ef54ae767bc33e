"""Biases that make up for what rounding the weights shifts a layer's mean output by.

Rounded weights give a filter another mean output than the exact ones, most where a channel has few weights (depthwise)
or few bits. The shift is known, (W - W') E[x], and a bias takes it back: Nagel, van Baalen, Blankevoort and Welling,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2. Our own reading: the means
of the inputs are those of calibration samples, as they are in the float network, and the border of zeros is left out
of account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_SCALE, _MEAN = "_scale", "_secateurs_mean"


def corrected(model: onnx.ModelProto, made: onnx.ModelProto, given: Iterable[list[np.ndarray]]) -> onnx.ModelProto:
    """``model`` with other biases: those that its quantised form ``made`` needs for the same mean outputs.

    Convolutions and linear layers without a bias of their own stay as they are.

    Args:
        model: float file; it is left alone.
        made: what the quantizer made of it.
        given: samples, each a list of arrays in the order of the inputs.
    """
    lost = _lost(model, made)
    layers = [node for node in model.graph.node if _correctable(node, lost)]
    means = _means(model, {node.input[0] for node in layers}, given)
    readers = Counter(node.input[2] for node in layers)
    shifts: dict[str, np.ndarray] = {}
    for node in layers:
        if node.input[0] in means:
            shift = _shift(node, lost[node.input[1]], means[node.input[0]]) / readers[node.input[2]]
            shifts[node.input[2]] = shifts.get(node.input[2], np.zeros(())) + shift
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in shifts:
            bias = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((bias + shifts[tensor.name]).astype(bias.dtype), tensor.name))
    return changed


def _lost(model: onnx.ModelProto, made: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What rounding took from every weight, by the weight's name."""
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    reader = {node.input[1]: node for node in made.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for tensor in model.graph.initializer:
        scale = held.get(f"{tensor.name}{_SCALE}")
        if scale is None or scale.name not in reader:
            continue
        weight, steps = numpy_helper.to_array(tensor), numpy_helper.to_array(scale)
        if steps.ndim:
            axis = next((entry.i for entry in reader[scale.name].attribute if entry.name == "axis"), 1)
            steps = steps.reshape([-1 if place == axis % weight.ndim else 1 for place in range(weight.ndim)])
        found[tensor.name] = weight - np.clip(np.rint(weight / steps), -128, 127) * steps
    return found


def _correctable(node: onnx.NodeProto, lost: Mapping[str, np.ndarray]) -> bool:
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[1] not in lost:
        return False
    given = {entry.name: entry for entry in node.attribute}
    plain = all(given[name].f == 1.0 for name in ("alpha", "beta") if name in given)
    return node.op_type == "Conv" or (plain and not ("transA" in given and given["transA"].i))


def _shift(node: onnx.NodeProto, lost: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the layer's mean outputs lack, [out]; ``mean``: of its inputs, [in]."""
    given = {entry.name: entry.i for entry in node.attribute}
    if node.op_type == "Gemm":
        return np.asarray((lost if given.get("transB") else lost.T) @ mean)
    groups = given.get("group", 1)
    taps = lost.reshape(*lost.shape[:2], -1).sum(-1)  # [out, in of its group]
    return np.asarray((taps.reshape(groups, -1, taps.shape[1]) * mean.reshape(groups, 1, -1)).sum(-1).ravel())


def _means(model: onnx.ModelProto, values: set[str], given: Iterable[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Means per channel (the second axis) of values over samples."""
    asking = onnx.shape_inference.infer_shapes(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*asking.graph.value_info, *asking.graph.input)
        if value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    names = sorted(values & ranks.keys())
    for name in names:
        axes = np.array([axis for axis in range(ranks[name]) if axis != 1], dtype=np.int64)
        asking.graph.initializer.append(numpy_helper.from_array(axes, f"{name}{_MEAN}_axes"))
        means = helper.make_node("ReduceMean", [name, f"{name}{_MEAN}_axes"], [f"{name}{_MEAN}"], keepdims=0)
        asking.graph.node.append(means)
        asking.graph.output.append(helper.make_tensor_value_info(f"{name}{_MEAN}", TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(asking.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = [entry.name for entry in session.get_inputs()]
    found = [session.run([f"{name}{_MEAN}" for name in names], dict(zip(inputs, one, strict=True))) for one in given]
    return {name: np.mean([row[place] for row in found], axis=0) for place, name in enumerate(names)}
