"""What is in an ONNX file: nodes, constants, inputs and outputs, with nothing carried out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.errors import DataError, shortened, why
from secateurs.files import require_regular
from secateurs.models.onnx_file.operators import known

_DOMAINS = ("", "ai.onnx")
_LISTED = 6


@dataclass(frozen=True)
class OnnxNode:
    """One operation. ``inputs`` and ``outputs``: names of values, "" for those left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Input:
    """One input. ``dims``: sizes, a name where the size is free."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """A file's content. ``half``: it computes in float16, here read as float32."""

    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, np.ndarray]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    opset: int
    half: bool = False

    def consumers(self) -> dict[str, int]:
        """How often each value is used, outputs included."""
        found: dict[str, int] = {}
        for name in (*(name for node in self.nodes for name in node.inputs if name), *self.outputs):
            found[name] = found.get(name, 0) + 1
        return found


def read_graph(path: Path, outputs: Sequence[str] = ()) -> OnnxGraph:
    """The graph of a file, or what leads to some of its values.

    Args:
        path: the file; external data lies beside it.
        outputs: names of values to stop at, instead of the file's own outputs.

    Raises:
        DataError: the file is missing or damaged, is quantised, or has parts that depend on values (If, Loop, Scan).
    """
    import onnx

    require_regular(path, "ONNX file")
    if not path.is_file():
        raise DataError(f"ONNX file {path} does not exist. Check the path; the form is onnx:FILE.")
    try:
        model = onnx.load(str(path))
        if model.functions:
            import onnx.inliner

            model = onnx.inliner.inline_local_functions(model)
        graph = model.graph
        constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        every = [_node(number, one) for number, one in enumerate(graph.node)]
        constants |= {one.outputs[0]: _constant(one) for one in every if one.op == "Constant"}
        for one in every:  # equal weights are kept once
            if one.op == "Identity" and one.inputs[0] in constants:
                constants[one.outputs[0]] = constants[one.inputs[0]]
    except Exception as error:  # bytes that are no ONNX fail in any way
        raise DataError(
            f"ONNX file {path} cannot be read ({shortened(why(error))}). Copy it again, with the file of its external "
            f"data where it has one."
        ) from error
    nodes = [one for one in every if one.op != "Constant"]
    opset = next((one.version for one in model.opset_import if one.domain in _DOMAINS), 1)
    foreign = sorted({f"{one.domain}::{one.op_type}" for one in graph.node if one.domain not in _DOMAINS})
    if foreign:
        raise DataError(
            f"ONNX file {path} uses operators of other makers ({_some(foreign)}), as optimised files do. Give the file "
            f"that was exported, before its optimisation."
        )
    inputs = tuple(_input(one) for one in graph.input if one.name not in constants)
    wanted = tuple(outputs) or tuple(one.name for one in graph.output)
    used = _needed(nodes, wanted, {one.name for one in inputs} | set(constants), path)
    _require_plain(used, path)
    half = any(value.dtype == np.float16 for value in constants.values())
    held = {name: _wide(value) for name, value in constants.items() if any(name in node.inputs for node in used)}
    held |= {name: _wide(constants[name]) for name in wanted if name in constants}
    return OnnxGraph(tuple(used), held, inputs, wanted, opset, half)


def _node(number: int, node: Any) -> OnnxNode:
    import onnx

    attributes = {one.name: _attribute(onnx.helper.get_attribute_value(one)) for one in node.attribute}
    return OnnxNode(
        node.name or f"{node.op_type}_{number}", node.op_type, tuple(node.input), tuple(node.output), attributes
    )


def _constant(node: OnnxNode) -> np.ndarray:
    """What a Constant holds."""
    name, value = next(iter(node.attributes.items()))
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.asarray(value) if name == "value" else np.asarray(value, dtype=kinds[name])


def _attribute(value: Any) -> Any:
    import onnx

    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)) or hasattr(value, "extend"):
        return [_attribute(one) for one in value]
    return value


def _input(value: Any) -> Input:
    import onnx

    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    dims: list[int | str] = [
        one.dim_value if one.HasField("dim_value") and one.dim_value > 0 else one.dim_param or f"dim{place}"
        for place, one in enumerate(kind.shape.dim)
    ]
    return Input(value.name, np.dtype(np.float32) if dtype == np.float16 else dtype, tuple(dims))


def _wide(value: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 as float32."""
    return value.astype(np.float32) if value.dtype == np.float16 or value.dtype.name == "bfloat16" else value


def _needed(nodes: Sequence[OnnxNode], wanted: Iterable[str], given: set[str], path: Path) -> list[OnnxNode]:
    """The nodes that lead to some values, in their order."""
    made = {name: node for node in nodes for name in node.outputs if name}
    missing = [name for name in wanted if name not in made and name not in given]
    if missing:
        raise DataError(
            f"ONNX file {path} has no value {missing[0]!r}. Its last ones are {_some(list(made)[-_LISTED:])}."
        )
    keep: set[int] = set()
    todo = list(wanted)
    while todo:
        node = made.get(todo.pop())
        if node is not None and id(node) not in keep:
            keep.add(id(node))
            todo += [name for name in node.inputs if name]
    return [node for node in nodes if id(node) in keep]


def _require_plain(nodes: Iterable[OnnxNode], path: Path) -> None:
    """Nothing, if no node depends on values or computes in whole numbers."""
    names = {node.op for node in nodes}
    branching = sorted(names & {"If", "Loop", "Scan", "SequenceMap"})
    if branching:
        raise DataError(
            f"ONNX file {path} has parts that depend on values ({_some(branching)}). Export the network for inputs of "
            f"a fixed size, or run onnxsim over the file."
        )
    quantised = sorted(name for name in names if "Quantize" in name or "Integer" in name or name.startswith("QLinear"))
    if quantised:
        raise DataError(
            f"ONNX file {path} is quantised ({_some(quantised)}). Give the float file that it was made from, and "
            f"quantise the pruned network with a target such as onnxruntime-cpu:int8."
        )
    unknown = sorted(name for name in names if not known(name))
    if unknown:
        raise DataError(
            f"ONNX file {path} uses operators that cannot be rebuilt in PyTorch: {_some(unknown)}. Where they come "
            "after the network, such as NonMaxSuppression, stop before them: onnx:FILE?outputs=NAME,NAME with names of "
            f"values in the file; else give the network itself."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")
