"""Order of filters in which like patterns meet in a block; folded into the neighbours, so free at run time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.elements.patterns import PatternChoice
from secateurs.errors import PlanError
from secateurs.plan import ElementPattern
from secateurs.progress import Progress, silent
from secateurs.structure.copies import deep_copy
from secateurs.structure.kernel_elements import groups_of

if TYPE_CHECKING:
    from secateurs.structure import Graph, View

_SAME = 1e-4
"""Difference of outputs that reordered sums may make, of the largest output."""


def retained(score: Tensor, order: Sequence[int] | Tensor, choice: PatternChoice) -> float:
    """Share of the score that a block-wise choice keeps when the filters stand in ``order``; score [filters, ...]."""
    flat = score.detach().double().flatten(2)[torch.as_tensor(order)]
    sums = torch.stack([part.sum(0) for part in flat.split(choice.block)])
    return float(_kept(sums, choice).sum() / flat.sum().clamp(min=1e-300))


def _kept(sums: Tensor, choice: PatternChoice) -> Tensor:
    """Score kept by each block [blocks] of block sums [blocks, channels, positions]."""
    if choice.pool == "unit":
        return sums.topk(int(choice.keep), dim=2).values.sum((1, 2))
    # A pool of the whole layer is approached by one pool per block: the exchange needs blocks that stand alone.
    count = round(choice.keep * sums.shape[1])
    return sums.flatten(1).topk(count, dim=1).values.sum(1)


def order_filters(
    scores: Tensor | Sequence[Tensor],
    choice: PatternChoice | Sequence[PatternChoice],
    *,
    seed: int = 0,
    trials: int = 2000,
) -> np.ndarray:
    """Order of filters, int64 [filters], whose blocks keep much of the score; never worse than the order given.

    Starts from neighbours along the scores' main direction, then exchanges filters between blocks while that helps.
    Every layer counts with the share of its score that it keeps. Our own heuristic: the paper's is not known.

    Args:
        scores: importance [filters, channels, kh, kw], one per layer that the same order applies to.
        choice: of scope ``block``, one for all layers or one per layer.
        seed: of the exchanges that are tried.
        trials: how many.
    """
    stack = [scores] if isinstance(scores, Tensor) else list(scores)
    choices = [choice] * len(stack) if isinstance(choice, PatternChoice) else list(choice)
    flats = [score.detach().double().flatten(2) for score in stack]
    flats = [flat / flat.sum().clamp(min=1e-300) for flat in flats]
    filters, block = flats[0].shape[0], choices[0].block
    if any(one.scope != "block" or one.block != block for one in choices) or any(len(f) != filters for f in flats):
        raise PlanError(
            f"Filters are ordered for scope 'block' and layers of one size, not scopes "
            f"{sorted({one.scope for one in choices})}, blocks {sorted({one.block for one in choices})} and sizes "
            f"{[len(flat) for flat in flats]}."
        )
    if filters <= block:
        return np.arange(filters)
    profile = torch.cat([(flat / flat.sum((1, 2), keepdim=True).clamp(min=1e-300)).flatten(1) for flat in flats], 1)
    centred = profile - profile.mean(0)
    direction = torch.linalg.eigh(centred @ centred.t()).eigenvectors[:, -1]
    starts = (torch.arange(filters), direction.argsort())
    best = max(starts, key=lambda o: sum(retained(s, o, c) for s, c in zip(flats, choices, strict=True)))
    return _exchange(flats, best, choices, np.random.default_rng(seed), trials).numpy()


def _exchange(
    flats: list[Tensor], order: Tensor, choices: list[PatternChoice], rng: np.random.Generator, trials: int
) -> Tensor:
    order, block = order.clone(), choices[0].block
    blocks = -(-len(order) // block)
    sums = [torch.stack([part.sum(0) for part in flat[order].split(block)]) for flat in flats]

    def kept_of(totals: list[Tensor]) -> Tensor:
        return torch.stack([_kept(total, one) for total, one in zip(totals, choices, strict=True)]).sum(0)

    kept = kept_of(sums)
    for _ in range(trials):
        a, b = rng.choice(blocks, size=2, replace=False)
        i = a * block + rng.integers(min(block, len(order) - a * block))
        j = b * block + rng.integers(min(block, len(order) - b * block))
        pair = torch.tensor([a, b])
        tried = []
        for flat, total in zip(flats, sums, strict=True):
            change = flat[order[j]] - flat[order[i]]
            tried.append(total[pair] + torch.stack([change, -change]))
        value = kept_of(tried)
        if float(value.sum()) > float(kept[pair].sum()) * (1 + 1e-12):
            order[[i, j]] = order[[j, i]]
            kept[pair] = value
            for total, new in zip(sums, tried, strict=True):
                total[pair] = new
    return order


def permute(model: nn.Module, views: Iterable[View], order: Sequence[int] | np.ndarray) -> None:
    """Reorder the units of one group in place: unit ``order[k]`` moves to place ``k``, on every axis it lies on."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    chosen = np.asarray(order)
    with torch.no_grad():
        for view in views:
            tensor = tensors[view.parameter]
            index = np.arange(tensor.shape[view.dim])
            index[view.indices.reshape(-1)] = view.indices[chosen].reshape(-1)
            tensor.copy_(tensor.index_select(view.dim, torch.from_numpy(index).to(tensor.device)))


def producers(graph: Graph, group: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """Filter of every unit, int64 [units], per weight of ``names`` whose filters are just the units of a group.

    Blocks are cut from the whole axis: a group that is only a part of it has no blocks of its own.
    """
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    return {
        view.parameter: view.indices[:, 0]
        for view in graph.views(group)
        if view.role == "out" and view.dim == 0 and view.parameter in names
        if view.indices.shape == (parameters[view.parameter].shape[0], 1)
        if groups_of(graph.model, view.parameter) == 1
    }


def align(
    graph: Graph,
    choices: Mapping[str, PatternChoice],
    *,
    score: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A copy of the network, the same function, whose filters are ordered for their blocks; and the orders.

    Every group of units that produces filters of a layer in ``choices`` is ordered by all such layers together (a
    residual stream has several), and its consumers follow. A group whose order would change the function, which the
    network's output on its example shows, stays as it is. The orders are per weight name, of its filters; weights that
    stay as they are have none.

    Args:
        graph: the traced network.
        choices: of scope ``block``, per convolution weight name.
        score: importance per weight name; default w².
        seed: of the search.
        progress: shows groups.
    """
    model, orders = deep_copy(graph.model, {}).eval(), dict[str, tuple[int, ...]]()
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    blockwise = {name: choice for name, choice in choices.items() if choice.scope == "block"}
    with progress.task("align filters", len(graph.groups)) as task:
        for group in graph.groups:
            task.advance(1, group.name)
            rows = producers(graph, group.name, blockwise)
            if not rows:
                continue
            scores = [
                (parameters[name].detach().double().square() if score is None else score[name])[torch.from_numpy(row)]
                for name, row in rows.items()
            ]
            order = order_filters(scores, [blockwise[name] for name in rows], seed=seed)
            views = graph.views(group.name)
            if (order == np.arange(len(order))).all():
                continue
            permute(model, views, order)
            if not _alike(graph.model, model, (graph.args, graph.kwargs)):
                permute(model, views, order.argsort())
                continue
            for name, row in rows.items():
                places = np.arange(len(row))
                places[row] = row[order]
                orders[name] = tuple(places.tolist())
    return model, orders


def reordered(small: nn.Module, elements: Mapping[str, ElementPattern], example: Any = None) -> nn.Module:
    """A copy of the network, the same function, whose filters stand in the order in which they share patterns.

    ``small`` itself where no pattern has an order.

    Args:
        small: the network that a plan left.
        elements: the plan's patterns.
        example: inputs of the network.

    Raises:
        PlanError: there is no example, or the orders do not fit this network.
    """
    from secateurs.structure import trace

    orders = {name: np.array(pattern.order) for name, pattern in elements.items() if pattern.order}
    if not orders:
        return small
    if example is None:
        raise PlanError("This plan orders filters, which takes inputs of the network to do. Give an example.")
    model, graph = deep_copy(small, {}), trace(small, example)
    for group in graph.groups:
        units = [row.argsort()[orders[name][row]] for name, row in producers(graph, group.name, orders).items()]
        if units:
            permute(model, graph.views(group.name), units[0])
        if any((other != units[0]).any() for other in units[1:]):
            raise PlanError(f"The plan orders the filters of {group.name} in two ways. Make the plan again.")
    if not _alike(small, model, (graph.args, graph.kwargs)):
        raise PlanError("Filters cannot stand in the order of this plan: the network computes something else then.")
    return model


def _alike(model: nn.Module, other: nn.Module, inputs: tuple[Any, Any]) -> bool:
    """Whether two networks compute the same in evaluation mode."""
    found = []
    with torch.no_grad():
        for module in (model, other):
            modes = {child: child.training for child in module.modules()}
            found.append(pytree.tree_leaves(module.eval()(*inputs[0], **inputs[1])))
            for child, training in modes.items():
                child.training = training
    return all(
        float((a - b).abs().max()) <= _SAME * float(a.abs().max())
        for a, b in zip(*found, strict=True)
        if isinstance(a, Tensor) and a.is_floating_point()
    )
