"""Hooks that read one module during a pass: masks on its output, and second moments of input and output gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

POSITIONS_AT_MOST = 64
"""Output positions per image whose unfolded inputs enter a second moment."""
WIDEST = 8192
"""Unfolded inputs of a layer up to which its second moments are held: half a gigabyte there."""


class Probe(Protocol):
    """``leaves``: tensors whose gradient the pass has to compute; ``begin`` and ``end`` bracket one batch."""

    leaves: list[Tensor]

    def begin(self) -> None:
        """Forget the last batch."""

    def end(self, gradients: Sequence[Tensor]) -> None:
        """Take the gradients of ``leaves``."""


def weight_module(model: nn.Module, layer: str, parameter: str) -> nn.Module | None:
    """The convolution or linear module at ``layer`` whose own weight ``parameter`` is, or None."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    is_weight = parameter.rpartition(".")[2] == "weight"
    plain = isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd)
    return module if is_weight and plain else None


def unfolds(module: nn.Module) -> bool:
    """Whether second moments of the module's unfolded input can be held."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return getattr(module, "groups", 1) == 1 and weight[0].numel() <= WIDEST


def channels_of(module: nn.Module, tensor: Tensor) -> int:
    """The dimension of ``tensor`` that holds the module's units: 1 after a convolution, the last after a linear."""
    if isinstance(module, _ConvNd) or (isinstance(module, _BatchNorm) and tensor.ndim > 1):
        return 1
    return tensor.ndim - 1


def input_squares(module: nn.Module, tensor: Tensor) -> Tensor:
    """Sum of squares per input index of the module's weight, over everything else: float64 [inputs]."""
    dim = channels_of(module, tensor)
    total = tensor.double().square().sum(dim=[d for d in range(tensor.ndim) if d != dim])
    groups = getattr(module, "groups", 1)
    return total.reshape(groups, -1).mean(dim=0) if groups > 1 else total


class Mask:
    """Multiplies a module's output by ones whose gradient is φ: [batch, units]."""

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []
        self.gradient = torch.zeros(())

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = [1] * output.ndim
        dim = channels_of(module, output)
        shape[0], shape[dim] = output.shape[0], output.shape[dim]
        leaf = torch.ones(shape, dtype=output.dtype, device=output.device, requires_grad=True)
        self.leaves.append(leaf)
        return output * leaf

    def begin(self) -> None:
        self.leaves = []

    def end(self, gradients: Sequence[Tensor]) -> None:
        self.gradient = torch.stack([g.detach().reshape(g.shape[0], -1) for g in gradients]).sum(dim=0)


class Moment:
    """Sums x xᵀ over drawn positions of a module's unfolded input, and the square of its output's gradient."""

    def __init__(self, module: nn.Module, generator: torch.Generator) -> None:
        self.module, self.generator = module, generator
        self.leaves: list[Tensor] = []
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.gram = torch.zeros(weight[0].numel(), weight[0].numel(), dtype=torch.float64)
        self.gradient = torch.zeros(weight.shape[0], dtype=torch.float64)
        self.positions = 0

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        with torch.no_grad():
            rows, total = unfolded(module, arguments[0].detach(), output.shape, self.generator)
            self.gram += (rows.T @ rows).double().cpu() * (total / len(rows))
        leaf = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        self.leaves.append(leaf)
        shifted = output + leaf
        self.positions += output.numel() // output.shape[channels_of(self.module, output)]
        if shifted.requires_grad:  # a part of the network may forbid gradients
            shifted.register_hook(self._add)  # as it passes: all layers' gradients at once would be another network
        return shifted

    def _add(self, gradient: Tensor) -> None:
        dim = channels_of(self.module, gradient)
        others = [d for d in range(gradient.ndim) if d != dim]
        self.gradient += gradient.detach().double().square().sum(dim=others).cpu()

    def begin(self) -> None:
        self.leaves = []

    def end(self, gradients: Sequence[Tensor]) -> None:
        """Everything is added already."""


def unfolded(module: nn.Module, tensor: Tensor, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, int]:
    """Rows of the module's input as its weight sees them, [drawn positions, inputs x kernel], and how many there are.

    At most :data:`POSITIONS_AT_MOST` positions per image are drawn, the same for every image of the batch.
    """
    if isinstance(module, nn.Linear):
        rows = tensor.reshape(-1, tensor.shape[-1])
        return rows, len(rows)
    assert isinstance(module, _ConvNd)
    batch, spatial = tensor.shape[0], list(shape[2:])
    drawn = torch.randperm(math.prod(spatial), generator=generator)[:POSITIONS_AT_MOST].sort().values
    padded = nn.functional.pad(tensor, module._reversed_padding_repeated_twice)
    places = torch.unravel_index(drawn, spatial)
    rank = len(spatial)
    index: list[Tensor] = []
    for dim in range(rank):
        offset = torch.arange(module.kernel_size[dim]) * module.dilation[dim]
        form = [1] * (rank + 1)
        form[dim + 1] = len(offset)
        start = (places[dim] * module.stride[dim]).reshape(-1, *[1] * rank)
        index.append((start + offset.reshape(form)).to(tensor.device))
    everything: tuple[slice | Tensor, ...] = (slice(None), slice(None), *index)
    patches = padded[everything]
    rows = patches.movedim(2, 1).reshape(batch * len(drawn), -1)
    return rows, batch * math.prod(spatial)
