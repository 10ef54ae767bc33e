"""One operator call as the rules see it, and what an analysis collects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from secateurs.structure.ids import NEUTRAL, PINNED, IdSpace
from secateurs.structure.values import Factor, Value

FEWEST_ROWS = 4
"""A grid (groups of a convolution, heads) exposes whole rows from this many rows on, else tied columns."""


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
    touched: dict[str, np.ndarray] = field(default_factory=dict)
    """Ids that the operators of ``barriers`` hold."""
    statistics: set[str] = field(default_factory=set)
    """Nodes whose result mixes units by a statistic (softmax or normalisation over the unit axis)."""
    weights: set[str] = field(default_factory=set)
    """Nodes that depend on parameters, buffers and constants only."""
    kept_whole: list[str] = field(default_factory=list)
    """Groups that the user keeps whole."""
    stretched: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of the ids of axes that a network stretches from one entry to many."""
    grids: int = 0
    folded_grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Grouped operators: node to (rows, chosen axis: 0 rows, 1 columns)."""

    def beside(self) -> Analysis:
        """An empty analysis of another forward of the same network: ids, and the axes that carry them, are shared."""
        return Analysis(grid=self.grid, ids=self.ids, axes=self.axes, stretched=self.stretched)


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

    def block(self, vectors: Iterable[np.ndarray], reason: str) -> None:
        """Pin every id of the vectors and report the operator as a barrier."""
        held = [np.ravel(vector) for vector in vectors]
        self.analysis.barriers.append((self.node.name, reason))
        self.analysis.touched[self.node.name] = np.concatenate([*held, np.empty(0, dtype=np.int64)])
        self.pin(held, f"barrier: {reason}")

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
        if self.analysis.grid == "rows":  # queries, keys and values of a fused layer stand before or behind the heads
            return max(reversed(varying[:-1]), key=lambda d: sizes[d])
        return next((d for d in varying if sizes[d] >= FEWEST_ROWS), varying[-1])

    def use(self, value_argument: str, dim: int, role: str, kind: str) -> None:
        """Note that the parameter behind an argument, or the one it is computed of, plays ``role`` along ``dim``."""
        source = self.raw(value_argument)
        if not isinstance(source, torch.fx.Node):
            return
        if source.name in self.analysis.origin:
            self.analysis.uses.append(Use(self.node.name, self.analysis.origin[source.name], dim, role, kind))
        elif source.name in self.analysis.weights:
            found = self._computed_of(self[value_argument], dim)
            if found is not None:
                self.analysis.uses.append(Use(self.node.name, *found, role, kind))

    def _computed_of(self, value: Value, dim: int) -> tuple[str, int] | None:
        """The axis of the largest parameter that has the units of a computed weight (normalised, of low rank)."""
        shapes = {name: self.analysis.values[node].shape for node, name in self.analysis.origin.items()}
        found: list[tuple[str, int]] = []
        for ids in value.along(dim):
            mine = np.unique(self.ids.find(ids))
            for key, stack in self.analysis.axes.items():
                if any(len(own) == len(ids) and np.array_equal(np.unique(self.ids.find(own)), mine) for own in stack):
                    found.append(key)
        return max(found, key=lambda key: math.prod(shapes.get(key[0], ())), default=None)

    def raw(self, name: str) -> Any:
        """The argument as it stands in the graph (a node, not a value)."""
        return bind(self.node).get(name)

    def stretch(self, value: Value, result: Value, sizes: Sequence[Any]) -> Value:
        """``result`` with ids on the axes that were one entry and are ``sizes`` (numbers of the forward's own) now.

        Like constants made in the forward they follow whatever they meet.
        """
        factors = list(result.factors)
        for dim, size in enumerate(sizes):
            own = dim - (len(sizes) - len(value.shape))
            if isinstance(size, int) and size > 1 and (own < 0 or value.shape[own] == 1) and not result.along(dim):
                ids = self.ids.fresh(size)
                self.analysis.stretched.append((int(ids[0]), int(ids[-1])))
                factors.append(Factor(dim, ids))
        return Value(result.shape, tuple(factors))

    def loses_stretch(self, factor: Factor, moved: torch.Tensor) -> bool:
        """True where a stretched axis that met nothing yet is merged or split: it stays as it is from here on."""
        ids = factor.ids
        mine = any(first <= ids[0] <= last for first, last in self.analysis.stretched) if len(ids) else False
        if not mine or not np.array_equal(self.ids.find(ids), ids):
            return False
        lengths = [n for n, step in zip(moved.shape, moved.stride(), strict=True) if n > 1 and step != 0]
        if len(lengths) <= 1 and (not lengths or len(np.unique(moved.numpy())) == lengths[0]):
            return False
        self.pin([ids], "a stretched axis is merged with another")
        return True

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


UNKNOWN_SIZE = 7
"""Stands for a size that depends on the values of the input (how many entries of a mask are set)."""


def concrete_int(size: Any) -> int:
    """A plain int for an int or a symbolic size."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    hint = size.node.hint
    if hint is not None:
        return int(hint)
    environment = size.node.shape_env
    known = getattr(environment, "backed_var_to_val", None) or getattr(environment, "var_to_val", {})
    expression = size.node.expr
    return int(expression.xreplace({s: known.get(s, UNKNOWN_SIZE) for s in expression.free_symbols}))
