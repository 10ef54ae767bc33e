"""Operators that treat every element alone."""

from __future__ import annotations

import math
from typing import Any

import torch

from secateurs.structure.call import Call
from secateurs.structure.operators import rule
from secateurs.structure.rules import sizes
from secateurs.structure.values import Factor, Value
from secateurs.structure.vanishing import vanishes

_POINTWISE = (
    "aten.relu6", "aten.relu6_", "aten.dropout", "aten.dropout_", "aten.feature_dropout", "aten.alpha_dropout",
    "aten.feature_alpha_dropout", "aten.native_dropout",
    "aten.contiguous", "aten.clone", "aten.to", "aten._to_copy", "aten.type_as", "aten.detach", "aten.detach_",
    "aten.alias", "aten.lift_fresh_copy", "aten.selu", "aten.selu_", "aten.celu_", "aten.silu_", "aten.mish_",
    "aten.hardswish_", "aten.hardtanh_", "aten.hardsigmoid_", "aten.elu_", "aten.leaky_relu_", "aten.log_sigmoid",
    "aten.square", "aten.square_", "aten.clip", "aten.clamp", "aten.true_divide", "aten.multiply", "aten.subtract",
    "aten.divide", "aten.rrelu", "aten.softplus", "aten.threshold", "aten.threshold_", "aten.where", "aten.masked_fill",
    "aten.masked_fill_", "aten.addcmul", "aten.addcdiv", "aten.lerp", "aten.zeros_like", "aten.ones_like",
    "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like", "aten.bernoulli", "aten.copy_",
    "aten.copy", "aten.fill", "aten.float_power", "aten.negative", "aten.absolute", "aten.nan_to_num",
    "aten.relu", "aten.relu_", "aten.gelu", "aten.gelu_", "aten.silu", "aten.mish", "aten.hardswish", "aten.hardtanh",
    "aten.hardsigmoid", "aten.elu", "aten.leaky_relu", "aten.sigmoid", "aten.sigmoid_", "aten.tanh", "aten.tanh_",
    "aten.add", "aten.add_", "aten.sub", "aten.sub_", "aten.mul", "aten.mul_", "aten.div", "aten.div_", "aten.rsub",
    "aten._assert_tensor_metadata", "aten.logical_and", "aten.logical_or", "aten.logical_not", "aten.rrelu_",
    "aten.celu", "aten.bernoulli_", "aten.add_relu", "aten.softplus_", "aten.maximum", "aten.minimum",
    "aten.logical_xor", "aten.__and__", "aten.__or__", "aten.__xor__", "aten.__lshift__", "aten.__rshift__",
    "aten.floor_divide", "aten.zero", "aten.complex", "aten.polar", "aten._conj", "aten.conj", "aten._neg_view",
    "aten.resolve_conj", "aten.resolve_neg", "aten.real", "aten.imag", "aten.angle", "aten.lift", "aten.lift_fresh",
    "aten.alias_copy", "aten.detach_copy", "aten.normal", "aten.uniform", "aten.exponential", "aten.log_normal",
    "aten.cauchy", "aten.geometric", "aten.random", "aten.randint_like", "aten.poisson", "aten.pin_memory",
    "aten.rrelu_with_noise_functional",
)  # fmt: skip


@rule(*_POINTWISE)
def pointwise(call: Call) -> Any:
    """Units that meet along an axis become one; an axis without units pins what it meets."""
    tensors = call.tensors()
    shape = call.shape if call.shapes else tensors[0].shape
    factors: list[Factor] = []
    for dim in range(len(shape)):
        if shape[dim] <= 1:
            continue
        sides = []
        for value in tensors:
            own = dim - (len(shape) - len(value.shape))
            if own >= 0 and value.shape[own] != 1 and not _fills(value):
                sides.append(value.along(own))
        stack = call.align(sides, "meets a tensor that keeps this axis")
        factors.extend(Factor(dim, ids) for ids in stack)
    value = Value(shape, tuple(factors))
    if factors and call.node.name in call.analysis.weights and not vanishes(call.analysis, call.node):
        # A weight computed of nothing is something (softplus, exp): only the interpreter knows that it is not there.
        call.analysis.statistics.add(call.node.name)
    return value if isinstance(call.node.meta["val"], torch.Tensor) else [value] * len(call.shapes)


def _fills(value: Value) -> bool:
    """True for a constant tensor with a single value everywhere: it has no axis of its own to keep."""
    constant = value.constant
    if constant is None or constant.numel() == 0 or constant.numel() > 1 << 22:
        return False
    return bool((constant == constant.reshape(-1)[0]).all())


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(call: Call) -> Any:
    """One slope for all channels, or one each along axis 1."""
    value: Value = call["self"]
    weight: Value = call["weight"]
    if math.prod(weight.shape) == 1:
        return value
    if len(weight.shape) != 1:
        return pointwise(call)
    call.use("weight", 0, "norm", "prelu")
    stack = call.align([value.along(1), weight.along(0)], "has its own slope")
    others = tuple(factor for factor in value.factors if factor.dim != 1)
    return Value(value.shape, tuple(Factor(1, ids) for ids in stack) + others)


@rule("aten.glu")
def glu(call: Call) -> Any:
    """First half times the gate of the second half: unit i goes with unit i + n/2."""
    value: Value = call["self"]
    dim = call.get("dim", -1) % len(value.shape)
    half = value.shape[dim] // 2
    factors = []
    for factor in value.factors:
        if factor.dim != dim:
            factors.append(factor)
            continue
        call.ids.unify(factor.ids[:half], factor.ids[half:])
        factors.append(Factor(dim, factor.ids[:half]))
    return Value(call.shape, tuple(factors))


@rule(
    "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.new_empty", "aten.rand", "aten.randn", "aten.randint", "aten.normal.float_float", sizes=sizes.target_sizes,
)  # fmt: skip
def create(call: Call) -> Any:
    """A constant made in the forward pass: its axes follow whatever they meet."""
    factors = tuple(Factor(d, call.ids.fresh(n)) for d, n in enumerate(call.shape) if n > 1)
    return Value(call.shape, factors)


@rule("aten.arange", "aten.linspace", "aten.logspace", "aten.scalar_tensor", "aten.eye", "aten.randperm")
def positional(call: Call) -> Any:
    """Values that depend on their position: axes must stay."""
    for value in call.tensors():
        call.pin([factor.ids for factor in value.factors], "values depend on the position along this axis")
    return Value(call.shape)
