"""Operators that only move elements: run on the ids themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateurs.structure.analysis import STRETCHES, move
from secateurs.structure.call import Call
from secateurs.structure.ids import NEUTRAL, PINNED
from secateurs.structure.operators import PADS, base_name, rule, short_name
from secateurs.structure.rules import sizes
from secateurs.structure.rules.elementwise import pointwise
from secateurs.structure.values import Factor, Value, spread

_PURE = (
    "aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.squeeze", "aten.unsqueeze", "aten.expand_as",
    "aten.unbind", "aten.flip", "aten.repeat_interleave", "aten.flatten", "aten.movedim",
    "aten.moveaxis", "aten.swapaxes", "aten.swapdims", "aten.diagonal", "aten.rot90", "aten.view_as",
    "aten.reshape_as", "aten.pixel_unshuffle", "aten.mT", "aten.mH", "aten.adjoint",
    "aten.ravel", "aten.fliplr", "aten.flipud", "aten.atleast_1d", "aten.atleast_2d",
    "aten.atleast_3d", "aten.matrix_H", "aten.squeeze_copy", "aten.unsqueeze_copy", "aten.permute_copy",
    "aten.transpose_copy", "aten.t_copy", "aten.unbind_copy", "aten.diagonal_copy",
)  # fmt: skip
_RESHAPED = (
    "aten.view", "aten.view_copy", "aten.reshape", "aten._unsafe_view", "aten._reshape_alias", "aten._reshape_copy",
    "aten.expand", "aten.expand_copy", "aten.broadcast_to",
)  # fmt: skip
_SPLIT = (
    "aten.split", "aten.split_copy", "aten.split_with_sizes", "aten.split_with_sizes_copy", "aten.unsafe_split",
    "aten.unsafe_split_with_sizes",
)  # fmt: skip


@rule(*_PURE)
@rule(*_RESHAPED, sizes=sizes.target_sizes)
@rule("aten.repeat", "aten.tile", sizes=sizes.repeats)
@rule("aten.unflatten", sizes=sizes.split_axis)
@rule(*_SPLIT, sizes=sizes.parts)
@rule("aten.chunk", "aten.unsafe_chunk", sizes=sizes.chunks)
@rule("aten.tensor_split", "aten.hsplit", "aten.vsplit", "aten.dsplit", sizes=sizes.parts_by_place)
@rule("aten.narrow", "aten.narrow_copy", sizes=sizes.window)
@rule("aten.select", "aten.select_copy", sizes=sizes.position)
def pure(call: Call) -> Any:
    """Ids move with their elements; a second tensor (``view_as``) lends its shape, and its units to what is spread."""
    first = next(value for value in call.arguments.values() if isinstance(value, Value))
    if len(call.tensors()) > 1:
        return _like(call, first)
    stretched = STRETCHES.get(base_name(call.node.target))
    return move(call) if stretched is None else call.stretch(first, move(call), call.raw(stretched))


def _like(call: Call, value: Value) -> Value:
    factors = []
    for factor in value.factors:
        moved = spread(factor, value.shape)
        same = int(np.prod(call.shape)) == int(np.prod(value.shape))
        settled = call.settle(moved.reshape(call.shape) if same else moved.expand(call.shape))
        if settled is not None:
            factors.append(settled)
    if base_name(call.node.target) == "aten.expand_as":
        shape = (1,) * (len(call.shape) - len(value.shape)) + value.shape
        other: Value = call["other"]
        factors += [factor for factor in other.factors if shape[factor.dim] == 1]
    found = Value(call.shape, tuple(factors))
    if base_name(call.node.target) in ("aten.view_as", "aten.reshape_as"):
        shape_giver: Value = call["other"]
        for dim in sorted(found.dims() | shape_giver.dims()):
            call.align([found.along(dim), shape_giver.along(dim)], "takes the shape of another tensor")
    return found


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


@rule("aten.slice", "aten.slice_copy", sizes=sizes.bounds)
def slice_(call: Call) -> Any:
    """A part of an axis; every second unit cannot be re-derived as a slice, so a step pins."""
    value = call["self"]
    if call.get("step", 1) != 1:
        call.pin_dims(value, [call["dim"]], "a slice with a step picks units by position")
    return move(call)


@rule("aten.roll", sizes=sizes.shifts)
def roll(call: Call) -> Any:
    """A rotation; of the unit axis too, since the shift is re-derived."""
    if not call["dims"]:
        call.pin([factor.ids for factor in call["self"].factors], "a roll over the flattened tensor")
    return move(call)


@rule("aten.unfold", "aten.unfold_copy")
def unfold(call: Call) -> Any:
    """Windows along one axis, which must be free."""
    call.pin_dims(call["self"], [call["dimension"]], "sliding windows run over this axis")
    return move(call)


@rule(*PADS, sizes=sizes.amounts)
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


@rule("aten.meshgrid", "aten.broadcast_tensors")
def spread_out(call: Call) -> Any:
    """Every result has the units of every input along its axis."""
    tensors = call.tensors()
    if short_name(call.node.target) != "meshgrid":
        return pointwise(call)
    axes = list(range(len(call.shape)))
    if call.get("indexing") == "xy" and len(axes) > 1:
        axes[:2] = axes[1], axes[0]
    factors = tuple(Factor(dim, ids) for dim, value in zip(axes, tensors, strict=True) for ids in value.along(0))
    return [Value(shape, factors) for shape in call.shapes]


@rule("aten.block_diag")
def block_diag(call: Call) -> Any:
    """Rows and columns stand one after the other; what is in no block is zero whatever goes."""
    factors: list[Factor] = []
    for dim in range(2):
        parts = []
        for value in call["tensors"]:
            value = Value((*(1,) * (2 - len(value.shape)), *value.shape), _shifted(value, 2 - len(value.shape)))
            stack = value.along(dim)
            parts.append(stack[0] if len(stack) == 1 else np.full(value.shape[dim], PINNED))
            call.pin(stack if len(stack) > 1 else [], "two kinds of units meet one")
        factors.append(Factor(dim, np.concatenate(parts)))
    return Value(call.shape, tuple(factors))


def _shifted(value: Value, by: int) -> tuple[Factor, ...]:
    return tuple(Factor(factor.dim + by, factor.ids) for factor in value.factors)


@rule("aten.diag_embed")
def diag_embed(call: Call) -> Any:
    """An axis becomes the diagonal of a square: row and column go together."""
    value: Value = call["self"]
    rank, last = len(call.shape), len(value.shape) - 1
    rows, columns = (int(call.get(name, default)) % rank for name, default in (("dim1", -2), ("dim2", -1)))
    if call.get("offset", 0) != 0:
        call.pin_dims(value, [last], "it lies beside the diagonal")
    places = [dim for dim in range(rank) if dim not in (rows, columns)]
    factors = [Factor(places[f.dim], f.ids) for f in value.factors if f.dim != last]
    if call.get("offset", 0) == 0:
        factors += [Factor(dim, ids) for dim in (rows, columns) for ids in value.along(last)]
    return Value(call.shape, tuple(factors))


@rule("aten.im2col")
def im2col(call: Call) -> Any:
    """Patches of channels; the channel axis carries each unit once per kernel position."""
    value: Value = call["self"]
    call.pin_dims(value, range(len(value.shape) - 2, len(value.shape)), "patches are cut from this axis")
    return move(call)


@rule("aten.col2im")
def col2im(call: Call) -> Any:
    """Patches are added up to an image: the kernel positions of a channel go together."""
    value: Value = call["self"]
    rows, area = len(value.shape) - 2, int(np.prod(call["kernel_size"]))
    call.pin_dims(value, [rows + 1], "patches are laid along this axis")
    factors = [factor for factor in value.factors if factor.dim < rows]
    for ids in value.along(rows):
        table = ids.reshape(-1, area)
        call.ids.tie(table)
        factors.append(Factor(rows, table.max(axis=1)))
    return Value(call.shape, tuple(factors))
