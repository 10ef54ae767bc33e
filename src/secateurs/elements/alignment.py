"""Order of filters in which like patterns meet in a block; folded into the neighbours, so free at run time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.elements.patterns import Choice
from secateurs.errors import PlanError

if TYPE_CHECKING:
    from secateurs.structure import Graph, View


def retained(score: Tensor, order: Sequence[int] | Tensor, choice: Choice) -> float:
    """Share of the score that a block-wise choice keeps when the filters stand in ``order``; score [filters, ...]."""
    flat = score.detach().double().flatten(2)[torch.as_tensor(order)]
    sums = torch.stack([part.sum(0) for part in flat.split(choice.block)])
    return float(_kept(sums, choice).sum() / flat.sum().clamp(min=1e-300))


def _kept(sums: Tensor, choice: Choice) -> Tensor:
    """Score kept by each block [blocks] of block sums [blocks, channels, positions]."""
    if choice.pool == "unit":
        return sums.topk(int(choice.keep), dim=2).values.sum((1, 2))
    # A pool of the whole layer is approached by one pool per block: the exchange needs blocks that stand alone.
    count = round(choice.keep * sums.shape[1])
    return sums.flatten(1).topk(count, dim=1).values.sum(1)


def order_filters(
    scores: Tensor | Sequence[Tensor], choice: Choice, *, seed: int = 0, trials: int = 2000
) -> np.ndarray:
    """Order of filters, int64 [filters], whose blocks keep much of the score; never worse than the order given.

    Starts from neighbours along the scores' main direction, then exchanges filters between blocks while that helps.
    Our own heuristic: the paper's is not known.

    Args:
        scores: importance [filters, channels, kh, kw], one per layer that the same order applies to.
        choice: of scope ``block``.
        seed: of the exchanges that are tried.
        trials: how many.
    """
    stack = [scores] if isinstance(scores, Tensor) else list(scores)
    flats = [score.detach().double().flatten(2) for score in stack]
    filters = flats[0].shape[0]
    if choice.scope != "block" or any(flat.shape[0] != filters for flat in flats):
        raise PlanError(
            f"Filters are ordered for scope 'block' and layers of one size, not scope {choice.scope!r} and sizes "
            f"{[flat.shape[0] for flat in flats]}."
        )
    if filters <= choice.block:
        return np.arange(filters)
    profile = torch.cat([(flat / flat.sum((1, 2), keepdim=True).clamp(min=1e-300)).flatten(1) for flat in flats], 1)
    centred = profile - profile.mean(0)
    direction = torch.linalg.eigh(centred @ centred.t()).eigenvectors[:, -1]
    best = max((torch.arange(filters), direction.argsort()), key=lambda o: sum(retained(s, o, choice) for s in stack))
    return _exchange(flats, best, choice, np.random.default_rng(seed), trials).numpy()


def _exchange(flats: list[Tensor], order: Tensor, choice: Choice, rng: np.random.Generator, trials: int) -> Tensor:
    order = order.clone()
    blocks = -(-len(order) // choice.block)
    sums = [torch.stack([part.sum(0) for part in flat[order].split(choice.block)]) for flat in flats]
    kept = sum(_kept(total, choice) for total in sums)
    assert isinstance(kept, Tensor)
    for _ in range(trials):
        a, b = rng.choice(blocks, size=2, replace=False)
        i = a * choice.block + rng.integers(min(choice.block, len(order) - a * choice.block))
        j = b * choice.block + rng.integers(min(choice.block, len(order) - b * choice.block))
        pair = torch.tensor([a, b])
        tried = []
        for flat, total in zip(flats, sums, strict=True):
            change = flat[order[j]] - flat[order[i]]
            tried.append(total[pair] + torch.stack([change, -change]))
        value = sum(_kept(total, choice) for total in tried)
        assert isinstance(value, Tensor)
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


def align(
    graph: Graph, choices: Mapping[str, Choice], *, score: Mapping[str, Tensor] | None = None, seed: int = 0
) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A copy of the network, the same function, whose filters are ordered for their blocks; and the order per group.

    Every group of units that produces filters of a layer in ``choices`` is ordered by all such layers together (a
    residual stream has several), and its consumers follow.

    Args:
        graph: the traced network.
        choices: of scope ``block``, per convolution weight name.
        score: importance per weight name; default w².
        seed: of the search.
    """
    model = copy.deepcopy(graph.model)
    parameters = dict(model.named_parameters())
    orders: dict[str, np.ndarray] = {}
    for group in graph.groups:
        views = graph.views(group.name)
        producers = [v for v in views if v.role == "out" and v.dim == 0 and v.parameter in choices]
        usable = [v for v in producers if v.indices.shape[1] == 1 and choices[v.parameter].scope == "block"]
        # Blocks are cut from the whole axis: a group that is only a part of it has no blocks of its own.
        usable = [v for v in usable if v.indices.shape[0] == parameters[v.parameter].shape[0]]
        if not usable:
            continue
        weights = [parameters[v.parameter] if score is None else score[v.parameter] for v in usable]
        by_unit = [
            (w.detach().double().square() if score is None else w)[v.indices[:, 0]]
            for v, w in zip(usable, weights, strict=True)
        ]
        orders[group.name] = order_filters(by_unit, choices[usable[0].parameter], seed=seed)
        permute(model, views, orders[group.name])
    return model, orders
