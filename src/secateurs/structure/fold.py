"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateurs.structure.copies import deep_copy
from secateurs.structure.groups import module_path
from secateurs.structure.operators import (
    BATCH_NORMS,
    CONVOLUTIONS,
    LINEAR_MAPS,
    TRANSPOSED_CONVOLUTIONS,
    is_a,
)

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


def batch_norm_pairs(graph: Graph) -> dict[str, str]:
    """Convolution (or linear) weight name to the path of the batch normalisation that alone reads its result.

    Only pairs of real modules whose weight is used once.
    """
    pairs: dict[str, str] = {}
    used: dict[str, int] = {}
    for node in graph.program.graph.nodes:
        if node.op != "call_function" or not _is_batch_norm(node):
            continue
        source = node.args[0]
        path = module_path(node)
        used[path] = used.get(path, 0) + 1
        if not isinstance(source, torch.fx.Node) or len(source.users) != 1 or not _is_weighted(source):
            continue
        weight = source.args[1]
        if not isinstance(weight, torch.fx.Node) or len(weight.users) != 1:
            continue
        name = graph.analysis.origin.get(weight.name)
        if name is not None and isinstance(_module(graph.model, path), nn.modules.batchnorm._BatchNorm):
            pairs[name] = path
    return {name: path for name, path in pairs.items() if used[path] == 1}


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _is_batch_norm(node: torch.fx.Node) -> bool:
    return is_a(node, BATCH_NORMS)


def _is_weighted(node: torch.fx.Node) -> bool:
    return is_a(node, CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, LINEAR_MAPS)


def batch_norm_scale(norm: nn.Module) -> torch.Tensor:
    """γ / √(σ² + ε) per channel, float64 [channels]."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    variance = norm.running_var.double()
    gain = norm.weight.double() if norm.weight is not None else torch.ones_like(variance)
    return (gain / torch.sqrt(variance + norm.eps)).detach()


def fold_batch_norm(graph: Graph, model: nn.Module | None = None) -> nn.Module:
    """A copy of the network with every batch normalisation that follows a convolution folded into it.

    The normalisation becomes an identity, the convolution gets a bias; names of the weights stay. ``model``: use
    these weights (same architecture) instead of the traced ones.
    """
    folded = deep_copy(graph.model if model is None else model, {}).eval()
    fold_in_place(folded, batch_norm_pairs(graph))
    return folded


def fold_in_place(module: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold each of ``pairs`` (of :func:`batch_norm_pairs`) that ``module``, the network or a cut copy of it, has."""
    for parameter, path in pairs.items():
        layer, norm = _module(module, parameter.rpartition(".")[0]), _module(module, path)
        if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) or not parameter.endswith(".weight"):
            continue
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        _fold(layer, norm)
        parent, _, leaf = path.rpartition(".")
        module.get_submodule(parent)._modules[leaf] = nn.Identity()


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    weight = layer.weight
    scale = batch_norm_scale(norm)
    mean = norm.running_mean.double()
    shift = norm.bias.double() if norm.bias is not None else torch.zeros_like(mean)
    bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(mean)
    factors = scale.view(-1, *[1] * (weight.dim() - 1))
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        # Its weight is [inputs, outputs of one group, ...], the inputs of each group one after the other.
        table = scale.view(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, dim=0)
        factors = table.view(*table.shape, *[1] * (weight.dim() - 2))
    with torch.no_grad():
        layer.weight = nn.Parameter((weight.double() * factors).to(weight.dtype))
        layer.bias = nn.Parameter(((bias - mean) * scale + shift).to(weight.dtype))
