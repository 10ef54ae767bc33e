"""Scratch copies for the check: float64, every parameter and statistic redrawn, removed units ignored."""

from __future__ import annotations

import torch
from torch import nn

from secateurs.plan import Plan
from secateurs.structure.copies import deep_copy
from secateurs.structure.precision import widened

_STATISTICS = ("running_mean", "running_var")


def scratch(model: nn.Module, seed: int, *, buffers: bool = True) -> nn.Module:
    """A float64 copy on the CPU, in the mode of ``model``, with every floating parameter and statistic redrawn.

    Real networks start with zero gammas or tiny layer scales, behind which a shuffled branch changes nothing.
    ``buffers``: False leaves buffers as they are but for the statistics of normalisations, for a network that does
    not run on others (it reads sizes or positions from them).
    """
    generator = torch.Generator().manual_seed(seed)
    replaced: dict[int, object] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            redrawn = buffers or isinstance(tensor, nn.Parameter) or name in _STATISTICS
            numbers = tensor.is_floating_point() or tensor.is_complex()
            if id(tensor) not in replaced and numbers and redrawn:
                drawn = _drawn(module, name, tensor, generator)
                replaced[id(tensor)] = nn.Parameter(drawn) if isinstance(tensor, nn.Parameter) else drawn
    return deep_copy(model, replaced).cpu()._apply(widened)


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
