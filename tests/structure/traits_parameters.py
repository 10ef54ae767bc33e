"""Traits of parameters: raw, tied, shared, normalised, parametrised, generated, recurrent, buffers."""

from __future__ import annotations

import math

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
        self.a, self.b, self.la, self.lb, self.tower, self.out = conv(3, 12, 3, 2), conv(12, 20, 3, 2), nn.Conv2d(12, 16, 1), nn.Conv2d(20, 16, 1), conv(16, 16), nn.Conv2d(16, 4, 1)

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
        self.emb, self.mlp, self.out = nn.Embedding(30, 16), nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)), nn.Linear(16, 30, bias=False)
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
        self.inp, self.a, self.b, self.out = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
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
        self.w1, self.w2, self.b2 = nn.Parameter(torch.randn(12, 3, 3, 3)), nn.Parameter(torch.randn(16, 12, 3, 3)), nn.Parameter(torch.randn(16))
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
        self.whole, self.rows, self.columns = nn.Parameter(torch.randn(1, 16, 12, 12)), nn.Parameter(torch.randn(16, 12, 1)), nn.Parameter(torch.randn(1, 1, 12))

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
        self.a, self.b, self.c = nn.Linear(20, 16), torch.nn.utils.weight_norm(nn.Linear(16, 24)), nn.Linear(24, 5)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@trait(least=0.05)
class SpectralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), parametrizations.spectral_norm(nn.Conv2d(16, 24, 3)), Head(24)

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
        self.a, self.b, self.c, self.d = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 24), nn.Linear(24, 5)
        parametrize.register_parametrization(self.b, "weight", Symmetric())

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


@trait()
class BranchesMerged(nn.Module):
    """Two kernels are added, one padded, before one convolution runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.wide, self.narrow, self.head = conv(3, 12), nn.Parameter(torch.randn(16, 12, 3, 3)), nn.Parameter(torch.randn(16, 12, 1, 1)), Head(16)

    def forward(self, x):
        return self.head(F.conv2d(self.a(x), self.wide + F.pad(self.narrow, (1, 1, 1, 1)), padding=1))


@trait(least=0.15)
class MixtureOfKernels(nn.Module):
    """Conditional convolution: kernels are mixed per example and run as one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.route, self.c, self.d, self.head = conv(3, 12), nn.Linear(12, 4), conv(16, 32), conv(32, 16), Head(16)
        self.kernels = nn.Parameter(torch.randn(4, 16 * 12 * 9))

    def forward(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        mixed = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels).view(n * 16, 12, 3, 3)
        y = F.conv2d(x.reshape(1, n * c, h, w), mixed, padding=1, groups=n).view(n, 16, h, w)
        return self.head(self.d(self.c(y)))


@trait(image(2, 7, 12), least=0.1)
class RecurrentGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.gru, self.mid, self.out = nn.Linear(12, 24), nn.GRU(24, 10, batch_first=True), nn.Linear(10, 24), nn.Linear(24, 5)

    def forward(self, x):
        y, last = self.gru(F.relu(self.inp(x)))
        return self.out(F.relu(self.mid(y[:, -1])))


@trait(image(2, 7, 12), least=0.1)
class RecurrentLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.lstm, self.mid, self.out = nn.Linear(12, 24), nn.LSTM(24, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        y, _ = self.lstm(F.relu(self.inp(x)))
        return self.out(F.relu(self.mid(y.mean(1))))


@trait(image(2, 4, 12), least=0.1)
class RecurrentCell(nn.Module):
    """A cell in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.cell, self.out = nn.Linear(12, 20), nn.GRUCell(20, 10), nn.Linear(10, 5)

    def forward(self, x):
        state = torch.zeros(x.size(0), 10, dtype=x.dtype)
        for t in range(x.size(1)):
            state = self.cell(F.relu(self.inp(x[:, t])), state)
        return self.out(state)


@trait(image(2, 4, 12), least=0.1)
class RecurrentByHand(nn.Module):
    """A gated cell written out with linear layers and chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.state, self.out = nn.Linear(12, 64), nn.Linear(16, 64), nn.Linear(16, 5)

    def forward(self, x):
        h, c = x.new_zeros(x.size(0), 16), x.new_zeros(x.size(0), 16)
        for t in range(x.size(1)):
            i, f, g, o = (self.inp(x[:, t]) + self.state(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


@trait(lambda: torch.randint(0, 40, (2, 16)))
class TextConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(40, 16), nn.Linear(36, 5)
        self.convs = nn.ModuleList(nn.Conv1d(16, 12, k) for k in (2, 3, 4))

    def forward(self, tokens):
        x = self.emb(tokens).transpose(1, 2)
        return self.out(torch.cat([F.relu(layer(x)).amax(2) for layer in self.convs], 1))


@trait(least=0.15)
class BilinearPooling(nn.Module):
    """Outer product of two feature maps, flattened: every classifier column belongs to two units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = conv(3, 12), conv(12, 8), conv(12, 6), nn.Linear(48, 5)

    def forward(self, x):
        x = self.stem(x)
        pooled = torch.einsum("bchw,bdhw->bcd", self.a(x), self.b(x)) / 144
        return self.fc(pooled.flatten(1))


@trait(least=0.1)
class BilinearSame(nn.Module):
    """The Gram matrix of one feature map, with signed square roots."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.fc = conv(3, 12), conv(12, 8), nn.Linear(64, 5)

    def forward(self, x):
        y = self.a(self.stem(x)).flatten(2)
        gram = (y @ y.transpose(1, 2) / 144).flatten(1)
        return self.fc(torch.sign(gram) * torch.sqrt(gram.abs() + 1e-5))


@trait(lambda: (torch.randn(2, 12), torch.randn(2, 10)), least=0.2)
class BilinearLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix, self.out = nn.Linear(12, 8), nn.Linear(10, 6), nn.Bilinear(8, 6, 12), nn.Linear(12, 5)

    def forward(self, x, y):
        return self.out(F.relu(self.mix(F.relu(self.a(x)), F.relu(self.b(y)))))


@trait(image(2, 24), least=0.15)
class PerHeadWeights(nn.Module):
    """A separate map per head in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.heads, self.out = nn.Linear(24, 24), nn.Parameter(torch.randn(4, 6, 5)), nn.Linear(20, 5)

    def forward(self, x):
        y = F.relu(self.a(x)).view(-1, 4, 6)
        return self.out(torch.einsum("bhd,hde->bhe", y, self.heads).flatten(1))


@trait(image(2, 20), least=0.2)
class ScaledByWidth(nn.Module):
    """Python numbers derived from a width that is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 24
        self.a, self.b, self.out = nn.Linear(20, self.width), nn.Linear(self.width, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x) * math.sqrt(self.width)
        return self.out(F.relu(self.b(x / x.shape[-1])))


@trait(image(2, 20), least=0.1)
class CosineClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.prototypes = nn.Linear(20, 24), nn.Linear(24, 16), nn.Parameter(torch.randn(5, 16))

    def forward(self, x):
        return 10 * F.linear(F.normalize(self.b(F.relu(self.a(x))), dim=-1), F.normalize(self.prototypes, dim=-1))


@trait(least=0.1)
class PlainTensorAttribute(nn.Module):
    """Tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)
        self.shift, self.gain = torch.randn(16, 1, 1), torch.randn(1, 16, 1, 1)

    def forward(self, x):
        return self.head(self.b(self.a(x) * self.gain + self.shift))
