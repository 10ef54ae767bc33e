"""Patterns that are rectangles: pruned kernels that every runtime takes, as smaller ordinary convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.elements.alignment import reordered
from secateurs.errors import PlanError, StructureError
from secateurs.plan import Plan
from secateurs.structure.copies import deep_copy
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


def crop(conv: nn.Conv2d | nn.Conv1d, rows: slice, columns: slice) -> nn.Module:
    """``conv`` with everything outside the rectangle pruned, as a smaller convolution.

    Uneven padding, which is negative where the rectangle leaves a border of the input unused, becomes a
    ``ZeroPad2d`` (``ZeroPad1d``) in front; where it is even and not negative, the convolution pads itself. The only row
    of a 1-D kernel is ``slice(0, 1)``.

    Raises:
        StructureError: padding given by name or not with zeros, or a rectangle outside the kernel.
    """
    height, width = (1, *conv.kernel_size)[-2:]
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise StructureError(
            f"A convolution with padding {conv.padding!r} ({conv.padding_mode}) cannot be cropped. "
            f"Write the padding as numbers."
        )
    if not (0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width):
        raise StructureError(f"Rows {rows} and columns {columns} do not lie in a {height}×{width} kernel.")
    axes = len(conv.kernel_size)
    spans = (rows, columns)[-axes:]
    sizes = zip(spans, conv.kernel_size, conv.dilation, conv.padding, strict=True)
    pads = [(p - span.start * d, p - (k - span.stop) * d) for span, k, d, p in sizes]
    even = all(before == after >= 0 for before, after in pads)
    kind: Any = nn.Conv1d if axes == 1 else nn.Conv2d
    small: nn.Conv2d = kind(
        conv.in_channels,
        conv.out_channels,
        tuple(span.stop - span.start for span in spans),
        stride=conv.stride,
        padding=tuple(before for before, _ in pads) if even else 0,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        small.weight.copy_(conv.weight[(slice(None), slice(None), *spans)])
        if conv.bias is not None and small.bias is not None:
            small.bias.copy_(conv.bias)
    if even:
        return small
    ahead: Any = nn.ZeroPad1d if axes == 1 else nn.ZeroPad2d
    return nn.Sequential(ahead(tuple(side for pair in reversed(pads) for side in pair)), small)


def crop_network(model: nn.Module, rectangles: Mapping[str, tuple[slice, slice]]) -> nn.Module:
    """A copy of ``model`` whose convolutions named in ``rectangles`` are cropped to theirs; exports anywhere.

    Raises:
        StructureError: a name is no ``Conv1d`` or ``Conv2d`` of the model.
    """
    small = deep_copy(model, {})
    for name, (rows, columns) in rectangles.items():
        try:
            conv = small.get_submodule(name)
        except AttributeError:
            conv = nn.Identity()
        if not isinstance(conv, (nn.Conv1d, nn.Conv2d)):
            raise StructureError(
                f"{name!r} is not a Conv1d or Conv2d of this network. Name the module, without '.weight'."
            )
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
        plane = mask[0, 0].reshape(-1, mask.shape[-1])
        rows, columns = plane.any(1).nonzero().flatten(), plane.any(0).nonzero().flatten()
        if len(rows) * len(columns) == int(plane.sum()):
            module, _, _ = name.rpartition(".")
            rectangles[module] = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return crop_network(small, rectangles) if rectangles else small
