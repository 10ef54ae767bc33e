"""Weights that a layer computes of other tensors: pruning masks, old-style hooks, parametrisations."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def computed_weight(model: nn.Module, name: str) -> torch.Tensor | None:
    """What the layer makes of the tensor called ``name`` and uses in its place, of the same shape; None where it uses
    the tensor itself."""
    path, parametrised, rest = name.partition(".parametrizations.")
    with torch.no_grad():
        if parametrised:
            found = getattr(model.get_submodule(path), rest.partition(".")[0], None)
        else:
            owner, _, leaf = name.rpartition(".")
            found = _by_hooks(model.get_submodule(owner)).get(leaf.rpartition("_")[0])
    stored = getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
    return found.detach() if isinstance(found, torch.Tensor) and found.shape == stored.shape else None


def refresh(module: nn.Module) -> None:
    """Compute anew what hooks keep as a plain attribute of the module until its next run."""
    with torch.no_grad():
        for name, weight in _by_hooks(module).items():
            setattr(module, name, weight)


def _by_hooks(module: nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            found[hook._tensor_name] = hook.apply_mask(module)
        elif isinstance(hook, WeightNorm):
            found[hook.name] = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm):
            found[hook.name] = hook.compute_weight(module, do_power_iteration=False)
    return found
