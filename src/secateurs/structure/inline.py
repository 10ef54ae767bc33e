"""Contexts that the exporter wraps in calls of sub-graphs (autocast, no_grad) put back into the main graph."""

from __future__ import annotations

import operator
from typing import Any

import torch

_WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Operator name to the position of the sub-graph among its arguments."""


def inline_contexts(program: torch.export.ExportedProgram) -> None:
    """Replace every wrapped sub-graph of ``program`` by its nodes, in place. Precision and gradient contexts are
    dropped: the analysis looks at shapes, and checks run in float64."""
    _inline(program.graph_module)
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.graph.lint()


def _inline(module: torch.fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        position = _WRAPPERS.get(getattr(node.target, "_name", "") or getattr(node.target, "__name__", ""))
        if node.op != "call_function" or position is None:
            continue
        body = getattr(module, str(node.args[position].target))
        _inline(body)
        _splice(module.graph, node, body.graph, list(node.args[position + 1 :]))


def _splice(graph: torch.fx.Graph, call: torch.fx.Node, body: torch.fx.Graph, inputs: list[Any]) -> None:
    copies: dict[torch.fx.Node, Any] = {}
    result: Any = None
    feed = iter(inputs)
    with graph.inserting_before(call):
        for node in body.nodes:
            if node.op == "placeholder":
                copies[node] = next(feed)
            elif node.op == "output":
                result = torch.fx.node.map_arg(node.args[0], lambda n: copies[n])
            else:
                copies[node] = graph.node_copy(node, lambda n: copies[n])
    for user in list(call.users):
        if user.target is operator.getitem and isinstance(result, (tuple, list)):
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index,arg-type]
            graph.erase_node(user)
    if not isinstance(result, (tuple, list)):
        call.replace_all_uses_with(result)
    graph.erase_node(call)
