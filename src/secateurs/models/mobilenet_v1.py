"""MobileNet V1 (Howard et al., 2017): with batch norm, or folded as deployed TensorFlow networks are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs.models.conv_units import ConvUnits

# outputs (at width 1) and stride of the thirteen depthwise-separable layers
_LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class MobileNetV1(ConvUnits):
    """``conv0``, thirteen pairs ``dw{i}`` (3x3 depthwise) and ``pw{i}`` (1x1), global mean, ``fc``.

    Args:
        classes: outputs.
        width: multiplies every channel count; at least 8 channels stay.
        batch_norm: False for the folded variant (bias, no batch norm).
        same: TensorFlow SAME padding at the strided layers.
    """

    def __init__(self, *, classes: int = 1000, width: float = 1.0, batch_norm: bool = True, same: bool = False) -> None:
        super().__init__(batch_norm=batch_norm, same=same)
        inputs = _scaled(32, width)
        self.add_unit("conv0", 3, inputs, kernel=3, stride=2)
        for index, (base, stride) in enumerate(_LAYERS, start=1):
            outputs = _scaled(base, width)
            self.add_unit(f"dw{index}", inputs, inputs, kernel=3, stride=stride, groups=inputs)
            self.add_unit(f"pw{index}", inputs, outputs)
            inputs = outputs
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, H, W] -> logits [batch, classes]."""
        x = self.run_unit("conv0", x)
        for index in range(1, len(_LAYERS) + 1):
            x = self.run_unit(f"pw{index}", self.run_unit(f"dw{index}", x))
        return self.fc(torch.mean(x, dim=(2, 3)))


def _scaled(base: int, width: float) -> int:
    return max(8, int(base * width))
