"""Traits of parameters: raw, tied, shared, normalised, parametrised, generated, recurrent, buffers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from traits import Head, conv, image, trait


@trait()
class SharedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.same, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.same(self.same(x)))


@trait()
class SharedHead(nn.Module):
    """A feature pyramid whose levels share one head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12, 3, 2)
        self.b = conv(12, 20, 3, 2)
        self.la = nn.Conv2d(12, 16, 1)
        self.lb = nn.Conv2d(20, 16, 1)
        self.tower = conv(16, 16)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        top = self.lb(b)
        low = self.la(a) + F.interpolate(top, size=a.shape[-2:], mode="nearest")
        return [self.out(self.tower(level)) for level in (low, top)]


@trait(lambda: torch.randint(0, 30, (2, 7)), least=0.2)
class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, tokens):
        x = self.emb(tokens)
        return self.out(x + self.mlp(x))


@trait(image(2, 20), least=0.2)
class TiedTranspose(nn.Module):
    """An autoencoder that decodes with the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 16), nn.Linear(16, 12)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x):
        code = F.relu(self.b(F.relu(self.a(x))))
        return F.linear(F.relu(F.linear(code, self.b.weight.t(), self.bias)), self.a.weight.t())


@trait(image(2, 16), least=0.05)
class TiedLayers(nn.Module):
    """Two layers hold one weight: its input and output axes serve different tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(16, 12)
        self.a = nn.Linear(12, 12)
        self.b = nn.Linear(12, 12)
        self.out = nn.Linear(12, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.a(F.relu(self.inp(x)))))))


@trait(image(2, 20))
class RawMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(20, 24)), nn.Parameter(torch.randn(24))
        self.w2, self.w3 = nn.Parameter(torch.randn(16, 24)), nn.Parameter(torch.randn(16, 5))

    def forward(self, x):
        x = F.relu(x @ self.w1 + self.b1)
        return torch.matmul(F.relu(F.linear(x, self.w2)), self.w3)


@trait()
class RawKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(12, 3, 3, 3))
        self.w2 = nn.Parameter(torch.randn(16, 12, 3, 3))
        self.b2 = nn.Parameter(torch.randn(16))
        self.head = Head(16)

    def forward(self, x):
        return self.head(F.relu(F.conv2d(F.relu(F.conv2d(x, self.w1)), self.w2, self.b2)))


@trait()
class ChannelScale(nn.Module):
    """Layer scale, a shared scalar, a buffer per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)
        self.gamma, self.alpha = nn.Parameter(1e-6 * torch.ones(16, 1, 1)), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.randn(1, 16, 1, 1))

    def forward(self, x):
        x = self.a(x)
        return self.head(x * self.alpha + self.gamma * (self.b(x) - self.shift))


@trait()
class InputStatistics(nn.Module):
    """Buffers normalise the image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.a((x - self.mean) / self.std)))


@trait(least=0.1)
class ConstantPerChannel(nn.Module):
    """A tensor made in the forward pass with a value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        x = x * torch.linspace(0.5, 1.5, 16, dtype=x.dtype, device=x.device).view(1, 16, 1, 1)
        return self.head(self.b(x + torch.ones(1, 16, 1, 1, dtype=x.dtype)))


@trait(image(2, 3, 12, 12))
class PlaceEmbedding(nn.Module):
    """An embedding over space and one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)
        self.whole = nn.Parameter(torch.randn(1, 16, 12, 12))
        self.rows = nn.Parameter(torch.randn(16, 12, 1))
        self.columns = nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, x):
        return self.head(self.b(self.a(x) + self.whole + self.rows * self.columns))


@trait()
class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 16, 3))
        self.b = parametrizations.weight_norm(nn.Conv2d(16, 24, 3))
        self.head = Head(24)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


@trait(image(2, 20))
class WeightNormOld(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 16)
        self.b = torch.nn.utils.weight_norm(nn.Linear(16, 24))
        self.c = nn.Linear(24, 5)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@trait(least=0.05)
class SpectralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = parametrizations.spectral_norm(nn.Conv2d(16, 24, 3))
        self.head = Head(24)

    def forward(self, x):
        return self.head(F.relu(self.b(self.a(x))))


class Doubled(nn.Module):
    """A parametrisation that treats every element alone."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * torch.tanh(weight)


@trait()
class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), Head(24)
        parametrize.register_parametrization(self.b, "weight", Doubled())

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class Symmetric(nn.Module):
    """A parametrisation that ties rows to columns."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


@trait(image(2, 16), least=0.05)
class ParametrisedSymmetric(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 12)
        self.b = nn.Linear(12, 12)
        self.c = nn.Linear(12, 24)
        self.d = nn.Linear(24, 5)
        parametrize.register_parametrization(self.b, "weight", Symmetric())

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


@trait()
class BranchesMerged(nn.Module):
    """Two kernels are added, one padded, before one convolution runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12)
        self.wide = nn.Parameter(torch.randn(16, 12, 3, 3))
        self.narrow = nn.Parameter(torch.randn(16, 12, 1, 1))
        self.head = Head(16)

    def forward(self, x):
        return self.head(F.conv2d(self.a(x), self.wide + F.pad(self.narrow, (1, 1, 1, 1)), padding=1))


@trait(least=0.15)
class MixtureOfKernels(nn.Module):
    """Conditional convolution: kernels are mixed per example and run as one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12)
        self.route = nn.Linear(12, 4)
        self.c = conv(16, 32)
        self.d = conv(32, 16)
        self.head = Head(16)
        self.kernels = nn.Parameter(torch.randn(4, 16 * 12 * 9))

    def forward(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        mixed = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels).view(n * 16, 12, 3, 3)
        y = F.conv2d(x.reshape(1, n * c, h, w), mixed, padding=1, groups=n).view(n, 16, h, w)
        return self.head(self.d(self.c(y)))
