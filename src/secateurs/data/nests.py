"""Nests: tensors inside tuples, lists, dicts, mappings of other kinds and dataclasses, however deep."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same nest with every tensor replaced by what ``function`` makes of it; what holds no tensors stays."""
    if isinstance(value, Tensor):
        return function(value)
    return rebuilt(value, [mapped(function, part) for _, part in parts(value)])


def tensored(value: Any) -> Any:
    """The same nest with arrays as tensors."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.ascontiguousarray(value))
    return rebuilt(value, [tensored(part) for _, part in parts(value)])


def moved(value: Any, device: torch.device) -> Any:
    """The same nest on a device."""
    return mapped(lambda tensor: tensor.to(device), value)


def widened(value: Any) -> Any:
    """The same nest with floats of 16 bits in 32, as losses and metrics want them."""
    narrow = (torch.bfloat16, torch.float16)
    if not any(tensor.dtype in narrow for _, tensor in leaves(value)):
        return value
    return mapped(lambda tensor: tensor.float() if tensor.dtype in narrow else tensor, value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with where it lies: ``["boxes"][0]``, ``.logits``, "" for a tensor alone."""
    if isinstance(value, Tensor):
        yield path, value
    for name, part in parts(value):
        yield from leaves(part, path + name)


def form(value: Any) -> tuple[str, ...]:
    """Where tensors lie in a nest: equal for two nests that are built alike."""
    return tuple(path for path, _ in leaves(value))


def described(value: Any, most: int = 4) -> str:
    """``["image"] float32 [8, 3, 24, 24], ["label"] int64 [8]``: what is in a nest, for messages."""
    found = [f"{path} {_kind(tensor)}".strip() for path, tensor in leaves(value)]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{', '.join(found[:most])}{more}" if found else f"a {type(value).__name__} without tensors"


def count(value: Any) -> int:
    """Samples in a batch or in inputs: the first size of the first tensor that has one; 0 where there is none."""
    return next((len(tensor) for _, tensor in leaves(value) if tensor.ndim), 0)


def parts(value: Any) -> Sequence[tuple[str, Any]]:
    """(place, part) of a container; () of anything else."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (tuple, list)):
        return [(f"[{place}]", part) for place, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{one.name}", getattr(value, one.name, None)) for one in dataclasses.fields(value)]
    return ()


def rebuilt(value: Any, made: Sequence[Any]) -> Any:
    """A container like ``value`` with other parts, in the order of :func:`parts`."""
    if isinstance(value, Mapping):
        keyed = dict(zip(value, made, strict=True))
        if type(value) is dict:
            return keyed
        mapping: Any = copy.copy(value)
        for key, part in keyed.items():
            mapping[key] = part
        return mapping
    if isinstance(value, (tuple, list)):
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        same: Any = copy.copy(value)
        for one, part in zip(dataclasses.fields(value), made, strict=True):
            object.__setattr__(same, one.name, part)
        return same
    return value


def filled(template: Any, tensors: Sequence[Tensor]) -> Any:
    """A nest built like ``template`` whose tensors are these, in its order."""
    given = iter(tensors)
    return mapped(lambda _: next(given), template)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
