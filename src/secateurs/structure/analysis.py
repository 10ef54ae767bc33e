"""Runs an exported graph on ids: one pass in execution order, one rule per operator family."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from secateurs.structure.ids import NEUTRAL, PINNED, IdSpace
from secateurs.structure.values import Factor, Value, spread

Rule = Callable[["Call"], Any]
_RULES: dict[str, Rule] = {}

FEWEST_ROWS = 4
"""A grid (groups of a convolution, heads) exposes whole rows from this many rows on, else tied columns."""


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


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of a parameter or buffer with its ids, and what it means to the layer that uses it."""

    parameter: str
    dim: int
    ids: np.ndarray


@dataclass(frozen=True)
class Use:
    """A weighted operator: which parameter plays which role at which node (``out``, ``in``, ``norm``, ``bias``)."""

    node: str
    parameter: str
    dim: int
    role: str
    kind: str


@dataclass
class Analysis:
    """Everything one pass found. ``grid``: ``auto``, ``rows`` or ``columns`` (which kind of unit a grid exposes)."""

    grid: str = "auto"
    ids: IdSpace = field(default_factory=IdSpace)
    values: dict[str, Any] = field(default_factory=dict)
    axes: dict[tuple[str, int], list[np.ndarray]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    """Exported node name to parameter name, for values that are a parameter or buffer itself."""
    uses: list[Use] = field(default_factory=list)
    barriers: list[tuple[str, str]] = field(default_factory=list)
    """(node name, reason)."""
    statistics: set[str] = field(default_factory=set)
    """Nodes whose result mixes units by a statistic (softmax or normalisation over the unit axis)."""
    grids: int = 0
    folded_grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Grouped operators: node to (rows, chosen axis: 0 rows, 1 columns)."""


@dataclass(frozen=True)
class Call:
    """One operator call as a rule sees it: arguments by name, tensors as :class:`Value`."""

    analysis: Analysis
    node: torch.fx.Node
    arguments: dict[str, Any]

    @property
    def ids(self) -> IdSpace:
        """The id space of the analysis."""
        return self.analysis.ids

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs at the traced sizes."""
        value = self.node.meta["val"]
        outputs = value if isinstance(value, (tuple, list)) else [value]
        return [concrete_shape(output) for output in outputs if isinstance(output, torch.Tensor)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Argument ``name`` or the default where the schema has none."""
        return self.arguments.get(name, default)

    def tensors(self) -> list[Value]:
        """Every tensor argument, lists flattened, in order."""
        found: list[Value] = []
        for argument in self.arguments.values():
            items = argument if isinstance(argument, (tuple, list)) else [argument]
            found.extend(item for item in items if isinstance(item, Value))
        return found

    def pin(self, vectors: Iterable[np.ndarray], reason: str) -> None:
        """Pin every id of the vectors, with the reason."""
        for vector in vectors:
            self.ids.pin(vector, reason, self.node.name)

    def pin_dims(self, value: Value, dims: Iterable[int], reason: str) -> None:
        """Pin every unit that runs along ``dims`` of ``value``."""
        for dim in dims:
            self.pin(value.along(dim), reason)

    def align(self, sides: Sequence[list[np.ndarray]], reason: str) -> list[np.ndarray]:
        """Unify the id stacks of several tensors along a shared axis and return the stack they now share.

        A side without units cannot lose an index, so it pins the others.
        """
        stacked = [side for side in sides if side]
        if not stacked:
            return []
        if len(stacked) < len(sides):
            for side in stacked:
                self.pin(side, reason)
            return stacked[0]
        depth = max(len(side) for side in stacked)
        lead = next(side for side in stacked if len(side) == depth)
        for side in stacked:
            if len(side) == depth:
                for mine, other in zip(lead, side, strict=True):
                    self.ids.unify(mine, other)
            elif not self._absorb(side, lead):
                self.pin([*side, *lead], f"{reason} (two kinds of units meet one)")
        if all((vector == NEUTRAL).any() for vector in lead):
            return [self._without_neutral([side[i] for side in stacked if len(side) == depth]) for i in range(depth)]
        return lead

    def _without_neutral(self, vectors: list[np.ndarray]) -> np.ndarray:
        merged = vectors[0].copy()
        for vector in vectors[1:]:
            merged = np.where(merged == NEUTRAL, vector, merged)
        return merged

    def _absorb(self, side: list[np.ndarray], lead: list[np.ndarray]) -> bool:
        """Let an untouched parameter axis carry several factors instead of its own ids."""
        if len(side) != 1:
            return False
        own = side[0]
        for key, stack in self.analysis.axes.items():
            if len(stack) == 1 and stack[0] is own and np.array_equal(self.ids.find(own), own):
                others = np.arange(len(self.ids), dtype=np.int64)
                touched = np.isin(self.ids.find(others), own) & ~np.isin(others, own)
                if touched.any():
                    return False
                self.analysis.axes[key] = list(lead)
                return True
        return False

    def grid(self, vector: np.ndarray, sizes: Sequence[int], key: str | None = None) -> tuple[int, np.ndarray]:
        """Resolve an axis split into ``sizes``: (axis that carries the units, ids along it).

        Survivors must stay a full rectangle, so units run along exactly one of the axes and are tied along the
        others: whole rows (heads, groups) where there are enough of them, else tied positions.
        """
        table = vector.reshape(tuple(sizes))
        reps = np.where(table == NEUTRAL, NEUTRAL, self.ids.find(table))
        varying = [d for d in range(len(sizes)) if sizes[d] > 1 and (reps != np.take(reps, [0], axis=d)).any()]
        if not varying:
            big = [d for d in range(len(sizes)) if sizes[d] > 1]
            chosen = big[0] if big else 0
        elif len(varying) == 1:
            chosen = varying[0]
        else:
            self.analysis.grids += 1
            chosen = self._choose(varying, sizes)
        rows = np.moveaxis(table, chosen, 0).reshape(sizes[chosen], -1)
        if len(varying) > 1:
            self.ids.tie(rows)
        return chosen, np.ascontiguousarray(rows.max(axis=1))

    def _choose(self, varying: list[int], sizes: Sequence[int]) -> int:
        if self.analysis.grid == "columns":
            return varying[-1]
        if self.analysis.grid == "rows":
            return next((d for d in varying if sizes[d] >= 2), varying[0])
        return next((d for d in varying if sizes[d] >= FEWEST_ROWS), varying[-1])

    def use(self, value_argument: str, dim: int, role: str, kind: str) -> None:
        """Note that the parameter behind an argument plays ``role`` along ``dim``."""
        source = self.raw(value_argument)
        if isinstance(source, torch.fx.Node) and source.name in self.analysis.origin:
            self.analysis.uses.append(Use(self.node.name, self.analysis.origin[source.name], dim, role, kind))

    def raw(self, name: str) -> Any:
        """The argument as it stands in the graph (a node, not a value)."""
        return bind(self.node).get(name)

    def settle(self, moved: torch.Tensor, tie_first: bool = False) -> Factor | None:
        """Turn ids that an operator moved to new places into a factor along one axis."""
        shrunk = moved
        for dim in range(moved.dim()):
            if moved.size(dim) > 1 and moved.stride(dim) == 0:
                shrunk = shrunk.narrow(dim, 0, 1)
        raw = shrunk.numpy()
        reps = np.where(raw == NEUTRAL, NEUTRAL, self.ids.find(raw))
        varying = []
        for dim in range(raw.ndim):
            if raw.shape[dim] > 1 and (reps != np.take(reps, [0], axis=dim)).any():
                varying.append(dim)
        if not varying:
            alone = np.unique(reps)
            if len(alone) and not np.isin(alone, (NEUTRAL, PINNED)).all():
                self.pin([raw.ravel()], "a single unit is picked out by its position")
            return None
        compact = raw
        for dim in range(raw.ndim):
            if dim not in varying:
                compact = np.take(compact, [0], axis=dim)
        if len(varying) == 1:
            ids = compact.ravel()
            return Factor(varying[0], np.ascontiguousarray(ids))
        sizes = [raw.shape[d] for d in varying]
        self.analysis.grids += 1
        chosen = varying.index(varying[0]) if tie_first else self._choose(list(range(len(varying))), sizes)
        rows = np.moveaxis(compact.reshape(sizes), chosen, 0).reshape(sizes[chosen], -1)
        self.ids.tie(rows)
        return Factor(varying[chosen], np.ascontiguousarray(rows.max(axis=1)))


def bind(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments of a call by the operator schema's names, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): argument for i, argument in enumerate(node.args)} | dict(node.kwargs)
    bound: dict[str, Any] = {}
    positional = list(node.args)
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(positional) and not argument.kwarg_only:
            bound[argument.name] = positional[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def concrete_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Shape with symbolic sizes replaced by the traced ones."""
    return tuple(concrete_int(size) for size in tensor.shape)


def concrete_int(size: Any) -> int:
    """A plain int for an int or a symbolic size."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else int(size.node.expr)
    return int(size)


def analyse(program: torch.export.ExportedProgram, *, grid: str = "auto", barriers: Iterable[str] = ()) -> Analysis:
    """One pass over the exported graph. ``barriers``: names of nodes to treat as unknown operators."""
    analysis = Analysis(grid=grid)
    blocked = set(barriers)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            analysis.values[node.name] = _placeholder(analysis, program, node, kinds[node.name])
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


def _placeholder(analysis: Analysis, program: torch.export.ExportedProgram, node: torch.fx.Node, spec: Any) -> Any:
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return meta if not isinstance(meta, torch.SymInt) else concrete_int(meta)
    shape = concrete_shape(meta)
    owned = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    if spec.kind not in owned or spec.target is None:
        return Value(shape)
    real = program.state_dict.get(spec.target, program.constants.get(spec.target))
    # A tensor that is neither parameter nor buffer stays as it is: no plan slices it.
    if real is not None and (spec.kind is InputKind.CONSTANT_TENSOR or not real.dtype.is_floating_point):
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
    plain = torch.fx.node.map_aggregate(dict(call.arguments), lambda a: a.constant if isinstance(a, Value) else a)
    assert isinstance(plain, dict)
    result = call_target(call.node.target, plain)
    if isinstance(result, torch.Tensor):
        return Value(tuple(result.shape), constant=result)
    if isinstance(result, (tuple, list)):
        return [Value(tuple(r.shape), constant=r) if isinstance(r, torch.Tensor) else r for r in result]
    return result


def call_target(target: Any, arguments: dict[str, Any]) -> Any:
    """Run an operator on arguments given by schema name."""
    if target is _reshape:
        return _reshape(arguments)
    if not isinstance(target, torch._ops.OpOverload):
        return target(*arguments.values())
    if target is torch.ops.aten.view.default:
        return torch.reshape(arguments["self"], list(arguments["size"]))  # strides need not be those of the export
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
        moved = _moved(_strideless(call.node.target), name, spread(factor, value.shape), others)
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


def _strideless(target: Any) -> Any:
    """The operator that does the same on tensors of any strides."""
    if str(target) in ("aten.view.default", "aten._unsafe_view.default"):
        return _reshape
    return target


def _reshape(arguments: dict[str, Any]) -> torch.Tensor:
    return arguments["self"].reshape(arguments["size"])


def _real(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.constant
    if isinstance(argument, (tuple, list)):
        return [_real(item) for item in argument]
    return argument
