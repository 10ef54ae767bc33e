"""Parts of parameters that the forward does not read at the example's sizes, and may read at others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from secateurs.structure.call import Analysis
from secateurs.structure.operators import CASTS, COPIES, DROPOUTS, is_a, rule_for, short_name
from secateurs.structure.values import Value

_SELECTING = frozenset({"index", "index_select", "gather", "take", "getitem", "as_strided"})
"""Operators that hand on a part of what they are given, besides those of :mod:`secateurs.structure.rules.movement`."""


def pin_partly_read(analysis: Analysis, graph: torch.fx.Graph) -> None:
    """Pin positions of a parameter's axis that nothing is computed with, where others of that axis are read.

    A table of learned positions is read as far as the example is long; the rest is no gain but a shorter input.
    """
    read = np.unique(analysis.ids.classes(np.concatenate([*_read(analysis, graph), np.empty(0, dtype=np.int64)])))
    for stack in list(analysis.axes.values()):
        for ids in stack:
            used = np.isin(analysis.ids.classes(ids), read)
            if used.any() and not used.all():
                analysis.ids.pin(ids[~used], "is not read at the example's sizes, and may be at others", "")


def _read(analysis: Analysis, graph: torch.fx.Graph) -> Iterator[np.ndarray]:
    """Ids of everything that is computed with, not only moved or selected."""
    for node in graph.nodes:
        if node.op == "output" or (node.op == "call_function" and not _hands_on(node)):
            for source in node.all_input_nodes:
                yield from _ids(analysis.values.get(source.name))


def _hands_on(node: torch.fx.Node) -> bool:
    function = rule_for(node.target)
    moves = function is not None and function.__module__.endswith(".movement")
    return moves or short_name(node.target) in _SELECTING or is_a(node, COPIES, CASTS, DROPOUTS)


def _ids(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _ids(item)
    elif isinstance(value, Value):
        for factor in value.factors:
            yield np.ravel(factor.ids)
