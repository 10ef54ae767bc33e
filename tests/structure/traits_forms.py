"""Traits of the forward pass: inputs and outputs of every form, loops, in-place work, unknown operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait


@trait(lambda: ({}, {})[:0] or ((torch.randn(2, 3, 12, 12),), {"gain": torch.randn(2, 1, 1, 1)}))
class KeywordInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x, *, gain):
        return self.head(self.b(self.a(x) * gain))


@trait(lambda: ({"image": torch.randn(2, 3, 12, 12), "extra": torch.randn(2, 6)},))
class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.head = conv(3, 16), nn.Linear(6, 16), Head(16)

    def forward(self, batch):
        return self.head(self.a(batch["image"]) * self.e(batch["extra"])[:, :, None, None])


@trait(lambda: ([torch.randn(2, 3, 12, 12), torch.randn(2, 3, 6, 6)],))
class ListInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(3, 16), Head(16)

    def forward(self, images):
        return self.head(self.a(images[0]) + F.interpolate(self.b(images[1]), scale_factor=2))


@trait(lambda: (torch.randn(2, 3, 12, 12), torch.randn(2, 8)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.fc = conv(3, 16), nn.Linear(8, 12), nn.Linear(28, 5)

    def forward(self, x, extra):
        return self.fc(torch.cat([self.a(x).mean((2, 3)), F.relu(self.e(extra))], 1))


@trait()
class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16)
        self.main = Head(16)
        self.aux = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.a(x)
        return {"aux": self.aux(x), "out": self.main(self.b(x))}


@trait(least=0.15)
class FeatureOutput(nn.Module):
    """An inner feature map is an output: its channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        feature = self.b(self.a(x))
        return feature, (self.head(self.c(feature)), None)


class Pair(NamedTuple):
    """A named output."""

    first: torch.Tensor
    second: torch.Tensor


@trait()
class NamedOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16)
        self.one = Head(16)
        self.two = Head(16, 2)

    def forward(self, x):
        x = self.b(self.a(x))
        return Pair(self.one(x), self.two(x))


@dataclass
class Result:
    """An output of the user's own class."""

    logits: torch.Tensor
    feature: torch.Tensor


torch.export.register_dataclass(Result, serialized_type_name="traits.Result")


@trait()
class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16)
        self.head = Head(16)
        self.fc = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = self.b(self.a(x))
        return Result(self.head(x), self.fc(x))


@trait()
class OptionalInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x, mask=None):
        x = self.a(x)
        return self.head(self.b(x if mask is None else x * mask))


@trait()
class ConstantLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.layers = nn.ModuleList(conv(16, 16) for _ in range(3))
        self.head = Head(16)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(16, 1, 1)) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            x = x + self.scales[i] * self.layers[i](x)
        return self.head(x)


@trait()
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.c = nn.Conv2d(16, 16, 1)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(x)
        x.relu_()
        y = self.b(x)
        y += x
        y *= torch.sigmoid(self.c(x))
        return self.head(F.relu(y, inplace=True))


@trait(least=0.1)
class InPlaceSlice(nn.Module):
    """A part of the channels is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(3, 6)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        y = self.a(x)
        y[:, 4:10] += self.b(x)
        return self.head(self.c(y))


@trait(least=0.1)
class FilledBuffer(nn.Module):
    """Results are written into an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 6)
        self.b = conv(3, 10)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        y = torch.zeros(x.size(0), 16, x.size(2), x.size(3), dtype=x.dtype, device=x.device)
        y[:, :6] = self.a(x)
        y[:, 6:] = self.b(x)
        return self.head(self.c(y))


@trait()
class DropoutAndDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16)
        self.drop = nn.Dropout2d(0.2)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 5))

    def forward(self, x):
        x = self.a(x)
        y = self.drop(self.b(x))
        if self.training and torch.rand(()) < 0.5:
            y = y * 0
        return self.head((x + y).mean((2, 3)))


@trait()
class MaskedValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.b = nn.Conv2d(3, 16, 3)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        y = torch.where(a > 0, a, b.clamp(-1, 1)).masked_fill(b < -2, 0.0)
        return self.head(self.c(torch.maximum(y, 0.1 * b) - a.abs().pow(0.5)))


@trait()
class BroadcastGate(nn.Module):
    """One channel multiplies all."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.gate = nn.Conv2d(16, 1, 1)
        self.b = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x * self.gate(x).sigmoid()))


@trait()
class ChannelsLastMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.a(x.to(memory_format=torch.channels_last)).contiguous()))


@trait(least=0.2)
class SizesByAttribute(nn.Module):
    """The user's own attributes keep the widths."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.area = 16, 36
        self.a, self.b, self.fc = conv(3, 12, 3, 2), conv(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.b(self.a(x)).view(-1, self.channels, self.area)
        return self.fc(x.mean(2))


@trait(least=0.2)
class SizesHardcoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 12, 3, 2), conv(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.b(self.a(x)).reshape(-1, 2, 8, 36).flatten(1, 2)
        return self.fc(x.mean(2))


@trait()
class CoordinateChannels(nn.Module):
    """CoordConv: positions as extra channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(5, 16), conv(18, 16), Head(16)

    def located(self, x):
        rows = torch.linspace(-1, 1, 12, dtype=x.dtype).view(1, 1, 12, 1).expand(x.size(0), 1, 12, 12)
        return torch.cat([x, rows, rows.transpose(2, 3)], 1)

    def forward(self, x):
        return self.head(self.b(self.located(self.a(self.located(x)))))


@trait(least=0.05)
class MeanOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 24)
        self.c = conv(25, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.head(self.c(torch.cat([x, x.mean(1, keepdim=True)], 1)))


@trait(least=0.1)
class NormaliseChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.b = conv(24, 16)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.c(F.normalize(self.b(self.a(x)), dim=1)))


@trait(least=0.05)
class SortedChannels(nn.Module):
    """An operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.b = conv(24, 16)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x)).sort(1).values))


@trait(least=0.05)
class CumulativeChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.b = conv(24, 16)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x)).cumsum(1)))


@trait(least=0.05)
class FourierTokens(nn.Module):
    """FNet mixes with a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.b = conv(24, 16)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.c(torch.fft.fft2(self.b(self.a(x)), dim=(1, 2)).real))


@trait(image(2, 16), pinned="output")
class OneLayer(nn.Sequential):
    """Everything is an input or an output."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 5))


@trait(least=0.1)
class TopFeatures(nn.Module):
    """Positions computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.b = conv(24, 16)
        self.c = nn.Linear(16, 24)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = self.b(self.a(x)).flatten(2)
        order = x.mean(1).topk(6, dim=1).indices
        picked = torch.gather(x, 2, order[:, None].expand(-1, x.size(1), -1))
        return self.fc(F.relu(self.c(picked.mean(2))))
