"""What a network is called with: one tensor, or positional and keyword inputs of any nest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.data.nests import count, leaves, mapped


@dataclass(frozen=True, eq=False)
class CallInputs:
    """Positional and keyword inputs; their number is that of the samples."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return count((self.args, self.kwargs))

    def mapped(self, function: Callable[[Tensor], Any]) -> CallInputs:
        """The same with every tensor replaced."""
        return CallInputs(mapped(function, self.args), mapped(function, dict(self.kwargs)))


Inputs = Tensor | CallInputs


def as_inputs(value: Any) -> Inputs:
    """Inputs from the forms in which examples are given.

    A tensor or another object is the only input, a mapping the keyword inputs, a tuple or list the positional ones, a
    pair of a tuple and a mapping both.
    """
    if isinstance(value, (Tensor, CallInputs)):
        return value
    if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
        return CallInputs((), dict(value))
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        if len(value) == 2 and isinstance(value[0], (tuple, list)) and isinstance(value[1], Mapping):
            return CallInputs(tuple(value[0]), dict(value[1]))
        return value[0] if len(value) == 1 and isinstance(value[0], Tensor) else CallInputs(tuple(value))
    return CallInputs((value,))


def called(module: nn.Module | Callable[..., Any], inputs: Inputs) -> Any:
    """What a network answers."""
    return module(inputs) if isinstance(inputs, Tensor) else module(*inputs.args, **inputs.kwargs)


def changed(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with every tensor replaced."""
    return function(inputs) if isinstance(inputs, Tensor) else inputs.mapped(function)


def on(inputs: Inputs, device: torch.device, *, floats: torch.dtype | None = None, copy: bool = False) -> Inputs:
    """The inputs on a device, maybe their floats in another type.

    ``copy``: never the same memory, for a network may change its inputs in place.
    """
    return changed(
        inputs,
        lambda tensor: tensor.to(device, floats if tensor.is_floating_point() and floats else tensor.dtype, copy=copy),
    )


def of_first(inputs: Inputs, some: int) -> Inputs:
    """The inputs of the first ``some`` samples."""
    return part(inputs, slice(0, some))


def part(inputs: Inputs, chosen: slice) -> Inputs:
    """The inputs of some samples; tensors without a row per sample are for all of them."""
    whole = len(inputs)
    return changed(inputs, lambda tensor: tensor[chosen] if tensor.ndim and len(tensor) == whole else tensor)


def split(inputs: Inputs, size: int) -> list[Inputs]:
    """The inputs in batches of ``size`` samples."""
    return [part(inputs, slice(start, start + size)) for start in range(0, len(inputs), size)]


def joined(batches: Sequence[Inputs]) -> Inputs:
    """Batches as one; of tensors without a row per sample the first batch's.

    All batches must be built alike and have samples of one size.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    columns = [[tensor for _, tensor in tensors_of(batch)] for batch in batches]
    sizes = [len(batch) for batch in batches]
    made = iter(
        torch.cat(column) if all(t.ndim and len(t) == n for t, n in zip(column, sizes, strict=True)) else column[0]
        for column in map(list, zip(*columns, strict=True))
    )
    return first.mapped(lambda _: next(made))


def tensors_of(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """Every tensor of the inputs, with its place."""
    return list(leaves(inputs if isinstance(inputs, Tensor) else (inputs.args, dict(inputs.kwargs))))


def numbers(inputs: Inputs) -> int:
    """Numbers in one sample's inputs."""
    whole = max(1, len(inputs))
    return max(1, sum(tensor.numel() for _, tensor in tensors_of(inputs)) // whole)
