"""A trainable module built from the exported graph, where the user's own forward cannot run at the new shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from secateurs.errors import StructureError
from secateurs.plan import Plan
from secateurs.structure.apply import replace_module, sliced_copy
from secateurs.structure.call import bind
from secateurs.structure.cut import Cut
from secateurs.structure.groups import module_path
from secateurs.structure.values import Value

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def rebuild(model: nn.Module, plan: Plan, example: Any = None, *, check: bool = True) -> nn.Module:
    """A ``GraphModule`` of the cut network; see :func:`build`. Traces the network again, with the example or the
    plan's stored shapes.

    Raises:
        StructureError: the network cannot be traced, or the result computes something else.
    """
    from secateurs.structure.trace import split_example, trace
    from secateurs.structure.verify import check_plan, stored_example

    inputs = split_example(example) if example is not None else stored_example(plan)
    grid = str(plan.provenance.get("grid", "auto"))
    graph = trace(model, inputs, grid=grid)
    if not _takes(graph, inputs):
        graph = trace(model, inputs, grid=grid, repeat=False)
    if check:
        check_plan(model, plan, inputs, graph=graph)
    return build(graph, cut_of(graph, plan), model, str(plan.rebuild))


def _takes(graph: Graph, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether the traced sizes are those of the inputs: a forward that counts its batch is traced at a repeated one."""
    given = pytree.tree_leaves(inputs)
    kinds = {spec.arg.name: spec.kind for spec in graph.program.graph_signature.input_specs}
    nodes = [n for n in graph.program.graph.nodes if n.op == "placeholder" and kinds[n.name] is InputKind.USER_INPUT]
    for node, leaf in zip(nodes, given, strict=False):
        sizes = _traced_sizes(node)
        if sizes is not None and any(a not in (None, b) for a, b in zip(sizes, leaf.shape, strict=False)):
            return False
    return True


def cut_of(graph: Graph, plan: Plan) -> Cut:
    """What a plan means in a traced network: the plan's own index lists, so that damage to them shows in the check."""
    return dataclasses.replace(graph.cut(plan.groups, plan.blocks_removed), slices=plan.slices)


def build(graph: Graph, resolved: Cut, model: nn.Module, reason: str) -> nn.Module:
    """The cut network as a ``GraphModule`` with the weights of ``model``.

    Parameters keep their names, batch normalisation and dropout are real modules (so ``train()`` works), constants
    are re-derived, scales that came from a pruned size keep their dense value, and removed blocks are dropped.
    ``secateurs_rebuilt`` on the result says why.
    """
    root = sliced_copy(model, resolved.slices)
    fresh = torch.fx.Graph()
    copies: dict[torch.fx.Node, Any] = {}
    kinds = {spec.arg.name: spec for spec in graph.program.graph_signature.input_specs}
    gone = {name for block in graph.removable_blocks if block.add in resolved.bypassed for name in block.nodes}
    for node in graph.program.graph.nodes:
        if node.name in gone and node.name not in resolved.bypassed:
            continue
        if node.op == "placeholder" and kinds[node.name].kind is not InputKind.USER_INPUT:
            copies[node] = fresh.get_attr(_attribute(graph, root, kinds[node.name]))
        elif node.op == "call_function" and "_assert" in str(node.target):
            continue
        elif node.name in resolved.bypassed:
            copies[node] = copies[graph.nodes[resolved.bypassed[node.name]]]
        elif node.op == "call_function":
            copies[node] = _call(graph, fresh, node, copies, resolved, root)
        elif node.op == "placeholder":
            given = fresh.node_copy(node, lambda n: copies[n])
            copies[node] = fresh.call_function(as_traced, (given, _traced_sizes(node), node.name))
        else:
            copies[node] = fresh.node_copy(node, lambda n: copies[n])
        if isinstance(copies.get(node), torch.fx.Node) and copies[node].op != "get_attr":
            copies[node].meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
    fresh.set_codegen(_codegen(graph))
    result = torch.fx.GraphModule(root, fresh, class_name=f"{type(model).__name__}Pruned")
    result.graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.graph.lint()
    result.recompile()
    result.secateurs_rebuilt = reason  # type: ignore[assignment]
    return result.train(model.training)


def as_traced(value: Any, sizes: tuple[int | None, ...] | None, name: str) -> Any:
    """``value``, if its shape is one that the graph was traced for (None: any size).

    A rebuilt graph holds sizes of its example as numbers; at others it would compute something else without a sound.

    Raises:
        StructureError: another shape.
    """
    if sizes is None or not isinstance(value, torch.Tensor):
        return value
    fits = value.dim() == len(sizes) and all(
        size is None or given == size for given, size in zip(value.shape, sizes, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise StructureError(
            f"Input {name} has shape {list(value.shape)}, but this rebuilt network takes [{wanted}] only: its graph "
            "holds sizes of the example that it was pruned with. Prune again with an example of the new shape."
        )
    return value


def made_beside(reference: torch.Tensor, operator: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What ``operator`` makes, on the device of ``reference`` and not on the one that the graph was traced on."""
    return operator(*args, **{**keywords, "device": reference.device})


def _traced_sizes(node: torch.fx.Node) -> tuple[int | None, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else size.node.maybe_as_int() for size in value.shape)


def _codegen(graph: Graph) -> Any:
    """Input and output structure of the user's forward."""
    from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

    spec = graph.program.call_spec
    positional, keyword = spec.in_spec.children()
    names = [f"arg_{i}" for i in range(positional.num_children)]
    import inspect

    signature = [p.name for p in inspect.signature(graph.model.forward).parameters.values()]
    if len(signature) >= len(names):
        names = signature[: len(names)]
    names += [str(key) for key in (keyword.context or [])]
    return _PyTreeCodeGen(_PyTreeInfo(names, spec.in_spec, spec.out_spec))


def _attribute(graph: Graph, root: nn.Module, spec: Any) -> str:
    target = str(spec.target)
    path, _, leaf = target.rpartition(".")
    try:
        owner = root.get_submodule(path)
    except AttributeError:
        owner = root
    if isinstance(getattr(owner, leaf, None), torch.Tensor):
        return target
    name = f"constant_{target.replace('.', '_')}"
    if not hasattr(root, name):
        constant = graph.program.constants.get(target, graph.program.state_dict.get(target))
        assert isinstance(constant, torch.Tensor)
        root.register_buffer(name, constant.detach().clone(), persistent=False)
    return name


def _call(
    graph: Graph,
    fresh: torch.fx.Graph,
    node: torch.fx.Node,
    copies: dict[torch.fx.Node, Any],
    resolved: Cut,
    root: nn.Module,
) -> torch.fx.Node:
    module = _trainable_module(graph, node, root)
    if module is not None:
        source = node.args[0]
        assert isinstance(source, torch.fx.Node)
        return fresh.call_module(module, (copies[source],))
    changed = dict(resolved.constants.get(node.name, {}))
    if node.kwargs.get("device") is not None and not changed:
        inputs = [copy for source, copy in copies.items() if source.op == "placeholder" and copy.target is as_traced]
        if inputs:
            mapped = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: copies[n])
            return fresh.call_function(made_beside, (inputs[0], node.target, *mapped))  # type: ignore[arg-type]
    target, arguments = node.target, bind(node)
    if changed or "scaled_dot_product" in str(target):
        arguments.update(changed)
        target = _retarget(target, arguments, changed)
        _freeze_scale(graph, node, arguments)
        positional, keywords = _arranged(target, arguments)
        mapped = torch.fx.node.map_arg((tuple(positional), keywords), lambda n: copies[n])
        return fresh.call_function(target, *mapped)  # type: ignore[arg-type]
    return fresh.node_copy(node, lambda n: copies[n])


def _trainable_module(graph: Graph, node: torch.fx.Node, root: nn.Module) -> str | None:
    """Path of the batch normalisation or dropout module behind a call, so that it behaves as such in training."""
    text = str(node.target)
    if "batch_norm" not in text and "dropout" not in text:
        return None
    path = module_path(node)
    try:
        module = root.get_submodule(path)
    except AttributeError:
        return None
    if "dropout" in text:
        return path if type(module) in _DROPOUTS else None
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return None
    mean = bind(node).get("running_mean")
    if not isinstance(mean, torch.fx.Node) or graph.analysis.origin.get(mean.name) != f"{path}.running_mean":
        return None
    if type(module) not in _BATCH_NORMS:
        replace_module(root, path, _plain_batch_norm(module, len(node.meta["val"].shape)))
    return path


def _plain_batch_norm(module: nn.modules.batchnorm._BatchNorm, rank: int) -> nn.Module:
    """The same normalisation without what a subclass adds around it (an activation, say): that is in the graph."""
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(rank, nn.BatchNorm1d)
    plain = kind(module.num_features, module.eps, module.momentum, module.affine)
    for name in ("weight", "bias"):
        plain._parameters[name] = module._parameters[name]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        plain._buffers[name] = module._buffers[name]
    return plain.train(module.training)


def _retarget(target: Any, arguments: dict[str, Any], changed: dict[str, Any]) -> Any:
    """Even splits whose parts are no longer equal become splits with sizes."""
    if isinstance(changed.get("chunks"), list) or isinstance(changed.get("split_size"), list):
        arguments["split_sizes"] = changed.get("chunks", changed.get("split_size"))
        return torch.ops.aten.split_with_sizes.default
    return target


def _freeze_scale(graph: Graph, node: torch.fx.Node, arguments: dict[str, Any]) -> None:
    if "scaled_dot_product" in str(node.target) and arguments.get("scale") is None:
        query = graph.analysis.values[str(node.args[0])]
        assert isinstance(query, Value)
        arguments["scale"] = 1.0 / math.sqrt(query.shape[-1])


def _arranged(target: Any, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    positional, keywords = [], {}
    for argument in target._schema.arguments:
        if argument.name in arguments:
            if argument.kwarg_only:
                keywords[argument.name] = arguments[argument.name]
            else:
                positional.append(arguments[argument.name])
    return positional, keywords
