"""A problem as finite variables and cost tables: what the exact solvers work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.cost import CostTerm
from secateurs.network import AxisSpec
from secateurs.search.options import merged_parts, reachable_lengths
from secateurs.search.problem import Problem

Parts = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Variable:
    """One discrete choice.

    ``group``: the group, or None for a sum over several groups; ``lengths``: per state the width (group) or the
    longest sum that the state stands for; ``lowest``: the shortest one; ``blocks``: removable blocks with which the
    group vanishes, its last state then being "gone".
    """

    group: int | None
    parts: Parts
    lengths: np.ndarray
    lowest: np.ndarray
    blocks: frozenset[int]

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self.lengths)

    @property
    def exact(self) -> bool:
        """Whether every state stands for one length only."""
        return bool(np.array_equal(self.lengths, self.lowest))


@dataclass(frozen=True)
class Factor:
    """Costs [constraints, states …] over at most two variables, alive while none of ``blocks`` is removed."""

    scope: tuple[int, ...]
    blocks: frozenset[int]
    costs: np.ndarray


@dataclass(frozen=True)
class Sum:
    """Variable ``total`` is ``first + per_unit * second``; ``first`` is -1 where there is nothing to add to.

    ``low``/``high`` [first, second]: first and last state of the total that the two states can give; equal unless
    long sums were rounded.
    """

    total: int
    first: int
    second: int
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Tables:
    """Variables (groups first, in order), cost factors, sums, values per state of each group.

    ``block_values``: per removable block; ``value_offset``: value of the blocks that always stay; ``offset``: constant
    cost per constraint; ``exact``: False where long sums were rounded to breakpoints, costs
    then being the largest within each interval, so never too low.
    """

    variables: tuple[Variable, ...]
    factors: tuple[Factor, ...]
    sums: tuple[Sum, ...]
    values: tuple[np.ndarray, ...]
    block_values: dict[int, float]
    value_offset: float
    offset: np.ndarray
    limits: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether no sum was rounded."""
        return all(variable.exact for variable in self.variables)


def tabulate(
    problem: Problem, *, breakpoints: int = 256, around: np.ndarray | None = None, optimistic: bool = False
) -> Tables:
    """The problem's variables and tables.

    Args:
        problem: any problem.
        breakpoints: most states of a sum; longer ones are rounded up to this many, evenly spaced.
        around: widths near which every reachable sum stays a state of its own (to sharpen a second solve).
        optimistic: price a rounded sum by the smallest cost within its interval instead of the largest: bounds
            computed from such tables hold for the problem itself.
    """
    builder = _Builder(problem, breakpoints, around, np.minimum if optimistic else np.maximum)
    for column, constraint in enumerate(problem.constraints):
        for term in constraint.model.terms:
            builder.add(column, term)
    return builder.finish()


class _Builder:
    def __init__(self, problem: Problem, breakpoints: int, around: np.ndarray | None, fold: np.ufunc) -> None:
        self.problem, self.breakpoints, self.around, self.fold = problem, breakpoints, around, fold
        self.variables = [self._group(index) for index in range(len(problem.options))]
        self.by_parts: dict[Parts, int] = {}
        self.sums: list[Sum] = []
        self.merged: dict[tuple[tuple[int, ...], frozenset[int]], np.ndarray] = {}
        self.offset = np.array([c.model.offset for c in problem.constraints], dtype=np.float64)

    def _group(self, index: int) -> Variable:
        widths, blocks = np.asarray(self.problem.options[index], dtype=np.int64), self.problem.inner_blocks[index]
        if blocks:
            widths = np.append(widths, widths[0])
        return Variable(index, ((index, 1),), widths, widths, blocks)

    def add(self, column: int, term: CostTerm) -> None:
        """Add one term's costs to the factor over its variables."""
        sides = [self._side(axis) for axis in (term.inputs, term.outputs)]
        grid = term.cost(sides[0].all_lengths[:, None], sides[1].all_lengths[None, :])
        table = np.broadcast_to(np.asarray(grid, dtype=np.float64), [len(side.all_lengths) for side in sides])
        for axis, side in enumerate(sides):
            table = self.fold.reduceat(table, side.starts, axis=axis) if side.starts is not None else table
            table = np.take(table, side.states, axis=axis)
        blocks = frozenset(term.blocks) & self.problem.removable
        first, second = sides[0].variable, sides[1].variable
        scope: tuple[int, ...] = (first, second) if first is not None and second is not None else ()
        if first is not None and first == second:
            scope, table = (first,), np.diagonal(table).copy()
        elif not scope:
            scope = tuple(v for v in (first, second) if v is not None)
            table = table.reshape(-1) if scope else table.reshape(())
        elif scope[0] > scope[1]:
            scope, table = (scope[1], scope[0]), table.T
        self._merge(column, scope, blocks, table)

    def _merge(self, column: int, scope: tuple[int, ...], blocks: frozenset[int], table: np.ndarray) -> None:
        if not scope and not blocks:
            self.offset[column] += float(table)
            return
        key = (scope, blocks)
        if key not in self.merged:
            self.merged[key] = np.zeros((len(self.offset), *table.shape))
        self.merged[key][column] += table

    def _side(self, axis: AxisSpec | None) -> _Side:
        if axis is None:
            return _Side(None, np.zeros(1, dtype=np.int64), None, np.zeros(1, dtype=np.int64))
        parts = merged_parts(axis)
        if not parts:
            return _Side(None, np.array([axis.fixed], dtype=np.int64), None, np.zeros(1, dtype=np.int64))
        if len(parts) == 1:
            group, per_unit = parts[0]
            lengths = axis.fixed + per_unit * self.variables[group].lengths
            return _Side(group, lengths, None, np.arange(len(lengths)))
        index = self._sum(parts)
        variable = self.variables[index]
        if variable.exact:
            return _Side(index, axis.fixed + variable.lengths, None, np.arange(variable.size))
        everything = reachable_lengths(AxisSpec(0, parts), self.problem.options)
        starts = np.searchsorted(everything, variable.lowest)
        return _Side(index, axis.fixed + everything, starts, np.arange(variable.size))

    def _sum(self, parts: Parts) -> int:
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        if parts in self.by_parts:
            return self.by_parts[parts]
        rest, last = self._split(parts)
        first = self._sum(rest) if rest else None
        lengths = reachable_lengths(AxisSpec(0, parts), self.problem.options)
        highest, lowest = self._round(lengths, parts)
        index = len(self.variables)
        self.variables.append(Variable(None, parts, highest, lowest, frozenset()))
        self.by_parts[parts] = index
        group, per_unit = last
        more = per_unit * self.variables[group].lengths[None, :]
        zero = np.zeros(1, dtype=np.int64)
        start, end = (zero, zero) if first is None else (self.variables[first].lowest, self.variables[first].lengths)
        low, high = (np.searchsorted(highest, ends[:, None] + more) for ends in (start, end))
        self.sums.append(Sum(index, -1 if first is None else first, group, low, high))
        return index

    def _split(self, parts: Parts) -> tuple[Parts, tuple[int, int]]:
        """The parts as an already known sum plus one group where possible, else without the last group."""
        for last in reversed(parts):
            rest = tuple(part for part in parts if part != last)
            if rest in self.by_parts:
                return rest, last
        known = [other for other in self.by_parts if set(other) < set(parts)]
        inside: set[tuple[int, int]] = set()
        for other in known:
            inside = set(other) if len(other) > len(inside) else inside
        last = [part for part in parts if part not in inside][-1]
        return tuple(part for part in parts if part != last), last

    def _round(self, lengths: np.ndarray, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
        if len(lengths) <= self.breakpoints:
            return lengths, lengths
        chosen = np.unique(np.linspace(0, len(lengths) - 1, self.breakpoints).round().astype(np.int64))
        if self.around is not None:
            centre = int(np.searchsorted(lengths, sum(m * int(self.around[g]) for g, m in parts)))
            reach = max(1, self.breakpoints // 8)
            near = np.arange(max(0, centre - reach), min(len(lengths), centre + reach + 1))
            chosen = np.union1d(chosen, near)
        return lengths[chosen], lengths[np.concatenate([[0], chosen[:-1] + 1])]

    def finish(self) -> Tables:
        """Everything added so far."""
        problem = self.problem
        values = []
        for group, variable in enumerate(self.variables[: len(problem.options)]):
            curve = np.asarray(problem.values[group], dtype=np.float64)
            worth = curve[variable.lengths]
            if variable.blocks:
                worth[-1] = curve[0]
            values.append(worth)
        kept = {block: float(problem.keep_values[block]) for block in sorted(problem.removable)}
        fixed = sum(float(v) for b, v in enumerate(problem.keep_values) if b not in problem.removable)
        factors = tuple(Factor(scope, blocks, costs) for (scope, blocks), costs in self.merged.items())
        return Tables(
            variables=tuple(self.variables),
            factors=factors,
            sums=tuple(self.sums),
            values=tuple(values),
            block_values=kept,
            value_offset=fixed,
            offset=self.offset,
            limits=problem.limits,
        )


@dataclass(frozen=True)
class _Side:
    """One side of a term: its variable, the lengths to price, and how they fold into the variable's states."""

    variable: int | None
    all_lengths: np.ndarray
    starts: np.ndarray | None
    states: np.ndarray


def tightness(table: np.ndarray) -> np.ndarray:
    """Largest absolute interaction per constraint of a pair table [constraints, a, b]: 0 where it is a sum a + b."""
    corner = table[:, :1, :1]
    interaction = table - table[:, :, :1] - table[:, :1, :] + corner
    return np.abs(interaction).reshape(len(table), -1).max(axis=1, initial=0.0)


def alike(rows: np.ndarray) -> tuple[np.ndarray, Sequence[int]]:
    """Class of every row [n] and one representative per class, for rows [n, …] that are exactly equal."""
    flat = rows.reshape(len(rows), -1)
    _, first, inverse = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    return inverse.reshape(-1), [int(i) for i in first]
