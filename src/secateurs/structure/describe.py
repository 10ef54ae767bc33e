"""A traced network in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateurs.structure.remarks import about_training

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


def describe(graph: Graph) -> str:
    """Groups, removable blocks and barriers, one line each."""
    lines = [
        f"{len(graph.groups)} groups, {len(graph.removable_blocks)} removable blocks, {len(graph.barriers)} barriers"
    ]
    for group in graph.groups:
        coupled = ", ".join(group.layers[:6]) + (f" and {len(group.layers) - 6} more" if len(group.layers) > 6 else "")
        lines.append(f"  {group.name}: {group.units} units, {group.max_removable} removable; {coupled}")
    lines.extend(f"  block {block.name}" for block in graph.removable_blocks)
    lines.extend(f"  barrier {barrier}" for barrier in graph.barriers)
    lines.extend(f"  training mode: {line}" for line in about_training(graph))
    return "\n".join(lines)
