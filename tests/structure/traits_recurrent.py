"""Traits of recurrent layers, outer products and maps per head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait


@trait(image(2, 7, 12), least=0.1)
class RecurrentGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(12, 24)
        self.gru = nn.GRU(24, 10, batch_first=True)
        self.mid = nn.Linear(10, 24)
        self.out = nn.Linear(24, 5)

    def forward(self, x):
        y, _ = self.gru(F.relu(self.inp(x)))
        return self.out(F.relu(self.mid(y[:, -1])))


@trait(image(2, 7, 12), least=0.1)
class RecurrentLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(12, 24)
        self.lstm = nn.LSTM(24, 8, 2, batch_first=True, bidirectional=True)
        self.mid = nn.Linear(16, 24)
        self.out = nn.Linear(24, 5)

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
        self.stem = conv(3, 12)
        self.a = conv(12, 8)
        self.b = conv(12, 6)
        self.fc = nn.Linear(48, 5)

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
        self.a = nn.Linear(12, 8)
        self.b = nn.Linear(10, 6)
        self.mix = nn.Bilinear(8, 6, 12)
        self.out = nn.Linear(12, 5)

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
        self.a = nn.Linear(20, 24)
        self.b = nn.Linear(24, 16)
        self.prototypes = nn.Parameter(torch.randn(5, 16))

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
