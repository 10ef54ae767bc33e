"""Runs the dense exported graph with removed positions held at zero: the judge that shares no code with ``apply``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from secateurs.plan import Plan
from secateurs.structure.after_cut import Gone
from secateurs.structure.analysis import call_target
from secateurs.structure.call import bind
from secateurs.structure.cut import gone_for, rederive
from secateurs.structure.operators import is_assertion
from secateurs.structure.values import Value

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


def interpret(
    graph: Graph, plan: Plan, dense: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> list[torch.Tensor]:
    """Outputs of the dense network that ignores the removed units.

    After every operator the removed positions are set to zero. At an operator whose statistic spans units the kept
    positions are gathered, the operator runs on them, and the result is scattered back. Every value is held from its
    first use to its last.

    Args:
        graph: the traced network.
        plan: what stays.
        dense: the dense module whose weights are used, float64.
        inputs: positional inputs, float64.
        keywords: keyword inputs.
    """
    gone = gone_for(graph, plan.groups)
    chosen = {block.add: block.kept for block in graph.removable_blocks if block.name in plan.blocks_removed}
    tensors: dict[str, Any] = {**dict(dense.named_parameters(remove_duplicate=False)),
                               **dict(dense.named_buffers(remove_duplicate=False))}  # fmt: skip
    leaves = iter(pytree.tree_leaves((tuple(inputs), dict(keywords))))
    kinds = {spec.arg.name: spec for spec in graph.program.graph_signature.input_specs}
    ends, known = last_uses(graph.program.graph, chosen), dict[str, Any]()

    def placed(node: torch.fx.Node) -> Any:
        found = _placeholder(graph, node, kinds[node.name], tensors, leaves)
        return _masked(found, graph.analysis.values.get(node.name), gone)

    for node in graph.program.graph.nodes:
        first = [n for n in node.all_input_nodes if n.op == "placeholder" and n.name not in known]
        known.update((source.name, placed(source)) for source in first)
        if node.op == "placeholder":
            if kinds[node.name].kind is InputKind.USER_INPUT:
                known[node.name] = placed(node)
        elif node.op == "get_attr":
            known[node.name] = getattr(graph.program.graph_module, str(node.target))
        elif node.op == "output":
            result = torch.fx.node.map_arg(node.args, lambda n: known[n.name])
            return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        elif node.name in chosen:
            known[node.name] = known[chosen[node.name]]
        else:
            known[node.name] = _execute(graph, node, known, gone)
        for name in ends[node.name]:
            known.pop(name, None)
    return []


def last_uses(graph: torch.fx.Graph, instead: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """By node, those whose values nothing needs after it; ``instead``: nodes that take the value of another one."""
    seen: set[str] = set()
    ends: dict[str, list[str]] = {}
    for node in reversed(graph.nodes):
        used = {node.name, *(source.name for source in node.all_input_nodes), (instead or {}).get(node.name, node.name)}
        ends[node.name] = sorted(used - seen)
        seen |= used
    return ends


def _placeholder(graph: Graph, node: torch.fx.Node, spec: Any, tensors: Mapping[str, Any], leaves: Any) -> Any:
    if spec.kind is InputKind.USER_INPUT:
        return next(leaves)
    if spec.target in tensors:
        return tensors[spec.target]
    constant = graph.program.constants[spec.target]
    is_float = isinstance(constant, torch.Tensor) and constant.is_floating_point()
    return constant.double() if is_float else constant


def _execute(graph: Graph, node: torch.fx.Node, known: Mapping[str, Any], gone: Gone) -> Any:
    if node.target is operator.getitem:
        return known[node.args[0].name][node.args[1]]  # type: ignore[union-attr,index]
    arguments = torch.fx.node.map_arg(bind(node), lambda n: known[n.name])
    arguments = {name: _double(value) for name, value in arguments.items()}
    if is_assertion(node):
        return None
    value = graph.analysis.values.get(node.name)
    if node.name in graph.analysis.statistics:
        return _on_kept(graph, node, arguments, gone)
    if isinstance(node.target, torch._ops.OpOverload):
        result = call_target(node.target, arguments)
    else:
        result = node.target(*arguments.values())  # type: ignore[operator]
    return _masked(result, value, gone)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _masked(result: Any, value: Any, gone: Gone) -> Any:
    if isinstance(result, (tuple, list)):
        values = value if isinstance(value, (tuple, list)) else [None] * len(result)
        return [_masked(r, v, gone) for r, v in zip(result, values, strict=True)]
    if not isinstance(result, torch.Tensor) or not isinstance(value, Value):
        return result
    for dim in value.dims():
        removed = torch.from_numpy(np.flatnonzero(~gone.kept(value, dim)))
        # A view of what is masked stays a view: the forward may write to its base through it.
        if len(removed) and bool(result.index_select(dim, removed).any()):
            result = result.index_fill(dim, removed, 0)
    return result


def _on_kept(graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], gone: Gone) -> Any:
    gathered = dict(arguments)
    for name, source in bind(node).items():
        value = graph.analysis.values.get(source.name) if isinstance(source, torch.fx.Node) else None
        if isinstance(value, Value):
            for dim in value.dims():
                kept = torch.from_numpy(np.flatnonzero(gone.kept(value, dim)))
                gathered[name] = gathered[name].index_select(dim, kept)
    gathered.update(rederive(graph, node, gone))
    result = call_target(node.target, gathered)
    value = graph.analysis.values[node.name]
    if isinstance(result, (tuple, list)):
        return [_scattered(r, v, gone) for r, v in zip(result, value, strict=True)]
    return _scattered(result, value, gone)


def _scattered(result: Any, value: Any, gone: Gone) -> Any:
    if not isinstance(result, torch.Tensor) or not isinstance(value, Value):
        return result
    for dim in value.dims():
        kept = torch.from_numpy(np.flatnonzero(gone.kept(value, dim)))
        shape = list(result.shape)
        shape[dim] = value.shape[dim]
        result = result.new_zeros(shape).index_copy(dim, kept, result)
    return result


def values_of(program: torch.export.ExportedProgram, inputs: Any = None) -> Iterator[tuple[str, Any]]:
    """Name and value of every node of an exported graph, run on its own weights; nothing is removed.

    ``inputs``: positional and keyword inputs, by default the program's own example.
    """
    leaves = iter(pytree.tree_leaves(program.example_inputs if inputs is None else inputs))
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    ends, known = last_uses(program.graph), dict[str, Any]()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            target, user = specs[node.name].target, specs[node.name].kind is InputKind.USER_INPUT
            known[node.name] = next(leaves) if user else program.state_dict.get(target, program.constants.get(target))
        elif node.op == "get_attr":
            known[node.name] = getattr(program.graph_module, str(node.target))
        elif node.op == "call_function" and not is_assertion(node):
            arguments = torch.fx.node.map_arg(bind(node), lambda source: known[source.name])
            known[node.name] = call_target(node.target, arguments)
        if node.name in known:
            yield node.name, known[node.name]
        for name in ends[node.name]:
            known.pop(name, None)
