"""What keeps units from going, in words: for the error when nothing can go, and the warning when little can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from secateurs.structure.analysis import OUTPUT
from secateurs.structure.groups import layer_of, module_path, source_line
from secateurs.structure.inspection import inspect
from secateurs.structure.operators import operator_name
from secateurs.structure.rules.reduction import REDUCED
from secateurs.structure.trace import removable_share

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

SHOWN = 3
"""Places that a message names."""
LONGEST = 90
"""Characters of a source line that are shown."""
ENOUGH = 0.5
"""Share of what was asked below which a plan is remarked on."""


@dataclass(frozen=True)
class Hold:
    """One place that holds units: why, the operator, its module and source line; ``units`` of ``layers``."""

    reason: str
    operator: str
    module: str
    source: str
    units: int
    layers: tuple[str, ...]

    def __str__(self) -> str:
        first = ", ".join(self.layers[:2]) + (f" and {len(self.layers) - 2} more" if len(self.layers) > 2 else "")
        shown = self.source if len(self.source) <= LONGEST else f"{self.source[:LONGEST]}…"
        line = f" ({shown})" if shown else ""
        at = self.operator not in ("", "output")  # the outputs are no place in the code
        where = f" at {self.operator} in {self.module or 'its own forward'}{line}" if at else ""
        units = f"{self.units} unit{'s' if self.units != 1 else ''} of {first}: " if self.units else ""
        return f"{units}{self.reason}{where}"


def holds(graph: Graph) -> tuple[Hold, ...]:
    """Every place that holds units, most first; what the network gives out comes last."""
    units: dict[tuple[str, str, str, str], int] = {}
    layers: dict[tuple[str, str, str, str], dict[str, None]] = {}
    for pin in inspect(graph).pins:
        key = (pin.reason.removeprefix("barrier: "), pin.operator, pin.module, pin.source)
        units[key] = units.get(key, 0) + pin.stays
        layers.setdefault(key, {})[pin.layer] = None
    found = [Hold(*key, count, tuple(layers[key])) for key, count in units.items()]
    told = {(hold.operator, hold.module, hold.source) for hold in found}
    for barrier in graph.barriers:  # those before a computed weight hold what is no producing axis
        if (barrier.operator, barrier.module, barrier.source) not in told:
            found.append(Hold(barrier.reason, barrier.operator, barrier.module, barrier.source, 0, ()))
    found += _alone(graph)
    for name in graph.analysis.kept_whole:
        found.append(Hold(f"group {name} is kept whole by keep=", "", "", "", 0, ()))
    return tuple(sorted(found, key=lambda hold: (hold.reason.startswith(OUTPUT), hold.units > 0, -hold.units)))


def _alone(graph: Graph) -> list[Hold]:
    """Layers of one output: it cannot go without the layer."""
    alone = {}
    for use in graph.analysis.uses:
        if use.role == "out" and graph.fingerprint.shapes.get(use.parameter, (0,) * (use.dim + 1))[use.dim] == 1:
            alone[layer_of(use.parameter)] = graph.nodes[use.node]
    if not alone:
        return []
    node = next(iter(alone.values()))
    where = (operator_name(node.target), module_path(node), source_line(node))
    return [Hold("the only output of its layer, which a plan cannot leave out", *where, len(alone), tuple(alone))]


def held(graph: Graph) -> str:
    """What holds units, as one sentence."""
    found = holds(graph)
    if not found:
        return "It has no layer whose channels or features could go."
    more = f"; and {len(found) - SHOWN} more places" if len(found) > SHOWN else ""
    return f"What holds the rest: {'; '.join(str(hold) for hold in found[:SHOWN])}{more}."


ADVICE = (
    "Free them: fewer keep= and barriers=, a rule for an unknown operator (docs/structure.md), parametrisations made "
    "plain weights (torch.nn.utils.parametrize.remove_parametrizations); 'secateurs doctor' lists every place."
)
ONLY_OUTPUTS = (
    "What a network returns keeps its size; trace it together with the layers that read its outputs, and its units can "
    "go there."
)


BY_HAND = (
    "A statistic over units that is written by hand (mean, std, sum) would become another number: use nn.LayerNorm, "
    "nn.RMSNorm, nn.GroupNorm or their functions, which compute the same and run over what is left "
    "(docs/structure.md, 'Statistics over units')."
)


def _advice(graph: Graph) -> str:
    """What frees units; where the network's outputs alone hold them, nothing in it can be set otherwise."""
    found = [hold for hold in holds(graph) if not hold.reason.startswith(OUTPUT)]
    if not found:
        return ONLY_OUTPUTS if holds(graph) else ADVICE
    by_hand = sum(hold.reason == REDUCED for hold in found[:SHOWN])
    return " ".join(([BY_HAND] if by_hand else []) + ([ADVICE] if by_hand < len(found) else []))


def nothing_can_go(graph: Graph) -> str:
    """The message for a network of which nothing can go."""
    text = held(graph).replace("What holds the rest", "What holds its units")
    return f"Nothing in this network can be pruned: it has no group of removable units. {text} {_advice(graph)}"


def shortfall(
    graph: Graph, asked: float, widths: Mapping[str, int] | None = None, blocks: Sequence[str] = ()
) -> str | None:
    """One warning where less than half of what was asked goes, else None.

    Args:
        graph: the traced network.
        asked: share that was to go, 0–1.
        widths: units that a plan keeps of every group; without it, what could go at most is judged.
        blocks: blocks that the plan removes.
    """
    possible = removable_share(graph)
    gone = possible if widths is None else 1 - _kept(graph, widths, blocks)
    if asked <= 0 or gone >= ENOUGH * asked:
        return None
    whole = [group.name for group in graph.groups if widths is not None and widths.get(group.name) == group.units]
    start = f"{asked:.0%} of the network was to go, but only {gone:.1%} of its parameters "
    if widths is not None and whole and possible >= ENOUGH * asked:
        some = ", ".join(whole[:SHOWN]) + (" …" if len(whole) > SHOWN else "")
        small = f"{len(whole)} of {len(graph.groups)} groups are too small to lose a unit at this ratio"
        return f"{start}do: {small} ({some})."
    return f"{start}{'can' if widths is None else 'do'}. {held(graph)} {_advice(graph)}"


def _kept(graph: Graph, widths: Mapping[str, int], blocks: Sequence[str]) -> float:
    spec = graph.spec
    removed = frozenset(number for number, block in enumerate(spec.blocks) if block.name in blocks)
    chosen = np.array([max(widths.get(group.name, group.units), 1) for group in spec.groups], dtype=np.int64)
    return spec.parameter_count(chosen, removed) / max(spec.parameter_count(spec.dense_widths), 1)
