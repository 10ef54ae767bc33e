"""Whether removed units hold zeros at a place, so that a sum over units is the same with and without them."""

from __future__ import annotations

import torch

from secateurs.structure.call import Analysis

_LAYERS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "addmm",
           "mm", "matmul", "bmm", "batch_norm")  # fmt: skip
"""A removed unit loses its weights, its bias and its statistics, so that nothing is left of it."""
_KEEP_ZERO = (
    "relu", "relu6", "gelu", "silu", "tanh", "elu", "selu", "leaky_relu", "hardswish", "mish", "abs", "square", "neg",
    "sign", "dropout", "contiguous", "clone", "to", "_to_copy", "detach", "alias", "view", "reshape", "permute",
    "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "slice", "narrow", "select", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "sum",
)  # fmt: skip


def vanishes(analysis: Analysis, node: torch.fx.Node) -> bool:
    """True where every removed unit is known to be zero in the result of ``node`` (followed back to the layers)."""
    known: dict[torch.fx.Node, bool] = {}
    pending = [node]
    while pending:
        current = pending[-1]
        name = str(current.target).split(".")[1].rstrip("_") if current.op == "call_function" else ""
        sources = [source for source in current.all_input_nodes if source.name not in analysis.weights]
        if name in _LAYERS or (current.op != "call_function" and current.name in analysis.weights):
            known[current] = True
        elif name not in (*_KEEP_ZERO, "mul", "add", "sub", "cat"):
            known[current] = False
        elif any(source not in known for source in sources):
            pending.extend(source for source in sources if source not in known)
            continue
        else:
            held = [known[source] for source in sources]
            constants = any(not isinstance(argument, torch.fx.Node) for argument in current.args[:2])
            plain = name not in ("add", "sub") or not constants
            known[current] = (any(held) if name == "mul" else all(held)) and plain
        pending.pop()
    return known[node]
