"""A trainable module built from an exported graph: weights under their names, constants re-derived, two modes."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind

from secateurs.errors import StructureError
from secateurs.plan import Plan
from secateurs.structure.call import bind
from secateurs.structure.cut import Cut
from secateurs.structure.groups import module_path
from secateurs.structure.input_sizes import as_traced
from secateurs.structure.modes import DROPOUT_MODULES, TRAINING
from secateurs.structure.operators import ATTENTIONS, BATCH_NORMS, DROPOUTS, is_a, is_assertion, short_name
from secateurs.structure.slicing import replace_module, sliced_copy
from secateurs.structure.two_modes import TwoModes
from secateurs.structure.values import Value

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def cut_of(graph: Graph, plan: Plan) -> Cut:
    """What a plan means in a traced network: the plan's own index lists, so that damage to them shows in the check."""
    return dataclasses.replace(graph.cut(plan.groups, plan.blocks_removed), slices=plan.slices)


def build(graph: Graph, resolved: Cut, model: nn.Module, reason: str) -> nn.Module:
    """The cut network as a ``GraphModule`` with the weights of ``model``, or as two of them where training mode does
    something else.

    Parameters keep their names, batch normalisation and dropout are real modules (so ``train()`` works), constants
    are re-derived, scales that came from a pruned size keep their dense value, and removed blocks are dropped.
    ``secateurs_rebuilt`` on the result says why, ``secateurs_sizes`` which input sizes it takes.

    Raises:
        StructureError: a number in the forward cannot follow.
    """
    if resolved.uncounted:
        raise StructureError(resolved.uncounted)
    root = sliced_copy(model, resolved.slices)
    name = f"{type(model).__name__}Pruned"
    evaluated = torch.fx.GraphModule(root, _graph(graph, resolved, root), class_name=name)
    _clean(evaluated)
    result: nn.Module = evaluated
    if graph.training is not None:
        gone = {block.name for block in graph.removable_blocks if block.add in resolved.bypassed}
        bypassed = {block.add: block.kept for block in graph.training.removable_blocks if block.name in gone}
        fresh = _graph(graph.training, dataclasses.replace(resolved, bypassed=bypassed), root)
        trained = torch.fx.GraphModule(root, fresh, class_name=f"{name}InTraining")
        _clean(trained)
        result = TwoModes(evaluated, trained)
    result.secateurs_rebuilt = reason  # type: ignore[assignment]
    result.secateurs_sizes = str(graph.input_sizes)  # type: ignore[assignment]
    return result.train(model.training)


def _clean(module: torch.fx.GraphModule) -> None:
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()


def _graph(graph: Graph, resolved: Cut, root: nn.Module) -> torch.fx.Graph:
    """One forward of the cut network, over the parameters and layers of ``root``."""
    fresh = torch.fx.Graph()
    copies: dict[torch.fx.Node, Any] = {}
    kinds = {spec.arg.name: spec for spec in graph.program.graph_signature.input_specs}
    gone = {name for block in graph.removable_blocks if block.add in resolved.bypassed for name in block.nodes}
    copies.update(_inputs(graph, fresh, kinds))
    layers = {_trainable_module(graph, node, root) for node in graph.program.graph.nodes}
    for node in graph.program.graph.nodes:
        if node.name in gone and node.name not in resolved.bypassed:
            continue
        if node.op == "placeholder" and kinds[node.name].kind is not InputKind.USER_INPUT:
            copies[node] = fresh.get_attr(_attribute(graph, root, kinds[node.name]))
        elif is_assertion(node) or _counts(node, kinds, layers):
            continue
        elif node.name in resolved.bypassed:
            copies[node] = copies[graph.nodes[resolved.bypassed[node.name]]]
        elif node.op == "call_function":
            copies[node] = _call(graph, fresh, node, copies, resolved, root)
        elif node.op == "placeholder":
            continue
        else:
            copies[node] = fresh.node_copy(node, lambda n: copies[n])
        if isinstance(copies.get(node), torch.fx.Node) and copies[node].op != "get_attr":
            copies[node].meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
    fresh.set_codegen(_codegen(graph))
    return fresh


def _inputs(graph: Graph, fresh: torch.fx.Graph, kinds: Mapping[str, Any]) -> dict[torch.fx.Node, torch.fx.Node]:
    """The user's inputs, tensors among them once their sizes were looked at."""
    nodes = [
        n for n in graph.program.graph.nodes if n.op == "placeholder" and kinds[n.name].kind is InputKind.USER_INPUT
    ]
    given = {node: fresh.node_copy(node) for node in nodes}
    tensors = [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    sizes = graph.input_sizes
    if tensors:
        values = [given[node] for node in tensors]
        checked = fresh.call_function(as_traced, (values, sizes.names, sizes.axes, sizes.conditions))
        given |= {node: fresh.call_function(operator.getitem, (checked, i)) for i, node in enumerate(tensors)}
    return given


def _counts(node: torch.fx.Node, kinds: Mapping[str, Any], layers: set[str | None]) -> bool:
    """Whether a call counts the batches of a normalisation that does so itself."""
    first = node.args[0] if node.args else None
    target = str(kinds[first.name].target) if isinstance(first, torch.fx.Node) and first.op == "placeholder" else ""
    path, _, leaf = target.rpartition(".")
    return leaf == "num_batches_tracked" and path in layers


def made_beside(reference: torch.Tensor, operator: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What ``operator`` makes, on the device of ``reference`` and not on the one that the graph was traced on."""
    return operator(*args, **{**keywords, "device": reference.device})


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
        inputs = [copy for source, copy in copies.items() if source.op == "placeholder" and copy.op == "call_function"]
        if inputs:
            mapped = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: copies[n])
            return fresh.call_function(made_beside, (inputs[0], node.target, *mapped))  # type: ignore[arg-type]
    target, arguments = node.target, bind(node)
    if changed or is_a(node, ATTENTIONS):
        arguments.update(changed)
        target = _retarget(target, arguments, changed)
        _freeze_scale(graph, node, arguments)
        positional, keywords = _arranged(target, arguments)
        mapped = torch.fx.node.map_arg((tuple(positional), keywords), lambda n: copies[n])
        return fresh.call_function(target, *mapped)  # type: ignore[arg-type]
    return fresh.node_copy(node, lambda n: copies[n])


def _trainable_module(graph: Graph, node: torch.fx.Node, root: nn.Module) -> str | None:
    """Path of the batch normalisation or dropout module behind a call, so that it behaves as such in training."""
    if not is_a(node, BATCH_NORMS, DROPOUTS):
        return None
    if graph.mode == TRAINING and not bind(node).get("training", bind(node).get("train")):
        return None  # frozen: it is used in training as it is in evaluation
    path = module_path(node)
    try:
        module = root.get_submodule(path)
    except AttributeError:
        return None
    if is_a(node, DROPOUTS):
        return path if type(module) in DROPOUT_MODULES else None
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
    for name in ("chunks", "split_size", "sections"):
        if isinstance(changed.get(name), list):
            arguments["split_sizes"] = changed[name]
            arguments.setdefault("dim", {"vsplit": 0, "dsplit": 2}.get(short_name(target), 1))
            return torch.ops.aten.split_with_sizes.default
    return target


def _freeze_scale(graph: Graph, node: torch.fx.Node, arguments: dict[str, Any]) -> None:
    if is_a(node, ATTENTIONS) and arguments.get("scale") is None:
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
