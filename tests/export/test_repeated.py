"""Activations are left out where they change nothing, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateurs.export.repeated import without_repeated

CONSTANTS = {
    "zero": np.float32(0),
    "six": np.float32(6),
    "below": np.float32(-1),
    "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    "starts": np.array([1]),
    "ends": np.array([4]),
    "axes": np.array([2]),
    "weight": np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32),
}
RELU = ("Relu", ("x",))
CLIP = ("Clip", ("x", "zero", "six"))
CASES: dict[str, tuple[list[tuple[str, tuple[str, ...]]], int]] = {
    "a ReLU of a ReLU": ([RELU, RELU, ("Sin", ("x",))], 2),
    "behind zeros": (
        [RELU, ("Slice", ("x", "starts", "ends", "axes")), ("Pad", ("x", "pads")), RELU, ("Sin", ("x",))],
        4,
    ),
    "behind a given zero": ([RELU, ("Pad", ("x", "pads", "zero")), RELU, ("Sin", ("x",))], 3),
    "three in a row": ([CLIP, RELU, RELU, ("Sin", ("x",))], 2),
    "a clip of the same clip": ([CLIP, CLIP, ("Sin", ("x",))], 2),
    "a narrower clip": ([RELU, CLIP, ("Sin", ("x",))], 3),
    "behind less than zero": ([RELU, ("Pad", ("x", "pads", "below")), RELU, ("Sin", ("x",))], 4),
    "behind a layer": ([RELU, ("Conv", ("x", "weight")), RELU, ("Sin", ("x",))], 4),
    "what the file gives": ([RELU, RELU], 2),
    "nothing in front": ([RELU, ("Sin", ("x",))], 2),
}
"""A chain of operators ("x" is what the one before gave), and how many stay."""


def chain(steps: list[tuple[str, tuple[str, ...]]]) -> onnx.ModelProto:
    nodes, last = [], "input"
    for number, (kind, given) in enumerate(steps):
        name = "y" if number == len(steps) - 1 else f"v{number}"
        nodes.append(helper.make_node(kind, [last if one == "x" else one for one in given], [name]))
        last = name
    used = {name for node in nodes for name in node.input}
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items() if name in used]
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 4, 4])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", ends, out, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = 8 * np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)
    return session.run(None, {"input": given})[0]


@pytest.mark.parametrize("name", CASES)
def test_only_what_changes_nothing_is_left_out(name: str) -> None:
    steps, stay = CASES[name]
    model = chain(steps)
    before = model.SerializeToString()
    found = without_repeated(model)
    assert model.SerializeToString() == before
    assert len(found.graph.node) == stay
    assert (found is model) == (stay == len(steps))
    assert np.array_equal(run(found), run(model))
