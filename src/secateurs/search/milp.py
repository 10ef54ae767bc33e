"""The tables as a mixed-integer linear program, solved by HiGHS (docs/methods.md, "Exact allocation").

Every variable is a one-hot. A cost over two variables stays linear through continuous z[a, b] whose marginals are the
two one-hots; a block's binary y gates its terms: z of a gated term sums to y. A sum of groups is a one-hot of its own,
tied to its parts by such a z (short sums) or by one bracketing equation (long ones).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from secateurs.errors import PlanError
from secateurs.search.tables import Factor, Sum, Tables, alike, tightness

PAIRS_AT_MOST = 1 << 14
"""Sums with more (part, part) combinations than this are tied by one equation instead of by z."""


@dataclass(frozen=True)
class MilpResult:
    """``states``: chosen state per group; ``removed``: blocks; ``bound``: proven upper bound of the value.

    ``states`` is None where nothing was found; ``infeasible`` says that nothing exists.
    """

    states: np.ndarray | None
    removed: frozenset[int]
    bound: float
    infeasible: bool
    seconds_exceeded: bool


def solve_milp(
    tables: Tables,
    *,
    limits: np.ndarray | None = None,
    minimise: int | None = None,
    gap: float = 1e-4,
    seconds: float = 60.0,
) -> MilpResult:
    """The states of largest value within the limits, or of least cost ``minimise`` (a constraint's index).

    Args:
        tables: what :func:`secateurs.search.tables.tabulate` gives.
        limits: limits per constraint instead of the problem's own; infinite ones are ignored.
        minimise: index of the constraint whose cost is made smallest instead of the value largest.
        gap: relative optimality gap at which to stop.
        seconds: time limit.

    Raises:
        PlanError: HiGHS failed for another reason than infeasibility or time.
    """
    program = _Program(tables)
    limits = tables.limits if limits is None else np.asarray(limits, dtype=np.float64)
    return program.solve(limits, minimise, gap, seconds)


@contextmanager
def _stdout_closed() -> Iterator[None]:
    """HiGHS prints debugging lines past Python's stdout, where machine-readable results go: drop them."""
    try:
        sys.stdout.flush()
        kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):
        yield
        return
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


class _Program:
    """Columns, rows and costs of the program, collected piece by piece."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.columns = 0
        self.integral: list[int] = []
        self.value: list[tuple[int, float]] = []
        self.cost: list[tuple[np.ndarray, np.ndarray]] = []
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.pairs: dict[tuple[int, int, frozenset[int]], np.ndarray] = {}
        self.keep = {block: int(self._new(1, integral=True)[0]) for block in sorted(tables.block_values)}
        self.gates: dict[frozenset[int], int] = {}
        self.states = [self._one_hot(index) for index in range(len(tables.variables))]
        self._values()
        for total in tables.sums:
            self._tie(total)
        for factor in tables.factors:
            self._factor(factor)

    def _new(self, count: int, *, integral: bool) -> np.ndarray:
        columns = np.arange(self.columns, self.columns + count)
        self.columns += count
        self.integral += [int(integral)] * count
        return columns

    def _row(
        self, columns: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray, low: float, high: float
    ) -> None:
        self.rows.append((np.asarray(columns), np.asarray(weights, dtype=np.float64)))
        self.low.append(low)
        self.high.append(high)

    def _one_hot(self, index: int) -> np.ndarray:
        variable = self.tables.variables[index]
        columns = self._new(variable.size, integral=True)
        self._row(columns, np.ones(len(columns)), 1.0, 1.0)
        if variable.blocks:
            self._row([columns[-1], self._gate(variable.blocks)], [1.0, 1.0], 1.0, 1.0)
        return columns

    def _gate(self, blocks: frozenset[int]) -> int:
        """The column that is 1 while none of the blocks is removed."""
        if len(blocks) == 1:
            return self.keep[next(iter(blocks))]
        if blocks not in self.gates:
            column = int(self._new(1, integral=False)[0])
            keeps = [self.keep[block] for block in sorted(blocks)]
            for keep in keeps:
                self._row([column, keep], [1.0, -1.0], -np.inf, 0.0)
            self._row([column, *keeps], [1.0] + [-1.0] * len(keeps), 1.0 - len(keeps), np.inf)
            self.gates[blocks] = column
        return self.gates[blocks]

    def _values(self) -> None:
        for columns, worth in zip(self.states, self.tables.values, strict=False):
            self.value += [(int(c), float(v)) for c, v in zip(columns, worth, strict=True)]
        self.value += [(self.keep[block], worth) for block, worth in self.tables.block_values.items()]

    def _tie(self, total: Sum) -> None:
        variables, columns = self.tables.variables, self.states[total.total]
        parts = [total.second] if total.first < 0 else [total.first, total.second]
        exact = variables[total.total].exact and all(variables[part].exact for part in parts)
        if exact and total.high.size <= PAIRS_AT_MOST:
            if len(parts) == 1:
                z = self.states[total.second][None, :]
            else:
                z = self._pair(total.first, total.second, frozenset())
            for state, column in enumerate(columns):
                here = z[total.high == state]
                self._row([column, *here], [1.0] + [-1.0] * len(here), 0.0, 0.0)
            return
        variable = variables[total.total]
        inside = [self.states[group] for group, _ in variable.parts]
        weights = [per_unit * variables[group].lengths.astype(np.float64) for group, per_unit in variable.parts]
        scale = 1.0 / max(1.0, float(variable.lengths[-1]))
        every, length = np.concatenate(inside), np.concatenate(weights)
        joined = np.concatenate([columns, every])
        self._row(joined, np.concatenate([variable.lengths, -length]) * scale, 0.0, 0.0 if variable.exact else np.inf)
        if not variable.exact:
            self._row(joined, np.concatenate([variable.lowest, -length]) * scale, -np.inf, 0.0)

    def _live(self, variable: int, blocks: frozenset[int]) -> np.ndarray:
        """Columns of the states that a factor gated by ``blocks`` can see (not "gone" when it then vanishes too)."""
        own = self.tables.variables[variable].blocks
        return self.states[variable][:-1] if own and own <= blocks else self.states[variable]

    def _pair(
        self,
        first: int,
        second: int,
        blocks: frozenset[int],
        classes: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Columns z [first classes, second classes] whose marginals are the two one-hots, gated by ``blocks``."""
        sides = [self._live(first, blocks), self._live(second, blocks)]
        key = (first, second, blocks)
        if classes is None and key in self.pairs:
            return self.pairs[key]
        labels = classes or (np.arange(len(sides[0])), np.arange(len(sides[1])))
        shape = (int(labels[0].max()) + 1, int(labels[1].max()) + 1)
        z = self._new(shape[0] * shape[1], integral=False).reshape(shape)
        for axis, variable in enumerate((first, second)):
            own = self.tables.variables[variable].blocks
            equal = blocks == own or (not blocks)
            for label in range(shape[axis]):
                members = sides[axis][labels[axis] == label]
                line = np.take(z, label, axis=axis)
                weights = np.concatenate([np.ones(len(line)), -np.ones(len(members))])
                self._row(np.concatenate([line, members]), weights, 0.0 if equal else -np.inf, 0.0)
        if blocks and not any(blocks == self.tables.variables[v].blocks for v in (first, second)):
            self._row([*z.reshape(-1), self._gate(blocks)], [1.0] * z.size + [-1.0], 0.0, 0.0)
        if classes is None:
            self.pairs[key] = z
        return z

    def _factor(self, factor: Factor) -> None:
        if not factor.scope:
            self.cost.append((np.array([self._gate(factor.blocks)]), factor.costs.reshape(-1, 1)))
        elif len(factor.scope) == 1:
            self._unary(factor.scope[0], factor.blocks, factor.costs)
        else:
            self._binary(factor)

    def _unary(self, variable: int, blocks: frozenset[int], costs: np.ndarray) -> None:
        own, columns = self.tables.variables[variable].blocks, self._live(variable, blocks)
        costs = costs[:, : len(columns)]
        if blocks and blocks != own:
            gated = self._new(len(columns), integral=False)
            for here, there in zip(gated, columns, strict=True):
                self._row([here, there], [1.0, -1.0], -np.inf, 0.0)
            self._row([*gated, self._gate(blocks)], [1.0] * len(gated) + [-1.0], 0.0, 0.0)
            columns = gated
        self.cost.append((columns, costs))

    def _binary(self, factor: Factor) -> None:
        first, second = factor.scope
        rows, cols = len(self._live(first, factor.blocks)), len(self._live(second, factor.blocks))
        costs = factor.costs[:, :rows, :cols]
        if np.all(tightness(costs) <= 1e-12 * np.abs(costs).reshape(len(costs), -1).max(axis=1, initial=0.0)):
            full = factor.costs
            self._unary(first, factor.blocks, full[:, :, 0])
            self._unary(second, factor.blocks, full[:, 0, :] - full[:, :1, 0])
            return
        labels_first, shown_first = alike(np.moveaxis(costs, 1, 0))
        labels_second, shown_second = alike(np.moveaxis(costs, 2, 0))
        if len(shown_first) * len(shown_second) < costs[0].size:
            z = self._pair(first, second, factor.blocks, (labels_first, labels_second))
            costs = costs[:, shown_first][:, :, shown_second]
        else:
            z = self._pair(first, second, factor.blocks)
        self.cost.append((z.reshape(-1), costs.reshape(len(costs), -1)))

    def solve(self, limits: np.ndarray, minimise: int | None, gap: float, seconds: float) -> MilpResult:
        costs = np.zeros((len(limits), self.columns))
        for columns, weights in self.cost:
            for constraint in range(len(limits)):
                np.add.at(costs[constraint], columns, weights[constraint])
        objective = np.zeros(self.columns)
        for column, worth in self.value:
            objective[column] -= worth
        if minimise is not None:
            objective = costs[minimise]
        matrix, low, high = self._matrix(costs, limits)
        options = {"mip_rel_gap": gap, "time_limit": max(0.05, seconds)}
        with _stdout_closed():
            result = milp(
                objective,
                integrality=np.array(self.integral),
                bounds=Bounds(np.zeros(self.columns), np.ones(self.columns)),
                constraints=LinearConstraint(matrix, low, high),
                options=options,
            )
        if result.status == 2:
            return MilpResult(None, frozenset(), -np.inf, True, False)
        if result.x is None and result.status != 1:
            raise PlanError(f"The MILP solver stopped with: {result.message} Try another budget or coarser widths.")
        late = result.status == 1
        dual = result.mip_dual_bound
        bound = np.inf if dual is None or not np.isfinite(dual) else -float(dual)
        if minimise is None:
            bound += self.tables.value_offset
        else:
            bound += -float(self.tables.offset[minimise])
        if result.x is None:
            return MilpResult(None, frozenset(), bound, False, late)
        states = np.array([int(np.argmax(result.x[c])) for c in self.states[: len(self.tables.values)]])
        removed = frozenset(block for block, column in self.keep.items() if result.x[column] < 0.5)
        return MilpResult(states, removed, bound, False, late)

    def _matrix(self, costs: np.ndarray, limits: np.ndarray) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
        rows, low, high = list(self.rows), list(self.low), list(self.high)
        for constraint, limit in enumerate(limits):
            if np.isfinite(limit):
                used = np.flatnonzero(costs[constraint])
                scale = 1.0 / max(1e-300, float(np.abs(costs[constraint]).max(initial=0.0)))
                rows.append((used, costs[constraint, used] * scale))
                low.append(-np.inf)
                high.append((limit - float(self.tables.offset[constraint])) * scale)
        index = np.concatenate([columns for columns, _ in rows])
        weights = np.concatenate([weight for _, weight in rows])
        pointer = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])])
        matrix = csr_matrix((weights, index, pointer), shape=(len(rows), self.columns))
        matrix.sum_duplicates()
        return matrix, np.array(low), np.array(high)
