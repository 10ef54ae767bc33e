"""VGG-16 with batch norm (Simonyan and Zisserman, 2014), under torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class Vgg16BatchNorm(nn.Module):
    """``features`` (thirteen 3x3 convolutions), 7x7 average pooling, ``classifier`` (three linear layers).

    Args:
        classes: outputs.
        hidden: width of the two hidden linear layers, 4096 in the paper.
    """

    def __init__(self, *, classes: int = 1000, hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, repeats in _STAGES:
            for _ in range(repeats):
                conv = nn.Conv2d(inputs, outputs, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, H, W] -> logits [batch, classes]."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
