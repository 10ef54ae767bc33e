"""Statistics written by hand, weights computed on the fly, chance, and modules that are hard to copy."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait


class ByHand(nn.Module):
    """LayerNorm over channels as early ConvNeXts spell it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        return self.gain[:, None, None] * (x - mean) / torch.sqrt(spread + 1e-6) + self.shift[:, None, None]


@trait(least=0.05)
class LayerNormByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 16, 3), ByHand(16), conv(16, 12), Head(12)

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x))))


@trait(image(2, 7, 6), pinned="a reduction runs over this axis")
class RootMeanSquareByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Linear(6, 24), nn.Linear(24, 5), nn.Parameter(torch.ones(24))

    def forward(self, x):
        x = self.a(x)
        return self.b(self.gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@trait(image(2, 7, 6))
class UnitLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 5)

    def forward(self, x):
        return self.b(F.normalize(self.a(x), dim=-1) * 24**0.5)


@trait(pinned="a reduction runs over this axis")
class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.look, self.head = conv(3, 24), nn.Conv2d(2, 1, 7, padding=3), Head(24)

    def forward(self, x):
        x = self.a(x)
        seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.head(x * torch.sigmoid(self.look(seen)))


@trait(pinned="a reduction runs over this axis")
class MeanOfChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Linear(10, 5)

    def forward(self, x):
        return self.b(self.a(x).mean(1))


@trait(pinned="a reduction runs over this axis")
class PlaceOfTheLargest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)

    def forward(self, x):
        return self.a(x).max(1, keepdim=True)[1].float()


@trait(image(2, 7, 6), pinned="a reduction runs over this axis")
class LengthOfGates(nn.Module):
    """A sigmoid of nothing is one half: what is gone would still count."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 5)

    def forward(self, x):
        return self.b(F.normalize(torch.sigmoid(self.a(x)), dim=-1))


class Standardised(nn.Conv2d):
    def forward(self, x):
        spread, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(spread + 1e-6), self.bias, self.stride, self.padding)


class Quantised(nn.Conv2d):
    def forward(self, x):
        step = self.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        return F.conv2d(x, self.weight + ((self.weight / step).round() * step - self.weight).detach(), self.bias)


@trait(least=0.4)
class WeightStandardisationByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = Standardised(3, 16, 3), Standardised(16, 24, 3), Head(24)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


@trait(least=0.4)
class FakeQuantisedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = Quantised(3, 16, 3), Quantised(16, 24, 3), Head(24)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class LowRank(nn.Linear):
    def __init__(self, inputs: int, outputs: int, rank: int = 4) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x):
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


@trait(image(2, 6), least=0.4)
class LowRankAdapters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(LowRank(6, 20), nn.ReLU(), LowRank(20, 16), nn.ReLU(), LowRank(16, 3))

    def forward(self, x):
        return self.layers(x)


@trait(image(2, 1, 8, 12), least=0.4)
class RecurrentBehindNormalisation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.l, self.n = conv(1, 12, stride=2), nn.Linear(12 * 4, 20), nn.LayerNorm(20)
        self.r, self.o = nn.GRU(20, 10, batch_first=True), nn.Linear(10, 7)

    def forward(self, x):
        x = self.c(x).permute(0, 3, 1, 2)
        x = self.n(self.l(x.reshape(x.shape[0], x.shape[1], -1)))
        return self.o(self.r(x)[0]).log_softmax(-1)


@trait(image(2, 4))
class PlainTensorsAndMasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(4, 16), nn.Linear(16, 3), torch.linspace(1, 2, 16)
        self.register_buffer("shift", torch.rand(16))
        self.register_buffer("mask", torch.rand(16) > 0.3)

    def forward(self, x):
        x = (self.a(x) - self.shift) * self.scale
        return self.b(torch.where(self.mask, x, torch.zeros_like(x)))


@trait()
class BackToTheirPlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 10), conv(10, 10), Head(10)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        x, places = self.pool(self.a(x))
        return self.head(self.unpool(self.b(x), places))


@trait(image(2, 6, 5), least=0.2)
class TokensByOneWideKernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.mix, self.o = nn.Linear(5, 24), nn.Conv1d(6, 6, 1), nn.Linear(24, 3)

    def forward(self, x):
        x = self.i(x)
        return self.o(x + self.mix(x))


@trait()
class SharedLock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.a, self.head = conv(3, 16), Head(16)

    def forward(self, x):
        with self.lock:
            return self.head(self.a(x))


@trait()
class HeadForTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.extra = conv(3, 16), conv(16, 16), Head(16), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.a(x)
        if self.training:
            return self.head(self.b(x)), self.extra(x)
        return self.head(self.b(x))


@trait(image(2, 6), pinned="a reduction runs over this axis")
class LengthWithAnOffset(nn.Module):
    """The offset of a removed unit would be exp(0), not nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.offset = nn.Linear(6, 24), nn.Linear(24, 5), nn.Parameter(torch.zeros(24))

    def forward(self, x):
        return self.b(F.normalize(self.a(x) + self.offset.exp(), dim=-1))
