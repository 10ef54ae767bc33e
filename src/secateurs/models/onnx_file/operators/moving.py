"""ONNX operators that move, choose and make values: shapes, slices, pads, gathers, resizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from secateurs.errors import DataError
from secateurs.models.onnx_file.values import (
    Value,
    array,
    at,
    first_tensor,
    number,
    numbers,
    on_host,
    operand,
    operator,
    tensor,
)

Attributes = Mapping[str, Any]
Given = Sequence[Value]
_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float32, 11: torch.float64, 16: torch.float32,
}  # fmt: skip
"""By ONNX's number; float16 and bfloat16 are computed in float32."""
_WHOLE = (2, 3, 5, 6, 7)


@operator("Shape")
def _shape(given: Given, attributes: Attributes, opset: int) -> Value:
    sizes = list(given[0].shape)
    return array(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))])


@operator("Size")
def _size(given: Given, attributes: Attributes, opset: int) -> Value:
    return np.asarray(math.prod(given[0].shape))


@operator("Reshape")
def _reshape(given: Given, attributes: Attributes, opset: int) -> Value:
    values, sizes = given[0], numbers(given[1])
    if on_host(values):
        return np.asarray(values).reshape([int(size) for size in sizes])
    if not attributes.get("allowzero"):
        sizes = [values.shape[place] if _is(size, 0) else size for place, size in enumerate(sizes)]
    return values.reshape(sizes)


def _is(size: Any, wanted: int) -> bool:
    """Whether a size is a plain number with this value; a symbol is none."""
    return isinstance(size, int) and size == wanted


@operator("Flatten")
def _flatten(given: Given, attributes: Attributes, opset: int) -> Value:
    axis, values = attributes.get("axis", 1), given[0]
    axis = axis % values.ndim if axis < 0 else axis
    if axis == 1:
        return values.flatten(1)
    return values.reshape(math.prod(values.shape[:axis]), math.prod(values.shape[axis:]))


@operator("Transpose")
def _transpose(given: Given, attributes: Attributes, opset: int) -> Value:
    order = attributes.get("perm") or list(range(np.ndim(given[0]) - 1, -1, -1))
    return np.transpose(given[0], order) if on_host(given[0]) else given[0].permute(order)


def _axes(given: Given, attributes: Attributes) -> list[int] | None:
    found = attributes.get("axes") if at(given, 1) is None else numbers(given[1])
    return None if found is None else [int(axis) for axis in found]


@operator("Squeeze")
def _squeeze(given: Given, attributes: Attributes, opset: int) -> Value:
    axes, values = _axes(given, attributes), given[0]
    if on_host(values):
        return np.squeeze(values, None if axes is None else tuple(axes))
    if axes is None:
        return values.squeeze()
    for axis in sorted((axis % values.ndim for axis in axes), reverse=True):
        values = values.squeeze(axis)
    return values


@operator("Unsqueeze")
def _unsqueeze(given: Given, attributes: Attributes, opset: int) -> Value:
    values, axes = given[0], _axes(given, attributes) or []
    dims = np.ndim(values) + len(axes)
    for axis in sorted(axis % dims for axis in axes):
        values = np.expand_dims(values, axis) if on_host(values) else values.unsqueeze(axis)
    return values


@operator("Concat")
def _concat(given: Given, attributes: Attributes, opset: int) -> Value:
    axis, like = attributes.get("axis", 1), first_tensor(given)
    if like is None:
        return np.concatenate([np.asarray(value) for value in given], axis)
    parts = [tensor(value, like) for value in given]
    rows = next((one.shape[0] for one in parts if not _is(one.shape[0], 1)), 1) if like.ndim > 1 else 1
    if axis % like.ndim != 0:  # such as a class token for every sample, in a file made for one
        parts = [
            one.expand(rows, *one.shape[1:]) if _is(one.shape[0], 1) and not _is(rows, 1) else one for one in parts
        ]
    return torch.cat(parts, axis)


@operator("Slice")
def _slice(given: Given, attributes: Attributes, opset: int) -> Value:
    values = given[0]
    if opset < 10:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes"), None
    else:
        starts, ends = numbers(given[1]), numbers(given[2])
        axes = None if at(given, 3) is None else numbers(given[3])
        steps = None if at(given, 4) is None else numbers(given[4])
    axes = list(range(len(starts))) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        values = _cut(values, int(axis), start, end, int(step))
    return values


def _cut(values: Value, axis: int, start: Any, end: Any, step: int) -> Value:
    if on_host(values):
        where = [slice(None)] * np.ndim(values)
        where[axis] = slice(start, end if abs(end) < 2**31 else None, step)
        return np.asarray(values)[tuple(where)]
    if step > 0:
        where = [slice(None)] * (axis % values.ndim)
        return values[(*where, slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step))]
    size = int(values.shape[axis])
    chosen = list(range(size))[slice(start if start < size else None, end if end > -size - 1 else None, step)]
    if chosen == list(range(size))[::-1]:
        return values.flip(axis)
    return values.index_select(axis, torch.tensor(chosen, device=values.device))


@operator("Split")
def _split(given: Given, attributes: Attributes, opset: int) -> Value:
    axis, values = attributes.get("axis", 0), given[0]
    sizes = attributes.get("split") if at(given, 1) is None else numbers(given[1])
    if sizes is None:
        whole, parts = values.shape[axis], attributes["num_outputs"]
        each = -(-whole // parts)
        sizes = [each] * (parts - 1) + [whole - each * (parts - 1)]
    if on_host(values):
        return tuple(np.split(values, np.cumsum(sizes)[:-1], axis))
    return torch.split(values, [int(size) for size in sizes], axis)


@operator("Gather")
def _gather(given: Given, attributes: Attributes, opset: int) -> Value:
    values, axis = given[0], attributes.get("axis", 0)
    if on_host(*given):
        return np.take(np.asarray(values), np.asarray(given[1], dtype=np.int64), axis)
    like = first_tensor(given)
    values = tensor(values, like)
    axis = axis % values.ndim
    if on_host(given[1]) and np.ndim(given[1]) == 0:
        return values.select(axis, int(given[1]))
    places = tensor(given[1], like).to(torch.int64)
    if on_host(given[1]):
        places = torch.where(places < 0, places + values.shape[axis], places)
    found = values.index_select(axis, places.reshape(-1))
    return found.reshape(*values.shape[:axis], *places.shape, *values.shape[axis + 1 :])


@operator("GatherElements")
def _gather_elements(given: Given, attributes: Attributes, opset: int) -> Value:
    return torch.gather(given[0], attributes.get("axis", 0), tensor(given[1], given[0]).to(torch.int64))


@operator("GatherND")
def _gather_nd(given: Given, attributes: Attributes, opset: int) -> Value:
    if attributes.get("batch_dims", 0):
        raise DataError("The ONNX file gathers along batches (GatherND, batch_dims). Stop before it: ?outputs=NAME.")
    places = tensor(given[1], given[0]).to(torch.int64)
    return tensor(given[0])[tuple(places[..., place] for place in range(places.shape[-1]))]


@operator("ScatterND")
def _scatter_nd(given: Given, attributes: Attributes, opset: int) -> Value:
    like = first_tensor(given)
    values, places, updates = (tensor(value, like) for value in given)
    where = tuple(places[..., place].to(torch.int64) for place in range(places.shape[-1]))
    return values.index_put(where, updates.to(values.dtype))


@operator("Expand")
def _expand(given: Given, attributes: Attributes, opset: int) -> Value:
    sizes = numbers(given[1])
    if on_host(given[0]):
        return np.broadcast_to(given[0], np.broadcast_shapes(np.shape(given[0]), tuple(sizes)))
    values = given[0]
    lacking = len(sizes) - values.ndim
    full = [1] * max(0, -lacking) + sizes
    held = [1] * max(0, lacking) + list(values.shape)
    return values.expand([have if _is(size, 1) else size for have, size in zip(held, full, strict=True)])


@operator("Tile")
def _tile(given: Given, attributes: Attributes, opset: int) -> Value:
    return np.tile(given[0], numbers(given[1])) if on_host(given[0]) else given[0].repeat(numbers(given[1]))


@operator("Pad")
def _pad(given: Given, attributes: Attributes, opset: int) -> Value:
    values, mode = given[0], attributes.get("mode", "constant")
    pads = list(attributes["pads"]) if opset < 11 else numbers(given[1])
    fill = attributes.get("value", 0.0) if at(given, 2) is None else number(given[2])
    if at(given, 3) is not None:
        axes, all_pads = [int(axis) % values.ndim for axis in numbers(given[3])], [0] * (2 * values.ndim)
        for place, axis in enumerate(axes):
            all_pads[axis], all_pads[axis + values.ndim] = pads[place], pads[place + len(axes)]
        pads = all_pads
    half = len(pads) // 2
    flat = [one for axis in range(half - 1, -1, -1) for one in (pads[axis], pads[axis + half])]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if mode == "constant":
        return F.pad(values, flat, value=fill)
    return F.pad(values, flat, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


@operator("Cast", "CastLike")
def _cast(given: Given, attributes: Attributes, opset: int) -> Value:
    wanted = attributes.get("to")
    if wanted is None:
        return tensor(given[0]).to(tensor(given[1]).dtype)
    if on_host(given[0]):
        held = np.asarray(given[0])
        if held.dtype == object:
            return held
        return held.astype(np.int64 if wanted in _WHOLE else bool if wanted == 9 else np.float32)
    return given[0].to(_DTYPES[wanted])


@operator("ConstantOfShape")
def _constant_of_shape(given: Given, attributes: Attributes, opset: int) -> Value:
    fill = attributes.get("value", np.zeros(1, dtype=np.float32))
    sizes, first = numbers(given[0]), np.asarray(fill).ravel()[0]
    if all(isinstance(size, int) for size in sizes) and np.asarray(fill).dtype.kind in "iub":
        return np.full(sizes, first)
    return torch.full(sizes, first.item(), dtype=torch.from_numpy(np.asarray(fill)).dtype)


@operator("Range")
def _range(given: Given, attributes: Attributes, opset: int) -> Value:
    start, limit, delta = (number(value) for value in given)
    if all(isinstance(one, int) for one in (start, limit, delta)):
        return np.arange(start, limit, delta, dtype=np.int64)
    return torch.arange(start, limit, delta)


@operator("Where")
def _where(given: Given, attributes: Attributes, opset: int) -> Value:
    if on_host(*given):
        return np.where(*given)
    like = first_tensor(given)
    chosen = tensor(given[0], like).to(torch.bool)
    return torch.where(chosen, operand(given[1], like), operand(given[2], like))


@operator("Trilu")
def _trilu(given: Given, attributes: Attributes, opset: int) -> Value:
    diagonal = 0 if at(given, 1) is None else int(number(given[1]))
    values = tensor(given[0])
    return values.triu(diagonal) if attributes.get("upper", 1) else values.tril(diagonal)


@operator("EyeLike")
def _eye(given: Given, attributes: Attributes, opset: int) -> Value:
    values = tensor(given[0])
    return torch.eye(*values.shape, dtype=_DTYPES.get(attributes.get("dtype", 1), torch.float32), device=values.device)


@operator("DepthToSpace")
def _depth_to_space(given: Given, attributes: Attributes, opset: int) -> Value:
    values, side = given[0], attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(values, side)
    rows, channels, height, width = values.shape
    parts = values.reshape(rows, side, side, channels // side**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(rows, channels // side**2, height * side, width * side)


@operator("SpaceToDepth")
def _space_to_depth(given: Given, attributes: Attributes, opset: int) -> Value:
    values, side = given[0], attributes["blocksize"]
    rows, channels, height, width = values.shape
    parts = values.reshape(rows, channels, height // side, side, width // side, side).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(rows, channels * side**2, height // side, width // side)


@operator("Resize", "Upsample")
def _resize(given: Given, attributes: Attributes, opset: int) -> Value:
    values = given[0]
    scales = at(given, 1 if len(given) == 2 else 2)
    scales = attributes.get("scales") if scales is None or not np.size(scales) else numbers(scales)
    sizes = None if at(given, 3) is None else numbers(given[3])
    free = values.ndim - 2
    if sizes is not None:
        size = [int(one) for one in sizes[-free:]]
    else:
        factors = list(scales or [])[-free:]
        size = [math.floor(int(have) * one) for have, one in zip(values.shape[2:], factors, strict=True)]
    mode = attributes.get("mode", "nearest")
    where = attributes.get("coordinate_transformation_mode", "half_pixel" if opset >= 11 else "asymmetric")
    if mode == "nearest":
        exact = where != "asymmetric" and attributes.get("nearest_mode", "round_prefer_floor") != "floor"
        return F.interpolate(values, size=size, mode="nearest-exact" if exact else "nearest")
    kind = {"linear": ("linear", "bilinear", "trilinear")[free - 1], "cubic": "bicubic"}[mode]
    return F.interpolate(values, size=size, mode=kind, align_corners=where == "align_corners")
