"""Absent units in products spelt otherwise, distances and norms of slices; see :mod:`structure_judge`."""

from __future__ import annotations

from typing import Any

import torch

from secateurs.testing.structure_judge import judged, there, zeroed


@judged("addbmm")
def _added_batches(
    func: Any, added: torch.Tensor, first: torch.Tensor, second: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    products = torch.bmm(zeroed(first), zeroed(second)).sum(0)
    terms = torch.bmm(there(first), there(second)).sum(0)
    return beta * added + alpha * products.masked_fill(terms == 0, float("nan"))


@judged("conv_tbc")
def _over_time(func: Any, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, pad: int = 0) -> torch.Tensor:
    result = func(zeroed(value), zeroed(weight), zeroed(bias), pad)
    return result.masked_fill(there(weight).sum((0, 1)) == 0, float("nan"))


@judged("_cdist_forward", "cdist", "_euclidean_dist")
def _distances(func: Any, first: torch.Tensor, second: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Over the features that are there in both."""
    terms = there(first) @ there(second).transpose(-1, -2)
    both = there(first).amax(-2, keepdim=True) * there(second).amax(-2, keepdim=True)
    result = func(zeroed(first) * both, zeroed(second) * both, *rest)
    return result.masked_fill(terms == 0, float("nan"))


@judged("trace")
def _trace(func: Any, value: torch.Tensor) -> torch.Tensor:
    return value.diagonal().nansum()


@judged("renorm")
def _renorm(func: Any, value: torch.Tensor, order: float, dim: int, most: float) -> torch.Tensor:
    result: torch.Tensor = func(zeroed(value), order, dim, most)
    return result.masked_fill(value.isnan(), float("nan"))
