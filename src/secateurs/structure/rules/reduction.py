"""Reductions, pooling and resampling: the axes they run over must be free."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secateurs.structure.call import Call
from secateurs.structure.operators import operator_name, rule, short_name
from secateurs.structure.values import Factor, Value
from secateurs.structure.vanishing import vanishes

_STATISTICS = (
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp",
    "linalg_vector_norm", "norm",
)  # fmt: skip


REDUCED = "a reduction runs over this axis"
"""The reason of units that a sum, a mean or a largest value runs over."""


def reduce_dims(call: Call, value: Value, dims: Sequence[int], keepdim: bool) -> Any:
    """Drop ``dims``; units along them would change the result's meaning, so they are pinned.

    Except in statistics of weights (weight standardisation, quantisation steps), which change as that of LayerNorm
    does, and in norms of what is zero where a unit is gone (``F.normalize``), which do not change.
    """
    gone = {dim % max(len(value.shape), 1) for dim in dims}
    if value.dims() & gone:
        if _is_statistic(call, keepdim):
            call.analysis.statistics.add(call.node.name)
        else:
            call.pin_dims(value, gone, REDUCED)
    factors = []
    for factor in value.factors:
        if factor.dim not in gone:
            shift = 0 if keepdim else sum(dim < factor.dim for dim in gone)
            factors.append(Factor(factor.dim - shift, factor.ids))
    results = [Value(shape, tuple(factors)) for shape in call.shapes]
    return results[0] if isinstance(call.node.meta["val"], torch.Tensor) else results


def _is_statistic(call: Call, keepdim: bool) -> bool:
    name = short_name(call.node.target)
    source = call.node.all_input_nodes[0]
    if call.node.name in call.analysis.weights:
        return name in _STATISTICS and not _gives_positions(call)
    return keepdim and name in ("linalg_vector_norm", "norm") and vanishes(call.analysis, source)


def _gives_positions(call: Call) -> bool:
    used = any(user.target is operator.getitem and user.args[1] == 1 and user.users for user in call.node.users)
    return used and operator_name(call.node.target) in ("aten.max.dim", "aten.min.dim")


@rule(
    "aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.var", "aten.std", "aten.var_mean",
    "aten.std_mean", "aten.prod", "aten.logsumexp", "aten.argmax", "aten.argmin", "aten.any", "aten.all",
    "aten.median", "aten.nansum", "aten.nanmean", "aten.count_nonzero",
)  # fmt: skip
def reduction(call: Call) -> Any:
    """Over free axes units pass."""
    value: Value = call["self"]
    if "other" in call.arguments:
        from secateurs.structure.rules.elementwise import pointwise

        return pointwise(call)
    dims = call.get("dim")
    every = list(range(len(value.shape)))
    listed = every if dims is None or dims == [] else [int(d) for d in np.atleast_1d(np.asarray(dims))]
    return reduce_dims(call, value, listed, bool(call.get("keepdim", False)))


_SPATIAL = {"1d": 1, "2d": 2, "3d": 3}


@rule(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices", "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d",
    "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d", "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d",
    "aten.max_pool1d_with_indices", "aten.lp_pool2d", "aten.fractional_max_pool2d", "aten.fractional_max_pool3d",
    "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d", "aten.replication_pad1d",
    "aten.replication_pad2d", "aten.replication_pad3d",
)  # fmt: skip
def pooling(call: Call) -> Any:
    """Pooling, and padding that reads neighbours: runs over the trailing axes; channels pass."""
    name = short_name(call.node.target)
    rank = next(size for text, size in _SPATIAL.items() if text in name)
    return _resample(call, call["self"], rank)


def _resample(call: Call, value: Value, rank: int) -> Any:
    lead = len(value.shape) - rank
    call.pin_dims(value, range(lead, len(value.shape)), "pooling or resampling runs over this axis")
    factors = tuple(factor for factor in value.factors if factor.dim < lead)
    results = [Value(shape, factors) for shape in call.shapes]
    return results[0] if isinstance(call.node.meta["val"], torch.Tensor) else results


@rule(
    "aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten.upsample_nearest3d", "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d", "aten.upsample_linear1d", "aten.upsample_trilinear3d", "aten._upsample_nearest_exact2d",
    "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa", "aten._upsample_nearest_exact1d",
    "aten._upsample_nearest_exact3d", "aten._upsample_lanczos2d_aa",
)  # fmt: skip
def upsample(call: Call) -> Any:
    """Interpolation over space."""
    value: Value = call["input"] if "input" in call.arguments else call["self"]
    return _resample(call, value, len(value.shape) - 2)


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(call: Call) -> Any:
    """Values go back to where a pooling took them from: channels meet the channels of the places."""
    value, places = call["self"], call["indices"]
    lead = len(value.shape) - _SPATIAL[short_name(call.node.target).removeprefix("max_unpool")]
    for each in (value, places):
        call.pin_dims(each, range(lead, len(value.shape)), "pooling or resampling runs over this axis")
    return Value(
        call.shape,
        tuple(
            Factor(dim, ids)
            for dim in range(lead)
            for ids in call.align([value.along(dim), places.along(dim)], "is put back to places that stay")
        ),
    )


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(call: Call) -> Any:
    """Sampling at positions: channels pass, the positions must be whole; groups in the batch of both go together."""
    value, grid = call["input"], call["grid"]
    call.align([value.along(0), grid.along(0)], "is sampled at positions that stay")
    call.pin([factor.ids for factor in grid.factors if factor.dim], "positions are computed from it")
    return _resample(call, call["input"], len(call["input"].shape) - 2)


@rule("aten.affine_grid_generator")
def affine_grid(call: Call) -> Any:
    """Positions of an affine map."""
    call.pin([factor.ids for factor in call["theta"].factors], "positions are computed from it")
    return Value(call.shape)


@rule("torchvision.roi_align", "torchvision.roi_pool", "torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def regions(call: Call) -> Any:
    """Pooling of boxes: channels pass, the boxes must be whole; position-sensitive pooling spends channels."""
    value: Value = call["input"]
    call.pin([factor.ids for factor in call["rois"].factors], "positions are computed from it")
    spent = (0, 1, 2, 3) if short_name(call.node.target).startswith("ps_") else (0, 2, 3)  # boxes name their image
    call.pin_dims(value, spent, "pooling or resampling runs over this axis")
    kept = tuple(factor for factor in value.factors if factor.dim == 1 and 1 not in spent)
    results = [Value(shape, kept if len(shape) == 4 else ()) for shape in call.shapes]
    return results[0] if isinstance(call.node.meta["val"], torch.Tensor) else results


@rule("torchvision.nms")
def suppression(call: Call) -> Any:
    """Boxes are compared: they and their scores must be whole."""
    call.pin([factor.ids for value in call.tensors() for factor in value.factors], "boxes are compared by value")
    return Value(call.shape)
