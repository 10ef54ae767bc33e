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
        self.stem, self.a, self.b, self.head = conv(3, 16), conv(16, 24), conv(24, 16), Head(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))


@trait()
class ResidualProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.short, self.head = conv(3, 16), conv(16, 24, 3, 2), nn.Conv2d(16, 24, 1, 2), Head(24)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.a(x) + self.short(x))


@trait(least=0.2)
class PaddedShortcut(nn.Module):
    """CIFAR ResNets: stride-2 slicing and zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 16, 3, 2), conv(16, 16), Head(16)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.a(x))
        return self.head(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


@trait(least=0.2)
class PaddedShortcutUneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 13, 3, 2), conv(13, 13), conv(13, 20), Head(20)

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
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 16, 1), conv(16, 16), Head(16)

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
        self.stem, self.a, self.b, self.head = conv(3, 16), conv(8, 8), conv(8, 8), Head(16)

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
        self.a, self.shuffle, self.b, self.head = conv(3, 16), nn.ChannelShuffle(4), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.shuffle(self.a(x))))


@trait(least=0.2)
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b, self.head = conv(3, 32), nn.PixelShuffle(2), conv(8, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.up(self.a(x))))


@trait(least=0.2)
class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.b, self.head = conv(3, 8), nn.PixelUnshuffle(2), conv(32, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.down(self.a(x))))


@trait(image(2, 3, 8, 8))
class FlattenChannelsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.out = conv(3, 12, 3, 2), conv(12, 16), nn.Linear(256, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.out(F.relu(self.fc(self.b(self.a(x)).flatten(1))))


@trait(image(2, 3, 8, 8))
class FlattenChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.out = conv(3, 12, 3, 2), conv(12, 16), nn.Linear(256, 32), nn.Linear(32, 5)

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


@trait(least=0.2)
class FlipChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x + x.flip(1)))


@trait(least=0.2)
class FlipOneUse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.a(x).flip(1)))


@trait(least=0.2)
class RollChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.a(x).roll(5, 1)))


@trait()
class RollSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(torch.roll(self.a(x), (2, -1), (2, 3))))


@trait(least=0.2)
class SliceChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(10, 12), conv(6, 12), Head(12)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x[:, :10]) + self.c(x[:, 10:]))


@trait(least=0.1)
class SliceOverlap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(10, 12), conv(10, 12), Head(12)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x[:, :10]) + self.c(x[:, -10:]))


@trait(least=0.1)
class SliceStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(8, 12), Head(12)

    def forward(self, x):
        return self.head(self.b(self.a(x)[:, ::2]))


@trait(least=0.2)
class SplitSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 17), conv(5, 12), conv(12, 12), Head(12)

    def forward(self, x):
        first, second = self.a(x).split([5, 12], dim=1)
        return self.head(self.b(first) * self.c(second))


@trait(least=0.15)
class SplitHierarchy(nn.Module):
    """Res2Net: every part is added to the next before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 24), Head(24)
        self.parts = nn.ModuleList(conv(6, 6) for _ in range(3))

    def forward(self, x):
        parts = self.a(x).split(6, 1)
        done = [parts[0]]
        last = 0
        for part, layer in zip(parts[1:], self.parts):
            last = layer(part + last)
            done.append(last)
        return self.head(torch.cat(done, 1))


@trait(least=0.15)
class PartialConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.part, self.b, self.head = conv(3, 16), nn.Conv2d(4, 4, 3, padding=1), conv(16, 20, 1), Head(20)

    def forward(self, x):
        touched, kept = torch.split(self.a(x), [4, 12], dim=1)
        return self.head(self.b(torch.cat((self.part(touched), kept), 1)))


@trait(least=0.15)
class CrossStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.merge, self.head = conv(3, 16), conv(8, 8), conv(8, 8), conv(16, 16, 1), Head(16)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        right = right + self.b(self.a(right))
        return self.head(self.merge(torch.cat([right, left], 1)))


@trait(least=0.2)
class UnbindStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(8, 12), Head(12)

    def forward(self, x):
        x = self.a(x)
        first, second = x.view(x.size(0), 2, 8, x.size(2), x.size(3)).unbind(1)
        return self.head(self.b(torch.stack([first, second], 0).sum(0)))


@trait(least=0.2)
class RepeatChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 12), conv(24, 12), conv(24, 12), Head(12)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x.repeat(1, 2, 1, 1)) + self.c(x.repeat_interleave(2, dim=1)))


@trait(least=0.2)
class PermuteByBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 12), Head(12)
        self.register_buffer("order", torch.randperm(16))

    def forward(self, x):
        return self.head(self.b(self.a(x)[:, self.order]))


@trait(least=0.2)
class CropChannels(nn.Module):
    """Negative padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(11, 12), Head(12)

    def forward(self, x):
        return self.head(self.b(F.pad(self.a(x), (0, 0, 0, 0, -2, -3))))


@trait()
class ReflectPad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), nn.Conv2d(16, 12, 3, padding=1, padding_mode="reflect"), Head(12)

    def forward(self, x):
        return self.head(self.b(F.pad(self.a(x), (1, 1, 1, 1), mode="replicate")))


@trait()
class SpaceToDepth(nn.Module):
    """Patch merging: four shifted grids side by side along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(32, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        grids = [x[..., 0::2, 0::2], x[..., 1::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 1::2]]
        return self.head(self.b(torch.cat(grids, 1)))


@trait()
class ConcatSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 12), conv(8, 12), conv(12, 8), Head(8)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 3)))


@trait(least=0.2)
class ConcatThenSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = conv(3, 12), conv(3, 8), conv(10, 12), conv(10, 12), Head(12)

    def forward(self, x):
        first, second = torch.cat([self.a(x), self.b(x)], 1).chunk(2, 1)
        return self.head(self.c(first) + self.d(second))


@trait(least=0.2)
class GroupSum(nn.Module):
    """Branches laid out along the channels and summed after a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 24), conv(8, 12), Head(12)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x.view(x.size(0), 3, 8, x.size(2), x.size(3)).sum(1)))


@trait(least=0.2)
class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 24), conv(12, 12), Head(12)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x.view(x.size(0), 12, 2, x.size(2), x.size(3)).max(2).values))
