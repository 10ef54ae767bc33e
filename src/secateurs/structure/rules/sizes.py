"""Integer arguments after a cut: target sizes, starts and lengths, pads, groups. One function per kind of argument."""

from __future__ import annotations

from typing import Any

from secateurs.structure.after_cut import AfterCut
from secateurs.structure.operators import short_name


def target_sizes(call: AfterCut) -> dict[str, Any]:
    """Target sizes of view, reshape, expand and of constants made in the forward pass."""
    name = "shape" if "shape" in call else "size"
    wanted, value = list(call[name]), call.output
    offset = len(value.shape) - len(wanted)
    for i, entry in enumerate(wanted):
        dim = i + offset
        if not value.along(dim):
            continue
        if isinstance(entry, int) and entry != -1:
            wanted[i] = call.length(value, dim)
        elif entry != -1 and not call.stays(value, dim).all():
            _infer(wanted, i, [call.length(value, d + offset) for d in range(len(wanted))], call, name)
    return {name: wanted}


def _infer(wanted: list[Any], place: int, lengths: list[int], call: AfterCut, name: str) -> None:
    """The entry at ``place`` is the batch size times something that shrinks: let the runtime infer it.

    Raises:
        StructureError: it infers another one already, of which no number is known.
    """
    shape = call.node.meta["val"].shape[-len(wanted) :]
    for i, entry in enumerate(wanted):
        if i != place and isinstance(entry, int) and entry == -1:
            if not isinstance(shape[i], int):
                raise call.uncountable(name)
            wanted[i] = lengths[i]
    wanted[place] = -1


def repeats(call: AfterCut) -> dict[str, Any]:
    """How often one position is repeated for the units along an axis."""
    name = "repeats" if "repeats" in call else "dims"
    wanted, source = list(call[name]), call.input()
    shift = len(wanted) - len(source.shape)
    for dim, entry in enumerate(wanted):
        size = source.shape[dim - shift] if dim >= shift else 1
        if size == 1 and isinstance(entry, int) and call.output.along(dim):
            wanted[dim] = call.length(call.output, dim)
    return {name: wanted}


def split_axis(call: AfterCut) -> dict[str, Any]:
    """Sizes that one axis is unflattened into."""
    value, wanted = call.output, list(call["sizes"])
    start = call["dim"] % (len(value.shape) - len(wanted) + 1)
    for i, entry in enumerate(wanted):
        if entry != -1 and value.along(start + i):
            wanted[i] = call.length(value, start + i)
    return {"sizes": wanted}


def parts(call: AfterCut) -> dict[str, Any]:
    """Lengths of the parts of a split; one number where all but the last are equal."""
    lengths = [call.length(value, call.get("dim", 0)) for value in call.outputs]
    if isinstance(call.get("split_sizes", call.get("split_size")), (list, tuple)):
        return {"split_sizes" if "split_sizes" in call else "split_size": lengths}
    if "split_size" in call:
        same = len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
        return {"split_size": lengths[0] if same else lengths}
    return {}


def chunks(call: AfterCut) -> dict[str, Any]:
    """Lengths of chunks, where they are no longer those that the operator makes by itself."""
    lengths = [call.length(value, call.get("dim", 0)) for value in call.outputs]
    total, count = sum(lengths), len(lengths)
    each = -(-total // count)
    natural = [max(0, min(each, total - i * each)) for i in range(count)]
    return {} if natural == lengths else {"chunks": lengths}


def parts_by_place(call: AfterCut) -> dict[str, Any]:
    """Where the parts of an axis begin; lengths of almost equal parts, where they are no longer almost equal."""
    value, name = call.input(), short_name(call.node.target)
    dim = {"vsplit": 0, "dsplit": 2, "hsplit": int(len(value.shape) > 1)}.get(name, call.get("dim", 0))
    stays = call.stays(value, dim)
    if stays.all():
        return {}
    if "indices" in call:
        places = [call.number("indices", place) for place in range(len(call["indices"]))]
        return {"indices": [int(stays[: max(place + len(stays), 0) if place < 0 else place].sum()) for place in places]}
    lengths = [call.length(part, dim) for part in call.outputs]
    each, more = divmod(int(stays.sum()), len(lengths))
    natural = [each + (place < more) for place in range(len(lengths))]
    return {} if lengths == natural and name == "tensor_split" else {"sections": lengths}


def bounds(call: AfterCut) -> dict[str, Any]:
    """Start and end of a slice."""
    value, dim = call.input(), call.get("dim", 0)
    if not value.along(dim) or call.stays(value, dim).all():
        return {}
    stays = call.stays(value, dim)
    size, left = len(stays), int(stays.sum())
    fresh = {}
    for name in ("start", "end"):
        entry = call.get(name)
        if entry is not None and -size <= call.number(name) < size:
            position = entry % size if entry < 0 else entry
            count = int(stays[:position].sum())
            fresh[name] = count - left if entry < 0 and count < left else count
    return fresh


def window(call: AfterCut) -> dict[str, Any]:
    """Start and length of a narrowed axis."""
    value, dim = call.input(), call["dim"]
    if not value.along(dim) or call.stays(value, dim).all():
        return {}
    stays, start = call.stays(value, dim), call.number("start") % value.shape[dim]
    return {"start": int(stays[:start].sum()), "length": int(stays[start : start + call.number("length")].sum())}


def position(call: AfterCut) -> dict[str, Any]:
    """The index of one entry."""
    value, dim = call.input(), call["dim"]
    if not value.along(dim) or call.stays(value, dim).all():
        return {}
    return {"index": int(call.stays(value, dim)[: call.number("index") % value.shape[dim]].sum())}


def amounts(call: AfterCut) -> dict[str, Any]:
    """How much is padded; a negative amount crops."""
    wanted = list(call["pad"])
    source, result = call.input(), call.output
    for slot in range(len(wanted) // 2):
        dim = len(result.shape) - 1 - slot
        if not result.along(dim):
            continue
        stays, before = call.stays(result, dim), call.stays(source, dim)
        if stays.all() and before.all():
            continue
        left, right = call.number("pad", 2 * slot), call.number("pad", 2 * slot + 1)
        wanted[2 * slot] = int(stays[:left].sum()) if left >= 0 else -int(before[:-left].sum())
        kept = stays[len(stays) - right :] if right >= 0 else before[len(before) + right :]
        wanted[2 * slot + 1] = int(kept.sum()) if right >= 0 else -int(kept.sum())
    return {"pad": wanted}


def shifts(call: AfterCut) -> dict[str, Any]:
    """By how much axes are rotated."""
    source, wanted = call.input(), list(call["shifts"])
    for i, dim in enumerate(call.get("dims") or []):
        if source.along(dim):
            stays = call.stays(source, dim)
            if stays.all():
                continue
            shift = call.number("shifts", i) % len(stays)
            wanted[i] = int(stays[len(stays) - shift :].sum()) if shift else 0
    return {"shifts": wanted}


def groups(call: AfterCut) -> dict[str, Any]:
    """Groups of a convolution or a group normalisation that goes group by group."""
    count, whole = call.grid
    if not whole:
        return {}
    name = next(name for name in ("groups", "num_groups", "group") if name in call)
    source, channel = call.input("input"), 1
    if name == "groups":
        channel = len(source.shape) - (len(call.input("weight").shape) - 2) - 1
    return {name: int(call.stays(source, channel).reshape(count, -1).any(axis=1).sum())}


def channels_and_groups(call: AfterCut) -> dict[str, Any]:
    """Channels of a group normalisation spelled out, and its groups."""
    return {"C": call.length(call.input("input"), 1), **groups(call)}


def normalized_shape(call: AfterCut) -> dict[str, Any]:
    """Sizes of the last axes, over which a layer is normalised."""
    source, count = call.input("input"), len(call["normalized_shape"])
    first = len(source.shape) - count
    return {"normalized_shape": [call.length(source, first + i) for i in range(count)]}
