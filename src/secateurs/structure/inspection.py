"""What a network allows: how much of it can go, what is coupled, what stays and why."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from secateurs.structure.groups import layer_of, module_path, source_line

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


@dataclass(frozen=True)
class GroupReport:
    """One group: shares are fractions of the network that vanish when the group keeps its fewest units."""

    name: str
    units: int
    max_removable: int
    layers: tuple[str, ...]
    parameter_share: float
    macs_share: float


@dataclass(frozen=True)
class PinReport:
    """Channels of one layer that stay, and why; ``source``: the user's source line."""

    layer: str
    parameter: str
    dim: int
    stays: int
    size: int
    reason: str
    operator: str
    module: str
    source: str


@dataclass(frozen=True)
class Inspection:
    """Everything ``secateurs doctor`` prints.

    ``removable_parameter_share``/``removable_macs_share``: what goes when every group keeps its fewest units;
    ``unread``: parameters that no forward reads, which therefore stay as they are; ``only_training``: those that the
    forward in training mode alone reads, which are cut along and are not counted.
    """

    parameters: int
    macs: int
    groups: tuple[GroupReport, ...]
    blocks: tuple[str, ...]
    pins: tuple[PinReport, ...]
    barriers: tuple[str, ...]
    removable_parameter_share: float
    removable_macs_share: float
    statistics: int
    unread: tuple[str, ...]
    only_training: tuple[str, ...] = ()


def inspect(graph: Graph) -> Inspection:
    """How much of a traced network can go, and what holds the rest."""
    spec = graph.spec
    dense, fewest = spec.dense_widths, spec.min_widths
    parameters, macs = spec.parameter_count(dense), spec.macs(dense)
    reports = []
    for number, group in enumerate(graph.groups):
        widths = dense.copy()
        widths[number] = fewest[number]
        lost_parameters = 1 - spec.parameter_count(widths) / max(parameters, 1)
        lost_macs = 1 - spec.macs(widths) / max(macs, 1)
        reports.append(
            GroupReport(group.name, group.units, group.max_removable, group.layers, lost_parameters, lost_macs)
        )
    return Inspection(
        parameters=parameters,
        macs=macs,
        groups=tuple(reports),
        blocks=tuple(block.name for block in spec.blocks),
        pins=_pins(graph),
        barriers=tuple(str(barrier) for barrier in graph.barriers),
        removable_parameter_share=1 - spec.parameter_count(fewest) / max(parameters, 1),
        removable_macs_share=1 - spec.macs(fewest) / max(macs, 1),
        statistics=len(graph.analysis.statistics),
        unread=unread(graph),
        only_training=only_training(graph),
    )


def unread(graph: Graph) -> tuple[str, ...]:
    """Names of parameters that no exported forward reads under any of their names."""
    read = _read(graph) if graph.training is None else _read(graph) | _read(graph.training)
    return tuple(name for name, _ in graph.model.named_parameters() if name not in read)


def only_training(graph: Graph) -> tuple[str, ...]:
    """Names of parameters that the forward reads in training mode alone."""
    if graph.training is None:
        return ()
    read = _read(graph.training) - _read(graph)
    return tuple(name for name, _ in graph.model.named_parameters() if name in read)


def _read(graph: Graph) -> set[str]:
    return {alias for name in graph.analysis.origin.values() for alias in graph.aliases.get(name, (name,))}


def _pins(graph: Graph) -> tuple[PinReport, ...]:
    """One entry per producing axis and reason, in execution order."""
    found: dict[tuple[str, int, str], PinReport] = {}
    sizes: dict[tuple[str, int], int] = defaultdict(int)
    for use in graph.analysis.uses:
        key = (use.parameter, use.dim)
        if use.role != "out" or key not in graph.analysis.axes or key in sizes:
            continue
        ids = graph.analysis.axes[key][0]
        sizes[key] = len(ids)
        for pin, count in graph.analysis.ids.reasons(np.asarray(ids)):
            node = graph.nodes.get(pin.node)
            report = PinReport(
                layer=layer_of(use.parameter),
                parameter=use.parameter,
                dim=use.dim,
                stays=count,
                size=len(ids),
                reason=pin.reason,
                operator=str(node.target) if node is not None else "",
                module=module_path(node) if node is not None else "",
                source=source_line(node) if node is not None else "",
            )
            found.setdefault((*key, pin.reason), report)
    return tuple(found.values())
