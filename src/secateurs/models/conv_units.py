"""Convolution units of the MobileNets: padding, convolution, batch norm and ReLU6 under flat names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SamePad(nn.Module):
    """TensorFlow's SAME padding in front of a strided convolution: an odd row goes to the right and bottom."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, W] -> [..., H', W'], for which an unpadded convolution has ceil(H / stride) positions."""
        top, bottom = self._split(x.shape[-2])
        left, right = self._split(x.shape[-1])
        return F.pad(x, (left, right, top, bottom))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"

    def _split(self, length: int) -> tuple[int, int]:
        last = (length - 1) // self.stride * self.stride
        total = max(last + self.kernel - length, 0)
        return total // 2, total - total // 2


class ConvUnits(nn.Module):
    """Holds convolution units; each is a convolution ``name``, a batch norm ``name_bn`` and a pad ``name_pad``.

    Args:
        batch_norm: with it, convolutions have no bias; without it (folded networks) they have one.
        same: TensorFlow SAME padding instead of symmetric padding where the stride is above 1.
    """

    def __init__(self, *, batch_norm: bool, same: bool) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.same = same

    def add_unit(
        self, name: str, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        """Register one unit under ``name``."""
        shift = self.same and stride > 1 and kernel > 1
        padding = 0 if shift else kernel // 2
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=not self.batch_norm
        )
        nn.init.kaiming_normal_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        self.add_module(name, conv)
        if self.batch_norm:
            self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))
        if shift:
            self.add_module(f"{name}_pad", SamePad(kernel, stride))

    def run_unit(self, name: str, x: Tensor, *, activation: bool = True) -> Tensor:
        """Output of unit ``name`` on ``x`` [batch, inputs, H, W]; ReLU6 at its end unless told otherwise."""
        for part in (f"{name}_pad", name, f"{name}_bn"):
            if part in self._modules:
                x = getattr(self, part)(x)
        return F.relu6(x) if activation else x
