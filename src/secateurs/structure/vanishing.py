"""Whether removed units hold zeros at a place, so that a sum over units is the same with and without them."""

from __future__ import annotations

import torch

from secateurs.structure.call import Analysis

_LAYERS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
"""Nothing is left of a unit whose row of the weight and whose bias are nothing."""
_ALL = ("add", "sub", "cat", "matmul", "bmm", "batch_norm")
_KEEP_ZERO = (
    "relu", "relu6", "gelu", "silu", "tanh", "elu", "selu", "leaky_relu", "hardswish", "mish", "abs", "square", "neg",
    "sign", "dropout", "contiguous", "clone", "to", "_to_copy", "detach", "alias", "view", "reshape", "permute",
    "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "slice", "narrow", "select", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "sum",
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
    return str(node.target).split(".")[1].rstrip("_") if isinstance(node.target, torch._ops.OpOverload) else ""


def _sources(node: torch.fx.Node) -> list[torch.fx.Node]:
    """What decides: of a layer its weight and bias, of other known operators every tensor they read."""
    name = _name(node)
    if name in _LAYERS:
        return [argument for argument in node.args[1:3] if isinstance(argument, torch.fx.Node)]
    return node.all_input_nodes if name in (*_ALL, *_KEEP_ZERO, "mul") else []


def _is_zero(analysis: Analysis, node: torch.fx.Node, sources: list[bool]) -> bool:
    if node.op == "placeholder":
        return node.name in analysis.origin  # a parameter or buffer loses the unit; an input keeps what it has
    name = _name(node)
    if name == "mul":
        return any(sources)
    shifted = name in ("add", "sub") and not all(isinstance(argument, torch.fx.Node) for argument in node.args[:2])
    return bool(sources) and all(sources) and not shifted
