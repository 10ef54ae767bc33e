"""A network on images under the names of its published weights: MLPerf Tiny's ResNet-8."""

from __future__ import annotations

import torch.nn.functional as F
from audio import same
from torch import Tensor, nn


class Normed(nn.Module):
    """A convolution with SAME padding and its normalisation."""

    def __init__(self, before: int, after: int, side: int = 3, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, side, stride)
        if norm:
            self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(same(x, self.conv.kernel_size, self.conv.stride[0]))
        return self.bn(x) if hasattr(self, "bn") else x


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = Normed(before, after, 3, stride), Normed(after, after)
        if stride > 1:
            self.skip = Normed(before, after, 1, stride, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        short = self.skip(x) if hasattr(self, "skip") else x
        return F.relu(self.b(F.relu(self.a(x))) + short)


class ResNet8(nn.Module):
    """MLPerf Tiny's image classifier: pixels 0-255 [batch, 3, 32, 32] to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Normed(3, 16)
        self.blocks = nn.ModuleList([Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)])
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))
