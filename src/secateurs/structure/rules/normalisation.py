"""Batch, layer, group, instance and RMS normalisation, and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from secateurs.structure.call import FEWEST_ROWS, Call
from secateurs.structure.operators import BATCH_NORMS, rule
from secateurs.structure.rules import sizes
from secateurs.structure.values import Factor, Value

_STATISTIC = "a statistic spans units"


def _result(call: Call, value: Value) -> Any:
    if isinstance(call.node.meta["val"], torch.Tensor):
        return value
    return [value] + [Value(shape) for shape in call.shapes[1:]]


def _scale(call: Call, value: Value, dim: int, names: tuple[str, ...], kind: str) -> Value:
    """Unify per-channel parameters with the axis they scale."""
    sides = [value.along(dim)]
    for name in names:
        parameter = call.get(name)
        if isinstance(parameter, Value) and value.shape[dim] > 1:
            call.use(name, 0, "norm", kind)
            sides.append(parameter.along(0))
    stack = call.align(sides, "is normalised with parameters that stay") if len(sides) > 1 else sides[0]
    others = tuple(factor for factor in value.factors if factor.dim != dim)
    return Value(value.shape, (*others, *(Factor(dim, ids) for ids in stack)))


@rule(*BATCH_NORMS)
def batch_norm(call: Call) -> Any:
    """Every channel alone; four parameters and statistics per channel.

    With statistics of the batch (weight standardisation runs it over a kernel) units on other axes change them.
    """
    value: Value = call["input"]
    if (call.get("training", False) or call.get("running_mean") is None) and value.dims() - {1}:
        call.analysis.statistics.add(call.node.name)
    return _result(call, _scale(call, value, 1, ("weight", "bias", "running_mean", "running_var"), "batch_norm"))


@rule("aten.instance_norm")
def instance_norm(call: Call) -> Any:
    """Every channel alone, statistics over space."""
    value: Value = call["input"]
    call.pin_dims(value, range(2, len(value.shape)), _STATISTIC)
    return _scale(call, value, 1, ("weight", "bias", "running_mean", "running_var"), "instance_norm")


@rule(
    "aten.layer_norm",
    "aten.native_layer_norm",
    "aten.rms_norm",
    "aten._fused_rms_norm",
    sizes=sizes.normalized_shape,
)
def layer_norm(call: Call) -> Any:
    """The statistic over the unit axis changes when units go: allowed, and checked against the interpreter."""
    value: Value = call["input"]
    count = len(call["normalized_shape"])
    dims = range(len(value.shape) - count, len(value.shape))
    if value.dims() & set(dims):
        call.analysis.statistics.add(call.node.name)
    result = value
    for offset, dim in enumerate(dims):
        sides = [result.along(dim)]
        for name in ("weight", "bias"):
            parameter = call.get(name)
            if isinstance(parameter, Value) and value.shape[dim] > 1:
                call.use(name, offset, "norm", "layer_norm")
                sides.append(parameter.along(offset))
        stack = call.align(sides, "is normalised with parameters that stay") if len(sides) > 1 else sides[0]
        others = tuple(factor for factor in result.factors if factor.dim != dim)
        result = Value(value.shape, (*others, *(Factor(dim, ids) for ids in stack)))
    return _result(call, result)


@rule("aten.group_norm", sizes=sizes.groups)
@rule("aten.native_group_norm", sizes=sizes.channels_and_groups)
def group_norm(call: Call) -> Any:
    """Whole groups where there are enough of them (the statistic is untouched), else tied positions."""
    value: Value = call["input"]
    groups = int(call.get("num_groups", call.get("group")))
    call.pin_dims(value, range(2, len(value.shape)), _STATISTIC)
    channels = value.shape[1]
    scaled = _scale(call, value, 1, ("weight", "bias"), "group_norm")
    each = channels // groups
    mode = call.analysis.grid
    rows = each == 1 or (groups >= FEWEST_ROWS if mode == "auto" else mode == "rows" and groups > 1)
    call.analysis.folded_grids[call.node.name] = (groups, 0 if rows else 1)
    for ids in scaled.along(1):
        table = ids.reshape(groups, each)
        if each > 1 and groups > 1:
            call.analysis.grids += 1
            call.ids.tie(table if rows else table.T)
    if not rows and scaled.along(1):
        call.analysis.statistics.add(call.node.name)
    return _result(call, scaled)


@rule("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten.softmin", "aten._safe_softmax")
def softmax(call: Call) -> Any:
    """Over a free axis nothing happens; over units the statistic changes."""
    value: Value = call["self"]
    if value.along(call["dim"]):
        call.analysis.statistics.add(call.node.name)
    return value


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(call: Call) -> Any:
    """Direction times length over norm; the norm spans the units of all other axes."""
    value: Value = call["v"]
    dim = int(call.get("dim", 0)) % len(value.shape)
    length: Value = call["g"]
    stack = call.align([value.along(dim), length.along(dim)], "has a length that stays")
    others = tuple(factor for factor in value.factors if factor.dim != dim)
    call.analysis.statistics.add(call.node.name)
    return _result(call, Value(value.shape, (*others, *(Factor(dim, ids) for ids in stack))))


@rule("aten.linalg_vector_norm", "aten.norm")
def vector_norm(call: Call) -> Any:
    """A reduction; over units it is a statistic."""
    from secateurs.structure.rules.reduction import reduce_dims

    value: Value = call["self"]
    dims = call.get("dim")
    dims = list(range(len(value.shape))) if dims is None else list(np.atleast_1d(dims))
    return reduce_dims(call, value, [int(d) % len(value.shape) for d in dims], bool(call.get("keepdim", False)))
