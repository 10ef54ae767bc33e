"""Exact maximisation of a sum of small tables by variable elimination, with max-marginals.

For fixed prices of the constraints a problem is a sum of tables over few variables each. Eliminating one variable
after the other (an order of small intermediate tables) gives the exact maximum and, on the way back, for every state
of every variable the best total that uses it. Networks are nearly chains, so the tables stay small; where one would
not, a variable is copied and the copies may differ, which keeps every figure a valid upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from secateurs.search.tables import Tables

FORBIDDEN = -1e12
"""Weight of a combination that cannot be; finite, so that differences of messages stay numbers."""

Scope = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """One table of the sum: ``worth`` [states …] minus prices times ``costs`` [constraints, states …].

    ``rule``: ``worth`` says what cannot be, not what something is worth.
    """

    scope: Scope
    worth: np.ndarray | None
    costs: np.ndarray | None
    rule: bool = False


@dataclass(frozen=True)
class Best:
    """``bound``: the maximum of value minus priced costs; ``value`` and ``costs`` of the maximiser (offsets included);
    ``states``: per group; ``removed``: blocks; ``proper``: False where copies of a variable disagree."""

    bound: float
    value: float
    costs: np.ndarray
    states: np.ndarray
    removed: frozenset[int]
    proper: bool


@dataclass(frozen=True)
class Passes:
    """Both passes for some prices, per bucket.

    ``beliefs`` [scope]: bound of any network with these states; ``messages`` [rest]: best of the bucket and all below;
    ``downward`` [rest]: best of everything else, so that message + downward is the bound.
    """

    bound: float
    beliefs: list[np.ndarray]
    messages: list[np.ndarray]
    downward: list[np.ndarray]


@dataclass(frozen=True)
class Bucket:
    """The step that eliminates ``variable``: the pieces and buckets that end here, and what is left in scope."""

    variable: int
    scope: Scope
    rest: Scope
    pieces: tuple[int, ...]
    children: tuple[int, ...]


class Elimination:
    """The sum of tables of one problem, ready to be maximised for any prices.

    Args:
        tables: the problem.
        largest: most entries of an intermediate table.
    """

    def __init__(self, tables: Tables, *, largest: int = 1 << 20) -> None:
        self.tables = tables
        self.blocks = sorted(tables.block_values)
        count = len(tables.variables)
        self.sizes = [variable.size for variable in tables.variables] + [2] * len(self.blocks)
        self.block_variable = {block: count + i for i, block in enumerate(self.blocks)}
        self.origin = list(range(len(self.sizes)))
        self.pieces: list[Piece] = list(self._pieces())
        self.buckets = self._plan(largest)
        self.split = len(self.origin) > count + len(self.blocks)

    @property
    def entries(self) -> int:
        """Entries of all intermediate tables together: the work of one evaluation."""
        return sum(int(np.prod([self.sizes[v] for v in bucket.scope])) for bucket in self.buckets)

    def _pieces(self) -> list[Piece]:
        tables, found = self.tables, []
        for group, worth in enumerate(tables.values):
            found.append(Piece((group,), worth, None))
            blocks = tables.variables[group].blocks
            if blocks:
                scope = (group, *(self.block_variable[b] for b in sorted(blocks)))
                found.append(Piece(scope, self._vanishing(group, len(blocks)), None, rule=True))
        for block, kept in tables.block_values.items():
            found.append(Piece((self.block_variable[block],), np.array([kept, 0.0]), None))
        for total in tables.sums:
            scope = (total.first, total.second, total.total) if total.first >= 0 else (total.second, total.total)
            states = np.arange(self.sizes[total.total])
            allowed = (states >= total.low[..., None]) & (states <= total.high[..., None])
            mask = np.where(allowed if total.first >= 0 else allowed[0], 0.0, FORBIDDEN)
            found.append(Piece(scope, mask, None, rule=True))
        for factor in tables.factors:
            found.append(self._cost_piece(factor.scope, factor.blocks, factor.costs))
        return found

    def _vanishing(self, group: int, blocks: int) -> np.ndarray:
        """0 where "gone" agrees with a removed block (state 1), forbidden elsewhere: [group states, 2, …]."""
        gone = np.zeros((2,) * blocks, dtype=bool)
        gone[...] = True
        gone[(0,) * blocks] = False
        last = (np.arange(self.sizes[group]) == self.sizes[group] - 1).reshape(-1, *(1,) * blocks)
        return np.where(last == gone[None], 0.0, FORBIDDEN)

    def _cost_piece(self, scope: Scope, blocks: frozenset[int], costs: np.ndarray) -> Piece:
        """The factor with its blocks' variables, or with cost 0 at "gone" where that says the same."""
        for axis, variable in enumerate(scope):
            if blocks and self.tables.variables[variable].blocks == blocks:
                costs = costs.copy()
                np.moveaxis(costs, axis + 1, 0)[-1] = 0.0
                return Piece(scope, None, costs)
        gates = tuple(self.block_variable[b] for b in sorted(blocks))
        full = np.zeros((*costs.shape, *(2,) * len(gates)))
        full[(slice(None),) * costs.ndim + (0,) * len(gates)] = costs
        return Piece((*scope, *gates), None, full)

    def _plan(self, largest: int) -> list[Bucket]:
        """An order of small intermediate tables; copies a variable where one would exceed ``largest`` entries.

        Open items are pieces (their index) and messages of buckets (minus their index minus one).
        """
        scopes: dict[int, Scope] = {index: piece.scope for index, piece in enumerate(self.pieces)}
        buckets: list[Bucket] = []
        left = set(range(len(self.sizes)))
        weights: dict[int, float] = {}
        while left:
            for v in left - weights.keys():
                weights[v] = self._weight(v, scopes)
            variable = min(left, key=lambda v: (weights[v], v))
            touching = [item for item, scope in scopes.items() if variable in scope]
            touched = {v for item in touching for v in scopes[item]}
            if weights[variable] > largest and len(touching) > 1:
                left.add(self._copy(variable, touching, scopes, buckets, largest))
                touching = [item for item in touching if variable in scopes[item]]
            scope = tuple(sorted({v for item in touching for v in scopes[item]} | {variable}))
            rest = tuple(v for v in scope if v != variable)
            pieces = tuple(item for item in touching if item >= 0)
            buckets.append(Bucket(variable, scope, rest, pieces, tuple(-item - 1 for item in touching if item < 0)))
            for item in touching:
                del scopes[item]
            if rest:
                scopes[-len(buckets)] = rest
            left.discard(variable)
            for v in touched:
                weights.pop(v, None)
        return buckets

    def _weight(self, variable: int, scopes: dict[int, Scope]) -> float:
        scope = {v for s in scopes.values() if variable in s for v in s} | {variable}
        return float(np.prod([float(self.sizes[v]) for v in scope]))

    def _copy(
        self, variable: int, touching: list[int], scopes: dict[int, Scope], buckets: list[Bucket], largest: int
    ) -> int:
        """The number of a new copy of ``variable``, to which everything moves that does not fit beside the rest."""
        copy = len(self.sizes)
        self.sizes.append(self.sizes[variable])
        self.origin.append(self.origin[variable])
        kept: set[int] = set()
        for item in sorted(touching, key=lambda i: (-len(scopes[i]), i)):
            wider = kept | set(scopes[item])
            if not kept or np.prod([float(self.sizes[v]) for v in wider]) <= largest:
                kept = wider
                continue
            scopes[item] = _renamed(scopes[item], variable, copy)
            self._rename(item, variable, copy, buckets)
        return copy

    def _rename(self, item: int, old: int, new: int, buckets: list[Bucket]) -> None:
        """Write ``new`` for ``old`` in a piece, or in a bucket and everything below it."""
        if item >= 0:
            piece = self.pieces[item]
            self.pieces[item] = replace(piece, scope=_renamed(piece.scope, old, new))
            return
        bucket = buckets[-item - 1]
        if old not in bucket.scope:
            return
        scope, rest = _renamed(bucket.scope, old, new), _renamed(bucket.rest, old, new)
        buckets[-item - 1] = replace(bucket, scope=scope, rest=rest)
        for below in (*bucket.pieces, *(-child - 1 for child in bucket.children)):
            self._rename(below, old, new, buckets)

    def solve(
        self, prices: np.ndarray, *, marginals: bool = False, worthless: bool = False
    ) -> tuple[Best, list[np.ndarray]]:
        """The maximiser of value - prices · (costs - limits), and where asked the max-marginals.

        Args:
            prices: ≥ 0 per constraint.
            worthless: count every value as 0, which leaves the cheapest network.
            marginals: whether to compute, per variable of the tables and then per block (kept, removed), the best
                total of every state: an upper bound, as :attr:`Best.bound` is, of the value of any legal network
                within the limits that uses the state.
        """
        tables, messages, bound = self._upwards(prices, worthless)
        found = self._per_state(self._beliefs(tables, messages, bound)[0]) if marginals else []
        return self._best(self._decode(tables), bound), found

    def passes(self, prices: np.ndarray, *, worthless: bool = False) -> Passes:
        """Everything both passes compute for these prices (see :class:`Passes`)."""
        tables, messages, bound = self._upwards(prices, worthless)
        beliefs, downward = self._beliefs(tables, messages, bound)
        return Passes(bound, beliefs, messages, downward)

    def _upwards(self, prices: np.ndarray, worthless: bool) -> tuple[list[np.ndarray], list[np.ndarray], float]:
        tables: list[np.ndarray] = []
        messages: list[np.ndarray] = []
        for bucket in self.buckets:
            table = np.zeros([self.sizes[v] for v in bucket.scope])
            for index in bucket.pieces:
                piece = self.pieces[index]
                if piece.worth is not None and (piece.rule or not worthless):
                    table += onto(piece.worth, piece.scope, bucket.scope)
                if piece.costs is not None:
                    table -= onto(np.tensordot(prices, piece.costs, axes=1), piece.scope, bucket.scope)
            for child in bucket.children:
                table += onto(messages[child], self.buckets[child].rest, bucket.scope)
            tables.append(table)
            messages.append(table.max(axis=bucket.scope.index(bucket.variable)))
        offset = 0.0 if worthless else self.tables.value_offset
        bound = offset - float(prices @ (self.tables.offset - self.tables.limits))
        bound += sum(float(messages[i]) for i, bucket in enumerate(self.buckets) if not bucket.rest)
        return tables, messages, bound

    def _decode(self, tables: list[np.ndarray]) -> np.ndarray:
        states = np.zeros(len(self.sizes), dtype=np.int64)
        for bucket, table in zip(reversed(self.buckets), reversed(tables), strict=True):
            at = tuple(slice(None) if v == bucket.variable else int(states[v]) for v in bucket.scope)
            states[bucket.variable] = int(np.argmax(table[at]))
        return states

    def _best(self, states: np.ndarray, bound: float) -> Best:
        value, costs = self.tables.value_offset, np.array(self.tables.offset)
        for piece in self.pieces:
            at = tuple(int(states[v]) for v in piece.scope)
            if piece.worth is not None:
                value += float(piece.worth[at])
            if piece.costs is not None:
                costs += piece.costs.reshape(len(costs), -1)[:, np.ravel_multi_index(at, piece.costs.shape[1:])]
        removed = frozenset(b for b, v in self.block_variable.items() if states[v] == 1)
        proper = all(states[v] == states[o] for v, o in enumerate(self.origin))
        return Best(bound, value, costs, states[: len(self.tables.values)], removed, proper)

    def _beliefs(
        self, tables: list[np.ndarray], messages: list[np.ndarray], bound: float
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        beliefs: list[np.ndarray] = [np.zeros(0)] * len(self.buckets)
        downward: list[np.ndarray] = [np.zeros(())] * len(self.buckets)
        for index in reversed(range(len(self.buckets))):
            bucket = self.buckets[index]
            if not bucket.rest:
                downward[index] = np.asarray(bound - float(messages[index]))
            belief = tables[index] + onto(downward[index], bucket.rest, bucket.scope)
            beliefs[index] = belief
            for child in bucket.children:
                rest = self.buckets[child].rest
                dropped = tuple(i for i, v in enumerate(bucket.scope) if v not in rest)
                kept = [v for v in bucket.scope if v in rest]
                best = np.transpose(belief.max(axis=dropped), [kept.index(v) for v in rest])
                downward[child] = best - messages[child]
        return beliefs, downward

    def _per_state(self, beliefs: list[np.ndarray]) -> list[np.ndarray]:
        count = len(self.tables.variables) + len(self.blocks)
        result = [np.full(self.sizes[v], np.inf) for v in range(count)]
        for bucket, belief in zip(self.buckets, beliefs, strict=True):
            here = self.origin[bucket.variable]
            others = tuple(i for i, v in enumerate(bucket.scope) if v != bucket.variable)
            result[here] = np.minimum(result[here], belief.max(axis=others))
        return result


def _renamed(scope: Scope, old: int, new: int) -> Scope:
    return tuple(new if v == old else v for v in scope)


def onto(table: np.ndarray, scope: Scope, target: Scope) -> np.ndarray:
    """``table`` over ``scope`` with its axes moved and stretched to broadcast over ``target``."""
    order = sorted(range(len(scope)), key=lambda axis: target.index(scope[axis]))
    moved = np.transpose(table, order)
    shape = [1] * len(target)
    for axis, size in zip(order, moved.shape, strict=True):
        shape[target.index(scope[axis])] = size
    return moved.reshape(shape)
