"""Operators that hold what they touch, and the globs by which a user names calls."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from secateurs.errors import PlanError
from secateurs.structure.groups import module_path, parted
from secateurs.structure.modes import IN_TRAINING
from secateurs.structure.operators import operator_name


@dataclass(frozen=True)
class Barrier:
    """Something that pins what it touches: the operator, its module and source line, and the reason."""

    operator: str
    module: str
    source: str
    node: str
    reason: str

    def __str__(self) -> str:
        where = self.module or "the network's own forward"
        return f"{self.operator} in {where} ({self.source or 'no source line'}): {self.reason}"


def told_apart(graph: torch.fx.Graph, number: int = 0) -> torch.fx.Graph:
    """The graph, the names of whose calls are neither the evaluation mode's nor those of another ``number``."""
    mark = f"{IN_TRAINING}{number}_" if number else IN_TRAINING
    for node in graph.nodes:
        if node.op == "call_function" and not node.name.startswith(IN_TRAINING):
            node._rename(f"{mark}{node.name}")
    return graph


def matching(graphs: Sequence[torch.fx.Graph], patterns: tuple[str, ...], what: str = "Barrier") -> list[str]:
    """Names of the calls whose operator or module path, or a module around them, matches a pattern.

    Raises:
        PlanError: a pattern matches nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        before = len(found)
        for node in (node for graph in graphs for node in graph.nodes):
            texts = (operator_name(node.target), module_path(node)) if node.op == "call_function" else ()
            if any(fnmatch.fnmatchcase(text, glob) for text in texts for glob in (pattern, f"{pattern}.*")):
                found.append(node.name)
        if len(found) == before:
            raise PlanError(
                f"{what} {pattern!r} matches no operator and no module. Give a glob of a module path such as "
                "'blocks.3.*', or of an operator such as 'aten.roll*'; 'secateurs doctor' lists both."
            )
    return found


def held_whole(graphs: Sequence[torch.fx.Graph], keep: Sequence[str]) -> set[str]:
    """Names of the calls in modules that must stay whole, so that no block with them goes.

    Raises:
        PlanError: a pattern matches nothing.
    """
    kept, only = (tuple(pattern.partition(":")[0] for pattern in one) for one in parted(keep))
    held = set(matching(graphs, kept, "Kept layer"))
    if only:
        free = set(matching(graphs, only, "Only"))
        calls = (node.name for graph in graphs for node in graph.nodes if node.op == "call_function")
        held |= {name for name in calls if name not in free}
    return held
