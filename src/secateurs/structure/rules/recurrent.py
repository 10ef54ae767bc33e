"""Recurrent layers and cells: hidden units go as a whole, with their gates, their state and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secateurs.structure.analysis import barrier
from secateurs.structure.call import Call, Use
from secateurs.structure.operators import rule
from secateurs.structure.values import Factor, Value

_STATE = "is the state of a recurrent layer"


@rule("aten.gru.input", "aten.lstm.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
def recurrent(call: Call) -> Any:
    """Unit j is row j of every gate, column j of the recurrent weight, and feature j of output and state.

    All layers and directions share their units, since one tensor holds all their states.
    """
    parameters: list[Value] = list(call["params"])
    each = 4 if call["has_biases"] else 2
    directions = 2 if call["bidirectional"] else 1
    cells = int(call["num_layers"]) * directions
    if len(parameters) != each * cells or any(not value.factors for value in parameters):
        return barrier(call, "a recurrent layer with projections or of one unit")
    nodes = list(call.raw("params"))
    value: Value = call["input"]
    feature = len(value.shape) - 1
    hidden = [
        _cell(call, parameters[i * each : (i + 1) * each], nodes[i * each : (i + 1) * each]) for i in range(cells)
    ]
    for other in hidden[1:]:
        call.ids.unify(hidden[0], other)
    inputs = value.along(feature)
    for i in range(cells):
        if i >= directions:
            inputs = [np.concatenate(hidden[:directions])]
        call.align([inputs, parameters[i * each].along(1)], "a weight column of fixed input")
    state = call["hx"]
    for start in state if isinstance(state, (list, tuple)) else [state]:
        call.align([start.along(len(start.shape) - 1), [hidden[0]]], _STATE)
    kept = tuple(factor for factor in value.factors if factor.dim < feature)
    output = Value(call.shape, (*kept, Factor(feature, np.concatenate(hidden[:directions]))))
    states = [Value(shape, (Factor(len(shape) - 1, hidden[0]),)) for shape in call.shapes[1:]]
    return [output, *states]


@rule("aten.gru_cell", "aten.lstm_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(call: Call) -> Any:
    """One step of a recurrent layer."""
    names = [name for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call.get(name) is not None]
    parameters: list[Value] = [call[name] for name in names]
    if any(not value.factors for value in parameters):
        return barrier(call, "a recurrent cell of one unit")
    hidden = _cell(call, parameters, [call.raw(name) for name in names])
    value: Value = call["input"]
    call.align([value.along(len(value.shape) - 1), parameters[0].along(1)], "a weight column of fixed input")
    state = call["hx"]
    for start in state if isinstance(state, (list, tuple)) else [state]:
        call.align([start.along(len(start.shape) - 1), [hidden]], _STATE)
    results = [Value(shape, (Factor(len(shape) - 1, hidden),)) for shape in call.shapes]
    return results[0] if isinstance(call.node.meta["val"], torch.Tensor) else results


def _cell(call: Call, parameters: Sequence[Value], nodes: Sequence[Any]) -> np.ndarray:
    """Ids of one cell's hidden units, with the rows of all gates tied to them."""
    hidden = parameters[1].along(1)[0]
    for parameter in parameters:
        for rows in parameter.along(0):
            for gate in rows.reshape(-1, len(hidden)):
                call.ids.unify(hidden, gate)
    roles = [((0, "out"), (1, "in")), ((0, "out"), (1, "in")), ((0, "bias"),), ((0, "bias"),)]
    for node, dims in zip(nodes, roles, strict=False):
        name = call.analysis.origin.get(getattr(node, "name", ""))
        if name is not None:
            call.analysis.uses.extend(Use(call.node.name, name, dim, role, "recurrent") for dim, role in dims)
    return hidden
