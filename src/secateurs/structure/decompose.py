"""Operators without a rule, put as the operators that PyTorch itself makes them of, where those have rules."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from secateurs.structure.operators import handles, operator_name, short_name

_KEPT_OF_A_CALL = ("nn_module_stack", "stack_trace", "source_fn_stack")


def decompose_unknown(program: torch.export.ExportedProgram, barriers: Iterable[str] = ()) -> None:
    """Replace calls of operators without a rule in place, unless a pattern of ``barriers`` names them.

    A call stays as it is where PyTorch has no other spelling of it, or where that spelling has operators without a
    rule as well: the report then names what the user wrote.
    """
    graph, patterns = program.graph_module.graph, tuple(barriers)
    spellings: dict[torch._ops.OpOverload, Callable[..., Any]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or handles(node.target):
            continue
        name = operator_name(node.target)
        if any(fnmatch.fnmatchcase(name, glob) for pattern in patterns for glob in (pattern, f"{pattern}.*")):
            continue
        spellings = spellings or _unknown_spellings()
        body = _spelled_out(node, spellings)
        if body is not None:
            _splice(graph, node, body)
    graph.lint()


def _other_spelling(target: torch._ops.OpOverload) -> Callable[..., Any] | None:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    if torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key) or key in target.py_kernels:
        return target.decompose
    return torch._decomp.decomposition_table.get(target)


def _spelled_out(
    node: torch.fx.Node, spellings: dict[torch._ops.OpOverload, Callable[..., Any]]
) -> torch.fx.Graph | None:
    """The call as a graph of its tensor inputs, in the order of ``node.all_input_nodes``; None if it stays."""
    function = _other_spelling(node.target)  # type: ignore[arg-type]
    values = [source.meta.get("val") for source in node.all_input_nodes]
    modes = {value.fake_mode for value in values if isinstance(value, torch._subclasses.FakeTensor)}
    if function is None or len(modes) != 1 or not all(isinstance(v, (torch.Tensor, torch.SymInt)) for v in values):
        return None
    places = {source: place for place, source in enumerate(node.all_input_nodes)}

    def call(*given: Any) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: given[places[source]])
        return function(*args, **kwargs)

    try:
        with modes.pop():
            traced = make_fx(call, tracing_mode="fake", decomposition_table=spellings)(*values)
    except Exception:  # a spelling that needs the values themselves
        return None
    if not _same_results(traced.graph, node):
        return None
    known = all(_is_known(inner) for inner in traced.graph.nodes if inner.op == "call_function")
    return traced.graph if known else None


def _unknown_spellings() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    table = torch._decomp.decomposition_table
    return {
        target: way
        for target, way in table.items()
        if isinstance(target, torch._ops.OpOverload) and not handles(target)
    }


def _same_results(graph: torch.fx.Graph, node: torch.fx.Node) -> bool:
    (output,) = (inner for inner in graph.nodes if inner.op == "output")
    found = pytree.tree_leaves(torch.fx.node.map_arg(output.args[0], lambda inner: inner.meta.get("val")))
    wanted = pytree.tree_leaves(node.meta["val"])
    return len(found) == len(wanted) and all(
        isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.dim() == b.dim()
        for a, b in zip(found, wanted, strict=True)
    )


_SHAPES = (torch.ops.aten.size.default, torch.ops.aten.sym_size.default)


def _is_known(node: torch.fx.Node) -> bool:
    if node.target in _SHAPES:
        return all(user.target is operator.getitem for user in node.users)
    if handles(node.target):
        return True
    tensors = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))
    return not tensors and "stride" not in short_name(node.target)


def _splice(graph: torch.fx.Graph, call: torch.fx.Node, body: torch.fx.Graph) -> None:
    copies: dict[torch.fx.Node, Any] = {}
    feed = iter(call.all_input_nodes)
    result: Any = None
    with graph.inserting_before(call):
        for inner in body.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(feed)
            elif inner.op == "output":
                result = torch.fx.node.map_arg(inner.args[0], lambda source: copies[source])
            elif inner.target in _SHAPES:
                copies[inner] = copies[inner.args[0]]
            else:
                copies[inner] = _copied(graph, call, inner, copies)
    _hand_over(graph, call, result)


def _copied(
    graph: torch.fx.Graph, call: torch.fx.Node, inner: torch.fx.Node, copies: dict[torch.fx.Node, Any]
) -> torch.fx.Node:
    source = inner.args[0] if inner.args else None
    if inner.target is operator.getitem and isinstance(source, torch.fx.Node) and source.target in _SHAPES:
        copy = graph.call_function(torch.ops.aten.sym_size.int, (copies[source], inner.args[1]))
        copy.meta["val"] = source.args[0].meta["val"].shape[inner.args[1]]  # type: ignore[union-attr,index]
    else:
        copy = graph.node_copy(inner, lambda n: copies[n])
    copy._rename(f"{call.name}_{inner.name}")
    for key in _KEPT_OF_A_CALL:
        if key in call.meta:
            copy.meta[key] = call.meta[key]
    return copy


def _hand_over(graph: torch.fx.Graph, call: torch.fx.Node, result: Any) -> None:
    """Readers of the call read ``result``, whose node takes the call's name."""
    if isinstance(result, torch.fx.Node):
        name = call.name
        call.replace_all_uses_with(result)
        graph.erase_node(call)
        _take_name(result, name)
        return
    parts: Sequence[Any] = list(result)
    for user in list(call.users):
        if user.target is operator.getitem:
            part, name = parts[user.args[1]], user.name  # type: ignore[index]
            user.replace_all_uses_with(part)
            graph.erase_node(user)
            _take_name(part, name)
    graph.erase_node(call)


def _take_name(node: torch.fx.Node, name: str) -> None:
    """The program's signature and the exported file know results by name."""
    if node.op == "call_function":
        node.name = name
