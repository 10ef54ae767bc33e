"""Widths and a precision per layer in one problem (docs/methods.md, "Widths and precisions in one problem").

Every layer that can be quantised has a group of its own behind the network's, whose "width" is its precision. What a
layer takes depends on it and on both widths: the precision is folded into the length of an axis, so that every exact
search solves the joint problem as it is. Where a value passes between layers of unlike precision it is converted, at a
cost of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from secateurs.cost import CostModel, CostTerm
from secateurs.errors import InfeasibleBudgetError
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, LayerSpec, NetworkSpec, Passed
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution, Strategy

FLOAT, INT8 = 1, 2
"""Widths of a layer's group of precision; the dense network is quantised throughout."""
SUFFIX = ":int8"
"""Ends the name of such a group."""
_FOLD = 1 << 20
"""A folded axis is its length + _FOLD x precision."""
_TRUST = 1.0
"""Weight, in mixes, of the belief that float operators take as long between quantised ones as in a float file."""


@dataclass(frozen=True)
class Conversions:
    """What mixing costs beside the layers themselves, in ms.

    ``scale``: time of a float layer in a mixed file / in a float one; ``to_int8`` and ``to_float``: of one conversion,
    (at all, per element).
    """

    scale: float = 1.0
    to_int8: tuple[float, float] = (0.0, 0.0)
    to_float: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Mix:
    """A network whose layers can each be quantised or not. ``spec``: its own numbers; ``layers``: those layers' names;
    ``passed``: values between layers; ``int8`` and ``in_float``: what the network costs in either precision."""

    spec: NetworkSpec
    layers: tuple[str, ...]
    passed: tuple[Passed, ...]
    int8: CostModel
    in_float: CostModel

    def extended(self) -> NetworkSpec:
        """The network's numbers with a group of precision per layer; they vanish with the layer's blocks."""
        first, by_name = len(self.spec.groups), self._by_name()
        more = tuple(GroupSpec(f"{name}{SUFFIX}", INT8, FLOAT) for name in self.layers)
        blocks = tuple(
            BlockSpec(
                block.name,
                (*block.groups, *(first + i for i, name in enumerate(self.layers) if number in by_name[name].blocks)),
                block.nodes,
                block.add,
            )
            for number, block in enumerate(self.spec.blocks)
        )
        return replace(self.spec, groups=(*self.spec.groups, *more), blocks=blocks)

    def model(self, conversions: Conversions) -> CostModel:
        """What a network costs at its widths and precisions; all quantised it is the model ``int8``."""
        groups = {name: len(self.spec.groups) + i for i, name in enumerate(self.layers)}
        terms = [
            term if term.name not in groups else _gated(term, groups[term.name], INT8, 1.0) for term in self.int8.terms
        ]
        terms += [
            _gated(term, groups[term.name], FLOAT, conversions.scale)
            for term in self.in_float.terms
            if term.name in groups
        ]
        terms += [self._border(one, groups, conversions) for one in self.passed]
        return CostModel(self.int8.unit, self.int8.offset, tuple(terms))

    def _border(self, passed: Passed, groups: Mapping[str, int], conversions: Conversions) -> CostTerm:
        """Conversions of a value between two layers."""
        by_name = self._by_name()
        ends = [None if name not in groups else by_name[str(name)] for name in (passed.source, passed.reader)]
        source, reader = ends
        axis = AxisSpec(1) if source is None and reader is None else _channels(source, reader)
        each = passed.elements / max(1, int(axis.length(self.spec.dense_widths)))
        made = axis if source is None else _folded(axis, groups[source.name])
        read = None if reader is None else AxisSpec(0, ((groups[reader.name], 1),))

        def cost(lengths: np.ndarray, precision: np.ndarray) -> np.ndarray:
            elements = each * (lengths % _FOLD)
            before = INT8 if source is None else lengths // _FOLD
            behind = INT8 if reader is None else precision
            to_int8, to_float = (fixed + rate * elements for fixed, rate in (conversions.to_int8, conversions.to_float))
            quantises = np.logical_and(np.equal(before, FLOAT), np.equal(behind, INT8))
            dequantises = np.logical_and(np.equal(before, INT8), np.equal(behind, FLOAT))
            return np.where(quantises, to_int8, 0.0) + np.where(dequantises, to_float, 0.0)

        blocks = sorted({block for end in ends if end is not None for block in end.blocks})
        return CostTerm(f"{passed.source or '+'} to {passed.reader or '+'}", made, read, cost, tuple(blocks))

    def _by_name(self) -> dict[str, LayerSpec]:
        return {layer.name: layer for layer in self.spec.layers}

    def fitted(self, mixes: Sequence[Collection[str]], measured: Sequence[float]) -> Conversions:
        """The conversions by which the dense network's measured mixes are explained best, none below 0.

        Args:
            mixes: layers that are in float, for every mix.
            measured: cost of every mix.
        """
        from scipy.optimize import nnls

        dense = self.spec.dense_widths
        quantised, floats = (self._by_layer(model, dense) for model in (self.int8, self.in_float))
        whole = float(self.int8.evaluate(dense))
        rows, wanted = [], []
        for mix, cost in zip(mixes, measured, strict=True):
            inside = [name for name in self.layers if name in mix]
            own = sum(floats[name] for name in inside)
            rows.append([own, *self._counted(inside)])
            wanted.append(cost - whole + sum(quantised[name] for name in inside))
        usual = _TRUST * float(np.mean([row[0] for row in rows])) if rows else 1.0
        rows.append([usual, 0.0, 0.0, 0.0, 0.0])
        wanted.append(usual)
        matrix = np.array(rows)
        size = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
        found = nnls(matrix / size, np.array(wanted))[0] / size
        scale, *rates = (float(rate) for rate in found)
        return Conversions(scale, (rates[0], rates[1]), (rates[2], rates[3]))

    def _by_layer(self, model: CostModel, widths: np.ndarray) -> dict[str, float]:
        found = dict.fromkeys(self.layers, 0.0)
        for term in model.terms:
            if term.name in found:
                found[term.name] += float(term.evaluate(widths))
        return found

    def _counted(self, inside: Collection[str]) -> list[float]:
        """Conversions to int8 and to float of a mix: how many, and of how many elements, each."""
        counts = np.zeros((2, 2))
        for one in self.passed:
            ends = [end in inside for end in (one.source, one.reader)]
            if ends[0] != ends[1]:
                counts[0 if ends[0] else 1] += (1, one.elements)
        return [float(count) for count in counts.reshape(-1)]


def _channels(source: LayerSpec | None, reader: LayerSpec | None) -> AxisSpec:
    """The channel axis of a value between two layers."""
    if source is not None:
        return source.outputs
    assert reader is not None
    return reader.inputs


def _folded(axis: AxisSpec, group: int) -> AxisSpec:
    return replace(axis, parts=(*axis.parts, (group, _FOLD)))


def _gated(term: CostTerm, group: int, precision: int, scale: float) -> CostTerm:
    """The term where the group has this precision, 0 elsewhere."""

    def cost(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        return np.where(outputs // _FOLD == precision, scale * term.cost(inputs, outputs % _FOLD), 0.0)

    return replace(term, outputs=_folded(term.outputs or AxisSpec(), group), cost=cost)


@dataclass(frozen=True)
class NoWorse(Strategy):
    """A strategy whose answer is no worse than its own with all layers quantised, or with all in float.

    For a search that stops at a gap or a time limit: the joint problem holds both, but they are found sooner alone.
    ``own``: how many groups are the network's own; the others are of precision.
    """

    inner: Strategy
    own: int
    name: str = field(default="", init=False)
    criterion: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.inner.name)
        object.__setattr__(self, "criterion", self.inner.criterion)

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The best of the three.

        Raises:
            InfeasibleBudgetError: nothing legal meets the limits.
        """
        best = self.inner.solve(problem, seed=seed, progress=progress)
        for precision in (INT8, FLOAT):
            alike = tuple(
                options if group < self.own else np.array([precision]) for group, options in enumerate(problem.options)
            )
            try:
                found = self.inner.solve(replace(problem, options=alike), seed=seed, progress=progress)
            except InfeasibleBudgetError:
                continue
            if found.value > best.value:
                point = problem.candidate(found.widths, found.removed)
                best = replace(best, widths=point.widths, removed=point.removed, value=point.value)
                best = replace(best, predicted=point.predicted, candidates=(point,), gap=None)
        return best
