"""Which kernel elements a layer can best do without, once what stays is refitted: optimal brain surgeon, in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.recover.refit.normal_equations import NormalEquations


@dataclass(frozen=True)
class ElementCount:
    """``keep``: share of the elements that stays, on average over a block of ``block`` filters that share a pattern;
    ``order``: filters in the order in which blocks are cut (of an ungrouped layer; empty: as they stand)."""

    keep: float
    block: int
    order: tuple[int, ...] = ()


def surgeon(system: NormalEquations, weight: Tensor, count: ElementCount, damping: float) -> Tensor:
    """True where an element stays, bool [groups, outputs, unknowns], for a weight of that shape.

    Card. Per block of filters, greedily: the (channel, position) goes whose loss Σ_o w_o² / [H⁻¹] is least, and what
    stays takes over its part, W ← W - W_r [H⁻¹]_r / [H⁻¹]_rr. H is the inputs' second moment, the loss therefore the
    increase of the layer's squared output error. Source: optimal brain surgeon in the form of OBC (arXiv 2208.11580)
    and ZipLM (arXiv 2302.04089); for patterns that filters share it is ours (docs/methods.md, "Brain surgeon for kernel
    elements"). Cost: elements³ per block.
    When to use: with calibration images, where no long training follows. When not: without images.

    Args:
        system: the layer's normal equations on calibration images.
        weight: what the layer would be without pruning, float64.
        count: how many stay.
        damping: δ as a share of the inputs' mean square.
    """
    stays = torch.zeros_like(weight, dtype=torch.bool)
    gram = system.gram - system.inputs[:, :, None] * system.inputs[:, None, :] / max(1, system.count)
    for group, moments in enumerate(gram):
        added = (damping * moments.diagonal().mean()).clamp_min(1e-12 * max(1, system.count))
        inverse = torch.linalg.inv(moments + added * torch.eye(len(moments), dtype=moments.dtype))
        for rows in torch.tensor(count.order or range(weight.shape[1])).split(count.block):
            stays[group, rows] = _block(weight[group, rows], inverse, count.keep)
    return stays


def _block(weight: Tensor, inverse: Tensor, kept: float) -> Tensor:
    """Which unknowns of one block of filters [filters, unknowns] stay, bool [unknowns]; ``kept``: share."""
    weight, inverse = weight.clone(), inverse.clone()
    alive = torch.ones(weight.shape[1], dtype=torch.bool)
    for _ in range(weight.shape[1] - round(kept * weight.shape[1])):
        pivots = inverse.diagonal().clamp_min(1e-300)
        loss = torch.where(alive, weight.square().sum(0) / pivots, torch.inf)
        gone = int(loss.argmin())
        alive[gone] = False
        row = inverse[gone] / pivots[gone]
        weight -= weight[:, gone : gone + 1] * row
        inverse -= inverse[:, gone : gone + 1] * row
    return alive
