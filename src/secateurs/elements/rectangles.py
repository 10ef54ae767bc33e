"""Patterns that are rectangles: pruned kernels that every runtime takes, as smaller ordinary convolutions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.elements.alignment import reordered
from secateurs.errors import PlanError, StructureError
from secateurs.plan import Plan
from secateurs.structure.kernel_elements import masks_of


def best_rectangle(score: Tensor, keep: int) -> tuple[slice, slice]:
    """Rows and columns of the rectangle with at most ``keep`` positions that holds most of the score.

    ``score``: [filters, channels, kh, kw] (or [.., k]: one row). A larger rectangle wins a tie only by score.

    Raises:
        PlanError: ``keep`` is below 1.
    """
    if keep < 1:
        raise PlanError(f"A rectangle of {keep} positions is no convolution. Keep at least 1.")
    plane = score.detach().double().sum((0, 1))
    plane = plane.reshape(-1, plane.shape[-1])
    height, width = plane.shape
    found: list[tuple[float, slice, slice]] = []
    for top in range(height):
        for bottom in range(top + 1, height + 1):
            for left in range(width):
                for right in range(left + 1, width + 1):
                    if (bottom - top) * (right - left) <= keep:
                        inside = float(plane[top:bottom, left:right].sum())
                        found.append((inside, slice(top, bottom), slice(left, right)))
    _, rows, columns = max(found, key=lambda item: item[0])
    return rows, columns


def rectangle_curve(score: Tensor) -> np.ndarray:
    """Share of the score inside the best rectangle of at most 0, 1 … K·K positions, float64 [positions + 1]."""
    plane = score.detach().double().sum((0, 1))
    plane = plane.reshape(-1, plane.shape[-1])
    inside = [float(plane[best_rectangle(score, keep)].sum()) for keep in range(1, plane.numel() + 1)]
    return np.array([0.0, *inside]) / max(float(plane.sum()), 1e-300)


def crop(conv: nn.Conv2d, rows: slice, columns: slice) -> nn.Module:
    """``conv`` with everything outside the rectangle pruned, as a smaller convolution.

    Uneven padding, which is negative where the rectangle leaves a border of the input unused, becomes a
    ``ZeroPad2d`` in front; where it is even and not negative, the convolution pads itself.

    Raises:
        StructureError: padding given by name or not with zeros, or a rectangle outside the kernel.
    """
    height, width = conv.kernel_size
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise StructureError(
            f"A convolution with padding {conv.padding!r} ({conv.padding_mode}) cannot be cropped. "
            f"Write the padding as numbers."
        )
    if not (0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width):
        raise StructureError(f"Rows {rows} and columns {columns} do not lie in a {height}×{width} kernel.")
    (sh, sw), (dh, dw), (ph, pw) = conv.stride, conv.dilation, conv.padding
    top, bottom = ph - rows.start * dh, ph - (height - rows.stop) * dh
    left, right = pw - columns.start * dw, pw - (width - columns.stop) * dw
    even = top == bottom >= 0 and left == right >= 0
    small = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (rows.stop - rows.start, columns.stop - columns.start),
        stride=(sh, sw),
        padding=(top, left) if even else 0,
        dilation=(dh, dw),
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        small.weight.copy_(conv.weight[:, :, rows, columns])
        if conv.bias is not None and small.bias is not None:
            small.bias.copy_(conv.bias)
    return small if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), small)


def crop_network(model: nn.Module, rectangles: Mapping[str, tuple[slice, slice]]) -> nn.Module:
    """A copy of ``model`` whose convolutions named in ``rectangles`` are cropped to theirs; exports anywhere.

    Raises:
        StructureError: a name is no ``Conv2d`` of the model.
    """
    small = copy.deepcopy(model)
    for name, (rows, columns) in rectangles.items():
        try:
            conv = small.get_submodule(name)
        except AttributeError:
            conv = nn.Identity()
        if not isinstance(conv, nn.Conv2d):
            raise StructureError(f"{name!r} is not a Conv2d of this network. Name the module, without '.weight'.")
        parent, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(parent), leaf, crop(conv, rows, columns))
    return small


def deployable(small: nn.Module, plan: Plan, example: Any = None, *, skips: bool = False) -> nn.Module:
    """The pruned network as it is exported: ``small`` itself, or the same function as a copy in a faster form.

    Filters stand in the order in which they share patterns. Where the runtime multiplies by zeros, layers that keep
    one rectangle in all kernels are smaller convolutions; other patterns stay zeros.

    Args:
        small: the network that ``plan`` left, trained or not.
        plan: its plan.
        example: inputs of the network; needed where the plan orders filters.
        skips: the runtime leaves zeros out by itself, as ``torch-sparse-cpu`` and the OpenVINO extension do.

    Raises:
        PlanError: the plan orders filters in a way that this network does not allow.
    """
    small = reordered(small, plan.elements, example)
    if skips:
        return small
    whole = {name: pattern for name, pattern in plan.elements.items() if pattern.scope == "layer"}
    rectangles = {}
    for name, mask in masks_of(small, whole).items():
        plane = mask.flatten(0, 1)[0]
        rows, columns = plane.any(1).nonzero().flatten(), plane.any(0).nonzero().flatten()
        if plane.dim() == 2 and len(rows) * len(columns) == int(plane.sum()):
            module, _, _ = name.rpartition(".")
            rectangles[module] = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return crop_network(small, rectangles) if rectangles else small
