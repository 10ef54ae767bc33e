"""What a user must know of training mode: what was not looked at, and what a rebuilt network does not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secateurs.structure.inspection import only_training, unread
from secateurs.structure.modes import TrainingMode

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

SHOWN = 3
"""Parameters that a remark names."""


def training_remark(graph: Graph, rebuilt: bool) -> str | None:
    """One sentence where training mode is not, or may not be, what it was; None where it is.

    Args:
        graph: the traced network.
        rebuilt: whether the result is a graph built from the export.
    """
    mode, names = graph.training_mode, unread(graph)
    if mode.kind == "fails" and names:
        return (
            f"The network does not run in training mode on the example ({mode.reason}), so {_some(names)}, which "
            "evaluation mode never reads, were not looked at: they stay as they are, and train() may not fit them any "
            "more. Give an example on which it runs in both modes (targets among the inputs, say)."
        )
    if mode.kind not in ("other", "chance") or (graph.training is not None and not mode.reason):
        return None
    if rebuilt:
        return _lost(mode, names or only_training(graph))
    if not names or graph.training is not None:
        return None
    return (
        f"The forward in training mode could not be exported ({mode.reason}), so {_some(names)}, which it alone may "
        "read, were not looked at: they stay as they are. The cut network ran in training mode once; train it on a "
        "batch or two before you rely on it."
    )


def _lost(mode: TrainingMode, names: Sequence[str]) -> str:
    evaluated, trained = mode.outputs
    returns = f"returns {evaluated} there, not {trained}" if evaluated != trained else f"returns {evaluated}, as ever"
    without = f", and {_some(names)} are gone" if names else ""
    return (
        "The rebuilt network does in training mode what it does in evaluation mode, for the user's forward in training "
        f"mode {_why(mode)}: it {returns}{without}. Keep the user's own class (barriers= for the module that does not "
        "follow) where that matters."
    )


def _why(mode: TrainingMode) -> str:
    return f"could not be exported ({mode.reason})" if mode.reason else "reads other weights"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} parameter{'s' if len(names) != 1 else ''} ({', '.join(names[:SHOWN])}{more})"


def about_training(graph: Graph) -> list[str]:
    """What training mode does otherwise, for a description of the network."""
    mode, names = graph.training_mode, only_training(graph)
    lines = []
    if mode.kind == "other" and graph.training is not None:
        evaluated, trained = mode.outputs
        if evaluated != trained:
            lines.append(f"returns {trained}; in evaluation mode {evaluated}")
        if names:
            lines.append(f"it alone reads {_some(names)}, which are cut along")
    remark = training_remark(graph, rebuilt=False)
    return lines if remark is None else [*lines, remark]
