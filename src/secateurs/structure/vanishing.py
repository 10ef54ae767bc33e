"""Whether removed units hold zeros at a place, so that a sum over units is the same with and without them."""

from __future__ import annotations

import operator

import torch

from secateurs.structure.call import Analysis
from secateurs.structure.operators import short_name

_LAYERS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
"""Nothing is left of a unit whose row of the weight and whose bias are nothing."""
_ALL = ("add", "sub", "cat", "stack", "matmul", "bmm", "mm", "mv", "batch_norm", "maximum", "minimum")
_FIRST = ("div", "copysign", "fmod", "remainder", "pow", "renorm", "_weight_norm", "linalg_vecdot")
"""Nothing divided by something, or to a power, is nothing."""
_KEEP_ZERO = (
    "relu", "relu6", "gelu", "silu", "tanh", "elu", "selu", "leaky_relu", "hardswish", "mish", "abs", "square", "neg",
    "sign", "dropout", "contiguous", "clone", "to", "_to_copy", "detach", "alias", "view", "reshape", "permute",
    "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "slice", "narrow", "select", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "sum", "sqrt", "sin", "asin", "sinh", "asinh",
    "tan", "atan", "atanh", "erf", "expm1", "log1p", "round", "floor", "ceil", "trunc", "frac", "flip", "roll", "rot90",
    "repeat", "repeat_interleave", "t", "tril", "triu", "unbind", "split", "split_with_sizes", "chunk", "unfold",
    "diagonal", "diag_embed", "index_select", "movedim", "hardtanh", "view_as_real", "view_as_complex", "getitem",
    "softsign", "celu", "prelu", "_prelu_kernel", "hardshrink", "softshrink", "tanhshrink", "_unsafe_view",
)  # fmt: skip


def vanishes(analysis: Analysis, node: torch.fx.Node) -> bool:
    """True where every removed unit is known to be zero in the result of ``node``, followed back to the parameters."""
    known: dict[torch.fx.Node, bool] = {}
    pending = [node]
    while pending:
        current = pending[-1]
        missing = [source for source in _sources(current) if source not in known]
        if missing:
            pending.extend(missing)
            continue
        known[current] = _is_zero(analysis, current, [known[source] for source in _sources(current)])
        pending.pop()
    return known[node]


def _name(node: torch.fx.Node) -> str:
    if node.target is operator.getitem or isinstance(node.target, torch._ops.OpOverload):
        return short_name(node.target)
    return ""


def _sources(node: torch.fx.Node) -> list[torch.fx.Node]:
    """What decides: of a layer its weight and bias, of other known operators every tensor they read."""
    name = _name(node)
    if name in _LAYERS:
        return [argument for argument in node.args[1:3] if isinstance(argument, torch.fx.Node)]
    if name in _FIRST:
        return [argument for argument in node.args[:1] if isinstance(argument, torch.fx.Node)]
    return _carriers(node) if name in (*_ALL, *_KEEP_ZERO, "mul") else []


def _carriers(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Tensors among what an operator reads; the sizes that it reads hold no units."""
    return [n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), (torch.SymInt, torch.SymFloat))]


def _is_zero(analysis: Analysis, node: torch.fx.Node, sources: list[bool]) -> bool:
    if node.op == "placeholder":
        return node.name in analysis.origin  # a parameter or buffer loses the unit; an input keeps what it has
    name = _name(node)
    if name == "mul":
        return any(sources)
    if name == "pow" and not (isinstance(node.args[1], (int, float)) and node.args[1] > 0):
        return False
    pairs = name in ("add", "sub", "maximum", "minimum")
    shifted = pairs and not all(isinstance(argument, torch.fx.Node) for argument in node.args[:2])
    return bool(sources) and all(sources) and not shifted
