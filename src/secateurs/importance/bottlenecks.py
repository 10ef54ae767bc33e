"""Groups that everything passes through: no shortcut leads around them."""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakKeyDictionary

from torch import fx

from secateurs.structure.graph import Graph

_known: WeakKeyDictionary[Graph, frozenset[str]] = WeakKeyDictionary()


def bottlenecks(graph: Graph) -> frozenset[str]:
    """Names of the groups without whose producing layers no path leads from an input to an output.

    Without all of such a group's units the network's output is constant, whichever group it is.
    """
    if graph not in _known:
        producers: dict[int, set[str]] = {}
        for layer in graph.spec.layers:
            for group, _ in layer.outputs.parts:
                producers.setdefault(group, set()).add(layer.node)
        names = [group.name for group in graph.spec.groups]
        _known[graph] = frozenset(names[group] for group, nodes in producers.items() if not _leads_around(graph, nodes))
    return _known[graph]


def _leads_around(graph: Graph, nodes: Collection[str]) -> bool:
    """Whether some output still depends on some input without these nodes."""
    inputs = set(graph.program.graph_signature.user_inputs)
    open_nodes = [node for node in graph.program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    seen: set[fx.Node] = set(open_nodes)
    while open_nodes:
        for user in open_nodes.pop().users:
            if user.op == "output":
                return True
            if user not in seen and user.name not in nodes:
                seen.add(user)
                open_nodes.append(user)
    return False
