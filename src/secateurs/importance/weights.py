"""The filters of a group as matrices: what magnitude criteria read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from secateurs.errors import StructureError
from secateurs.structure.computed import computed_weight
from secateurs.structure.fold import batch_norm_pairs, batch_norm_scale
from secateurs.structure.graph import Graph
from secateurs.structure.groups import View


def tensor_of(graph: Graph, name: str) -> torch.Tensor:
    """The parameter or buffer called ``name`` of the graph's model, detached; where its layer computes a weight of the
    same shape of it (behind a pruning mask, a norm), that weight."""
    weight = computed_weight(graph.model, name)
    if weight is not None:
        return weight
    owner, _, leaf = name.rpartition(".")
    return getattr(graph.model.get_submodule(owner), leaf).detach()


def producers(graph: Graph, group: str) -> tuple[View, ...]:
    """The views of every weight whose output units belong to the group.

    Raises:
        StructureError: the group has none (its units are made by something without weights).
    """
    views = tuple(view for view in graph.views(group) if view.role == "out")
    if not views:
        raise StructureError(
            f"No weight produces the units of group {group}, so a magnitude cannot be computed for it. "
            "Choose the criterion random or one over activations, or keep the group whole."
        )
    return views


def carriers(graph: Graph, group: str) -> tuple[View, ...]:
    """The producing views; where a forward computes a group's filters of parameters (a product, a concatenation, rows
    that are repeated) those of the parameters, and where no parameter holds the units (padded rows) their readers.
    """
    views = graph.views(group)
    found = (tuple(view for view in views if view.role == role) for role in ("out", "free", "in"))
    return next((some for some in found if some), ()) or producers(graph, group)


def filters(graph: Graph, group: str, *, folded: bool = True) -> Iterator[tuple[View, torch.Tensor]]:
    """Every view that carries the units (:func:`carriers`) with its filters, float64 [units, elements].

    Args:
        graph: the traced network.
        group: a group's name.
        folded: scale each filter by its batch norm's γ/√(σ²+ε): its raw norm carries no meaning under a batch norm.
    """
    for view in carriers(graph, group):
        weight = tensor_of(graph, view.parameter)
        matrix = view.matrix(weight.abs() if weight.is_complex() else weight).double()
        if folded and view.role == "out":
            scale = fold_scale(graph, view)
            if scale is not None:
                per_unit = scale.shape[1]
                matrix = (matrix.reshape(len(matrix), per_unit, -1) * scale[:, :, None]).reshape(len(matrix), -1)
        yield view, matrix


def fold_scale(graph: Graph, view: View) -> torch.Tensor | None:
    """γ/√(σ²+ε) of the batch norm behind a producing view, float64 [units, indices per unit]; None without one."""
    name = batch_norm_pairs(graph).get(view.parameter)
    if name is None:
        return None
    scale = batch_norm_scale(graph.model.get_submodule(name))
    index = torch.from_numpy(view.indices).to(scale.device)
    return scale[index.reshape(-1)].reshape(index.shape)


def consumers(graph: Graph, group: str) -> tuple[View, ...]:
    """The views of every weight that reads the group's units.

    Raises:
        StructureError: nothing with weights reads them.
    """
    views = tuple(view for view in graph.views(group) if view.role == "in")
    if not views:
        raise StructureError(
            f"No weight reads the units of group {group}, so its effect on its readers cannot be computed. "
            "Choose a criterion over filters such as splamp, or keep the group whole."
        )
    return views
