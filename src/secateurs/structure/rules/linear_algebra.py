"""Products spelt otherwise, distances, and operators that take a matrix as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from secateurs.structure.call import Call
from secateurs.structure.operators import rule
from secateurs.structure.rules.contraction import product
from secateurs.structure.rules.elementwise import pointwise
from secateurs.structure.rules.reduction import REDUCED
from secateurs.structure.values import Factor, Value
from secateurs.structure.vanishing import vanishes

_CONTRACTED = "is contracted with something that stays"
_MEETS = "meets a tensor that keeps this axis"


@rule("aten.tensordot")
def tensordot(call: Call) -> Any:
    """Listed axes of both are contracted; the others stand one after the other."""
    a, b = call["self"], call["other"]
    first, second = ([int(d) % len(v.shape) for d in call[n]] for v, n in ((a, "dims_self"), (b, "dims_other")))
    _note(call, "self", first)
    _note(call, "other", second)
    for mine, other in zip(first, second, strict=True):
        if a.shape[mine] > 1:
            call.align([a.along(mine), b.along(other)], _CONTRACTED)
    rest = [(a, d) for d in range(len(a.shape)) if d not in first]
    rest += [(b, d) for d in range(len(b.shape)) if d not in second]
    return Value(call.shape, tuple(Factor(dim, ids) for dim, (v, d) in enumerate(rest) for ids in v.along(d)))


def _note(call: Call, name: str, contracted: Sequence[int]) -> None:
    """Tell what a parameter among the factors of a product does."""
    for dim in range(len(call[name].shape)):
        call.use(name, dim, "in" if dim in contracted else "out", "linear")


@rule("aten.inner")
def inner(call: Call) -> Any:
    """The last axes are contracted."""
    a, b = call["self"], call["other"]
    if not a.shape or not b.shape:
        return pointwise(call)
    for name in ("self", "other"):
        _note(call, name, [len(call[name].shape) - 1])
    if a.shape[-1] > 1:
        call.align([a.along(-1), b.along(-1)], _CONTRACTED)
    rest = [(v, d) for v in (a, b) for d in range(len(v.shape) - 1)]
    return Value(call.shape, tuple(Factor(dim, ids) for dim, (v, d) in enumerate(rest) for ids in v.along(d)))


@rule("aten.outer", "aten.ger")
def outer(call: Call) -> Any:
    """Rows are the units of one vector, columns those of the other."""
    rows, columns = call["self"], call[_second(call)]
    return Value(call.shape, _crossed(rows, columns))


def _second(call: Call) -> str:
    return next(name for name in ("vec2", "other") if name in call.arguments)


def _crossed(rows: Value, columns: Value) -> tuple[Factor, ...]:
    return (*(Factor(0, ids) for ids in rows.along(0)), *(Factor(1, ids) for ids in columns.along(0)))


@rule("aten.addr", "aten.addmv")
def added(call: Call) -> Any:
    """An outer product, or a matrix times a vector, with something added."""
    if "vec1" in call.arguments:
        result = Value(call.shape, _crossed(call["vec1"], call["vec2"]))
    else:
        call.use("mat", 0, "out", "linear")
        call.use("mat", 1, "in", "linear")
        result = product(call, call["mat"], call["vec"])
    return _summed(call, result, call["self"])


def _summed(call: Call, result: Value, term: Value) -> Value:
    factors: list[Factor] = []
    for dim in range(len(result.shape)):
        own = dim - (len(result.shape) - len(term.shape))
        sides = [result.along(dim)]
        if own >= 0 and term.shape[own] != 1:
            sides.append(term.along(own))
        factors.extend(Factor(dim, ids) for ids in call.align(sides, _MEETS))
    return Value(result.shape, tuple(factors))


@rule("aten.linalg_vecdot")
def vecdot(call: Call) -> Any:
    """Element-wise along the other axes, contracted along one."""
    a, b = call["x"], call["y"]
    rank = max(len(a.shape), len(b.shape))
    dim = int(call.get("dim", -1)) % rank
    factors: list[Factor] = []
    for axis in range(rank):
        own = [(v, axis - (rank - len(v.shape))) for v in (a, b)]
        sides = [v.along(d) for v, d in own if d >= 0 and v.shape[d] != 1]
        stack = call.align(sides, _CONTRACTED if axis == dim else _MEETS)
        if axis == dim and len(sides) == 1:
            call.pin(stack, REDUCED)
        if axis != dim:
            factors.extend(Factor(axis - (axis > dim), ids) for ids in stack)
    return Value(call.shape, tuple(factors))


@rule("aten.linalg_cross", "aten.cross")
def cross(call: Call) -> Any:
    """Three entries along one axis, element-wise along the others."""
    dim = int(call["dim"] if call.get("dim") is not None else -1)
    for value in call.tensors():
        call.pin_dims(value, [dim], "a cross product runs over this axis")
    return pointwise(call)


@rule("aten.cdist", "aten._cdist_forward", "aten._euclidean_dist")
def distance(call: Call) -> Any:
    """Rows of one against rows of the other; features may go where those that went are zero in both."""
    a, b = call["x1"], call["x2"]
    nodes = [node for node in call.node.all_input_nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    if all(vanishes(call.analysis, node) for node in nodes):
        call.align([a.along(-1), b.along(-1)], _CONTRACTED)
    for value in (a, b):
        if not all(vanishes(call.analysis, node) for node in nodes):
            call.pin_dims(value, [len(value.shape) - 1], "a distance is taken over this axis")
    last = len(call.shape) - 1
    factors: list[Factor] = []
    for dim in range(last - 1):
        own = [(v, dim - (len(call.shape) - len(v.shape))) for v in (a, b)]
        sides = [v.along(d) for v, d in own if d >= 0 and v.shape[d] != 1]
        factors.extend(Factor(dim, ids) for ids in call.align(sides, _MEETS))
    rows = [Factor(last - 1, ids) for ids in a.along(-2)] + [Factor(last, ids) for ids in b.along(-2)]
    return Value(call.shape, (*factors, *rows))


@rule("aten.cosine_similarity")
def cosine_similarity(call: Call) -> Any:
    """A product of normalised vectors: the norms run over what is left, as those of a normalisation do."""
    a, b = call["x1"], call["x2"]
    rank = max(len(a.shape), len(b.shape))
    dim = int(call.get("dim", 1)) % rank
    factors: list[Factor] = []
    for axis in range(rank):
        own = [(v, axis - (rank - len(v.shape))) for v in (a, b)]
        sides = [v.along(d) for v, d in own if d >= 0 and v.shape[d] != 1]
        stack = call.align(sides, _CONTRACTED if axis == dim else _MEETS)
        if axis == dim and stack:
            call.analysis.statistics.add(call.node.name)
        if axis != dim:
            factors.extend(Factor(axis - (axis > dim), ids) for ids in stack)
    return Value(call.shape, tuple(factors))


@rule("aten.conv_tbc")
def conv_tbc(call: Call) -> Any:
    """A convolution over time whose weight is [kernel, in, out]."""
    value, weight, bias = call["self"], call["weight"], call["bias"]
    call.pin_dims(value, [0], "a convolution runs over this axis")
    call.pin_dims(weight, [0], "it is a kernel position")
    for name, dim, role in (("weight", 1, "in"), ("weight", 2, "out"), ("bias", 0, "bias")):
        call.use(name, dim, role, "conv")
    if weight.shape[1] > 1:
        call.align([value.along(2), weight.along(1)], "a weight column of fixed input")
    out = call.align([weight.along(2), bias.along(0)], "has a bias that stays") if weight.shape[2] > 1 else []
    kept = tuple(factor for factor in value.factors if factor.dim == 1)
    return Value(call.shape, (*kept, *(Factor(2, ids) for ids in out)))


@rule(
    "aten.linalg_inv", "aten.linalg_inv_ex", "aten.inverse", "aten.linalg_pinv", "aten.pinverse", "aten.linalg_det",
    "aten._linalg_det", "aten.linalg_slogdet", "aten._linalg_slogdet", "aten.det", "aten.logdet", "aten.slogdet",
    "aten.linalg_cholesky", "aten.linalg_cholesky_ex", "aten.cholesky", "aten.cholesky_inverse",
    "aten.cholesky_solve", "aten.linalg_eig", "aten.linalg_eigh", "aten._linalg_eigh", "aten.linalg_eigvals",
    "aten.linalg_eigvalsh", "aten.linalg_svd", "aten._linalg_svd", "aten.linalg_svdvals", "aten.svd", "aten.linalg_qr",
    "aten.qr", "aten.geqrf", "aten.orgqr", "aten.ormqr", "aten.linalg_householder_product", "aten.linalg_lu",
    "aten.linalg_lu_factor", "aten.linalg_lu_factor_ex", "aten.linalg_lu_solve", "aten.lu_unpack", "aten.linalg_solve",
    "aten.linalg_solve_ex", "aten._linalg_solve_ex", "aten.linalg_solve_triangular", "aten.triangular_solve",
    "aten.linalg_lstsq", "aten.linalg_ldl_factor", "aten.linalg_ldl_factor_ex", "aten.linalg_ldl_solve",
    "aten.matrix_exp", "aten.linalg_matrix_exp", "aten.matrix_power", "aten.linalg_matrix_power",
    "aten.linalg_matrix_rank", "aten.linalg_cond", "aten.nuclear_norm",
)  # fmt: skip
def whole_matrix(call: Call) -> Any:
    """Every entry depends on the whole matrix, which must stay; matrices of a batch are alone."""
    values = [value for value in call.tensors() if value.shape]
    lead = max((value.shape for value in values), key=len, default=(1, 1))[:-2]
    factors: list[Factor] = []
    sides: list[list[Any]] = [[] for _ in lead]
    for value in values:
        one_vector_each = len(value.shape) == len(lead) + 1 and value.shape[:-1] == lead
        batch = max(len(value.shape) - (1 if one_vector_each else 2), 0)
        call.pin_dims(value, range(batch, len(value.shape)), "a matrix is taken as a whole")
        for own in range(batch):
            if value.shape[own] != 1:
                sides[own + len(lead) - batch].append(value.along(own))
    for dim, side in enumerate(sides):
        factors.extend(Factor(dim, ids) for ids in call.align(side, _MEETS))
    if factors:  # what went is a matrix of nothing, which has no inverse: the interpreter leaves it out
        call.analysis.statistics.add(call.node.name)
    results = [Value(shape, tuple(f for f in factors if f.dim < len(shape))) for shape in call.shapes]
    return results[0] if isinstance(call.node.meta["val"], torch.Tensor) else results
