"""How far two answers of networks are from each other: differentiable, one number per pair of answers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def divergence(new: Tensor, old: Tensor, *, axis: int = 1, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the softmax over classes, ``old`` against ``new``, times T².

    Per sample, and mean over whatever other axes there are, such as pixels. Hinton et al. (arXiv 1503.02531): the
    factor T² keeps the gradient's size independent of the temperature.

    Args:
        new: logits [samples, classes, ...] of one network.
        old: of the other on the same inputs.
        axis: of the classes.
        temperature: T.
    """
    reached = F.log_softmax(new / temperature, dim=axis)
    wanted = F.log_softmax(old / temperature, dim=axis)
    whole = F.kl_div(reached, wanted, reduction="batchmean", log_target=True) * temperature**2
    positions = old.numel() // max(1, old.shape[0] * old.shape[axis])
    return whole if positions == 1 else whole / max(1, positions)


def relative_square(new: Tensor, old: Tensor) -> Tensor:
    """Half of the mean squared difference in units of the variance of ``old``; tensors of one shape."""
    variance = old.var(correction=0).clamp_min(1e-12).detach()
    return 0.5 * (new - old).square().mean() / variance


def has_classes(tensor: Tensor, axis: int = 1) -> bool:
    """Whether there can be several classes along an axis."""
    return tensor.ndim >= 2 and tensor.shape[axis] > 1
