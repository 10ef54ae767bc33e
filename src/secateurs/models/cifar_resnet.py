"""CIFAR residual networks of He et al. (2015) with parameter-free (option A) shortcuts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OptionAShortcut(nn.Module):
    """Shortcut without weights: take every ``stride``-th position, zero-pad the channels.

    ``pad`` = (channels of zeros in front, channels behind). Both are plain attributes, so that a pruned
    network patches them.
    """

    def __init__(self, stride: int, pad: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, H, W] -> [batch, front + in + behind, ceil(H / stride), ceil(W / stride)]."""
        front, behind = self.pad
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, behind))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, pad={self.pad}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            front = (outputs - inputs) // 2
            self.shortcut = OptionAShortcut(stride, (front, outputs - inputs - front))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, H, W] -> [batch, outputs, ceil(H / stride), ceil(W / stride)]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of three stages (16, 32, 64 channels times ``width``) for small images of any size.

    Args:
        depth: 6n + 2 weighted layers, n blocks per stage.
        classes: outputs.
        width: multiplies the channels of every stage.
        channels: input channels.
    """

    def __init__(self, depth: int = 20, *, classes: int = 10, width: float = 1.0, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        widths = stage_widths(width)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, H, W] -> logits [batch, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


def stage_widths(width: float) -> tuple[int, int, int]:
    """Channels of the three stages at width multiplier ``width``, at least 1 each."""
    first, second, third = (max(1, round(base * width)) for base in (16, 32, 64))
    return first, second, third


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
