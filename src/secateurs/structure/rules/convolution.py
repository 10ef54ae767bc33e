"""Convolutions of every rank, grouped, depthwise, dilated and transposed."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateurs.structure.call import FEWEST_ROWS, Call
from secateurs.structure.ids import NEUTRAL
from secateurs.structure.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_transposed, rule
from secateurs.structure.rules import sizes
from secateurs.structure.values import Factor, Value


@rule(*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, sizes=sizes.groups)
def convolution(call: Call) -> Any:
    """Input channels meet weight columns, weight rows become output channels, space must be free."""
    value: Value = call["input"]
    weight: Value = call["weight"]
    rank = len(weight.shape) - 2
    channel = len(value.shape) - rank - 1
    transposed = is_transposed(call.node)
    groups = int(call["groups"])
    call.pin_dims(weight, range(2, len(weight.shape)), "it is a kernel position")
    if rank == 1 and _over_units(call, value, channel, transposed):
        return value.with_shape(call.shape, range(len(value.shape)))
    alone = [channel + 1 + d for d in range(rank) if not transposed and _touches_nothing(call, weight, d)]
    slides = [d for d in range(channel + 1, len(value.shape)) if d not in alone]
    call.pin_dims(value, slides, "a convolution runs over this axis")
    if groups == 1:
        rows, columns = (1, 0) if transposed else (0, 1)
        out = _plain(call, value, weight, channel, rows, columns)
    else:
        out = _grouped(call, value, weight, channel, groups, transposed)
    if call.get("bias") is not None:
        call.use("bias", 0, "bias", "conv")
        out = call.align([out, call["bias"].along(0)], "has a bias that stays") if len(call["bias"].shape) else out
    kept = tuple(f for f in value.factors if f.dim < channel or f.dim in alone)
    return Value(call.shape, kept + tuple(Factor(channel, ids) for ids in out))


def _touches_nothing(call: Call, weight: Value, axis: int) -> bool:
    """True where the kernel is one wide and visits every position: what lies there passes, whatever it is."""

    def at(name: str, neutral: int) -> Any:
        given = call.get(name, neutral)
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        return given[axis] if len(given) > 1 else given[0]

    return weight.shape[2 + axis] == 1 and at("stride", 1) == 1 and at("padding", 0) in (0, "valid", "same")


def _over_units(call: Call, value: Value, channel: int, transposed: bool) -> bool:
    """Channel attention: one kernel slides over the units themselves, and every unit gets a value (ECA).

    A unit's neighbours change when units go, as a statistic over units does.
    """
    alone = value.shape[channel] == 1 and call.shape[channel] == 1
    if transposed or not alone or not value.along(channel + 1) or call.shape[-1] != value.shape[-1]:
        return False
    call.analysis.statistics.add(call.node.name)
    return True


def _plain(call: Call, value: Value, weight: Value, channel: int, rows: int, columns: int) -> list[np.ndarray]:
    call.use("weight", rows, "out", "conv")
    call.use("weight", columns, "in", "conv")
    if weight.shape[columns] > 1:
        call.align([value.along(channel), weight.along(columns)], "a weight column of fixed input")
    else:
        call.pin_dims(value, [channel], "it is the only input channel")
    return weight.along(rows)


def _grouped(call: Call, value: Value, weight: Value, channel: int, groups: int, transposed: bool) -> list[np.ndarray]:
    """One kind of unit per grouped convolution: whole groups, or tied positions inside the groups."""
    # An ordinary weight is [groups * out, in, ...]; a transposed one is [groups * in, out, ...].
    stacked = weight.along(0)
    inner = weight.along(1)
    inputs = value.along(channel)
    in_each = value.shape[channel] // groups
    out_each = call.shape[channel] // groups
    depthwise = in_each == 1
    mode = call.analysis.grid
    rows = depthwise or (groups >= FEWEST_ROWS if mode == "auto" else mode == "rows")
    call.analysis.folded_grids[call.node.name] = (groups, 0 if rows else 1)
    if not depthwise:
        call.analysis.grids += 1
    call.use("weight", 0, "out" if not transposed else "in", "depthwise" if depthwise else "grouped")
    if rows:
        units = _by_rows(call, inputs, stacked, inner, groups)
        return [np.repeat(ids, out_each) for ids in units]
    return _by_columns(call, inputs, stacked, inner, groups, transposed, out_each)


def _by_rows(
    call: Call, inputs: list[np.ndarray], stacked: list[np.ndarray], inner: list[np.ndarray], groups: int
) -> list[np.ndarray]:
    call.pin(inner, "it is inside a group that goes as a whole")
    for ids in (*inputs, *stacked):
        call.ids.tie(ids.reshape(groups, -1))
    firsts = [[ids.reshape(groups, -1).max(axis=1) for ids in side] for side in (inputs, stacked)]
    return call.align(firsts, "a group of fixed input")


def _by_columns(
    call: Call,
    inputs: list[np.ndarray],
    stacked: list[np.ndarray],
    inner: list[np.ndarray],
    groups: int,
    transposed: bool,
    out_each: int,
) -> list[np.ndarray]:
    for ids in (*inputs, *stacked):
        call.ids.tie(ids.reshape(groups, -1).T)
    outer, consumed = (inner, stacked) if transposed else (stacked, inner)
    call.use("weight", 0 if transposed else 1, "in", "grouped")
    inputs = [ids.reshape(groups, -1).max(axis=0) for ids in inputs]
    consumed = [ids.reshape(groups, -1).max(axis=0) if transposed else ids for ids in consumed]
    if consumed and len(consumed[0]) > 1:
        call.align([inputs, consumed], "a weight column of fixed input")
    else:
        call.pin(inputs, "it is the only input channel of its group")
    if transposed:
        return [np.tile(ids, groups) for ids in outer]
    if out_each == 1:
        call.pin(outer, "it is the only output channel of its group")
        return [np.full_like(ids, NEUTRAL + 1) for ids in outer]
    return outer
