"""Scratch copies for the check: float64, every parameter and statistic redrawn, removed units ignored."""

from __future__ import annotations

import ctypes
import os
import traceback

import torch
from torch import nn

from secateurs.plan import Plan
from secateurs.structure.copies import deep_copy
from secateurs.structure.precision import widened

_STATISTICS = ("running_mean", "running_var")
LARGE = 20_000_000
"""Parameters from which on memory counts."""
_WIDENED_IN_USE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Layers whose weight goes straight into one operator, and becomes float64 there."""


def let_go(error: BaseException | None) -> None:
    """Free what an error that is kept holds: the networks and activations in the frames that it came through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def give_back(model: nn.Module) -> None:
    """Return freed memory to the system where a network is large; the allocator of glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" and is_large(model) else None
    if trim is not None:
        trim(0)


def is_large(model: nn.Module) -> bool:
    """Whether a network has so many parameters that scratch copies of it are held narrow."""
    return sum(parameter.numel() for parameter in model.parameters()) >= LARGE


def scratch(model: nn.Module, seed: int, *, buffers: bool = True, narrow: bool = False) -> nn.Module:
    """A float64 copy on the CPU, in the mode of ``model``, with every floating parameter and statistic redrawn.

    Real networks start with zero gammas or tiny layer scales, behind which a shuffled branch changes nothing.

    Args:
        model: the network.
        seed: of what is drawn.
        buffers: False leaves buffers as they are but for the statistics of normalisations, for a network that does
            not run on others (it reads sizes or positions from them).
        narrow: True draws the weights of the usual layers as float32 numbers and holds them so, in half the memory;
            they become float64 where they are used (:class:`~secateurs.structure.precision.Float64`).
    """
    generator = torch.Generator().manual_seed(seed)
    replaced: dict[int, object] = {}
    held: set[int] = set()
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            redrawn = buffers or isinstance(tensor, nn.Parameter) or name in _STATISTICS
            numbers = tensor.is_floating_point() or tensor.is_complex()
            if id(tensor) not in replaced and numbers and redrawn:
                drawn = _drawn(module, name, tensor, generator)
                if narrow and name == "weight" and type(module) in _WIDENED_IN_USE:
                    drawn = drawn.float()
                new = replaced[id(tensor)] = nn.Parameter(drawn) if isinstance(tensor, nn.Parameter) else drawn
                held |= {id(new)} if drawn.dtype is torch.float32 else set()
    return deep_copy(model, replaced).cpu()._apply(lambda one: one if id(one) in held else widened(one))


def _drawn(module: nn.Module, name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.is_complex():
        return torch.complex(*(_drawn(module, name, part, generator) for part in (tensor.real, tensor.imag)))
    if tensor.dim() >= 2 and tensor.numel() > max(tensor.shape):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        fan_in = tensor[:, 0].numel() if transposed else tensor[0].numel()
        limit = (6.0 / max(fan_in, 1)) ** 0.5
        return torch.empty(tensor.shape, dtype=torch.float64).uniform_(-limit, limit, generator=generator)
    uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    if name == "running_var":
        return uniform + 0.5
    sign = torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -1.0, 1.0)
    if name in ("running_mean", "bias"):
        return 0.3 * sign * uniform
    return sign * (uniform + 0.5)


def mask_removed(model: nn.Module, plan: Plan) -> nn.Module:
    """``model`` with every removed index set to zero in place: the dense network that ignores them."""
    with torch.no_grad():
        for name, axes in plan.removed().items():
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            tensor = getattr(module, leaf)
            if leaf == "running_var":
                continue
            for dim, gone in axes.items():
                tensor.index_fill_(dim, torch.tensor(gone, device=tensor.device), 0)
    return model
