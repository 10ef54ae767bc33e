"""Matrix products of every spelling, attention and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateurs.structure.call import Call
from secateurs.structure.operators import rule
from secateurs.structure.rules.reduction import REDUCED
from secateurs.structure.values import Factor, Value

_CONTRACTED = "is contracted with something that stays"


@rule("aten.linear")
def linear(call: Call) -> Any:
    """The last axis meets weight columns; rows become the new last axis."""
    value: Value = call["input"]
    weight: Value = call["weight"]
    last = len(value.shape) - 1
    kept = tuple(factor for factor in value.factors if factor.dim < last)
    columns = len(weight.shape) - 1
    call.use("weight", columns, "in", "linear")
    if weight.shape[columns] > 1:
        call.align([value.along(last), weight.along(columns)], "a weight column of fixed input")
    else:
        call.pin_dims(value, [last], "it is the only input feature")
    if len(weight.shape) == 1:
        return Value(call.shape, kept)
    call.use("weight", 0, "out", "linear")
    out = weight.along(0)
    if call.get("bias") is not None and weight.shape[0] > 1:
        call.use("bias", 0, "bias", "linear")
        out = call.align([out, call["bias"].along(0)], "has a bias that stays")
    return Value(call.shape, (*kept, *(Factor(len(call.shape) - 1, ids) for ids in out)))


@rule("aten.bilinear")
def bilinear(call: Call) -> Any:
    """Both inputs are contracted with the weight [out, first, second]; leading axes agree."""
    first: Value = call["input1"]
    second: Value = call["input2"]
    weight: Value = call["weight"]
    last = len(call.shape) - 1
    for value, dim in ((first, 1), (second, 2)):
        call.use("weight", dim, "in", "linear")
        if weight.shape[dim] > 1:
            call.align([value.along(last), weight.along(dim)], "a weight column of fixed input")
    factors: list[Factor] = []
    for dim in range(last):
        sides = [value.along(dim) for value in (first, second) if value.shape[dim] != 1]
        factors.extend(Factor(dim, ids) for ids in call.align(sides, "meets a tensor that keeps this axis"))
    call.use("weight", 0, "out", "linear")
    out = weight.along(0)
    if call.get("bias") is not None and weight.shape[0] > 1:
        call.use("bias", 0, "bias", "linear")
        out = call.align([out, call["bias"].along(0)], "has a bias that stays")
    return Value(call.shape, (*factors, *(Factor(last, ids) for ids in out)))


def product(call: Call, a: Value, b: Value) -> Value:
    """``a @ b`` with broadcasting over leading axes."""
    shape = call.shape
    a_last, b_contracted = len(a.shape) - 1, max(len(b.shape) - 2, 0)
    if a.shape[a_last] > 1:
        call.align([a.along(a_last), b.along(b_contracted)], _CONTRACTED)
    factors: list[Factor] = []
    matrix = len(shape) - (len(a.shape) >= 2) - (len(b.shape) >= 2)
    for dim in range(matrix):
        sides = []
        for value in (a, b):
            own = dim - (matrix - (len(value.shape) - 2))
            if len(value.shape) > 2 and own >= 0 and value.shape[own] != 1:
                sides.append(value.along(own))
        factors.extend(Factor(dim, ids) for ids in call.align(sides, "meets a tensor that keeps this axis"))
    if len(a.shape) >= 2:
        factors.extend(Factor(matrix, ids) for ids in a.along(len(a.shape) - 2))
    if len(b.shape) >= 2:
        factors.extend(Factor(len(shape) - 1, ids) for ids in b.along(len(b.shape) - 1))
    return Value(shape, tuple(factors))


@rule("aten.matmul", "aten.linalg_matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot")
def matmul(call: Call) -> Any:
    """Both sides may carry units; what is contracted is consumed."""
    a, b = call.tensors()
    _use_matrix(call, _first(call, "other", "mat2", "vec", "tensor"), b)
    return product(call, a, b)


def _use_matrix(call: Call, name: str, matrix: Value) -> None:
    """Note a right side that is made of parameters alone: a linear layer's weight [in, out]."""
    if len(matrix.shape) == 2:
        call.use(name, 0, "in", "linear")
        call.use(name, 1, "out", "linear")


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm")
def addmm(call: Call) -> Any:
    """A product with something added."""
    right = _first(call, "mat2", "batch2")
    result = product(call, call[_first(call, "mat1", "batch1")], call[right])
    added: Value = call["self"]
    _use_matrix(call, right, call[right])
    if len(added.shape) == 1:
        call.use("self", 0, "bias", "linear")
    factors: list[Factor] = []
    for dim in range(len(result.shape)):
        own = dim - (len(result.shape) - len(added.shape))
        sides = [result.along(dim)]
        if own >= 0 and added.shape[own] != 1:
            sides.append(added.along(own))
        factors.extend(Factor(dim, ids) for ids in call.align(sides, "meets a tensor that keeps this axis"))
    return Value(result.shape, tuple(factors))


def _first(call: Call, *names: str) -> str:
    return next(name for name in names if name in call.arguments)


@rule("aten.einsum")
def einsum(call: Call) -> Any:
    """Letters that meet are unified; letters that stay keep their units."""
    equation = str(call["equation"]).replace(" ", "")
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    values: list[Value] = list(call["tensors"])
    rank = len(values[0].shape) - len(terms[0].replace("...", "")) if "..." in terms[0] else 0
    dots = "".join(chr(ord("A") + 200 + i) for i in range(max(rank, 0)))
    terms = [term.replace("...", dots) for term in terms]
    output = output.replace("...", dots)
    if "->" not in equation:
        joined = "".join(terms)
        output = dots + "".join(sorted(c for c in set(joined) - set(dots) if joined.count(c) == 1))
    stacks: dict[str, list[np.ndarray]] = {}
    for letter in dict.fromkeys("".join(terms)):
        sides: list[list[np.ndarray]] = []
        for term, value in zip(terms, values, strict=True):
            sides.extend(value.along(d) for d, c in enumerate(term) if c == letter and value.shape[d] != 1)
        stacks[letter] = call.align(sides, _CONTRACTED)
        if letter not in output and len(sides) == 1:
            call.pin(stacks[letter], REDUCED)
    factors = tuple(Factor(d, ids) for d, letter in enumerate(output) for ids in stacks.get(letter, ()))
    return Value(call.shape, factors)


@rule("aten.scaled_dot_product_attention", "aten._scaled_dot_product_flash_attention_for_cpu")
def attention(call: Call) -> Any:
    """Heads are a batch axis; query and key meet along the head size, the value's features stay."""
    query, key, value = call["query"], call["key"], call["value"]
    rank = len(query.shape)
    factors: list[Factor] = []
    for dim in range(rank - 2):
        sides = [tensor.along(dim) for tensor in (query, key, value) if tensor.shape[dim] != 1]
        sizes = {tensor.shape[dim] for tensor in (query, key, value)} - {1}
        if len(sizes) > 1:
            stack = _shared_heads(call, query.along(dim), [key.along(dim), value.along(dim)])
        else:
            stack = call.align(sides, "meets a tensor that keeps this axis")
        factors.extend(Factor(dim, ids) for ids in stack)
    call.align([query.along(rank - 1), key.along(rank - 1)], _CONTRACTED)
    call.align([key.along(rank - 2), value.along(rank - 2)], _CONTRACTED)
    mask = call.get("attn_mask")
    if isinstance(mask, Value):
        _mask(call, mask, Value(query.shape, tuple(factors)), rank)
    factors.extend(Factor(rank - 2, ids) for ids in query.along(rank - 2))
    factors.extend(Factor(rank - 1, ids) for ids in value.along(rank - 1))
    result = Value(call.shape, tuple(factors))
    return result if len(call.shapes) == 1 else [result] + [Value(shape) for shape in call.shapes[1:]]


def _shared_heads(call: Call, queries: list[np.ndarray], shared: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Grouped-query attention: several query heads read one key and value head, which go together."""
    if not queries or not all(shared):
        call.pin([*queries, *(ids for side in shared for ids in side)], _CONTRACTED)
        return queries
    heads = len(shared[0][0])
    for ids in queries:
        call.ids.tie(ids.reshape(heads, -1))
    call.align([[ids.reshape(heads, -1)[:, 0] for ids in queries], *shared], _CONTRACTED)
    return queries


def _mask(call: Call, mask: Value, result: Value, rank: int) -> None:
    shift = rank - len(mask.shape)
    for dim in range(len(mask.shape)):
        if mask.shape[dim] != 1 and dim + shift < rank - 2:
            call.align([mask.along(dim), result.along(dim + shift)], "meets a mask that keeps this axis")
        elif mask.shape[dim] != 1:
            call.pin_dims(mask, [dim], "it is a position of the attention mask")


@rule("aten.embedding")
def embedding(call: Call) -> Any:
    """Rows are looked up by the input and stay; columns are units."""
    weight: Value = call["weight"]
    call.pin_dims(weight, [0], "rows are looked up by the input")
    call.use("weight", 1, "out", "embedding")
    return Value(call.shape, tuple(Factor(len(call.shape) - 1, ids) for ids in weight.along(1)))
