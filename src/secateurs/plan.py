"""Plans, budgets and measurements: frozen values with a JSON round trip. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateurs.errors import PlanError, PlanMismatchError, checked, why
from secateurs.files import read_json, read_text, write_atomic

SCHEMA = "secateurs.plan/1"
RELOADED = 0.01
"""So much one and the same file differs from itself in another process, however long both are measured: it lies
elsewhere in memory. The interval of one measurement cannot tell."""


def differs_by_noise(ratio: float, upper: float) -> bool:
    """Whether a ratio of latencies, with the upper end of its interval, differs from 1 by no more than its noise."""
    return abs(ratio - 1) <= max(RELOADED, upper - ratio)


@dataclass(frozen=True)
class Measurement:
    """Latency of one file: median in ms, spread = IQR / median, number of timed runs."""

    latency_ms: float
    spread: float
    runs: int
    ratio: float | None = None
    """Median of per-turn ratios to the reference of the same interleaved measurement."""
    ratio_upper: float | None = None
    """Upper end of that ratio's 95 % confidence interval."""
    peak_memory_bytes: int | None = None
    """Of the runtime's process, everything included."""
    memory_bytes: int | None = None
    """By how much loading and running the file raised that peak."""
    file_bytes: int | None = None
    first_run_ms: float | None = None
    """Loading, compiling and the first run; no part of the latency."""

    @property
    def tie(self) -> bool:
        """Whether the ratio differs from 1 by no more than its noise: neither file is faster."""
        return self.ratio is not None and differs_by_noise(self.ratio, self.ratio_upper or self.ratio)


class Patch(BaseModel):
    """One integer that a module keeps (``groups``, ``num_features`` …) and its new value."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    module: str
    attribute: str
    value: Any


class Bypass(BaseModel):
    """How a removed block's module is replaced: its input runs through ``steps`` instead.

    A step is ``"module:NAME"`` (a child of the replaced module) or ``"call:OPERATOR"`` (``relu`` …).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    block: str
    module: str
    steps: tuple[str, ...] = ()


class Scale(BaseModel):
    """Rows (dimension 0) of a parameter that are multiplied, in the original numbering, before it is sliced.

    It holds attention's implicit 1/√d at its dense value when the head size shrinks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    parameter: str
    indices: tuple[int, ...]
    factor: float


class ElementPattern(BaseModel):
    """Kernel elements that stay in one convolution weight.

    ``scope``: ``layer``, ``in_channel``, ``filter``, ``kernel`` or ``block``; ``block``: filters that share a
    pattern (scope ``block`` only, else 1); ``pattern``: kept kernel positions (row-major) per scope unit; ``order``:
    filters in the order in which blocks are cut (scope ``block`` only; empty: as they stand).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    scope: str
    block: int = 1
    pattern: tuple[tuple[int, ...], ...]
    order: tuple[int, ...] = ()


class Fingerprint(BaseModel):
    """Identity of the network that a plan belongs to: names and shapes, and a digest over them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    digest: str
    shapes: dict[str, tuple[int, ...]]


class Plan(BaseModel):
    """What stays: units per group, blocks that go, kernel elements, and the resolved index lists.

    ``groups``: kept units per group name; ``slices``: kept indices per parameter or buffer name and dimension,
    resolved (aliases of tied parameters too), so that ``apply`` needs no tracing; ``provenance``: strategy,
    criterion, target, budget, predicted latency, seed, versions, model source and preprocessing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    schema_: str = Field(default=SCHEMA, alias="schema")
    groups: dict[str, tuple[int, ...]]
    group_sizes: dict[str, int]
    blocks_removed: tuple[str, ...] = ()
    elements: dict[str, ElementPattern] = Field(default_factory=dict)
    precision: dict[str, Literal["float"]] = Field(default_factory=dict)
    """Layers by module path that stay in float where files are quantised; all others are quantised."""
    slices: dict[str, dict[int, tuple[int, ...]]]
    patches: tuple[Patch, ...] = ()
    bypasses: tuple[Bypass, ...] = ()
    scales: tuple[Scale, ...] = ()
    rebuild: str | None = None
    """Why the result must be rebuilt from the exported graph, or None where the user's own module serves."""
    example_shapes: tuple[Any, ...] = ()
    fingerprint: Fingerprint
    provenance: dict[str, Any] = Field(default_factory=dict)

    def removed(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """``{parameter name: {dim: indices removed}}`` in the original network's numbering."""
        gone: dict[str, dict[int, tuple[int, ...]]] = {}
        for name, axes in self.slices.items():
            for dim, kept in axes.items():
                stays = set(kept)
                lost = tuple(i for i in range(self.fingerprint.shapes[name][dim]) if i not in stays)
                if lost:
                    gone.setdefault(name, {})[dim] = lost
        return gone

    def widths(self) -> dict[str, int]:
        """Units kept per group."""
        return {name: len(kept) for name, kept in self.groups.items()}

    @property
    def in_float(self) -> frozenset[str]:
        """Layers that stay in float where files are quantised, without those whose block is removed."""
        return frozenset(self.precision) & _layers(_shapes_left(self)) if self.precision else frozenset()

    def diff(self, other: Plan) -> dict[str, Any]:
        """What ``other`` decides differently, (only here, only there): units of groups, blocks, layers in float."""
        names = sorted(set(self.groups) | set(checked(Plan, other, "diff(other=)", "Give a plan").groups))
        apart = {name: _apart(self.groups.get(name, ()), other.groups.get(name, ())) for name in names}
        found: dict[str, Any] = {"groups": {name: both for name, both in apart.items() if any(both)}}
        found["blocks_removed"] = _apart(self.blocks_removed, other.blocks_removed)
        mixed = {"precision": _apart(self.precision, other.precision)}
        return found | mixed if self.precision or other.precision else found

    def then(self, second: Plan) -> Plan:
        """Both rounds as one plan for the dense network: this one, then ``second``, made for what this one leaves.

        ``apply(dense, first.then(second))`` has the weights of ``apply(apply(dense, first), second)``, bit for bit,
        where nothing is trained in between: a checkpoint of three rounds is the dense one and one plan.

        Raises:
            PlanMismatchError: ``second`` was made for another network, or decides in units that the dense one lacks.
            PlanError: one round rebuilds the network as a graph and one scales rows of it.
        """
        return _composed(self, checked(Plan, second, "then(second=)", "Give a plan"))

    def to_json(self) -> str:
        """Stable JSON text."""
        held = self.model_dump(by_alias=True, mode="json", exclude=set() if self.precision else {"precision"})
        return json.dumps(held, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: not JSON, another schema, a field is missing or wrong, or a layer is unknown.
        """
        try:
            raw = read_json(text)
        except ValueError as error:
            raise PlanError(f"{source} is not JSON ({why(error)}). Give a file that 'secateurs plan' wrote.") from error
        if not isinstance(raw, Mapping) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, Mapping) else type(raw).__name__
            raise PlanError(f"{source} has schema {found!r}, this version reads {SCHEMA!r}. Make the plan again.")
        try:
            plan = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(
                f"{source} is damaged at {where or 'its top'}: {first['msg']}. Make the plan again."
            ) from error
        _require_layers(plan, source)
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan; the file appears whole or not at all."""
        write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            PlanError: the file is missing or damaged.
        """
        try:
            text = read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"Plan file {path} cannot be read ({why(error)}). Check the path.") from error
        return cls.from_json(text, str(path))


def _apart(here: Iterable[Any], there: Iterable[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What only one of both holds, in order."""
    return tuple(sorted(set(here) - set(there))), tuple(sorted(set(there) - set(here)))


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Modules with a kernel or a matrix of their own."""
    paths = (name.partition(".parametrizations.")[0].rpartition(".")[0] for name, shape in shapes.items() if shape[1:])
    return frozenset(filter(None, paths))


def _require_layers(plan: Plan, source: str) -> None:
    known = _layers(plan.fingerprint.shapes) if plan.precision else frozenset()
    for name in sorted(plan.precision.keys() - known):
        near = get_close_matches(name, known, 3) or sorted(known)[:3]
        raise PlanError(
            f"{source} leaves {name!r} in float, but its network has no layer with weights of that name. "
            f"Name layers by their module path, such as {', '.join(near)}."
        )


def _composed(first: Plan, second: Plan) -> Plan:
    why_rebuilt = first.rebuild or second.rebuild
    if why_rebuilt and (first.scales or second.scales):
        raise PlanError(
            f"One of these two plans rebuilds the network as a graph ({why_rebuilt.rstrip('.')}), and one of them "
            f"scales rows of {(*first.scales, *second.scales)[0].parameter} to hold attention's 1/√d, which a graph "
            "writes out instead. Apply them one after the other, or plan with barriers= that keep the network's class."
        )
    _require_next(first, second)
    kept = {name: {dim: tuple(stay) for dim, stay in axes.items()} for name, axes in first.slices.items()}
    for name, axes in second.slices.items():
        mine = kept.setdefault(name, {})
        for dim, stay in axes.items():
            mine[dim] = _of(mine[dim], stay) if dim in mine else tuple(stay)
    scales = [
        scale.model_copy(update={"indices": _of(first.slices.get(scale.parameter, {}).get(0), scale.indices)})
        for scale in second.scales
    ]
    patches = {(patch.module, patch.attribute): patch for patch in (*first.patches, *second.patches)}
    rounds = [one for plan in (first, second) for one in plan.provenance.get("rounds", [plan.provenance])]
    grid = {"grid": first.provenance["grid"]} if "grid" in first.provenance else {}
    return first.model_copy(
        update={
            "groups": _composed_groups(first, second),
            "blocks_removed": (*first.blocks_removed, *second.blocks_removed),
            "elements": _composed_elements(first, second),
            "precision": {**first.precision, **second.precision},
            "slices": kept,
            "patches": tuple(patches.values()),
            "bypasses": (*first.bypasses, *second.bypasses),
            "scales": (*first.scales, *scales),
            "rebuild": why_rebuilt,
            "provenance": {**second.provenance, **grid, "rounds": rounds},
        }
    )


def _of(kept: Sequence[int] | None, indices: Sequence[int]) -> tuple[int, ...]:
    """Indices among what was kept, in the numbering from before."""
    return tuple(indices) if kept is None else tuple(kept[index] for index in indices)


def _shapes_left(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network that a plan leaves; what a removed block does not keep is gone."""
    left = {}
    for name, shape in plan.fingerprint.shapes.items():
        inside = [bypass for bypass in plan.bypasses if name.startswith(f"{bypass.module}.")]
        stays = all(
            any(name.startswith(f"{bypass.module}.{step.partition(':')[2]}.") for step in bypass.steps)
            for bypass in inside
        )
        axes = plan.slices.get(name, {})
        if stays:
            left[name] = tuple(len(axes[dim]) if dim in axes else size for dim, size in enumerate(shape))
    return left


def _require_next(first: Plan, second: Plan) -> None:
    """Nothing, if ``second`` was made for the network that ``first`` leaves.

    Raises:
        PlanMismatchError: naming the first difference.
    """
    left, wanted = _shapes_left(first), second.fingerprint.shapes
    for name in (*left, *(name for name in wanted if name not in left)):
        ours, theirs = left.get(name), wanted.get(name)
        if ours != theirs:
            raise PlanMismatchError(
                f"The second plan was not made for what the first one leaves: {name} is "
                f"{list(ours) if ours is not None else 'not there'} after the first and "
                f"{list(theirs) if theirs is not None else 'not there'} in the second. Make the second plan for the "
                "network that apply(dense, first) returns."
            )


def _composed_groups(first: Plan, second: Plan) -> dict[str, tuple[int, ...]]:
    groups = dict(first.groups)
    for name, stay in second.groups.items():
        size = second.group_sizes[name]
        if name in groups and len(groups[name]) == size:
            groups[name] = _of(groups[name], stay)
        elif len(stay) < size:
            known = f"{len(groups[name])} units after the first" if name in groups else "no group of the first"
            grid = first.provenance.get("grid", "auto")
            told = repr(grid) if grid in ("rows", "columns") else "'rows' (heads) or 'columns', as the first round did,"
            raise PlanMismatchError(
                f"The second plan decides about {name} in {size} units, which is {known}: the first took heads for "
                "units and the second positions within them, or the other way round. Trace the small network with "
                f"grid={told} and plan it again."
            )
    return groups


def _composed_elements(first: Plan, second: Plan) -> dict[str, ElementPattern]:
    between, left = _shapes_left(first), _shapes_left(second)
    elements = {}
    for name in dict.fromkeys((*first.elements, *second.elements)):
        one, two, axes = first.elements.get(name), second.elements.get(name), second.slices.get(name, {})
        if name not in left:  # its block was removed
            continue
        if one is None or (two is None and not axes):
            elements[name] = two or first.elements[name]
            continue
        rows = _kernels(one, *between[name][:2])
        rows = [
            [rows[o][c] for c in axes.get(1, range(between[name][1]))] for o in axes.get(0, range(between[name][0]))
        ]
        if two is not None:
            theirs = _kernels(two, *left[name][:2])
            rows = [[a & b for a, b in zip(*pair, strict=True)] for pair in zip(rows, theirs, strict=True)]
        elements[name] = _packed(rows, [pattern for pattern in (two, one) if pattern is not None])
    return elements


def _kernels(pattern: ElementPattern, filters: int, channels: int) -> list[list[frozenset[int]]]:
    """Kept positions of every kernel, [filters][channels per group]."""
    for groups in (g for g in range(1, filters + 1) if filters % g == 0):
        units = _pattern_units(pattern, filters, channels, groups)
        if max(max(row) for row in units) + 1 == len(pattern.pattern):
            return [[frozenset(pattern.pattern[unit]) for unit in row] for row in units]
    raise PlanError(
        f"A pattern of {len(pattern.pattern)} units (scope {pattern.scope!r}) does not fit {filters} × {channels} "
        "kernels: the plan is damaged. Make the plan again."
    )


def _pattern_units(pattern: ElementPattern, filters: int, channels: int, groups: int = 1) -> list[list[int]]:
    """The scope unit of every kernel, as in ``structure.kernel_elements.units_of``."""
    per_group = filters // groups
    blocks = -(-per_group // pattern.block)
    place = {chosen: position for position, chosen in enumerate(pattern.order)}
    rows = []
    for position in (place.get(o, o) for o in range(filters)):
        group, within = divmod(position, per_group)
        start, step = {
            "layer": (0, 0), "filter": (position, 0), "in_channel": (group * channels, 1),
            "kernel": (position * channels, 1), "block": ((group * blocks + within // pattern.block) * channels, 1),
        }[pattern.scope]  # fmt: skip
        rows.append([start + step * c for c in range(channels)])
    return rows


def _packed(rows: list[list[frozenset[int]]], models: Sequence[ElementPattern]) -> ElementPattern:
    """The rows as one pattern, in the form of one of the ``models`` where its units still share theirs."""
    filters, channels = len(rows), len(rows[0])
    plain = ElementPattern(scope="kernel", pattern=())
    for model in (*(m for m in models if len(m.order) in (0, filters)), plain):
        units = _pattern_units(model, filters, channels)
        found: dict[int, frozenset[int]] = {}
        if all(
            found.setdefault(units[o][c], rows[o][c]) == rows[o][c] for o in range(filters) for c in range(channels)
        ):
            break
    pattern = tuple(tuple(sorted(found[unit])) for unit in range(len(found)))
    return model.model_copy(update={"pattern": pattern})
