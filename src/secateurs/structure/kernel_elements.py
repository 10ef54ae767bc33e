"""Kernel elements of a plan: which kernels share a pattern, the mask that a pattern stands for, and cutting by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import PlanError, PlanMismatchError
from secateurs.plan import ElementPattern, Plan

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


def units_of(shape: tuple[int, ...], scope: str, block: int, groups: int = 1) -> Tensor:
    """Scope unit of every kernel, int64 [filters, channels per group]; units count from 0 in row-major order."""
    filters, channels = shape[0], shape[1]
    per_group = filters // groups
    o, c = torch.arange(filters).unsqueeze(1), torch.arange(channels).unsqueeze(0)
    group, within = o // per_group, o % per_group
    if scope == "layer":
        return torch.zeros(filters, channels, dtype=torch.int64)
    if scope == "filter":
        return o.expand(filters, channels)
    if scope == "in_channel":
        return group * channels + c
    if scope == "kernel":
        return o * channels + c
    blocks = -(-per_group // block)
    return (group * blocks + within // block) * channels + c


def mask_of(pattern: ElementPattern, shape: tuple[int, ...], groups: int = 1) -> Tensor:
    """True where an element stays, bool of ``shape`` (the weight's).

    Raises:
        PlanError: the pattern was made for another shape.
    """
    unit = units_of(shape, pattern.scope, pattern.block, groups)
    positions = int(torch.Size(shape[2:]).numel())
    bad = any(not 0 <= p < positions for row in pattern.pattern for p in row)
    if int(unit.max()) + 1 != len(pattern.pattern) or bad:
        raise PlanError(
            f"A pattern of {len(pattern.pattern)} units (scope {pattern.scope!r}) does not fit a weight of shape "
            f"{tuple(shape)}, which has {int(unit.max()) + 1} units of {positions} positions. Make the plan again."
        )
    if pattern.order and (pattern.scope != "block" or sorted(pattern.order) != list(range(shape[0]))):
        raise PlanError(
            f"A pattern of scope {pattern.scope!r} orders {len(pattern.order)} filters; a weight of shape "
            f"{tuple(shape)} takes an order of its {shape[0]} filters in scope 'block'. Make the plan again."
        )
    rows = torch.zeros(len(pattern.pattern), positions, dtype=torch.bool)
    for row, kept in zip(rows, pattern.pattern, strict=True):
        row[list(kept)] = True
    mask = rows[unit].reshape(shape)
    return mask[torch.tensor(pattern.order).argsort()] if pattern.order else mask


def groups_of(model: nn.Module, parameter: str) -> int:
    """Convolution groups of the layer that holds a weight; 1 where it does not say."""
    return int(getattr(model.get_submodule(parameter.rpartition(".")[0]), "groups", 1))


def masks_of(model: nn.Module, elements: Mapping[str, ElementPattern]) -> dict[str, Tensor]:
    """The mask of every weight that a plan names, for a network that was cut by it already.

    Raises:
        PlanMismatchError: a name is no convolution's weight of this network, or a pattern does not fit.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks = {}
    for name, pattern in elements.items():
        if name not in parameters or parameters[name].dim() < 3:
            raise PlanMismatchError(
                f"The plan names kernel elements of {name}, which is no convolution's weight of "
                f"{type(model).__name__}. Apply it to the network it was made for, or make a new plan."
            )
        try:
            masks[name] = mask_of(pattern, tuple(parameters[name].shape), groups_of(model, name))
        except PlanError as error:
            raise PlanMismatchError(f"{name}: {error}") from error
    return masks


def cut_elements(model: nn.Module, elements: Mapping[str, ElementPattern]) -> None:
    """Set the elements that a plan does not keep to zero, in place.

    Raises:
        PlanMismatchError: as :func:`masks_of`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks_of(model, elements).items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


def elements_pruned(small: nn.Module, plan: Plan) -> int:
    """How many weights of ``small`` a plan holds at zero."""
    return sum(int((~mask).sum()) for mask in masks_of(small, plan.elements).values())


def macs_left(graph: Graph, small: nn.Module, plan: Plan) -> int:
    """Multiply-adds at batch 1 of the network ``small`` that a plan leaves, without those of pruned elements."""
    spec = graph.spec
    removed = frozenset(index for index, block in enumerate(spec.blocks) if block.name in plan.blocks_removed)
    widths = np.array([max(len(plan.groups[group.name]), 1) for group in spec.groups], dtype=np.int64)
    masks, macs = masks_of(small, plan.elements), spec.macs(widths, removed)
    for layer in spec.layers:
        if layer.parameter in masks and removed.isdisjoint(layer.blocks):
            macs -= layer.positions * int((~masks[layer.parameter]).sum())
    return macs
