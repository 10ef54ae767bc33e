"""Quantised ONNX files as QONNX: Quant nodes in place of integers, as FINN and hls4ml read them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from secateurs.errors import ExportError

DOMAIN, VERSION = "qonnx.custom_op.general", 2
_BITS = {"int8": 8, "uint8": 8, "int32": 32}


def to_qonnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network whose tensors are float and quantised in place: what QuantizeLinear and DequantizeLinear did
    together, a Quant node does; constants that were integers are float numbers behind one.

    Raises:
        ExportError: a tensor is quantised but never dequantised, or has no fixed scale.
    """
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    quantisers = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    del made.graph.initializer[:]
    del made.graph.value_info[:]
    added: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            made.graph.node.append(node)
            continue
        scale, zero = _fixed(node, constants)
        source = node.input[0]
        if source in constants:
            stored = constants[source]
            wide = _broadcast(scale, node, stored.ndim)
            added[f"{source}_float"] = (stored.astype(np.float32) - _broadcast(zero, node, stored.ndim)) * wide
            made.graph.node.append(_quant(f"{source}_float", node, wide, added, str(stored.dtype), 0.0))
        elif source in quantisers:
            quantiser = quantisers[source]
            kind = str(constants[quantiser.input[2]].dtype)
            made.graph.node.append(_quant(quantiser.input[0], node, scale, added, kind, float(zero.item())))
        else:
            raise ExportError(f"Tensor {source} is dequantised, but nothing quantised it. Export for an int8 target.")
    used = {value for node in made.graph.node for value in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    made.graph.initializer.extend([*kept, *(numpy_helper.from_array(array, name) for name, array in added.items())])
    made.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return made


def _fixed(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    scale = constants.get(node.input[1])
    if scale is None:
        raise ExportError(f"Tensor {node.output[0]} has no fixed scale. Export for an int8 target.")
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    return scale.astype(np.float32), (np.zeros_like(scale) if zero is None else zero).astype(np.float32)


def _broadcast(values: np.ndarray, node: onnx.NodeProto, dims: int) -> np.ndarray:
    """Values per channel as they broadcast over a constant of so many axes."""
    if values.size == 1 or values.ndim != 1:
        return values.reshape(()) if values.size == 1 else values
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1) % dims
    return values.reshape([-1 if index == axis else 1 for index in range(dims)])


def _quant(
    source: str, node: onnx.NodeProto, scale: np.ndarray, added: dict[str, np.ndarray], kind: str, zero: float
) -> onnx.NodeProto:
    """The node that quantises ``source`` and gives what ``node`` gave."""
    if kind not in _BITS:
        raise ExportError(f"Tensor {source} is quantised to {kind}, which QONNX's Quant node is not written for.")
    name = f"{node.output[0]}_quant"
    added[f"{name}_scale"] = np.asarray(scale, dtype=np.float32)
    added[f"{name}_zero"] = np.asarray(zero, dtype=np.float32)
    added[f"{name}_bits"] = np.asarray(_BITS[kind], dtype=np.float32)
    return helper.make_node(
        "Quant",
        [source, f"{name}_scale", f"{name}_zero", f"{name}_bits"],
        list(node.output),
        name=name,
        domain=DOMAIN,
        signed=int(not kind.startswith("u")),
        narrow=0,
        rounding_mode="ROUND",
    )
