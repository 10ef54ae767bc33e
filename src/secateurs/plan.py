"""Plans, budgets and measurements: frozen values with a JSON round trip. No torch here."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateurs.errors import PlanError

SCHEMA = "secateurs.plan/1"


@dataclass(frozen=True)
class Resource:
    """What a budget limits. ``unit``: of its figures; ``units``: what a limit may be written in, and how many of
    ``unit`` that is; ``example``: for messages."""

    name: str
    unit: str
    units: Mapping[str, float]
    example: str

    @property
    def words(self) -> str:
        """``file size``."""
        return self.name.replace("_", " ")

    @property
    def option(self) -> str:
        """``--file-size``."""
        return f"--{self.name.replace('_', '-')}"


_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource("latency", "ms", {"ms": 1.0}, "3.2ms"),
        Resource("memory", "bytes", _BYTES, "20MB"),
        Resource("file_size", "bytes", _BYTES, "10MB"),
        Resource("macs", "macs", {"k": 1e3, "M": 1e6, "G": 1e9}, "300M"),
    )
}
"""What can be limited: ``latency`` of one run; ``memory``, the peak that the network adds to the runtime's process;
``file_size`` of the deployed file; ``macs``, multiply-adds at batch 1."""


@dataclass(frozen=True)
class Budget:
    """A limit: so much of a resource, a fraction of what the dense network takes, or a reduction by a factor.

    ``kind``: the resource's unit (``"ms"``, ``"bytes"``, ``"macs"``), ``"ratio"`` (0 < value < 1, fraction of dense
    *kept*) or ``"speedup"`` (value > 1); ``resource``: a key of :data:`RESOURCES`.
    """

    kind: str
    value: float
    resource: str = "latency"

    @classmethod
    def parse(cls, text: str | float | Budget, resource: str = "latency") -> Budget:
        """Read ``"60%"``, ``"2x"``, a bare fraction ``0.6``, or an amount: ``"3.2ms"``, ``"20MB"``, ``"300M"``.

        Raises:
            PlanError: not one of these forms, or out of range (0, negative, ≥ 100 %, ≤ 1x).
        """
        if isinstance(text, Budget):
            return text
        what = RESOURCES[resource]
        hint = f"Give an amount such as {what.example}, a share of dense such as 60%, or a factor such as 2x."
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            text = f"{float(text) * 100!r}%"
        units = "|".join([*what.units, "%", "x"])
        match = re.fullmatch(rf"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*({units})?\s*", str(text))
        name = f"{what.words.capitalize()} budget {text!r}"
        if match is None:
            raise PlanError(f"{name} is not understood. {hint}")
        value, unit = float(match[1]), match[2]
        if not math.isfinite(value) or value <= 0:
            raise PlanError(f"{name} must be above zero. {hint}")
        if unit is None:
            raise PlanError(f"{name} has no unit. {hint}")
        if unit == "%":
            if value >= 100:
                raise PlanError(f"{name} is not below what the dense network takes (100%). {hint}")
            return cls("ratio", value / 100, resource)
        if unit == "x":
            if value <= 1:
                raise PlanError(f"{name} must be above 1x. {hint}")
            return cls("speedup", value, resource)
        return cls(what.unit, value * what.units[unit], resource)

    @property
    def absolute(self) -> bool:
        """Whether it names an amount, not a share of dense."""
        return self.kind not in ("ratio", "speedup")

    def limit(self, dense: float) -> float:
        """The limit in the resource's unit, given what the dense network takes."""
        if self.absolute:
            return self.value
        return dense * self.value if self.kind == "ratio" else dense / self.value

    def __str__(self) -> str:
        if self.absolute:
            units = {name: size for name, size in RESOURCES[self.resource].units.items() if not name.endswith("iB")}
            name = max((n for n in units if self.value >= units[n]), key=lambda n: units[n], default=next(iter(units)))
            return f"{self.value / units[name]:.10g}{name}"
        return f"{self.value * 100:g}%" if self.kind == "ratio" else f"{self.value:g}x"


def parse_budgets(
    latency: str | float | Budget | None = None,
    memory: str | float | Budget | None = None,
    file_size: str | float | Budget | None = None,
    macs: str | float | Budget | None = None,
) -> tuple[Budget, ...]:
    """The budgets that are given, latency first: the order in which they count as the main one.

    Raises:
        PlanError: one of them is not understood.
    """
    given = {"latency": latency, "memory": memory, "file_size": file_size, "macs": macs}
    return tuple(Budget.parse(text, name) for name, text in given.items() if text is not None)


def describe_budgets(budgets: Sequence[Budget]) -> str:
    """``60%`` for latency alone, else ``latency 60%, file size 10MB``."""
    if len(budgets) == 1 and budgets[0].resource == "latency":
        return str(budgets[0])
    return ", ".join(f"{RESOURCES[budget.resource].words} {budget}" for budget in budgets)


RELOADED = 0.01
"""So much one and the same file differs from itself in another process, however long both are measured: it lies
elsewhere in memory. The interval of one measurement cannot tell."""


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
        if self.ratio is None:
            return False
        return abs(self.ratio - 1) <= max(RELOADED, (self.ratio_upper or self.ratio) - self.ratio)


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

    def diff(self, other: Plan) -> dict[str, Any]:
        """What ``other`` decides differently: ``{group: (units only here, units only there)}`` and blocks."""
        groups = {}
        for name in sorted(set(self.groups) | set(other.groups)):
            here, there = set(self.groups.get(name, ())), set(other.groups.get(name, ()))
            if here != there:
                groups[name] = (tuple(sorted(here - there)), tuple(sorted(there - here)))
        mine, theirs = set(self.blocks_removed), set(other.blocks_removed)
        return {"groups": groups, "blocks_removed": (tuple(sorted(mine - theirs)), tuple(sorted(theirs - mine)))}

    def to_json(self) -> str:
        """Stable JSON text."""
        return json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: not JSON, another schema, or a field is missing or wrong.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"{source} is not JSON ({error}). Give a file that 'secateurs plan' wrote.") from error
        if not isinstance(raw, Mapping) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, Mapping) else type(raw).__name__
            raise PlanError(f"{source} has schema {found!r}, this version reads {SCHEMA!r}. Make the plan again.")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(
                f"{source} is damaged at {where or 'its top'}: {first['msg']}. Make the plan again."
            ) from error

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
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"Plan file {path} cannot be read ({error}). Check the path.") from error
        return cls.from_json(text, str(path))


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` under ``path`` so that a crash or a full disk leaves the old file or none, never half of one.

    Raises:
        PlanError: the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PlanError(
            f"Cannot write {path} ({error.strerror or error}). Free space or choose another folder."
        ) from error
