"""Where the forward of a cut network first does something else than the graph that was cut by the same plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from secateurs.plan import Plan
from secateurs.structure.call import bind, concrete_int
from secateurs.structure.capture import Capture, captured
from secateurs.structure.groups import module_path, source_line
from secateurs.structure.places import CodePlace
from secateurs.structure.slicing import cut_copy
from secateurs.structure.untouched import evaluating, quiet, untouched

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


def parting(graph: Graph, plan: Plan) -> CodePlace:
    """Where the first operator stands that is another, or has another number among its arguments: one that the user's
    code reads off a size, or holds though a size has changed. Nowhere, where the cut network cannot be exported or the
    graphs are alike.
    """
    constants = graph.cut(plan.groups, plan.blocks_removed).constants
    try:
        small = cut_copy(graph.model, plan)
        with quiet(), untouched(graph.model), evaluating(small):
            theirs = captured(small, graph.args, graph.kwargs, Capture(graph.barrier_patterns))
    except Exception:
        return CodePlace()
    for node, other in zip(_calls(graph.program), _calls(theirs), strict=False):
        wanted = {**bind(node), **constants.get(node.name, {})}
        if node.target is not other.target or not _alike(wanted, bind(other), graph.program, theirs):
            return CodePlace(module_path(node), source_line(node), module_path(node))
    return CodePlace()


def _calls(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _alike(ours: Any, theirs: Any, program: torch.export.ExportedProgram, other: torch.export.ExportedProgram) -> bool:
    """Whether two arguments are the same numbers; of tensors only those that the code makes itself are compared."""
    if isinstance(ours, Mapping):
        return all(_alike(value, theirs.get(name), program, other) for name, value in ours.items())
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(_alike(one, two, program, other) for one, two in pairs)
    if isinstance(ours, torch.fx.Node) and isinstance(theirs, torch.fx.Node):
        mine, another = _constant(ours, program), _constant(theirs, other)
        known = mine is not None and another is not None and mine.shape == another.shape
        return not known or torch.equal(mine, another)  # type: ignore[arg-type]
    numbers = [_number(value) for value in (ours, theirs)]
    return None in numbers or numbers[0] == numbers[1]


def _number(value: Any) -> int | float | None:
    """A number, also of a size that is a node of the graph; None for anything else."""
    if isinstance(value, torch.fx.Node):
        value = value.meta.get("val")
    if isinstance(value, torch.SymInt):
        return concrete_int(value)
    return value if isinstance(value, (int, float)) else None


def _constant(node: torch.fx.Node, program: torch.export.ExportedProgram) -> torch.Tensor | None:
    """The tensor that the forward makes of numbers, if the node is one."""
    name = program.graph_signature.inputs_to_lifted_tensor_constants.get(node.name)
    found = None if name is None else program.constants.get(name)
    return found if isinstance(found, torch.Tensor) else None
