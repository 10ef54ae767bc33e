"""The order in which a tensor's axes lie in memory (channels last, say), kept when a tensor is made anew."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def layout_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Axes of every parameter in the order in which they lie in memory, by name."""
    return {name: _order(parameter) for name, parameter in module.named_parameters()}


def arrange(module: nn.Module, layout: Mapping[str, tuple[int, ...]]) -> None:
    """Put every parameter of ``module`` into memory as ``layout`` says, in place."""
    for name, parameter in module.named_parameters():
        if name in layout:
            parameter.data = _ordered(parameter.data, layout[name])


def arranged_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``tensor`` dense, with its axes in memory in the order of ``like``, which has as many axes."""
    if like.dim() != tensor.dim() or like.layout is not torch.strided:
        return tensor
    return _ordered(tensor, _order(like))


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))


def _ordered(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    back = sorted(range(len(order)), key=lambda place: order[place])
    return tensor.permute(order).contiguous().permute(back)
