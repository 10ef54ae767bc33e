"""An exponential moving average of a network's weights and statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of all floating tensors of ``module``'s state; the others are copied.

    The decay starts low and rises to ``decay``, so that early weights are forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            held = self.tensors[name]
            if held.is_floating_point():
                held.lerp_(tensor, 1 - decay)
            else:
                held.copy_(tensor)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from stored tensors."""
        for name, held in self.tensors.items():
            held.copy_(tensors[name])
