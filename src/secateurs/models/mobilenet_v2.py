"""MobileNet V2 (Sandler et al., 2018): with batch norm, or folded as deployed TensorFlow networks are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs.models.conv_units import ConvUnits

# expansion t, outputs c at width 1, repeats n, stride s of the first
_TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(ConvUnits):
    """``expand`` (1x1, absent at expansion 1), ``dw`` (3x3 depthwise), ``project`` (1x1, linear) and a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int, batch_norm: bool, same: bool) -> None:
        super().__init__(batch_norm=batch_norm, same=same)
        hidden = inputs * expansion
        if expansion != 1:
            self.add_unit("expand", inputs, hidden)
        self.add_unit("dw", hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.add_unit("project", hidden, outputs)
        self.expanded = expansion != 1
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, H, W] -> [batch, outputs, ceil(H / stride), ceil(W / stride)]."""
        y = self.run_unit("expand", x) if self.expanded else x
        y = self.run_unit("project", self.run_unit("dw", y), activation=False)
        return x + y if self.residual else y


class MobileNetV2(ConvUnits):
    """``stem``, seventeen inverted residuals ``block{i}``, ``head`` (1x1), global mean, ``fc``.

    Args:
        classes: outputs.
        width: multiplies the channel counts, rounded to multiples of 8; the head never goes below 1280.
        batch_norm: False for the folded variant (bias, no batch norm).
        same: TensorFlow SAME padding at the strided layers.
    """

    def __init__(self, *, classes: int = 1000, width: float = 1.0, batch_norm: bool = True, same: bool = False) -> None:
        super().__init__(batch_norm=batch_norm, same=same)
        inputs = _scaled(32, width)
        self.add_unit("stem", 3, inputs, kernel=3, stride=2)
        self.block_count = 0
        for expansion, base, repeats, stride in _TABLE:
            outputs = _scaled(base, width)
            for repeat in range(repeats):
                block = InvertedResidual(
                    inputs,
                    outputs,
                    expansion=expansion,
                    stride=stride if repeat == 0 else 1,
                    batch_norm=batch_norm,
                    same=same,
                )
                self.add_module(f"block{self.block_count}", block)
                self.block_count += 1
                inputs = outputs
        head = _scaled(1280, max(width, 1.0))
        self.add_unit("head", inputs, head)
        self.fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, H, W] -> logits [batch, classes]."""
        x = self.run_unit("stem", x)
        for index in range(self.block_count):
            x = getattr(self, f"block{index}")(x)
        return self.fc(torch.mean(self.run_unit("head", x), dim=(2, 3)))


def _scaled(base: int, width: float) -> int:
    """Multiple of 8 nearest to ``base * width``, never more than a tenth below it."""
    value = base * width
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded
