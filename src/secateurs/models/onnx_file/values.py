"""Values while an ONNX graph is run: tensors, and sizes and other small whole numbers that are no tensors.

Sizes stay Python's numbers, in arrays of numpy, so that a traced network has them as sizes and not as tensors. An array
holds SymInts while ``torch.export`` traces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Value = Any
"""A tensor, or a numpy array of numbers that are known to the host."""
Operator = Callable[[Sequence[Value], Mapping[str, Any], int], Any]
"""(inputs, attributes, opset) -> the output, or a tuple of outputs."""
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Enters a function under these names."""

    def entered(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return entered


def on_host(*values: Value) -> bool:
    """Whether none is a tensor."""
    return not any(isinstance(value, Tensor) for value in values)


def numbers(value: Value) -> list[Any]:
    """A host value's numbers in order."""
    return list(np.asarray(value).ravel().tolist()) if not isinstance(value, Tensor) else list(value.tolist())


def number(value: Value) -> Any:
    """A host value's only number."""
    return numbers(value)[0] if not (isinstance(value, Tensor) and value.ndim == 0) else value.item()


def array(values: Sequence[Any]) -> np.ndarray:
    """Sizes as a host value: int64, or objects where some are symbols."""
    plain = all(isinstance(one, (int, np.integer)) for one in values)
    if plain:
        return np.array([int(one) for one in values], dtype=np.int64)
    made = np.empty(len(values), dtype=object)
    made[:] = list(values)
    return made


def plain(value: Value) -> Value:
    """A host value without symbols as whole numbers, for numpy computes little with objects."""
    if isinstance(value, np.ndarray) and value.dtype == object and all(isinstance(one, int) for one in value.ravel()):
        return value.astype(np.int64)
    return value


def tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """A value as a tensor, on the device of another."""
    device = None if like is None else like.device
    if isinstance(value, Tensor):
        return value
    held = np.asarray(value)
    if held.dtype != object:
        return torch.as_tensor(held.copy(), device=device)
    flat = [torch.scalar_tensor(one, dtype=torch.int64, device=device) for one in held.ravel()]
    return torch.stack(flat).reshape(held.shape)


def operand(value: Value, like: Tensor | None = None) -> Any:
    """A value for arithmetic with tensors: a lone number stays one."""
    if isinstance(value, Tensor):
        return value
    held = np.asarray(value)
    return held.reshape(-1).tolist()[0] if held.size == 1 and held.ndim <= 1 else tensor(value, like)


def first_tensor(values: Sequence[Value]) -> Tensor | None:
    """The first tensor among values."""
    return next((one for one in values if isinstance(one, Tensor)), None)


def at(values: Sequence[Value], place: int) -> Value:
    """An input that may be left out."""
    return values[place] if place < len(values) else None
