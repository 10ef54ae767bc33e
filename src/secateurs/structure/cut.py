"""A choice of units resolved to index lists, re-derived constants and bypassed blocks."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secateurs.errors import PlanError, StructureError
from secateurs.structure.after_cut import AfterCut, Gone
from secateurs.structure.call import bind
from secateurs.structure.operators import SLICES, is_a, known
from secateurs.structure.values import Value

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


Shape = tuple[int, ...]
Parts = tuple[tuple[Shape, Shape], ...]


@dataclass(frozen=True)
class Cut:
    """What a choice means for every tensor.

    ``slices``: kept indices per parameter or buffer and dimension (only where something goes);
    ``constants``: new values of integer arguments, by exported node name and schema argument name;
    ``bypassed``: node of a removed block's add to the node whose value replaces it; ``kept``: units per group;
    ``uncounted``: why a number of the traced graph cannot follow, so that nothing can be rebuilt from it ("": all do);
    ``parts``: of calls with several results, and of slices, whose sizes change, the results' dense shapes and those
    after the cut.
    """

    slices: dict[str, dict[int, tuple[int, ...]]]
    constants: dict[str, dict[str, Any]] = field(default_factory=dict)
    bypassed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)
    uncounted: str = ""


def validate(
    graph: Graph, kept: Mapping[str, Sequence[int]], blocks_removed: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """Every group's kept units, sorted; groups of removed blocks are empty.

    Raises:
        PlanError: unknown group or block, a unit out of range or twice, or fewer units than must stay.
    """
    if not isinstance(kept, Mapping):
        raise PlanError(f"The units to keep are a {type(kept).__name__}. Give them by group: {{'conv1:out': [0, 1]}}.")
    blocks = {block.name: number for number, block in enumerate(graph.removable_blocks)}
    unknown = [name for name in blocks_removed if name not in blocks]
    if unknown:
        raise PlanError(f"Block {unknown[0]!r} cannot be removed. Removable are: {', '.join(blocks) or 'none'}.")
    vanished = {g for name in blocks_removed for g in graph.spec.blocks[blocks[name]].groups}
    for name in kept:
        graph.group_index(name)
    resolved: dict[str, tuple[int, ...]] = {}
    for number, group in enumerate(graph.groups):
        if number in vanished:
            resolved[group.name] = ()
            continue
        units = _whole_numbers(group.name, kept.get(group.name, range(group.units)))
        if units and not 0 <= units[0] <= units[-1] < group.units:
            raise PlanError(
                f"Group {group.name} has units 0 to {group.units - 1}; the choice names {units[0]}..{units[-1]}."
            )
        if len(units) < group.min_units:
            raise PlanError(
                f"Group {group.name} must keep at least {group.min_units} of {group.units} units, not {len(units)}."
            )
        resolved[group.name] = tuple(units)
    return resolved


def block_names(given: Iterable[str]) -> tuple[str, ...]:
    """Names of blocks.

    Raises:
        PlanError: they are something else.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PlanError(f"The blocks to remove are a {type(given).__name__}. Give their names in a list.")
    return tuple(given)


def _whole_numbers(name: str, units: Sequence[int]) -> list[int]:
    try:
        return sorted({operator.index(unit) for unit in units})
    except TypeError as error:
        raise PlanError(f"Units of group {name} must be whole numbers, not {units!r}.") from error


def gone_for(graph: Graph, kept: Mapping[str, Sequence[int]]) -> Gone:
    """Which ids go when these units stay."""
    removed = np.zeros(len(graph.analysis.ids), dtype=bool)
    for group in graph.groups:
        stays = np.zeros(group.units, dtype=bool)
        stays[list(kept[group.name])] = True
        removed[group.representatives[~stays]] = True
    return Gone(graph.analysis.ids, removed)


def cut(graph: Graph, kept: Mapping[str, Sequence[int]], blocks_removed: Iterable[str] = ()) -> Cut:
    """Resolve a choice; see :class:`Cut`."""
    names = block_names(blocks_removed)
    resolved = validate(graph, kept, names)
    gone = gone_for(graph, resolved)
    slices: dict[str, dict[int, tuple[int, ...]]] = {}
    for (parameter, dim), stack in graph.analysis.axes.items():
        mask = gone.mask(stack, len(stack[0]))
        if mask.any():
            indices = tuple(np.flatnonzero(~mask).tolist())
            for alias in graph.aliases.get(parameter, (parameter,)):
                slices.setdefault(alias, {})[dim] = indices
    chosen = [block for block in graph.removable_blocks if block.name in set(names)]
    dead = frozenset(node for block in chosen for node in block.nodes)
    for node, parameter in graph.analysis.origin.items():
        if node in dead and graph.fingerprint.shapes.get(parameter):
            for alias in graph.aliases.get(parameter, (parameter,)):
                slices.setdefault(alias, {})[0] = ()
    constants, uncounted = _constants(graph, gone, dead)
    if graph.training is not None:
        more, too = _constants(graph.training, gone, dead)
        constants, uncounted = constants | more, uncounted or too
    bypassed = {block.add: block.kept for block in chosen}
    return Cut(slices, constants, bypassed, resolved, _parts(graph, gone, dead), uncounted)


def _parts(graph: Graph, gone: Gone, dead: frozenset[str]) -> dict[str, Parts]:
    """Of calls with several results and of slices the dense shapes and those after the cut, where they differ."""
    found = {}
    for name, result in graph.analysis.values.items():
        values = [result] if name in graph.nodes and is_a(graph.nodes[name], SLICES) else result
        if name in dead or not isinstance(values, (list, tuple)):
            continue
        parts = tuple((value.shape, _shape(gone, value)) for value in values if isinstance(value, Value))
        if any(dense != left for dense, left in parts):
            found[name] = parts
    return found


def _shape(gone: Gone, value: Value) -> Shape:
    """What is left of a tensor's shape."""
    units = value.dims()
    return tuple(int(gone.kept(value, dim).sum()) if dim in units else size for dim, size in enumerate(value.shape))


def _constants(graph: Graph, gone: Gone, dead: frozenset[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """What changes, and why something cannot be told."""
    found, uncounted = {}, ""
    for node in graph.program.graph.nodes:
        if node.op == "call_function" and node.name not in dead:
            try:
                changed = rederive(graph, node, gone)
            except StructureError as error:
                uncounted = uncounted or str(error)
                continue
            if changed:
                found[node.name] = changed
    return found, uncounted


def rederive(graph: Graph, node: torch.fx.Node, gone: Gone) -> dict[str, Any]:
    """New values of a node's integer arguments after the cut, by schema name (empty where nothing changes).

    Raises:
        StructureError: one counts units by a number that the forward computes.
    """
    found = known(node.target)
    if found is None or found.sizes is None:
        return {}
    result = graph.analysis.values.get(node.name)
    outputs = result if isinstance(result, (list, tuple)) else [result]
    values = tuple(value for value in outputs if isinstance(value, Value))
    sources = [graph.analysis.values.get(n.name) for n in node.all_input_nodes]
    if not any(isinstance(v, Value) and v.factors for v in (*values, *sources)):
        return {}
    call = AfterCut(graph.analysis, node, bind(node), values, gone)
    computed = {name: places for name, value in call.arguments.items() if (places := _computed(value))}
    if computed and not any(_thinner(gone, value) for value in (*values, *sources) if isinstance(value, Value)):
        return {}
    fresh = found.sizes(call)
    for name, places in computed.items():
        if name in fresh and any(_counted(fresh[name], place) for place in places):
            raise call.uncountable(name)
    return {name: value for name, value in fresh.items() if value != call.arguments.get(name)}


def _computed(argument: Any) -> list[int]:
    """Places in an argument of numbers that the forward computes; [0] of a lone one."""
    entries = argument if isinstance(argument, (list, tuple)) else [argument]
    return [
        place
        for place, entry in enumerate(entries)
        if isinstance(entry, torch.fx.Node) and isinstance(entry.meta.get("val"), (int, torch.SymInt))
    ]


def _counted(fresh: Any, place: int) -> bool:
    """Whether a new number is the one of the traced sizes, which others would not have. -1 is whatever is left."""
    entry = fresh[min(place, len(fresh) - 1)] if isinstance(fresh, (list, tuple)) else fresh
    return isinstance(entry, int) and entry != -1


def _thinner(gone: Gone, value: Value) -> bool:
    """Whether something goes from a tensor."""
    return any(not gone.kept(value, dim).all() for dim in value.dims())
