"""Operators that order, count up or cut a triangle along an axis: that axis must stay, the others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from secateurs.structure.call import Call
from secateurs.structure.operators import rule, short_name
from secateurs.structure.rules.elementwise import pointwise
from secateurs.structure.rules.reduction import reduce_dims
from secateurs.structure.values import Factor, Value


def _along(call: Call, value: Value, dims: Sequence[int], reason: str) -> Any:
    """Every output keeps the units of the other axes."""
    rank = max(len(value.shape), 1)
    whole = {dim % rank for dim in dims}
    call.pin_dims(value, whole, reason)
    kept = tuple(factor for factor in value.factors if factor.dim not in whole)
    results = [Value(shape, kept) for shape in call.shapes]
    return results[0] if isinstance(call.node.meta["val"], torch.Tensor) else results


@rule("aten.sort", "aten.topk", "aten.argsort", "aten.msort")
def ordered(call: Call) -> Any:
    """Entries change places by value."""
    value: Value = call["self"]
    dim = int(call.get("dim", 0 if short_name(call.node.target) == "msort" else -1))
    if value.along(dim):
        call.block(value.along(dim), "entries are ordered by value along this axis")
    return _along(call, value, [dim], "entries are ordered by value along this axis")


@rule("aten.kthvalue", "aten.mode", "aten.nanmedian", "aten.aminmax")
def picked(call: Call) -> Any:
    """One entry is picked by value: a reduction."""
    value: Value = call["self"]
    dim = call.get("dim")
    dims = range(len(value.shape)) if dim is None else [int(dim)]
    return reduce_dims(call, value, dims, bool(call.get("keepdim", False)))


@rule("aten.cumsum", "aten.cumprod", "aten.cummax", "aten.cummin", "aten.logcumsumexp")
def running(call: Call) -> Any:
    """Every entry depends on those before it."""
    return _along(call, call["self"], [int(call["dim"])], "a running total goes along this axis")


@rule("aten.tril", "aten.triu")
def triangle(call: Call) -> Any:
    """Entries stay or vanish by their row and column."""
    return _along(call, call["self"], [-2, -1], "values depend on the position along this axis")


@rule("aten.searchsorted", "aten.bucketize", "aten.isin")
def looked_up(call: Call) -> Any:
    """Every value alone, in a table that must be whole."""
    name = next(n for n in ("sorted_sequence", "boundaries", "test_elements", "test_element") if n in call.arguments)
    table = call[name]
    if isinstance(table, Value):
        call.pin([factor.ids for factor in table.factors], "values are looked up in it")
    value = call.get("elements", call.get("element", call.get("self")))
    rows = isinstance(table, Value) and short_name(call.node.target) == "searchsorted" and len(table.shape) > 1
    if rows and isinstance(value, Value):
        call.pin_dims(value, range(len(value.shape)), "every row has a table of its own")
    if not isinstance(value, Value) or rows:
        return Value(call.shape)
    return value.with_shape(call.shape, range(len(value.shape)))


@rule("aten.renorm")
def renorm(call: Call) -> Any:
    """Slices along one axis are scaled down to a largest norm, a statistic over what is left of the others."""
    value: Value = call["self"]
    if value.dims() - {int(call["dim"]) % len(value.shape)}:
        call.analysis.statistics.add(call.node.name)
    return pointwise(call)


@rule("aten.quantile", "aten.nanquantile")
def quantile(call: Call) -> Any:
    """A reduction; several quantiles stand along a new first axis."""
    value: Value = call["self"]
    dim = call.get("dim")
    dims = range(len(value.shape)) if dim is None else [int(dim)]
    reduced = reduce_dims(call, value, dims, bool(call.get("keepdim", False)))
    shift = int(isinstance(call["q"], Value) and len(call["q"].shape) == 1)
    return Value(call.shape, tuple(Factor(factor.dim + shift, factor.ids) for factor in reduced.factors))
