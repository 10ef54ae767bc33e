"""Operators that only move elements: run on the ids themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateurs.structure.analysis import barrier, call_target, move, rule
from secateurs.structure.call import Call
from secateurs.structure.ids import NEUTRAL, PINNED
from secateurs.structure.values import Factor, Value, spread

_PURE = (
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.permute", "aten.transpose", "aten.t", "aten.numpy_T",
    "aten.squeeze", "aten.unsqueeze", "aten.expand", "aten.expand_as", "aten.select", "aten.narrow", "aten.split",
    "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind", "aten.flip", "aten.repeat", "aten.tile",
    "aten.repeat_interleave", "aten.unflatten", "aten.flatten", "aten.movedim", "aten.moveaxis", "aten.swapaxes",
    "aten.swapdims", "aten.diagonal", "aten.rot90", "aten.view_as", "aten.reshape_as",
    "aten.pixel_unshuffle", "aten.mT", "aten.mH", "aten.adjoint", "aten.unsafe_split", "aten.unsafe_chunk",
    "aten.unsafe_split_with_sizes", "aten.broadcast_to", "aten.hsplit", "aten.vsplit", "aten.ravel",
    "aten.fliplr", "aten.flipud",
)  # fmt: skip


@rule(*_PURE)
def pure(call: Call) -> Any:
    """Ids move with their elements; a second tensor (``view_as``) lends its shape, and its units to what is spread."""
    first = next(value for value in call.arguments.values() if isinstance(value, Value))
    if len(call.tensors()) > 1:
        return _like(call, first)
    return move(call)


def _like(call: Call, value: Value) -> Value:
    factors = []
    for factor in value.factors:
        moved = spread(factor, value.shape)
        same = int(np.prod(call.shape)) == int(np.prod(value.shape))
        settled = call.settle(moved.reshape(call.shape) if same else moved.expand(call.shape))
        if settled is not None:
            factors.append(settled)
    if str(call.node.target) == "aten.expand_as.default":
        shape = (1,) * (len(call.shape) - len(value.shape)) + value.shape
        other: Value = call["other"]
        factors += [factor for factor in other.factors if shape[factor.dim] == 1]
    return Value(call.shape, tuple(factors))


@rule("aten.pixel_shuffle")
def pixel_shuffle(call: Call) -> Any:
    """Channels become space: the units are the channels that are left, tied over the sub-pixels."""
    return move(call, tie_first=True)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(call: Call) -> Any:
    """Position i of every group becomes a block of neighbours: positions are tied over the groups."""
    value: Value = call["self"]
    for ids in value.along(1):
        call.ids.tie(ids.reshape(int(call["groups"]), -1).T)
    return move(call)


@rule("aten.slice")
def slice_(call: Call) -> Any:
    """A part of an axis; every second unit cannot be re-derived as a slice, so a step pins."""
    value = call["self"]
    if call.get("step", 1) != 1:
        call.pin_dims(value, [call["dim"]], "a slice with a step picks units by position")
    return move(call)


@rule("aten.roll")
def roll(call: Call) -> Any:
    """A rotation; of the unit axis too, since the shift is re-derived."""
    if not call["dims"]:
        call.pin([factor.ids for factor in call["self"].factors], "a roll over the flattened tensor")
    return move(call)


@rule("aten.unfold")
def unfold(call: Call) -> Any:
    """Windows along one axis, which must be free."""
    call.pin_dims(call["self"], [call["dimension"]], "sliding windows run over this axis")
    return move(call)


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call) -> Any:
    """Padding with a constant brings ids of its own, which follow what they meet; other modes read neighbours."""
    value: Value = call["self"]
    amounts = list(call["pad"])
    padded = [len(value.shape) - 1 - i // 2 for i in range(len(amounts)) if amounts[i]]
    if call.get("mode", "constant") != "constant":
        call.pin_dims(value, padded, "padding mode reads neighbours along this axis")
        return value.with_shape(call.shape, [d for d in range(len(value.shape)) if d not in padded])
    factors = []
    for factor in value.factors:
        left, right = (0, 0)
        slot = 2 * (len(value.shape) - 1 - factor.dim)
        if slot + 1 < len(amounts):
            left, right = amounts[slot], amounts[slot + 1]
        kept = factor.ids[max(-left, 0) : len(factor.ids) - max(-right, 0)]
        padded_ids = (call.ids.fresh(max(left, 0)), kept, call.ids.fresh(max(right, 0)))
        factors.append(Factor(factor.dim, np.concatenate(padded_ids)))
    return Value(call.shape, tuple(factors))


def _join(call: Call, values: list[Value], dim: int) -> Value:
    """Concatenate along ``dim``; every other axis must agree."""
    factors: list[Factor] = []
    rank = len(values[0].shape)
    for other in range(rank):
        if other == dim or values[0].shape[other] == 1:
            continue
        stack = call.align([value.along(other) for value in values], "concatenated with something that keeps this axis")
        factors.extend(Factor(other, ids) for ids in stack)
    depth = max((len(value.along(dim)) for value in values), default=0)
    for level in range(depth):
        parts = []
        for value in values:
            stack = value.along(dim)
            size = value.shape[dim]
            parts.append(stack[level] if level < len(stack) else np.full(size, PINNED if level == 0 else NEUTRAL))
        factors.append(Factor(dim, np.concatenate(parts)))
    return Value(call.shape, tuple(factors))


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call) -> Any:
    """Units of all inputs stand one after the other; inputs without units stay."""
    values = [value for value in call["tensors"] if value.shape != (0,)]
    return _join(call, values, call.get("dim", 0) % len(values[0].shape))


@rule("aten.hstack")
def hstack(call: Call) -> Any:
    """Concatenation along axis 1."""
    return _join(call, call["tensors"], 1 if len(call["tensors"][0].shape) > 1 else 0)


@rule("aten.stack")
def stack(call: Call) -> Any:
    """A new axis without units; all other axes must agree."""
    dim = call.get("dim", 0) % len(call.shape)
    lifted = []
    for value in call["tensors"]:
        shape = (*value.shape[:dim], 1, *value.shape[dim:])
        factors = tuple(Factor(f.dim + (f.dim >= dim), f.ids) for f in value.factors)
        lifted.append(Value(shape, factors))
    joined = _join(call, lifted, dim)
    return Value(joined.shape, tuple(factor for factor in joined.factors if factor.dim != dim))


@rule("aten.index", "aten._unsafe_index", "aten.index_select", "aten.gather", "aten.take_along_dim")
def index(call: Call) -> Any:
    """Positions known at trace time move ids; positions computed from the input need free axes."""
    wanted = call.get("indices", call.get("index"))
    wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    value: Value = call["self"]
    if "dim" in call.arguments:
        dims = [call["dim"] % len(value.shape)]
    else:
        dims = [d for d, item in enumerate(wanted) if item is not None]
    if all(item is None or item.constant is not None for item in wanted):
        call.pin_dims(value, dims, "units are picked by a tensor of positions")
        return move_first(call, "self")
    for item in wanted:
        if item is not None:
            call.pin([factor.ids for factor in item.factors], "positions are computed from it")
    if len(dims) != 1 or len(call.shape) != len(value.shape):
        return barrier(call, "positions computed from the input")
    call.pin_dims(value, dims, "positions are computed from the input")
    return value.with_shape(call.shape, [d for d in range(len(value.shape)) if d not in dims])


def move_first(call: Call, name: str) -> Value:
    """Move the ids of one argument; the other tensors are real index tensors."""
    value: Value = call[name]
    others = {n: _constant(a) for n, a in call.arguments.items() if n != name}
    factors = []
    for factor in value.factors:
        moved = call_target(call.node.target, {**call.arguments, **others, name: spread(factor, value.shape)})
        settled = call.settle(moved)
        if settled is not None:
            factors.append(settled)
    return Value(call.shape, tuple(factors))


def _constant(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.constant
    if isinstance(argument, (list, tuple)):
        return [_constant(item) for item in argument]
    return argument


@rule("aten.im2col", "aten.col2im")
def im2col(call: Call) -> Any:
    """Patches of channels; the channel axis carries each unit once per kernel position."""
    value: Value = call["self"]
    call.pin_dims(value, range(2 if len(value.shape) == 4 else 1, len(value.shape)), "patches are cut from this axis")
    if "col2im" in str(call.node.target):
        area = int(np.prod(call["kernel_size"]))
        factors = []
        for ids in value.along(len(value.shape) - 2):
            _, units = call.grid(ids, (len(ids) // area, area))
            chosen = units if len(units) == len(ids) // area else np.full(len(ids) // area, PINNED)
            factors.append(Factor(len(value.shape) - 2, chosen))
        return Value(call.shape, tuple(factors))
    return move(call)
