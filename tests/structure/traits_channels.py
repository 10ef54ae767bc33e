"""Traits of channel plumbing: shortcuts, concatenation, shuffles, flattening, slicing, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait


@trait()
class PlainChain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), conv(16, 24), conv(24, 16), Head(16))


@trait()
class ResidualIdentity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(16, 24)
        self.b = conv(24, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))


@trait()
class ResidualProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(16, 24, 3, 2)
        self.short = nn.Conv2d(16, 24, 1, 2)
        self.head = Head(24)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.a(x) + self.short(x))


@trait(least=0.2)
class PaddedShortcut(nn.Module):
    """CIFAR ResNets: stride-2 slicing and zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a = conv(8, 16, 3, 2)
        self.b = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.a(x))
        return self.head(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


@trait(least=0.2)
class PaddedShortcutUneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a = conv(8, 13, 3, 2)
        self.b = conv(13, 13)
        self.c = conv(13, 20)
        self.head = Head(20)

    def forward(self, x):
        x = self.stem(x)
        x = self.b(self.a(x)) + F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 5))
        return self.head(self.c(x) + F.pad(x, (0, 0, 0, 0, 3, 4)))


@trait(least=0.2)
class ZerosShortcut(nn.Module):
    """The missing channels are zeros concatenated in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(3, 8), conv(8, 16), Head(16)

    def forward(self, x):
        x = self.stem(x)
        zeros = torch.zeros(x.size(0), 8, x.size(2), x.size(3), dtype=x.dtype, device=x.device)
        return self.head(self.a(x) + torch.cat([x, zeros], 1))


@trait()
class DenseConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 8), conv(16, 8)
        self.norm, self.head = nn.BatchNorm2d(24), Head(24)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([x, self.b(x)], 1)
        return self.head(F.relu(self.norm(x)))


@trait()
class ConcatInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(19, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(torch.cat([x, self.a(x)], 1)))


@trait()
class ConcatSelf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(24, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(torch.cat([x, -x], 1)))


@trait(least=0.2)
class ShuffleByView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16, 1)
        self.c = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.b(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.c(x))


@trait(least=0.15)
class ShuffleUnit(nn.Module):
    """Split in halves, work on one, concatenate, shuffle, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(8, 8)
        self.b = conv(8, 8)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        for layer in (self.a, self.b):
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, layer(right)], 1)
            x = x.view(x.size(0), 2, 8, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)
        return self.head(x)


@trait(least=0.2)
class ShuffleOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.shuffle = nn.ChannelShuffle(4)
        self.b = conv(16, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.b(self.shuffle(self.a(x))))


@trait(least=0.2)
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 32)
        self.up = nn.PixelShuffle(2)
        self.b = conv(8, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.b(self.up(self.a(x))))


@trait(least=0.2)
class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.down = nn.PixelUnshuffle(2)
        self.b = conv(32, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.b(self.down(self.a(x))))


@trait(image(2, 3, 8, 8))
class FlattenChannelsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12, 3, 2)
        self.b = conv(12, 16)
        self.fc = nn.Linear(256, 32)
        self.out = nn.Linear(32, 5)

    def forward(self, x):
        return self.out(F.relu(self.fc(self.b(self.a(x)).flatten(1))))


@trait(image(2, 3, 8, 8))
class FlattenChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12, 3, 2)
        self.b = conv(12, 16)
        self.fc = nn.Linear(256, 32)
        self.out = nn.Linear(32, 5)

    def forward(self, x):
        x = self.b(self.a(x)).permute(0, 2, 3, 1)
        return self.out(F.relu(self.fc(x.reshape(x.size(0), -1))))


@trait(image(2, 3, 8, 8))
class FlattenHardcoded(nn.Module):
    """Integers of the dense network in the user's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 12, 3, 2), conv(12, 16), nn.Linear(256, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(x)).view(-1, 16 * 4 * 4))
