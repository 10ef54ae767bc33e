"""Runs an exported graph on ids: one pass in execution order, one rule per operator family."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from secateurs.structure.call import Analysis, Call, bind, concrete_int, concrete_shape
from secateurs.structure.operators import (
    CASTS,
    VIEWS,
    base_name,
    is_a,
    is_assertion,
    operator_name,
    rule_for,
    short_name,
)
from secateurs.structure.values import Factor, Value, spread


def analyse(
    program: torch.export.ExportedProgram,
    *,
    grid: str = "auto",
    barriers: Iterable[str] = (),
    attributes: Iterable[str] = (),
    after: Analysis | None = None,
) -> Analysis:
    """One pass over the exported graph.

    ``barriers``: names of nodes to treat as unknown operators; ``attributes``: constants that are plain tensor
    attributes of a module, which a plan can slice as it slices buffers; ``after``: the pass over the forward in
    evaluation mode, where this one is over that in training mode: both speak of the same ids.
    """
    analysis = Analysis(grid=grid) if after is None else after.beside()
    output = OUTPUT if after is None else f"{OUTPUT} in training mode"
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
                        analysis.ids.pin(factor.ids, output, node.name)
    return analysis


OUTPUT = "it is an output of the network"


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
    # Other integers are positions, and a tensor without a name in the module cannot be sliced: both stay as they are.
    sliceable = attribute or spec.kind is not InputKind.CONSTANT_TENSOR
    if real is not None and not (sliceable and (_holds_values(real.dtype) or _becomes_values(node))):
        return Value(shape, constant=real.detach().cpu())  # ids lie on the CPU
    if not node.users:  # nothing reads it, or a tied parameter is read under another name
        return Value(shape)
    factors: list[Factor] = []
    for dim, size in enumerate(shape):
        if size > 1:
            stack = analysis.axes.setdefault((spec.target, dim), [analysis.ids.fresh(size)])
            factors.extend(Factor(dim, ids) for ids in stack)
    analysis.origin[node.name] = spec.target
    return Value(shape, tuple(factors))


def _holds_values(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex or dtype is torch.bool


def _becomes_values(node: torch.fx.Node) -> bool:
    """True for integers that the forward turns into floating numbers before anything else: weights stored small."""
    users = [user for user in node.users if not is_assertion(user)]
    casts = all(is_a(user, CASTS) for user in users)
    results = [user.meta.get("val") for user in users]
    return bool(users) and casts and all(isinstance(r, torch.Tensor) and r.is_floating_point() for r in results)


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
    if not blocked and _is_constant(call, tensors):
        return fold(call)
    function = None if blocked else rule_for(node.target)
    if function is None:
        return barrier(call, "declared a barrier" if blocked else f"no rule for operator {operator_name(node.target)}")
    return function(call)


_FIXED = (
    "arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "hann_window", "hamming_window",
    "blackman_window", "bartlett_window", "kaiser_window", "fft_fftfreq", "fft_rfftfreq", "scalar_tensor",
)  # fmt: skip
"""Operators that make a tensor of nothing but sizes."""


def _is_constant(call: Call, tensors: list[Value]) -> bool:
    if tensors:  # a constant that is stretched follows what it meets
        return all(tensor.constant is not None and not tensor.factors for tensor in tensors) and not _stretches(call)
    return short_name(call.node.target) in _FIXED and not call.node.all_input_nodes


def _stretches(call: Call) -> bool:
    """Whether one entry becomes as many as the forward has written down."""
    sizes = call.raw(STRETCHES.get(base_name(call.node.target), ""))
    shape = call.tensors()[0].shape
    offset = len(sizes or ()) - len(shape)
    return any(
        isinstance(size, int) and size > 1 and (dim < offset or shape[dim - offset] == 1)
        for dim, size in enumerate(sizes or ())
    )


STRETCHES = {
    "aten.expand": "size", "aten.expand_copy": "size", "aten.broadcast_to": "size", "aten.repeat": "repeats",
}  # fmt: skip
"""Operators that make many entries of one, and the argument that says how many."""


def fold(call: Call) -> Any:
    """Evaluate an operator whose tensors depend on no input and no parameter."""
    mutates = isinstance(call.node.target, torch._ops.OpOverload) and call.node.target._schema.is_mutable

    def real(argument: Any) -> Any:
        if not isinstance(argument, Value) or argument.constant is None:
            return argument
        return argument.constant.clone() if mutates else argument.constant  # a constant may be the user's own buffer

    plain = dict(torch.fx.node.map_aggregate(dict(call.arguments), real))  # type: ignore[call-overload]
    if plain.get("device") is not None:
        plain["device"] = torch.device("cpu")
    result = call_target(call.node.target, plain)
    if isinstance(result, torch.Tensor):
        return Value(tuple(result.shape), constant=result)
    if isinstance(result, (tuple, list)):
        return [Value(tuple(r.shape), constant=r) if isinstance(r, torch.Tensor) else r for r in result]
    return result


def call_target(target: Any, arguments: dict[str, Any]) -> Any:
    """Run an operator on arguments given by schema name."""
    if base_name(target) in VIEWS and "size" in arguments:
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
    call.block((factor.ids for value in call.tensors() for factor in value.factors), reason)
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
        if isinstance(moved, torch.Tensor) and call.loses_stretch(factor, moved):
            continue
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
