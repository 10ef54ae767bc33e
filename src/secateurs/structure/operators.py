"""Operators by name: the rule of each, how its integers follow a cut, and the families that others ask for.

The one place where operators are told apart by their names; everyone else asks here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from secateurs.structure.after_cut import AfterCut
from secateurs.structure.call import Call

Rule = Callable[[Call], Any]
"""What an operator does to units: from a call to the :class:`Value` (or list of them) that it returns."""
Sizes = Callable[[AfterCut], dict[str, Any]]
"""New values of the integer arguments that follow a cut, by schema name; the others may be left out."""


@dataclass(frozen=True)
class Operator:
    """What is known of an operator. ``sizes``: None where none of its integers depends on a width."""

    rule: Rule
    sizes: Sizes | None = None


_OPERATORS: dict[str, Operator] = {}


def rule(*operators: str, sizes: Sizes | None = None) -> Callable[[Rule], Rule]:
    """Register a function for operators such as ``aten.conv2d.default`` or ``aten.relu`` (every overload).

    Args:
        operators: names, with or without the overload.
        sizes: for operators that take integers which depend on the number of units (a view, a split, groups): what
            these are after a cut. Without it they stay as they are in the export.
    """

    def register(function: Rule) -> Rule:
        for name in operators:
            _OPERATORS[name] = Operator(function, sizes)
        return function

    return register


def operator_name(target: Any) -> str:
    """``aten.conv2d.default`` for an overload, the dotted Python name for anything else."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    return f"{module}.{getattr(target, '__name__', target)}".lstrip("._")


def base_name(target: Any) -> str:
    """``aten.conv2d`` for every overload of it; the dotted Python name for anything else."""
    name = operator_name(target)
    return name.rpartition(".")[0] if isinstance(target, torch._ops.OpOverload) else name


def short_name(target: Any) -> str:
    """``relu`` for every overload of ``aten.relu`` and ``aten.relu_``; ``getitem`` for taking a part."""
    name = base_name(target).rpartition(".")[2]
    return name.rstrip("_") if isinstance(target, torch._ops.OpOverload) else name


def known(target: Any) -> Operator | None:
    """What is registered of an overload: by full name, by name without overload, by the name of what it does in place,
    then that of element-wise operators where PyTorch declares it one."""
    name = operator_name(target)
    base = name.rpartition(".")[0]
    found = _OPERATORS.get(name) or _OPERATORS.get(base)
    if found is None and isinstance(target, torch._ops.OpOverload):
        if base.endswith("_") and not base.endswith("__") and target._schema.is_mutable:
            found = _OPERATORS.get(base[:-1])
        if found is None and any(torch.Tag.pointwise in each.tags for each in _spellings(target)):
            found = _OPERATORS["aten.relu"]
    return found


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator overload, None where units do not pass."""
    found = known(target)
    return None if found is None else found.rule


def _spellings(target: torch._ops.OpOverload) -> list[torch._ops.OpOverload]:
    """The overload, and for what it does in place the one that returns a new tensor."""
    namespace, _, name = target._schema.name.partition("::")
    plain = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None) if target._schema.is_mutable else None
    return [target, *(getattr(plain, overload) for overload in plain.overloads())] if plain is not None else [target]


def handles(target: Any) -> bool:
    """Whether units pass through the operator by a rule."""
    return target is operator.getitem or known(target) is not None


def known_operators() -> list[str]:
    """Every operator name with a rule."""
    return sorted(_OPERATORS)


CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")
TRANSPOSED_CONVOLUTIONS = ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
LINEAR_MAPS = ("aten.linear",)
BATCH_NORMS = (
    "aten.batch_norm", "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten.cudnn_batch_norm",
    "aten._native_batch_norm_legit_no_training", "aten._batch_norm_no_update",
    "aten._batch_norm_with_update",
)  # fmt: skip
DROPOUTS = (
    "aten.dropout", "aten.dropout_", "aten.feature_dropout", "aten.feature_dropout_", "aten.alpha_dropout",
    "aten.alpha_dropout_", "aten.feature_alpha_dropout", "aten.feature_alpha_dropout_", "aten.native_dropout",
)  # fmt: skip
ATTENTIONS = (
    "aten.scaled_dot_product_attention", "aten._scaled_dot_product_attention_math",
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
NARROWS = ("aten.narrow", "aten.narrow_copy")
SLICES = ("aten.slice", "aten.slice_copy")
VIEWS = ("aten.view", "aten._unsafe_view")
COPIES = ("aten.contiguous", "aten.clone", "aten.detach", "aten.detach_", "aten.alias", "aten.lift_fresh_copy")
"""Operators that hand on what they read."""
PADS = ("aten.pad", "aten.constant_pad_nd")
RECTIFIERS = (
    "aten.relu", "aten.relu_", "aten.relu6", "aten.relu6_", "aten.hardtanh", "aten.hardtanh_", "aten.clamp",
    "aten.clamp_", "aten.clamp_min", "aten.clamp_min_",
)  # fmt: skip
"""Activations that cut off: runtimes fuse them into what they read."""
CASTS = ("aten.to", "aten._to_copy", "aten.type_as")


def is_a(node: Any, *families: tuple[str, ...]) -> bool:
    """Whether an fx node calls an operator of one of these families."""
    if getattr(node, "op", "") != "call_function":
        return False
    name = base_name(node.target)
    return any(name in family for family in families)


def writes(node: Any) -> bool:
    """Whether an fx node changes its first argument in place."""
    return isinstance(getattr(node, "target", None), torch._ops.OpOverload) and node.target._schema.is_mutable


def is_transposed(node: torch.fx.Node) -> bool:
    """Whether an fx node calls a transposed convolution, under either of its names."""
    if is_a(node, TRANSPOSED_CONVOLUTIONS):
        return True
    return base_name(node.target) == "aten.convolution" and bool([*node.args, *[False] * 7][6])


def is_assertion(node: Any) -> bool:
    """Whether an fx node only checks something: it has no result that anyone needs."""
    return getattr(node, "op", "") == "call_function" and "_assert" in operator_name(node.target)
