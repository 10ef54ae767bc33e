"""How far a file's outputs are from the network's, on inputs drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from secateurs.errors import ExportError


def redrawn(inputs: Any) -> Any:
    """Inputs whose floating numbers are drawn anew, each tensor in the type that it has; integers stay."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    return pytree.tree_map_only(torch.Tensor, draw, inputs)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor in it, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def require_real(does: str, value: Any) -> None:
    """Nothing, if no tensor is complex. ``does``: ``takes`` or ``returns``.

    Raises:
        ExportError: one is.
    """
    for tensor in tensors_of(value):
        if tensor.is_complex():
            raise ExportError(
                f"The network {does} a tensor of {tensor.dtype}, and no file's inputs and outputs are complex numbers. "
                "Let it take and return real and imaginary parts: torch.view_as_complex and torch.view_as_real."
            )


def largest_difference(wanted: Sequence[torch.Tensor], found: Sequence[Any], name: str) -> float:
    """max|Δ| / max|y| of the worst output. What is not finite must be the same in both; infinite where it is not.

    Args:
        wanted: the network's outputs.
        found: the file's, tensors or arrays.
        name: of the file, for the errors.

    Raises:
        ExportError: there are more or fewer outputs, or one has another shape.
    """
    if len(wanted) != len(found):
        raise ExportError(
            f"The exported file {name} returns {len(found)} tensors where PyTorch returns {len(wanted)}. This is a "
            "mistake of the exporter; choose another target."
        )
    worst = 0.0
    for tensor, other in zip(wanted, found, strict=True):
        ours, theirs = _float64(tensor), _float64(other)
        if ours.shape != theirs.shape:
            raise ExportError(
                f"The exported file {name} returns shape {theirs.shape} where PyTorch returns {ours.shape}. "
                f"This is a mistake of the exporter; choose another target or a fixed batch size."
            )
        finite = np.isfinite(ours)
        same = np.array_equal(ours[~finite], theirs[~finite], equal_nan=True)
        if not same or not np.isfinite(theirs[finite]).all():
            return float("inf")
        if finite.any():
            scale = float(np.abs(ours[finite]).max()) or 1.0
            worst = max(worst, float(np.abs(ours[finite] - theirs[finite]).max()) / scale)
    return worst


def _float64(value: Any) -> np.ndarray:
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.detach().cpu().double().numpy()
