"""ONNX operators that compute: arithmetic, activations, reductions, comparisons, products, normalisations, pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.models.onnx_file.values import (
    Value,
    at,
    first_tensor,
    number,
    numbers,
    on_host,
    operand,
    operator,
    tensor,
)

Attributes = Mapping[str, Any]
Given = Sequence[Value]


def _arithmetic(name: str, ours: Callable[[Any, Any], Any], theirs: Callable[[Any, Any], Any]) -> None:
    @operator(name)
    def run(given: Given, attributes: Attributes, opset: int) -> Value:
        if on_host(*given):
            return theirs(np.asarray(given[0]), np.asarray(given[1]))
        like = first_tensor(given)
        return ours(operand(given[0], like), operand(given[1], like))


def _divided(one: Any, other: Any) -> Any:
    whole = not any(isinstance(v, float) or (isinstance(v, Tensor) and v.is_floating_point()) for v in (one, other))
    return torch.div(one, other, rounding_mode="trunc") if whole else one / other


def _divided_on_host(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return one / other if "f" in (one.dtype.kind, other.dtype.kind) else one // other


_arithmetic("Add", lambda a, b: a + b, lambda a, b: a + b)
_arithmetic("Sub", lambda a, b: a - b, lambda a, b: a - b)
_arithmetic("Mul", lambda a, b: a * b, lambda a, b: a * b)
_arithmetic("Div", _divided, _divided_on_host)
_arithmetic("Pow", lambda a, b: a**b, lambda a, b: a**b)
_arithmetic("Equal", lambda a, b: a == b, lambda a, b: a == b)
_arithmetic("Greater", lambda a, b: a > b, lambda a, b: a > b)
_arithmetic("GreaterOrEqual", lambda a, b: a >= b, lambda a, b: a >= b)
_arithmetic("Less", lambda a, b: a < b, lambda a, b: a < b)
_arithmetic("LessOrEqual", lambda a, b: a <= b, lambda a, b: a <= b)
_arithmetic("And", torch.logical_and, np.logical_and)
_arithmetic("Or", torch.logical_or, np.logical_or)
_arithmetic("Xor", torch.logical_xor, np.logical_xor)


@operator("Mod")
def _mod(given: Given, attributes: Attributes, opset: int) -> Value:
    if on_host(*given):
        return np.fmod(*given) if attributes.get("fmod") else np.asarray(given[0]) % np.asarray(given[1])
    one, other = (tensor(value, first_tensor(given)) for value in given)
    return torch.fmod(one, other) if attributes.get("fmod") else torch.remainder(one, other)


@operator("PRelu")
def _prelu(given: Given, attributes: Attributes, opset: int) -> Value:
    values, slope = given[0], operand(given[1], given[0])
    return torch.where(values < 0, values * slope, values)


def _each(name: str, ours: Callable[[Tensor], Tensor], theirs: Callable[[np.ndarray], Any] | None = None) -> None:
    @operator(name)
    def run(given: Given, attributes: Attributes, opset: int) -> Value:
        if isinstance(given[0], Tensor):
            return ours(given[0])
        return np.asarray(theirs(np.asarray(given[0]))) if theirs is not None else ours(tensor(given[0]))


for _name, _ours, _theirs in (
    ("Abs", torch.abs, np.abs), ("Neg", torch.neg, np.negative), ("Sqrt", torch.sqrt, np.sqrt),
    ("Exp", torch.exp, None), ("Log", torch.log, None), ("Reciprocal", torch.reciprocal, None),
    ("Floor", torch.floor, np.floor),
    ("Ceil", torch.ceil, np.ceil), ("Round", torch.round, None), ("Sign", torch.sign, None), ("Erf", torch.erf, None),
    ("Sin", torch.sin, None), ("Cos", torch.cos, None), ("Tan", torch.tan, None), ("Tanh", torch.tanh, None),
    ("Sinh", torch.sinh, None), ("Cosh", torch.cosh, None), ("Asin", torch.asin, None), ("Acos", torch.acos, None),
    ("Atan", torch.atan, None), ("Relu", F.relu, None), ("Sigmoid", torch.sigmoid, None),
    ("Softplus", F.softplus, None), ("Softsign", F.softsign, None), ("HardSwish", F.hardswish, None),
    ("Mish", F.mish, None),
    ("Not", torch.logical_not, np.logical_not), ("IsNaN", torch.isnan, None), ("IsInf", torch.isinf, None),
    ("Identity", lambda x: x, lambda x: x),
):  # fmt: skip
    _each(_name, _ours, _theirs)


@operator("LeakyRelu")
def _leaky_relu(given: Given, attributes: Attributes, opset: int) -> Value:
    return F.leaky_relu(given[0], attributes.get("alpha", 0.01))


@operator("Elu")
def _elu(given: Given, attributes: Attributes, opset: int) -> Value:
    return F.elu(given[0], attributes.get("alpha", 1.0))


@operator("Celu")
def _celu(given: Given, attributes: Attributes, opset: int) -> Value:
    return F.celu(given[0], attributes.get("alpha", 1.0))


@operator("Selu")
def _selu(given: Given, attributes: Attributes, opset: int) -> Value:
    alpha, gamma = attributes.get("alpha", 1.6732632), attributes.get("gamma", 1.0507010)
    return gamma * torch.where(given[0] > 0, given[0], alpha * (given[0].exp() - 1))


@operator("HardSigmoid")
def _hard_sigmoid(given: Given, attributes: Attributes, opset: int) -> Value:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5:
        return F.hardsigmoid(given[0])
    return (given[0] * alpha + beta).clamp(0, 1)


@operator("Gelu")
def _gelu(given: Given, attributes: Attributes, opset: int) -> Value:
    return F.gelu(given[0], approximate=attributes.get("approximate", "none"))


@operator("ThresholdedRelu")
def _thresholded_relu(given: Given, attributes: Attributes, opset: int) -> Value:
    return torch.where(given[0] > attributes.get("alpha", 1.0), given[0], torch.zeros_like(given[0]))


@operator("Clip")
def _clip(given: Given, attributes: Attributes, opset: int) -> Value:
    bounds = [attributes.get(name) if at(given, place) is None else given[place] for name, place in _BOUNDS]
    low, high = (None if bound is None or isinstance(bound, Tensor) else number(bound) for bound in bounds)
    if isinstance(given[0], Tensor) and (low, high) == (0.0, 6.0):
        return F.relu6(given[0])
    if on_host(given[0]):
        return np.clip(given[0], low, high)
    for bound, limit in zip(bounds, (torch.maximum, torch.minimum), strict=True):
        if isinstance(bound, Tensor):
            return limit(given[0], bound)
    return given[0] if low is None and high is None else given[0].clamp(low, high)


_BOUNDS = (("min", 1), ("max", 2))


@operator("Softmax")
def _softmax(given: Given, attributes: Attributes, opset: int) -> Value:
    return _soft(torch.softmax, given, attributes, opset)


@operator("LogSoftmax")
def _log_softmax(given: Given, attributes: Attributes, opset: int) -> Value:
    return _soft(torch.log_softmax, given, attributes, opset)


def _soft(function: Callable[..., Tensor], given: Given, attributes: Attributes, opset: int) -> Tensor:
    """Before opset 13 over all axes from the given one on."""
    values, axis = given[0], attributes.get("axis", -1 if opset >= 13 else 1)
    if opset >= 13 or axis in (-1, values.ndim - 1):
        return function(values, dim=axis)
    return function(values.flatten(axis), dim=-1).reshape(values.shape)


@operator("Min")
def _min(given: Given, attributes: Attributes, opset: int) -> Value:
    return _folded(given, torch.minimum, np.minimum)


@operator("Max")
def _max(given: Given, attributes: Attributes, opset: int) -> Value:
    return _folded(given, torch.maximum, np.maximum)


@operator("Sum")
def _sum(given: Given, attributes: Attributes, opset: int) -> Value:
    return _folded(given, torch.add, np.add)


@operator("Mean")
def _mean(given: Given, attributes: Attributes, opset: int) -> Value:
    return _folded(given, torch.add, np.add) / len(given)


def _folded(given: Given, ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[..., Any]) -> Value:
    like = first_tensor(given)
    total = given[0] if like is None else tensor(given[0], like)
    for value in given[1:]:
        total = theirs(total, value) if like is None else ours(total, tensor(value, like).to(like.dtype))
    return total


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _reduction(name: str) -> None:
    @operator(name)
    def run(given: Given, attributes: Attributes, opset: int) -> Value:
        axes = attributes.get("axes") if at(given, 1) is None else numbers(given[1])
        if not axes and attributes.get("noop_with_empty_axes"):
            return given[0]
        values = tensor(given[0])
        axes = [int(axis) for axis in axes] if axes else list(range(values.ndim))
        return _REDUCTIONS[name](values, axes, bool(attributes.get("keepdims", 1)))


for _name in _REDUCTIONS:
    _reduction(_name)


@operator("ReduceProd")
def _product(given: Given, attributes: Attributes, opset: int) -> Value:
    axes = attributes.get("axes") if at(given, 1) is None else numbers(given[1])
    if on_host(given[0]):
        return np.asarray(
            np.prod(given[0], axis=tuple(axes) if axes else None, keepdims=bool(attributes.get("keepdims", 1)))
        )
    values, keep = given[0], bool(attributes.get("keepdims", 1))
    for axis in sorted((int(axis) % values.ndim for axis in axes or range(values.ndim)), reverse=True):
        values = values.prod(axis, keepdim=keep)
    return values


@operator("ArgMax")
def _arg_max(given: Given, attributes: Attributes, opset: int) -> Value:
    return torch.argmax(given[0], attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


@operator("ArgMin")
def _arg_min(given: Given, attributes: Attributes, opset: int) -> Value:
    return torch.argmin(given[0], attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


@operator("TopK")
def _top_k(given: Given, attributes: Attributes, opset: int) -> Value:
    found = torch.topk(
        given[0], int(number(given[1])), attributes.get("axis", -1), bool(attributes.get("largest", 1)), True
    )
    return found.values, found.indices


@operator("CumSum")
def _cumulated(given: Given, attributes: Attributes, opset: int) -> Value:
    axis, values = int(number(given[1])), given[0]
    values = values.flip(axis) if attributes.get("reverse") else values
    total = values.cumsum(axis)
    total = total - values if attributes.get("exclusive") else total
    return total.flip(axis) if attributes.get("reverse") else total


@operator("MatMul")
def _matmul(given: Given, attributes: Attributes, opset: int) -> Value:
    like = first_tensor(given)
    return torch.matmul(tensor(given[0], like), tensor(given[1], like))


@operator("Gemm")
def _gemm(given: Given, attributes: Attributes, opset: int) -> Value:
    one, other = (tensor(value) for value in given[:2])
    one, other = (one.t() if attributes.get("transA") else one), (other.t() if attributes.get("transB") else other)
    found = one @ other * attributes.get("alpha", 1.0)
    return found if at(given, 2) is None else found + operand(given[2], found) * attributes.get("beta", 1.0)


@operator("Einsum")
def _einsum(given: Given, attributes: Attributes, opset: int) -> Value:
    return torch.einsum(attributes["equation"], *(tensor(value) for value in given))


@operator("Dropout")
def _dropout(given: Given, attributes: Attributes, opset: int) -> Value:
    return given[0]


@operator("InstanceNormalization")
def _instance_norm(given: Given, attributes: Attributes, opset: int) -> Value:
    return F.instance_norm(
        given[0], weight=tensor(given[1]), bias=tensor(given[2]), eps=attributes.get("epsilon", 1e-5)
    )


@operator("GroupNormalization")
def _group_norm(given: Given, attributes: Attributes, opset: int) -> Value:
    groups, weight, bias = attributes["num_groups"], tensor(given[1]), tensor(given[2])
    if opset < 21:  # one value per group
        weight, bias = (one.repeat_interleave(given[0].shape[1] // groups) for one in (weight, bias))
    return F.group_norm(given[0], groups, weight, bias, attributes.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(given: Given, attributes: Attributes, opset: int) -> Value:
    axis, values = attributes.get("axis", -1), given[0]
    shape = tuple(values.shape[axis % values.ndim :])
    bias = None if at(given, 2) is None else tensor(given[2])
    return F.layer_norm(values, shape, tensor(given[1]), bias, attributes.get("epsilon", 1e-5))


@operator("LpNormalization")
def _lp_norm(given: Given, attributes: Attributes, opset: int) -> Value:
    return F.normalize(given[0], float(attributes.get("p", 2)), dim=attributes.get("axis", -1))


@operator("LRN")
def _lrn(given: Given, attributes: Attributes, opset: int) -> Value:
    alpha, beta, bias = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    return F.local_response_norm(given[0], attributes["size"], alpha, beta, bias)
