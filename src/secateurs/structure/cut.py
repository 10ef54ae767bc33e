"""A choice of units resolved to index lists, re-derived constants and bypassed blocks."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secateurs.errors import PlanError
from secateurs.structure.call import bind
from secateurs.structure.ids import NEUTRAL
from secateurs.structure.values import Value

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


@dataclass(frozen=True)
class Cut:
    """What a choice means for every tensor.

    ``slices``: kept indices per parameter or buffer and dimension (only where something goes);
    ``constants``: new values of integer arguments, by exported node name and schema argument name;
    ``bypassed``: node of a removed block's add to the node whose value replaces it; ``kept``: units per group.
    """

    slices: dict[str, dict[int, tuple[int, ...]]]
    constants: dict[str, dict[str, Any]] = field(default_factory=dict)
    bypassed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Gone:
    """Which ids a choice removes."""

    def __init__(self, graph: Graph, removed: np.ndarray) -> None:
        self._ids = graph.analysis.ids
        self._removed = removed

    def mask(self, stack: Sequence[np.ndarray], size: int) -> np.ndarray:
        """True where an index goes, bool [size]."""
        gone = np.zeros(size, dtype=bool)
        for ids in stack:
            gone |= (ids != NEUTRAL) & self._removed[self._ids.find(ids)]
        return gone

    def kept(self, value: Value, dim: int) -> np.ndarray:
        """True where an index of an activation's axis stays."""
        return ~self.mask(value.along(dim), value.shape[dim])


def validate(
    graph: Graph, kept: Mapping[str, Sequence[int]], blocks_removed: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """Every group's kept units, sorted; groups of removed blocks are empty.

    Raises:
        PlanError: unknown group or block, a unit out of range or twice, or fewer units than must stay.
    """
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
    return Gone(graph, removed)


def cut(graph: Graph, kept: Mapping[str, Sequence[int]], blocks_removed: Iterable[str] = ()) -> Cut:
    """Resolve a choice; see :class:`Cut`."""
    names = tuple(blocks_removed)
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
    constants = {}
    for node in graph.program.graph.nodes:
        if node.op == "call_function" and node.name not in dead:
            changed = rederive(graph, node, gone)
            if changed:
                constants[node.name] = changed
    return Cut(slices, constants, {block.add: block.kept for block in chosen}, resolved)


def rederive(graph: Graph, node: torch.fx.Node, gone: Gone) -> dict[str, Any]:
    """New values of a node's integer arguments after the cut, by schema name (empty where nothing changes)."""
    result = graph.analysis.values.get(node.name)
    outputs = result if isinstance(result, (list, tuple)) else [result]
    values = [value for value in outputs if isinstance(value, Value)]
    sources = [graph.analysis.values.get(n.name) for n in node.all_input_nodes]
    touched = any(isinstance(v, Value) and v.factors for v in (*values, *sources))
    function = _REDERIVE.get(str(node.target).split(".")[1]) if touched and "aten." in str(node.target) else None
    if function is None:
        return {}
    arguments = bind(node)
    fresh = function(graph, node, arguments, values, gone)
    return {name: value for name, value in fresh.items() if value != arguments.get(name)}


def _sizes(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    """Target sizes of view, reshape, expand and of constants made in the forward pass."""
    name = "shape" if "shape" in arguments else "size"
    wanted = list(arguments[name])
    value = values[0]
    offset = len(value.shape) - len(wanted)
    for i, entry in enumerate(wanted):
        dim = i + offset
        if not value.along(dim):
            continue
        stays = gone.kept(value, dim)
        if isinstance(entry, int) and entry != -1:
            wanted[i] = int(stays.sum())
        elif entry != -1 and not stays.all():
            _infer(wanted, i, [int(gone.kept(value, d + offset).sum()) for d in range(len(wanted))], node)
    return {name: wanted}


def _infer(wanted: list[Any], place: int, lengths: list[int], node: torch.fx.Node) -> None:
    """The entry at ``place`` is the batch size times something that shrinks: let the runtime infer it."""
    shape = node.meta["val"].shape[-len(wanted) :]
    for i, entry in enumerate(wanted):
        if isinstance(entry, int) and entry == -1 and isinstance(shape[i], int):
            wanted[i] = lengths[i]
    if not any(isinstance(entry, int) and entry == -1 for entry in wanted):
        wanted[place] = -1


def _unflatten(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    value, dim, wanted = values[0], arguments["dim"], list(arguments["sizes"])
    start = dim % (len(value.shape) - len(wanted) + 1)
    for i, entry in enumerate(wanted):
        if entry != -1 and value.along(start + i):
            wanted[i] = int(gone.kept(value, start + i).sum())
    return {"sizes": wanted}


def _split(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    dim = arguments.get("dim", 0)
    lengths = [int(gone.kept(value, dim).sum()) for value in values]
    if isinstance(arguments.get("split_sizes", arguments.get("split_size")), (list, tuple)):
        return {"split_sizes" if "split_sizes" in arguments else "split_size": lengths}
    if "split_size" in arguments:
        same = len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
        return {"split_size": lengths[0] if same else lengths}
    return {}


def _chunk(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    lengths = [int(gone.kept(value, arguments.get("dim", 0)).sum()) for value in values]
    total, count = sum(lengths), len(lengths)
    each = -(-total // count)
    natural = [max(0, min(each, total - i * each)) for i in range(count)]
    return {} if natural == lengths else {"chunks": lengths}


def _source(graph: Graph, arguments: dict[str, Any], name: str = "self") -> Value:
    node = arguments[name]
    value = graph.analysis.values[node.name]
    assert isinstance(value, Value)
    return value


def _slice(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    value, dim = _source(graph, arguments), arguments.get("dim", 0)
    if not value.along(dim):
        return {}
    stays = gone.kept(value, dim)
    size = len(stays)
    fresh = {}
    for name in ("start", "end"):
        entry = arguments.get(name)
        if isinstance(entry, int) and -size <= entry < size:
            position = entry % size if entry < 0 else entry
            count = int(stays[:position].sum())
            fresh[name] = count - int(stays.sum()) if entry < 0 and count < int(stays.sum()) else count
    return fresh


def _narrow(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    value, dim = _source(graph, arguments), arguments["dim"]
    if not value.along(dim) or not isinstance(arguments["start"], int):
        return {}
    stays, start = gone.kept(value, dim), arguments["start"] % value.shape[dim]
    return {"start": int(stays[:start].sum()), "length": int(stays[start : start + arguments["length"]].sum())}


def _select(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    value, dim = _source(graph, arguments), arguments["dim"]
    if not value.along(dim):
        return {}
    stays, index = gone.kept(value, dim), arguments["index"] % value.shape[dim]
    return {"index": int(stays[:index].sum())}


def _pad(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    amounts = list(arguments["pad"])
    source, result = _source(graph, arguments), values[0]
    rank = len(result.shape)
    for slot in range(len(amounts) // 2):
        dim = rank - 1 - slot
        if not result.along(dim):
            continue
        stays = gone.kept(result, dim)
        left, right = amounts[2 * slot], amounts[2 * slot + 1]
        before = gone.kept(source, dim)
        if left >= 0:
            amounts[2 * slot] = int(stays[:left].sum())
        else:
            amounts[2 * slot] = -int(before[:-left].sum())
        if right >= 0:
            amounts[2 * slot + 1] = int(stays[len(stays) - right :].sum())
        else:
            amounts[2 * slot + 1] = -int(before[len(before) + right :].sum())
    return {"pad": amounts}


def _roll(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    source = _source(graph, arguments)
    shifts, dims = list(arguments["shifts"]), list(arguments.get("dims") or [])
    for i, dim in enumerate(dims):
        if source.along(dim):
            stays = gone.kept(source, dim)
            shift = shifts[i] % len(stays)
            shifts[i] = int(stays[len(stays) - shift :].sum()) if shift else 0
    return {"shifts": shifts}


def _grouped(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    """Groups of a convolution or a group normalisation that goes group by group."""
    groups, axis = graph.analysis.folded_grids.get(node.name, (1, 1))
    if axis == 1:
        return {}
    name = "groups" if "groups" in arguments else "num_groups"
    source = _source(graph, arguments, "input")
    rank = len(graph.analysis.values[arguments["weight"].name].shape) - 2 if name == "groups" else 0
    channel = len(source.shape) - rank - 1 if name == "groups" else 1
    kept = gone.kept(source, channel).reshape(groups, -1).any(axis=1)
    return {name: int(kept.sum())}


def _normalized(
    graph: Graph, node: torch.fx.Node, arguments: dict[str, Any], values: list[Value], gone: Gone
) -> dict[str, Any]:
    source = _source(graph, arguments, "input")
    shape = list(arguments["normalized_shape"])
    for i in range(len(shape)):
        dim = len(source.shape) - len(shape) + i
        shape[i] = int(gone.kept(source, dim).sum())
    return {"normalized_shape": shape}


_REDERIVE = {
    "view": _sizes, "reshape": _sizes, "_unsafe_view": _sizes, "expand": _sizes, "zeros": _sizes, "ones": _sizes,
    "full": _sizes, "empty": _sizes, "new_zeros": _sizes, "new_ones": _sizes, "new_full": _sizes, "rand": _sizes,
    "randn": _sizes, "broadcast_to": _sizes,
    "unflatten": _unflatten, "split": _split, "split_with_sizes": _split, "chunk": _chunk, "slice": _slice,
    "narrow": _narrow, "select": _select, "pad": _pad, "constant_pad_nd": _pad, "roll": _roll,
    "conv1d": _grouped, "conv2d": _grouped, "conv3d": _grouped, "conv_transpose1d": _grouped,
    "conv_transpose2d": _grouped, "conv_transpose3d": _grouped, "convolution": _grouped, "group_norm": _grouped,
    "layer_norm": _normalized, "rms_norm": _normalized, "native_layer_norm": _normalized,
}  # fmt: skip
