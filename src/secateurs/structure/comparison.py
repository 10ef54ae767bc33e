"""How far two outputs are apart: every leaf of a nest, numbers of every kind, and what no tensor is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

TOLERANCE = 1e-6
"""Largest allowed difference of an element relative to its size, or to the size of most others, in float64."""


def leaves_of(output: Any) -> list[Any]:
    """Every tensor, number and string of an output, in order, out of containers and objects of any kind."""
    return [leaf for _, leaf in _leaves(output, "", ())]


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Every tensor of an output, in order."""
    return [leaf for leaf in leaves_of(output) if isinstance(leaf, torch.Tensor)]


def nest_of(output: Any) -> tuple[tuple[str, Any], ...]:
    """Where every leaf of an output lies, and what it is: shape and type of a tensor, the type of anything else."""
    return tuple(
        (path, (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else type(leaf))
        for path, leaf in _leaves(output, type(output).__name__, ())
    )


def _leaves(value: Any, path: str, around: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """(path, leaf); an object that cannot be entered is a leaf itself."""
    parts = None if id(value) in around else _parts(value)
    if parts is None:
        yield path, value
        return
    for name, part in parts:
        yield from _leaves(part, f"{path}{name}", (*around, id(value)))


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, np.ndarray):
        return [("", torch.from_numpy(value.copy()))] if value.dtype.kind in "biufc" else None
    if isinstance(value, (torch.Tensor, str, bytes, int, float, complex, type(None), torch.Size, type)):
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{number}]", part) for number, part in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    known = pytree.tree_flatten_with_path(value)[0]
    if len(known) != 1 or known[0][1] is not value:
        return [(pytree.keystr(key), part) for key, part in known]
    attributes = getattr(value, "__dict__", None)
    if not attributes:
        return None
    return [(f".{name}", part) for name, part in attributes.items()]


def relative_difference(first: Any, second: Any) -> float:
    """Largest difference of two outputs, relative to its size; infinity where the outputs cannot be told to be equal.

    That is: another nest, other shapes or types, integers or strings that differ, other places of what is not finite,
    or nothing in them that could be compared. An element counts relative to itself or to the median of its tensor,
    whichever is larger, so that a single large element hides no other.
    """
    return max(differences(first, second), default=float("inf"))


def differences(first: Any, second: Any) -> list[float]:
    """:func:`relative_difference` leaf by leaf; infinity alone where the nests differ, nothing where they are empty."""
    ours, theirs = list(_leaves(first, "", ())), list(_leaves(second, "", ()))
    if [path for path, _ in ours] != [path for path, _ in theirs]:
        return [float("inf")]
    if not any(isinstance(leaf, (torch.Tensor, bool, int, float, complex)) for _, leaf in theirs):
        return []
    return [_leaf_difference(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]


def _leaf_difference(a: Any, b: Any) -> float:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not _comparable(a, b):
            return float("inf")
        return float(elementwise(a, b).max()) if b.numel() else 0.0
    if isinstance(a, float) and isinstance(b, float):
        if math.isnan(a) or math.isnan(b) or math.isinf(a) or math.isinf(b):
            return 0.0 if repr(a) == repr(b) else float("inf")
        return abs(a - b) / max(abs(b), 1e-30) if a != b else 0.0
    if type(a) is not type(b):
        return float("inf")
    if isinstance(a, (str, bytes, bool, int, complex, type(None), torch.Size, torch.dtype, torch.device)):
        return 0.0 if a == b else float("inf")
    return 0.0  # an object without parts of the same type


def _comparable(a: Any, b: torch.Tensor) -> bool:
    return isinstance(a, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype


def elementwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Relative difference of every element; infinity where integers differ or only one is finite."""
    if a.is_sparse or b.is_sparse or a.is_quantized or b.is_quantized:
        a, b = (t.dequantize() if t.is_quantized else t.to_dense() for t in (a, b))
    infinite = torch.full(b.shape, float("inf"), dtype=torch.float64)
    if not (b.is_floating_point() or b.is_complex()):
        return torch.where(a.cpu() == b.cpu(), torch.zeros(()), infinite)
    a, b = (t.detach().cpu().to(torch.complex128 if b.is_complex() else torch.float64) for t in (a, b))
    finite = a.isfinite() & b.isfinite()
    size = b[finite].abs()
    nonzero = size[size > 0]
    usual = float(nonzero.median()) if nonzero.numel() else 0.0
    gap = (a - b).abs()
    relative = torch.where(gap == 0, torch.zeros(()), gap / b.abs().clamp(min=usual))
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(finite, relative, torch.where(same, torch.zeros(()), infinite)).double()


def mostly_finite(output: Any) -> bool:
    """Whether every tensor of an output is finite in at least half of its elements."""
    floats = [t for t in tensors_of(output) if t.is_floating_point() and t.numel()]
    return all(float(t.isfinite().double().mean()) >= 0.5 for t in floats)


def agree_where_stable(first: Any, second: Any, shaken: Sequence[Any]) -> bool:
    """Whether two outputs agree in all elements that rounding leaves alone, and these are at least half of each tensor.

    ``shaken``: the second output again, each time with other rounding. Where two values tie, rounding alone decides
    which comes first, and what follows from it (a position, what is put back there) says nothing of the network.
    """
    ours, theirs, *others = (list(_leaves(output, "", ())) for output in (first, second, *shaken))
    if any([path for path, _ in leaves] != [path for path, _ in theirs] for leaves in (ours, *others)):
        return False
    for number, ((_, a), (_, b)) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(b, torch.Tensor):
            if _leaf_difference(a, b) > TOLERANCE:
                return False
            continue
        if not _comparable(a, b):
            return False
        moved = torch.zeros(b.shape, dtype=torch.bool)
        for leaves in others:
            moved |= ~(elementwise(leaves[number][1], b) <= TOLERANCE)
        if b.numel() and (float(moved.double().mean()) > 0.5 or bool((elementwise(a, b)[~moved] > TOLERANCE).any())):
            return False
    return True
