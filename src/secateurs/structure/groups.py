"""From merged ids to groups of exchangeable units, and to the network as numbers."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from secateurs.network import AxisSpec
from secateurs.structure.call import Analysis, Use
from secateurs.structure.ids import NEUTRAL, PINNED


@dataclass(frozen=True)
class Group:
    """Units that are decided together and are exchangeable: each occurs on the same parameter axes equally often.

    ``name``: first producer, such as ``layer1.0.conv1:out``; ``units``: how many there are; ``layers``: module paths
    of everything coupled; ``min_units``: the fewest that may stay.
    """

    name: str
    units: int
    layers: tuple[str, ...]
    representatives: np.ndarray
    min_units: int = 1

    @property
    def max_removable(self) -> int:
        """The most units that may go."""
        return self.units - self.min_units

    def __repr__(self) -> str:
        return f"Group({self.name!r}, units={self.units}, layers={len(self.layers)})"


@dataclass(frozen=True)
class View:
    """Where a group's units lie on one axis of one parameter.

    ``role``: ``out`` (filters), ``in`` (columns of consumers), ``norm``, ``bias`` or ``free``;
    ``indices``: int64 [units, indices per unit].
    """

    parameter: str
    layer: str
    dim: int
    role: str
    kind: str
    indices: np.ndarray

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """The slices of every unit, flattened: [units, elements]."""
        index = torch.from_numpy(np.ascontiguousarray(self.indices)).to(tensor.device)
        moved = tensor.detach().movedim(self.dim, 0)
        return moved[index.reshape(-1)].reshape(index.shape[0], -1)


def layer_of(parameter: str) -> str:
    """Module path of a parameter: its name without the last part, and without what a parametrisation adds to it."""
    path, parametrised, _ = parameter.partition(".parametrizations.")
    return path if parametrised else parameter.rpartition(".")[0] or parameter


def find_groups(analysis: Analysis, keep: Iterable[str] = ()) -> tuple[Group, ...]:
    """Groups in execution order of their first producer, but for those that training alone reads.

    ``keep``: globs of layers or groups that must stay whole; of ``!`` and a glob all others must.
    """
    patterns = tuple(keep)
    order = _axis_order(analysis)
    members, keys = _membership(analysis, order)
    by_signature: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for rep, found in members.items():
        axes, counts = np.unique([axis for axis, _ in found], return_counts=True)
        by_signature[tuple(zip(axes.tolist(), counts.tolist(), strict=True))].append(rep)
    read = set(analysis.origin.values())
    groups: list[Group] = []
    taken: dict[str, int] = {}
    for signature, reps in sorted(by_signature.items()):
        layers = tuple(dict.fromkeys(layer_of(keys[axis][0]) for axis, _ in signature))
        name = _name(analysis, [keys[axis] for axis, _ in signature])
        if len(reps) < 2:
            # All positions of the axis are one unit, and a network keeps at least one.
            nodes = [
                use.node for use in analysis.uses if (use.parameter, use.dim) in {keys[axis] for axis, _ in signature}
            ]
            analysis.ids.pin(np.array(reps, dtype=np.int64), "its units can only go all together", (nodes or [""])[0])
            continue
        if read.isdisjoint(keys[axis][0] for axis, _ in signature):
            analysis.ids.pin(np.array(reps, dtype=np.int64), "only training reads it, and nothing is gained", "")
            continue
        if stays_whole(layers, patterns, name):
            analysis.kept_whole.append(name)
            continue
        taken[name] = taken.get(name, 0) + 1
        label = name if taken[name] == 1 else f"{name}#{taken[name]}"
        first = signature[0][0]
        reps.sort(key=lambda rep: min(position for axis, position in members[rep] if axis == first))
        groups.append(Group(label, len(reps), layers, np.array(reps, dtype=np.int64)))
    return tuple(groups)


ONLY = "!"
"""In front of a pattern of what is kept whole: everything is, but what the pattern names."""


def stays_whole(layers: Iterable[str], keep: Iterable[str], group: str = "") -> bool:
    """Whether layers that are decided together, or their group, must stay whole by these patterns."""
    kept, only = parted(keep)
    names = [*layers, *([group] if group else [])]
    if any(_names(pattern, name) for pattern in kept for name in names):
        return True
    named = any(":" in pattern and fnmatch.fnmatchcase(group, pattern) for pattern in only)
    return bool(only) and not named and not all(any(_names(p, layer) for p in only) for layer in layers)


def parted(keep: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns of what stays whole, and of the only things that do not."""
    given = tuple(keep)
    only = tuple(pattern[len(ONLY) :] for pattern in given if pattern.startswith(ONLY))
    return tuple(pattern for pattern in given if not pattern.startswith(ONLY)), only


def _names(pattern: str, text: str) -> bool:
    return any(fnmatch.fnmatchcase(text, glob) for glob in (pattern, f"{pattern}.*"))


def _axis_order(analysis: Analysis) -> list[tuple[str, int]]:
    """Parameter axes: those that produce units first, in execution order, then the rest."""
    producing = [(use.parameter, use.dim) for use in analysis.uses if use.role == "out"]
    other = [(use.parameter, use.dim) for use in analysis.uses]
    return list(dict.fromkeys(key for key in (*producing, *other, *analysis.axes) if key in analysis.axes))


def _membership(
    analysis: Analysis, order: list[tuple[str, int]]
) -> tuple[dict[int, list[tuple[int, int]]], list[tuple[str, int]]]:
    members: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, key in enumerate(order):
        for vector in analysis.axes[key]:
            reps = np.where(vector == NEUTRAL, PINNED, analysis.ids.find(vector))
            for position in np.flatnonzero(reps != PINNED):
                members[int(reps[position])].append((number, int(position)))
    return members, order


def _name(analysis: Analysis, keys: Sequence[tuple[str, int]]) -> str:
    wanted = set(keys)
    for use in analysis.uses:
        if use.role == "out" and (use.parameter, use.dim) in wanted:
            return f"{layer_of(use.parameter)}:out"
    parameter, dim = keys[0]
    return f"{parameter}:{dim}"


class UnitMap:
    """Which group each id belongs to (-1: it stays)."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group]) -> None:
        self._ids = analysis.ids
        self._group = np.full(len(analysis.ids), -1, dtype=np.int64)
        self._unit = np.full(len(analysis.ids), -1, dtype=np.int64)
        self._sizes = [group.units for group in groups]
        for number, group in enumerate(groups):
            self._group[group.representatives] = number
            self._unit[group.representatives] = np.arange(group.units)

    def groups_of(self, ids: np.ndarray) -> np.ndarray:
        """Group index of every id, -1 where it stays or is neutral."""
        return np.where(ids == NEUTRAL, -1, self._group[self._ids.find(ids)])

    def units_of(self, ids: np.ndarray) -> np.ndarray:
        """Unit number inside its group of every id, -1 where it stays."""
        return np.where(ids == NEUTRAL, -1, self._unit[self._ids.find(ids)])

    def axis(self, stack: Sequence[np.ndarray], size: int) -> AxisSpec:
        """The length of an axis as a function of the widths (exact for one factor)."""
        fixed, parts = size, []
        for ids in stack[:1]:
            numbers, counts = np.unique(self.groups_of(ids), return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number >= 0 and count % self._sizes[number] == 0:
                    parts.append((number, count // self._sizes[number]))
                    fixed -= count
        return AxisSpec(fixed, tuple(parts))


def find_views(analysis: Analysis, groups: Sequence[Group], units: UnitMap, number: int) -> tuple[View, ...]:
    """Every parameter axis on which the group's units lie, in execution order."""
    roles: dict[tuple[str, int], Use] = {}
    for use in analysis.uses:
        roles.setdefault((use.parameter, use.dim), use)
    views = []
    for parameter, dim in _axis_order(analysis):
        for ids in analysis.axes[parameter, dim]:
            mine = np.flatnonzero(units.groups_of(ids) == number)
            if len(mine) == 0:
                continue
            owner = units.units_of(ids[mine])
            indices = mine[np.argsort(owner, kind="stable")].reshape(groups[number].units, -1)
            found = roles.get((parameter, dim))
            role, kind = (found.role, found.kind) if found else ("free", "other")
            views.append(View(parameter, layer_of(parameter), dim, role, kind, indices))
    return tuple(views)


def module_path(node: torch.fx.Node) -> str:
    """Module path in which an exported node stands, call counters stripped."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return re.sub(r"@\d+", "", paths[-1]) if paths else ""


def module_paths(node: torch.fx.Node) -> list[tuple[str, str]]:
    """(path, class name) of every module around a node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(re.sub(r"@\d+", "", path), str(kind)) for path, kind in stack.values()]


def within(path: str, module: str) -> bool:
    """Whether a module's path is ``module`` or inside it; everything is inside the network itself (``""``)."""
    return not module or path == module or path.startswith(f"{module}.")


def source_line(node: torch.fx.Node) -> str:
    """``file.py:12: x = f(y)`` of the user's code, of PyTorch's where there is none, or an empty text."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    found = ""
    for i in range(len(lines) - 1, -1, -1):
        match = re.match(r'File "(.+)", line (\d+), in ', lines[i])
        if match:
            code = lines[i + 1] if i + 1 < len(lines) else ""
            line = f"{match[1].rpartition('/')[2]}:{match[2]}: {code}"
            if "/torch/" not in match[1]:
                return line
            found = found or line
    return found


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """Digest of names and shapes, 16 hexadecimal digits."""
    text = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
