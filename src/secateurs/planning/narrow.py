"""Groups that a plan leaves with few of their units: told, since the network rarely recovers from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from secateurs.structure import Graph

FEW = 0.1
"""Share of its units below which a group is told."""
NECK = 0.25
"""A group that everything passes through is told where it keeps less than this, times the share that groups keep in the
median."""
_LISTED = 5


def remarks(graph: Graph, kept: Mapping[str, int]) -> list[str]:
    """Lines for the user about the narrow groups of a plan.

    Args:
        graph: the network.
        kept: units that stay, per group name; groups that go with their block are left out.
    """
    from secateurs.importance.bottlenecks import bottlenecks

    shares = {group.name: kept[group.name] / group.units for group in graph.groups if kept.get(group.name)}
    few = [name for name, share in shares.items() if share < FEW]
    found = []
    if few:
        found.append(f"Less than a tenth of the units stay in {_listed(graph, few, kept)}. {_advice(few, kept)}")
    usual = float(np.median(list(shares.values()))) if shares else 1.0
    through = bottlenecks(graph)
    necks = [name for name, share in shares.items() if name in through and share < NECK * usual and name not in few]
    if necks:
        found.append(
            f"Bottlenecks, through which all passes: {_listed(graph, necks, kept)}, where half of the groups keep "
            f"{usual:.0%} or more. {_advice(necks, kept)}"
        )
    return found


def _listed(graph: Graph, names: list[str], kept: Mapping[str, int]) -> str:
    units = {group.name: group.units for group in graph.groups}
    more = f" and {len(names) - _LISTED} more groups" if len(names) > _LISTED else ""
    return ", ".join(f"{name} ({kept[name]} of {units[name]})" for name in names[:_LISTED]) + more


def _advice(names: list[str], kept: Mapping[str, int]) -> str:
    least = min(kept[name] for name in names)
    return (
        f"Such networks rarely recover: give --min-width above {least}, a criterion that weighs groups against each "
        f"other (with --data the default does), or cut less."
    )
