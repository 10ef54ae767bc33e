"""Runs an exported graph on ids: one pass in execution order, one rule per operator family."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from secateurs.structure.call import Analysis, Call, bind, concrete_int, concrete_shape
from secateurs.structure.values import Factor, Value, spread

Rule = Callable[["Call"], Any]
_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function for operators such as ``aten.conv2d.default`` or ``aten.relu`` (every overload)."""

    def register(function: Rule) -> Rule:
        for name in operators:
            _RULES[name] = function
        return function

    return register


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator overload, by full name first, then by name without overload."""
    name = operator_name(target)
    return _RULES.get(name) or _RULES.get(name.rpartition(".")[0])


def known_operators() -> list[str]:
    """Every operator name with a rule."""
    return sorted(_RULES)


def operator_name(target: Any) -> str:
    """``aten.conv2d.default`` for an overload, the dotted Python name for anything else."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    return f"{module}.{getattr(target, '__name__', target)}".lstrip("._")


def analyse(
    program: torch.export.ExportedProgram,
    *,
    grid: str = "auto",
    barriers: Iterable[str] = (),
    attributes: Iterable[str] = (),
) -> Analysis:
    """One pass over the exported graph.

    ``barriers``: names of nodes to treat as unknown operators; ``attributes``: constants that are plain tensor
    attributes of a module, which a plan can slice as it slices buffers.
    """
    analysis = Analysis(grid=grid)
    blocked, sliceable = set(barriers), set(attributes)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op != "output" and _is_weight(analysis, node, kinds):
            analysis.weights.add(node.name)
        if node.op == "placeholder":
            spec = kinds[node.name]
            analysis.values[node.name] = _placeholder(analysis, program, node, spec, spec.target in sliceable)
        elif node.op == "get_attr":
            tensor = getattr(program.graph_module, str(node.target), None)
            if isinstance(tensor, torch.Tensor):
                tensor = Value(tuple(tensor.shape), constant=tensor)
            analysis.values[node.name] = tensor
        elif node.op == "call_function":
            analysis.values[node.name] = _run(analysis, node, node.name in blocked)
        elif node.op == "output":
            for value in _flatten(_lookup(analysis, node.args)):
                if isinstance(value, Value):
                    for factor in value.factors:
                        analysis.ids.pin(factor.ids, "it is an output of the network", node.name)
    return analysis


def _is_weight(analysis: Analysis, node: torch.fx.Node, kinds: dict[str, Any]) -> bool:
    if node.op == "placeholder":
        return kinds[node.name].kind is not InputKind.USER_INPUT
    return all(source.name in analysis.weights for source in node.all_input_nodes)


def _placeholder(
    analysis: Analysis, program: torch.export.ExportedProgram, node: torch.fx.Node, spec: Any, attribute: bool
) -> Any:
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return meta if not isinstance(meta, torch.SymInt) else concrete_int(meta)
    shape = concrete_shape(meta)
    owned = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    if spec.kind not in owned or spec.target is None:
        return Value(shape)
    real = program.state_dict.get(spec.target, program.constants.get(spec.target))
    # Integers are positions, and a tensor without a name in the module cannot be sliced: both stay as they are.
    sliceable = attribute or spec.kind is not InputKind.CONSTANT_TENSOR
    if real is not None and not (sliceable and (real.dtype.is_floating_point or real.dtype is torch.bool)):
        return Value(shape, constant=real.detach())
    if not node.users:  # nothing reads it, or a tied parameter is read under another name
        return Value(shape)
    factors: list[Factor] = []
    for dim, size in enumerate(shape):
        if size > 1:
            stack = analysis.axes.setdefault((spec.target, dim), [analysis.ids.fresh(size)])
            factors.extend(Factor(dim, ids) for ids in stack)
    analysis.origin[node.name] = spec.target
    return Value(shape, tuple(factors))


def _lookup(analysis: Analysis, argument: Any) -> Any:
    return torch.fx.node.map_arg(argument, lambda node: analysis.values[node.name])


def _flatten(tree: Any) -> list[Any]:
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in _flatten(item)]
    if isinstance(tree, dict):
        return [leaf for item in tree.values() for leaf in _flatten(item)]
    return [tree]


def _run(analysis: Analysis, node: torch.fx.Node, blocked: bool) -> Any:
    arguments = {name: _lookup(analysis, argument) for name, argument in bind(node).items()}
    call = Call(analysis, node, arguments)
    if node.target is operator.getitem:
        return arguments["0"][arguments["1"]]
    outputs = node.meta.get("val")
    if isinstance(outputs, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
        return concrete_int(outputs) if isinstance(outputs, (torch.SymInt, int)) else outputs
    tensors = call.tensors()
    if not any(isinstance(output, torch.Tensor) for output in _flatten(outputs)):
        return None
    if not blocked and tensors and all(tensor.constant is not None for tensor in tensors):
        return fold(call)
    function = None if blocked else rule_for(node.target)
    if function is None and not blocked and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        function = _RULES["aten.relu"]
    if function is None:
        return barrier(call, "declared a barrier" if blocked else f"no rule for operator {operator_name(node.target)}")
    return function(call)


def fold(call: Call) -> Any:
    """Evaluate an operator whose tensors depend on no input and no parameter."""
    mutates = isinstance(call.node.target, torch._ops.OpOverload) and call.node.target._schema.is_mutable

    def real(argument: Any) -> Any:
        if not isinstance(argument, Value) or argument.constant is None:
            return argument
        return argument.constant.clone() if mutates else argument.constant  # a constant may be the user's own buffer

    plain = torch.fx.node.map_aggregate(dict(call.arguments), real)
    assert isinstance(plain, dict)
    result = call_target(call.node.target, plain)
    if isinstance(result, torch.Tensor):
        return Value(tuple(result.shape), constant=result)
    if isinstance(result, (tuple, list)):
        return [Value(tuple(r.shape), constant=r) if isinstance(r, torch.Tensor) else r for r in result]
    return result


def call_target(target: Any, arguments: dict[str, Any]) -> Any:
    """Run an operator on arguments given by schema name."""
    if str(target) in ("aten.view.default", "aten._unsafe_view.default"):
        return arguments["self"].reshape(arguments["size"])  # strides need not be those of the export
    if not isinstance(target, torch._ops.OpOverload):
        return target(*arguments.values())
    positional, keywords = [], {}
    for argument in target._schema.arguments:
        if argument.name not in arguments:
            continue
        if argument.kwarg_only:
            keywords[argument.name] = arguments[argument.name]
        else:
            positional.append(arguments[argument.name])
    return target(*positional, **keywords)


def barrier(call: Call, reason: str) -> Any:
    """Pin everything that touches the call; its outputs are free."""
    call.analysis.barriers.append((call.node.name, reason))
    for value in call.tensors():
        for factor in value.factors:
            call.pin([factor.ids], f"barrier: {reason}")
    shapes = call.shapes
    outputs = call.node.meta["val"]
    if isinstance(outputs, torch.Tensor):
        return Value(shapes[0])
    return [Value(concrete_shape(o)) if isinstance(o, torch.Tensor) else o for o in outputs]


def move(call: Call, tie_first: bool = False) -> Any:
    """Apply the operator itself to the ids of its one tensor argument."""
    name, value = next((n, a) for n, a in call.arguments.items() if isinstance(a, Value))
    others = {n: _real(a) for n, a in call.arguments.items() if n != name}
    outputs: list[list[Factor]] = [[] for _ in call.shapes]
    for factor in value.factors:
        moved = _moved(call.node.target, name, spread(factor, value.shape), others)
        parts = [moved] if isinstance(moved, torch.Tensor) else list(moved)
        for i, part in enumerate(parts):
            settled = call.settle(part, tie_first)
            if settled is not None:
                outputs[i].append(settled)
    values = [Value(shape, tuple(factors)) for shape, factors in zip(call.shapes, outputs, strict=True)]
    return values[0] if isinstance(call.node.meta["val"], torch.Tensor) else values


def _moved(target: Any, name: str, ids: torch.Tensor, others: dict[str, Any]) -> Any:
    """The operator on ids; in float64, which holds every id exactly, where it has no integer form."""
    try:
        return call_target(target, {name: ids, **others})
    except NotImplementedError:
        moved = call_target(target, {name: ids.double(), **others})
        return moved.long() if isinstance(moved, torch.Tensor) else [part.long() for part in moved]


def _real(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.constant
    if isinstance(argument, (tuple, list)):
        return [_real(item) for item in argument]
    return argument
