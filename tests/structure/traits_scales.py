"""Scales that a forward derives from a size that is pruned: they keep their dense value, however they are spelt."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from traits import conv, image, trait


class Attention(nn.Module):
    """Patches without position embedding, one attention layer of a subclass's own, a classifier."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.o(self.mix(self.q(x), self.k(x), self.v(x)))
        return self.fc(x.mean(1))


@trait(image(2, 3, 16, 16), least=0.4)
class ScaleByHand(Attention):
    def mix(self, q, k, v):
        return (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1) @ v


@trait(image(2, 3, 16, 16), least=0.4)
class ScaleByRoot(Attention):
    def mix(self, q, k, v):
        return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


@trait(image(2, 3, 16, 16), least=0.4)
class ScaleOnKeys(Attention):
    def mix(self, q, k, v):
        return (q @ (k / k.shape[-1] ** 0.5).transpose(-2, -1)).softmax(-1) @ v


@trait(image(2, 3, 16, 16), least=0.4)
class ScaleAsTensor(Attention):
    def mix(self, q, k, v):
        return (q @ k.transpose(-2, -1) / torch.sqrt(torch.tensor(k.size(-1), dtype=q.dtype))).softmax(-1) @ v


@trait(image(2, 3, 16, 16), least=0.4)
class ScaleOfHeads(Attention):
    def mix(self, q, k, v):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1) @ v
        return mixed.transpose(1, 2).flatten(2)


@trait(image(2, 3, 16, 16), least=0.4)
class ScaleKept(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 24**-0.5

    def mix(self, q, k, v):
        return (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v


@trait(image(2, 3, 16, 16), least=0.4)
class UnitQueriesImplicitScale(Attention):
    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)


@trait(image(2, 3, 16, 16), least=0.4)
class NormalisedQueriesImplicitScale(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.nq, self.nk = nn.LayerNorm(24), nn.LayerNorm(24)

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(self.nq(q), self.nk(k), v)


@trait(image(2, 3, 16, 16), least=0.4)
class CosineAttention(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(10.0))

    def mix(self, q, k, v):
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1) @ v


@trait(image(2, 3, 16, 16), least=0.4)
class LinearAttentionByWidth(Attention):
    def mix(self, q, k, v):
        return q @ (k.transpose(-2, -1) @ v) / q.shape[-1]


@trait(image(2, 3, 16, 16), least=0.4)
class LinearAttentionByLength(Attention):
    def mix(self, q, k, v):
        return q.softmax(-1) @ (k.softmax(1).transpose(-2, -1) @ v) / q.shape[1]


@trait(image(2, 3, 16, 16), least=0.2)
class MeanAsSum(Attention):
    def mix(self, q, k, v):
        return v * (q.sum(-1, keepdim=True) / q.shape[-1])


@trait(image(2, 3, 16, 16), least=0.15)
class RootMeanSquareAsSum(Attention):
    def mix(self, q, k, v):
        return v * torch.rsqrt((v * v).sum(-1, keepdim=True) / v.shape[-1] + 1e-6)


@trait(image(2, 3, 16, 16), least=0.2)
class UnitLengthTimesRoot(Attention):
    def mix(self, q, k, v):
        return F.normalize(v, dim=-1) * v.shape[-1] ** 0.5


class Images(nn.Module):
    """Two convolutions with something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 16), conv(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.b(self.between(self.a(x))).mean((2, 3)))


@trait()
class TemperatureOfChannels(Images):
    def between(self, x):
        return x / x.size(1) ** 0.5


@trait(least=0.2)
class GroupNormByHand(Images):
    def between(self, x):
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w)
        spread, mean = torch.var_mean(x, (2, 3, 4), keepdim=True, unbiased=False)
        return ((x - mean) / torch.sqrt(spread + 1e-5)).view(n, c, h, w)


@trait(least=0.1)
class SpreadOverUnits(Images):
    def between(self, x):
        return x / (x.std(1, keepdim=True) + 1e-3)


@trait()
class ShareOfBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels = [16] * 4
        self.a, self.b, self.fc = conv(3, 16), nn.ModuleList(conv(16, c) for c in self.channels), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x)
        return self.fc((sum(b(x) for b in self.b) / len(self.channels)).mean((2, 3)))


@trait(image(2, 3, 10, 10), least=0.3)
class GramMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 16), conv(16, 8), nn.Linear(64, 5)

    def forward(self, x):
        x = self.b(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, c, h * w)
        return self.fc((x @ x.transpose(1, 2) / (c * h * w)).flatten(1))


@trait(image(2, 3, 10, 10), least=0.3)
class AttentionOverPixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.o, self.fc = conv(3, 16), nn.Conv2d(16, 48, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        x = self.a(x)
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        mixed = v @ (q.transpose(1, 2) @ k * c**-0.5).softmax(-1).transpose(1, 2)
        return self.fc(self.o(mixed.view(b, c, h, w)).mean((2, 3)))
