"""Reading and writing at positions: indexed axes must stay, the others pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from secateurs.structure.analysis import barrier, call_target
from secateurs.structure.call import Call
from secateurs.structure.operators import rule, short_name
from secateurs.structure.rules import sizes
from secateurs.structure.values import Factor, Value, spread

_MEETS = "meets a tensor that keeps this axis"
_PICKED = "units are picked by a tensor of positions"
_COMPUTED = "positions are computed from it"


def _of(call: Call, dim: int, values: Iterable[Value], size: int) -> tuple[Factor, ...]:
    """What several tensors share along an axis that none of them is indexed along."""
    sides = [value.along(dim) for value in values]
    same = all(value.shape[dim] == size for value in values)
    if not same:  # only the first entries are read or written
        call.pin([ids for side in sides for ids in side], "positions say which of its entries are used")
        return ()
    return tuple(Factor(dim, ids) for ids in call.align(sides, _MEETS)) if size > 1 else ()


@rule("aten.gather", "aten.take_along_dim")
def gather(call: Call) -> Any:
    """Positions along one axis for every entry of the others."""
    value: Value = call["self"]
    wanted: Value = call.get("index", call.get("indices"))
    if call.get("dim") is None:
        return barrier(call, "positions in the flattened tensor")
    dim = int(call["dim"]) % max(len(value.shape), 1)
    for each in (value, wanted):
        call.pin_dims(each, [dim], _PICKED)
    factors: list[Factor] = []
    for other in range(len(value.shape)):
        sides = [each for each in (value, wanted) if each.shape[other] != 1]
        if other != dim and sides:
            factors.extend(_of(call, other, sides, call.shape[other]))
    return Value(call.shape, tuple(factors))


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(call: Call) -> Any:
    """Entries of a source are written to positions along one axis."""
    value: Value = call["self"]
    dim = int(call["dim"]) % max(len(value.shape), 1)
    written = [each for each in (value, call["index"], call.get("src")) if isinstance(each, Value)]
    for each in written:
        call.pin_dims(each, [dim], _PICKED)
    factors: list[Factor] = []
    for other in range(len(value.shape)):
        if other != dim:
            factors.extend(_of(call, other, written, value.shape[other]))
    return Value(call.shape, tuple(factors))


@rule("aten.index_add", "aten.index_copy", "aten.index_reduce", "aten.index_fill")
def index_write(call: Call) -> Any:
    """Slices along one axis are written to positions."""
    value: Value = call["self"]
    dim = int(call["dim"]) % max(len(value.shape), 1)
    call.pin([factor.ids for factor in call["index"].factors], _COMPUTED)
    source = call.get("source")
    written = [each for each in (value, source) if isinstance(each, Value) and each.shape]
    for each in written:
        call.pin_dims(each, [dim], _PICKED)
    factors: list[Factor] = []
    for other in range(len(value.shape)):
        if other != dim:
            factors.extend(_of(call, other, written, value.shape[other]))
    return Value(call.shape, tuple(factors))


@rule("aten.index", "aten._unsafe_index", "aten.index_select")
def index(call: Call) -> Any:
    """Positions known at trace time move ids; positions computed from the input need free axes."""
    value: Value = call["self"]
    wanted, dims = _positions(call, value)
    if all(item is None or item.constant is not None for item in wanted):
        call.pin_dims(value, dims, _PICKED)
        return move_first(call, "self")
    for item in wanted:
        if item is not None:
            call.pin([factor.ids for factor in item.factors], _COMPUTED)
    room = _room(call, wanted, dims)
    if room is None:
        return barrier(call, "positions computed from the input")
    call.pin_dims(value, dims, "positions are computed from the input")
    return Value(call.shape, _around(value, dims, room))


def _positions(call: Call, value: Value) -> tuple[list[Value | None], list[int]]:
    """Position tensors and the axes that they run over."""
    wanted = call.get("indices", call.get("index"))
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if "dim" in call.arguments:
        return wanted, [int(call["dim"]) % len(value.shape)]
    return wanted, [d for d, item in enumerate(wanted) if item is not None]


def _room(call: Call, wanted: Sequence[Value | None], dims: Sequence[int]) -> int | None:
    """How many axes the result has in place of the indexed ones; None where they are not neighbours, or for masks."""
    if any(_masks(call)) or list(dims) != list(range(dims[0], dims[0] + len(dims))):
        return None
    return max(len(item.shape) for item in wanted if item is not None)


def _masks(call: Call) -> list[bool]:
    """For every position tensor whether it is a mask."""
    nodes = call.raw("indices" if "indices" in call.arguments else "index")
    nodes = nodes if isinstance(nodes, (list, tuple)) else [nodes]
    return [node.meta["val"].dtype in (torch.bool, torch.uint8) for node in nodes if isinstance(node, torch.fx.Node)]


def _around(value: Value, dims: Sequence[int], room: int) -> tuple[Factor, ...]:
    shift = room - len(dims)
    return tuple(
        Factor(factor.dim + (shift if factor.dim > dims[-1] else 0), factor.ids)
        for factor in value.factors
        if factor.dim not in dims
    )


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


@rule("aten.index_put", "aten._unsafe_index_put")
def index_put(call: Call) -> Any:
    """Values are written to positions; one value under a mask treats every entry alone."""
    value: Value = call["self"]
    written: Value = call["values"]
    wanted, dims = _positions(call, value)
    alone = not written.shape or set(written.shape) == {1}
    given = [item for item in wanted if item is not None]
    if alone and dims == [0] and all(_masks(call)):
        return _masked(call, value, given[0])
    for item in given:
        call.pin([factor.ids for factor in item.factors], _COMPUTED)
    room = _room(call, wanted, dims)
    if room is None:
        return barrier(call, "writes to positions computed from the input")
    call.pin_dims(value, dims, _PICKED)
    return Value(value.shape, _written(call, value, written, dims, room))


def _masked(call: Call, value: Value, mask: Value) -> Value:
    """The mask covers the leading axes."""
    factors: list[Factor] = []
    for dim in range(len(value.shape)):
        sides = [value.along(dim), *([mask.along(dim)] if dim < len(mask.shape) else [])]
        factors.extend(Factor(dim, ids) for ids in call.align(sides, _MEETS))
    return Value(value.shape, tuple(factors))


def _written(call: Call, value: Value, written: Value, dims: Sequence[int], room: int) -> tuple[Factor, ...]:
    shift, rank = room - len(dims), len(value.shape) + room - len(dims)
    factors: list[Factor] = []
    for dim in range(len(value.shape)):
        if dim in dims:
            continue
        own = dim + (shift if dim > dims[-1] else 0) - (rank - len(written.shape))
        sides = [value.along(dim)]
        if own >= 0 and written.shape[own] != 1:
            sides.append(written.along(own))
        factors.extend(Factor(dim, ids) for ids in call.align(sides, _MEETS))
    return tuple(factors)


@rule("aten.select_scatter")
@rule("aten.slice_scatter", sizes=sizes.bounds)
def part_written(call: Call) -> Any:
    """A part of one axis is written anew: what is written and what it replaces go together."""
    value, source = call["self"], call["src"]
    dim = int(call.get("dim", 0)) % len(value.shape)
    factors: list[Factor] = []
    for other in range(len(value.shape)):
        own = other - (other > dim and len(source.shape) < len(value.shape))
        if other != dim:
            sides = [value.along(other), source.along(own)] if value.shape[other] > 1 else []
            factors.extend(Factor(other, ids) for ids in call.align(sides, _MEETS))
    if short_name(call.node.target) == "select_scatter" or call.get("step", 1) != 1:
        call.pin_dims(value, [dim], "a part of it is picked by position")
        call.pin_dims(source, [dim] if len(source.shape) == len(value.shape) else [], "it is written by position")
        return Value(value.shape, tuple(factors))
    start, end, _ = slice(call.get("start"), call.get("end")).indices(value.shape[dim])
    whole = value.along(dim)
    call.align([[ids[start:end] for ids in whole], source.along(dim)], _MEETS)
    return Value(value.shape, (*factors, *(Factor(dim, ids) for ids in whole)))


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(call: Call) -> Any:
    """Rows are looked up and added; columns are units."""
    weight: Value = call["weight"]
    for value in call.tensors():
        if value is not weight:
            call.pin([factor.ids for factor in value.factors], _COMPUTED)
    call.pin_dims(weight, [0], "rows are looked up by the input")
    call.use("weight", 1, "out", "embedding")
    columns = tuple(Factor(1, ids) for ids in weight.along(1))
    return [Value(call.shape, columns), *(Value(shape) for shape in call.shapes[1:])]


@rule("aten.masked_scatter")
def masked_scatter(call: Call) -> Any:
    """The source is read in order, as far as the mask asks: it must stay, and so must what it fills."""
    call.pin([factor.ids for value in call.tensors() for factor in value.factors], "values are taken in order")
    return Value(call.shape)
