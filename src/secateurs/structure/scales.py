"""Attention's 1/√d, held at its dense value by scaling the rows that produce the query."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secateurs.plan import Scale
from secateurs.structure.after_cut import Gone
from secateurs.structure.analysis import call_target
from secateurs.structure.call import bind
from secateurs.structure.modes import IN_TRAINING
from secateurs.structure.operators import ATTENTIONS, CASTS, COPIES, DROPOUTS, LINEAR_MAPS, is_a, rule_for
from secateurs.structure.values import Value

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


@dataclass(frozen=True)
class QueryRows:
    """Rows of a weight (and its bias) that produce the query of one attention call."""

    node: str
    parameters: tuple[str, ...]
    rows: tuple[int, ...]


def query_rows(graph: Graph) -> list[QueryRows]:
    """For every attention call with an implicit scale over prunable head sizes: where its query comes from.

    Calls whose query is not just moved from a linear map (normalised or rotated queries) are left out; the check
    then makes the graph be rebuilt with the scale written out. What training alone reads counts as well.
    """
    found = _calls(graph)
    if graph.training is not None:
        read = set(graph.analysis.origin.values())
        found += [rows for rows in _calls(graph.training) if read.isdisjoint(rows.parameters)]
    return found


def _calls(graph: Graph) -> list[QueryRows]:
    found = []
    for node in graph.program.graph.nodes:
        if not is_a(node, ATTENTIONS):
            continue
        query = graph.analysis.values.get(str(node.args[0]))
        if bind(node).get("scale") is not None or not isinstance(query, Value) or not query.along(-1):
            continue
        rows = _trace_back(graph, node)
        if rows is not None:
            found.append(rows)
    return found


def scales_for(graph: Graph, sources: list[QueryRows], gone: Gone) -> tuple[Scale, ...]:
    """Factors √(d'/d) that undo what a smaller head size does to the implicit 1/√d."""
    scales = []
    for source in sources:
        part = graph.training if graph.training is not None and source.node.startswith(IN_TRAINING) else graph
        query = part.analysis.values[str(part.nodes[source.node].args[0])]
        assert isinstance(query, Value)
        stays = gone.kept(query, -1)
        if stays.all() or not stays.any():
            continue
        factor = math.sqrt(int(stays.sum()) / len(stays))
        for parameter in source.parameters:
            for alias in graph.aliases.get(parameter, (parameter,)):
                scales.append(Scale(parameter=alias, indices=source.rows, factor=factor))
    return tuple(scales)


def _trace_back(graph: Graph, attention: torch.fx.Node) -> QueryRows | None:
    chain: list[torch.fx.Node] = []
    node = attention.args[0]
    while isinstance(node, torch.fx.Node) and node.op == "call_function":
        if is_a(node, LINEAR_MAPS, ("aten.conv2d",)):
            return _rows(graph, attention, node, chain[::-1])
        function = rule_for(node.target)
        moves = node.target is operator.getitem or (
            function is not None and (function.__module__.endswith(".movement") or is_a(node, _COPIES))
        )
        tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), (torch.Tensor, list, tuple))]
        if not moves or len(tensors) != 1:
            return None
        chain.append(node)
        node = tensors[0]
    return None


_COPIES = (*COPIES, *DROPOUTS, *CASTS)


def _rows(
    graph: Graph, attention: torch.fx.Node, source: torch.fx.Node, chain: list[torch.fx.Node]
) -> QueryRows | None:
    value = graph.analysis.values[source.name]
    dim = len(value.shape) - 1 if is_a(source, LINEAR_MAPS) else 1
    view = [1] * len(value.shape)
    view[dim] = value.shape[dim]
    current: Any = torch.arange(value.shape[dim]).view(view).expand(value.shape).contiguous()
    for node in chain:
        if node.target is operator.getitem:
            current = current[node.args[1]]
            continue
        arguments: dict[str, Any] = {}
        for name, argument in bind(node).items():
            arguments[name] = torch.fx.node.map_arg(argument, lambda n: graph.analysis.values[n.name])
            if isinstance(argument, torch.fx.Node) and isinstance(argument.meta.get("val"), torch.Tensor):
                arguments[name] = current
        if is_a(node, _COPIES):
            continue
        current = call_target(node.target, arguments)
    rows = tuple(int(row) for row in np.unique(current.numpy()))
    parameters = [graph.analysis.origin.get(str(argument)) for argument in source.args[1:3] if argument is not None]
    if not parameters or any(name is None for name in parameters):
        return None
    return QueryRows(attention.name, tuple(str(name) for name in parameters), rows)
