"""Residual branches that can go as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from secateurs.plan import Bypass
from secateurs.structure.call import Analysis
from secateurs.structure.groups import module_path
from secateurs.structure.operators import operator_name

_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
_CALLS = {
    "aten.relu.default": "relu", "aten.relu_.default": "relu", "aten.relu6.default": "relu6",
    "aten.relu6_.default": "relu6", "aten.hardtanh.default": "hardtanh", "aten.hardtanh_.default": "hardtanh",
    "aten.silu.default": "silu", "aten.silu_.default": "silu", "aten.gelu.default": "gelu",
    "aten.leaky_relu.default": "leaky_relu", "aten.leaky_relu_.default": "leaky_relu",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A branch that an add joins: the nodes that vanish with it, what stays in its place, and how a module loses it.

    ``kept``: node whose value replaces the add's; ``bypass``: None where only a rebuilt graph can drop the branch.
    """

    name: str
    add: str
    kept: str
    nodes: frozenset[str]
    bypass: Bypass | None


def find_blocks(graph: torch.fx.Graph, analysis: Analysis) -> tuple[Block, ...]:
    """Every removable residual branch in execution order."""
    weighted = {use.node for use in analysis.uses if use.role == "out"}
    blocks: list[Block] = []
    names: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _ADDS or node.kwargs.get("alpha", 1) != 1:
            continue
        found = _branch(node, weighted)
        if found is None:
            continue
        branch, kept = found
        name = _common_path([*branch, node], weighted)
        stem = name or next(module_path(n) for n in branch if n.name in weighted)  # else: the branch's last layer
        names[stem] = names.get(stem, 0) + 1
        label = stem if names[stem] == 1 else f"{stem}#{names[stem]}"
        bypass = _bypass(graph, label, name, branch, node, kept)
        blocks.append(Block(label, node.name, kept.name, frozenset(n.name for n in branch) | {node.name}, bypass))
    return tuple(blocks)


def blocks_of_both(
    evaluation: tuple[tuple[Block, ...], Analysis], training: tuple[tuple[Block, ...], Analysis]
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Branches that can go in evaluation mode and in training mode: those of the same weights, in the same order."""
    rivals = list(training[0])
    both: list[tuple[Block, Block]] = []
    for block in evaluation[0]:
        mine = _weights(block, evaluation[1])
        same = next((rival for rival in rivals if _weights(rival, training[1]) == mine), None)
        if same is not None:
            rivals.remove(same)
            both.append((block, dataclasses.replace(same, name=block.name)))
    return tuple(block for block, _ in both), tuple(rival for _, rival in both)


def _weights(block: Block, analysis: Analysis) -> set[str]:
    return {analysis.origin[node] for node in block.nodes if node in analysis.origin}


def _branch(add: torch.fx.Node, weighted: set[str]) -> tuple[list[torch.fx.Node], torch.fx.Node] | None:
    operands = [argument for argument in add.args[:2] if isinstance(argument, torch.fx.Node)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return None
    candidates = []
    for mine, other in (operands, operands[::-1]):
        shape, whole = other.meta.get("val"), add.meta.get("val")
        if not isinstance(shape, torch.Tensor) or not isinstance(whole, torch.Tensor) or shape.shape != whole.shape:
            continue
        branch = _exclusive(mine, add)
        weight = sum(node.name in weighted for node in branch)
        entries = _entries(branch)
        rest = _exclusive(other, add)
        stays = _entries(rest) if rest else {other}
        projected = bool(rest) and any(map(_is_input, entries))  # of two layers that read the input neither is a branch
        if weight and len(entries) == 1 and entries == stays and not projected:
            candidates.append((weight, branch, other))
    if not candidates:
        return None
    _, branch, kept = max(candidates, key=lambda item: item[0])
    return branch, kept


def _is_input(node: torch.fx.Node) -> bool:
    return node.op == "placeholder"


def _is_size(node: torch.fx.Node) -> bool:
    """True for sizes read off a tensor: they belong to no branch."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _exclusive(start: torch.fx.Node, add: torch.fx.Node) -> list[torch.fx.Node]:
    """Nodes that serve nothing but this operand of ``add``."""
    if set(start.users) != {add}:
        return []
    inside: dict[torch.fx.Node, None] = {start: None}
    while True:
        more = {
            source: None
            for node in inside
            for source in node.all_input_nodes
            if source not in inside
            and not _is_size(source)
            and all(user in inside or _only_writes(user) for user in source.users)
        }
        if not more:
            return list(inside)
        inside.update(more)
        inside.update((user, None) for source in more for user in source.users if _only_writes(user))


def _only_writes(node: torch.fx.Node) -> bool:
    """True for a call that changes its first argument in place and whose result nobody reads."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and not node.users


def _entries(branch: list[torch.fx.Node]) -> set[torch.fx.Node]:
    """Tensors that the branch reads from outside, parameters aside."""
    inside = set(branch)
    found = {source for node in branch for source in node.all_input_nodes if source not in inside}
    return {
        node
        for node in found
        if isinstance(node.meta.get("val"), torch.Tensor) and not node.name.startswith(("p_", "b_", "c_"))
    }


def _common_path(nodes: Sequence[torch.fx.Node], weighted: set[str]) -> str:
    paths = [module_path(node).split(".") for node in nodes if node.op == "call_function"]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _bypass(
    graph: torch.fx.Graph,
    label: str,
    path: str,
    branch: list[torch.fx.Node],
    add: torch.fx.Node,
    kept: torch.fx.Node,
) -> Bypass | None:
    """The module's remaining work as a chain of children and plain calls, or None where it is no chain."""
    if not path:
        return None
    gone = {*branch, add}
    (entry,) = _entries(branch)
    inside = [n for n in graph.nodes if n.op == "call_function" and _under(module_path(n), path)]
    rest = [node for node in inside if node not in gone and not _is_size(node)]
    steps: list[str] = []
    current = entry
    for node in rest:
        sources = {add if source is add else source for source in node.all_input_nodes if source.op != "placeholder"}
        if not sources <= {current, add} or (add in sources and current is not kept and current is not add):
            return None
        step = _step(node, path, gone, rest)
        if step is None:
            return None
        if not steps or step.startswith("call:") or steps[-1] != step:
            steps.append(step)
        current = node
    return Bypass(block=label, module=path, steps=tuple(steps))


def _called(node: torch.fx.Node) -> str | None:
    """The function of one argument that a call is; None where it is none, or is given settings of its own."""
    name = _CALLS.get(operator_name(node.target))
    if name is None:
        return None
    schema = node.target._schema.arguments[1:]  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args[1:], strict=False)) | node.kwargs
    defaults = {argument.name: argument.default_value for argument in schema}
    if {**defaults, **given} == defaults:
        return name
    return "relu6" if name == "hardtanh" and (given.get("min_val"), given.get("max_val")) == (0, 6) else None


def _under(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _step(node: torch.fx.Node, path: str, gone: set[torch.fx.Node], rest: list[torch.fx.Node]) -> str | None:
    called = _called(node)
    if called is not None:
        return f"call:{called}"
    own = module_path(node)
    if own == path:
        return None
    child = own[len(path) + 1 :].split(".")[0]
    if any(_under(module_path(other), f"{path}.{child}") for other in gone if other.op == "call_function"):
        return None
    return f"module:{child}"
