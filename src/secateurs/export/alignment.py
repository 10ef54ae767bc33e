"""Which call of a traced network is which call of another export of it."""

from __future__ import annotations

import difflib

import torch

from secateurs.structure.call import bind
from secateurs.structure.operators import SLICES, base_name, is_a

_EVERYTHING = 2**63 - 1


def aligned(exported: torch.fx.Graph, traced: torch.fx.Graph) -> dict[str, str]:
    """Traced node by exported node, by name, for calls that both have.

    Exports name their calls by counting them, and do not count alike: one with a free batch keeps slices that take
    everything, one whose batch normalisations were folded has none of these. So the calls are matched in their order,
    by operator and number of axes, and not by name.
    """
    ours, theirs = _calls(exported), _calls(traced)
    likenesses = [[_likeness(node) for node in nodes] for nodes in (ours, theirs)]
    matcher = difflib.SequenceMatcher(None, likenesses[0], likenesses[1], autojunk=False)
    return {
        ours[block.a + step].name: theirs[block.b + step].name
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    }


def _calls(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """Calls that make tensors, without slices that take everything."""
    return [node for node in graph.nodes if node.op == "call_function" and not takes_all(node) and not _is_number(node)]


def takes_all(node: torch.fx.Node) -> bool:
    """Whether a call is a slice that leaves nothing out, such as ``x[:]``."""
    if not is_a(node, SLICES):
        return False
    given = bind(node)
    return given["start"] in {0, None} and given["end"] in {_EVERYTHING, None} and given["step"] == 1


def _is_number(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return value is None or isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))


def _likeness(node: torch.fx.Node) -> tuple[str, int]:
    value = node.meta["val"]
    return base_name(node.target), value.dim() if isinstance(value, torch.Tensor) else -1
