"""Traits of data movement: flips, rolls, slices, splits, concatenation, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, trait


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
        self.a = conv(3, 16)
        self.b = conv(10, 12)
        self.c = conv(6, 12)
        self.head = Head(12)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x[:, :10]) + self.c(x[:, 10:]))


@trait(least=0.1)
class SliceOverlap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(10, 12)
        self.c = conv(10, 12)
        self.head = Head(12)

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
        self.a = conv(3, 17)
        self.b = conv(5, 12)
        self.c = conv(12, 12)
        self.head = Head(12)

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
        for part, layer in zip(parts[1:], self.parts, strict=True):
            last = layer(part + last)
            done.append(last)
        return self.head(torch.cat(done, 1))


@trait(least=0.15)
class PartialConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.part = nn.Conv2d(4, 4, 3, padding=1)
        self.b = conv(16, 20, 1)
        self.head = Head(20)

    def forward(self, x):
        touched, kept = torch.split(self.a(x), [4, 12], dim=1)
        return self.head(self.b(torch.cat((self.part(touched), kept), 1)))


@trait(least=0.15)
class CrossStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(8, 8)
        self.b = conv(8, 8)
        self.merge = conv(16, 16, 1)
        self.head = Head(16)

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
        self.a = conv(3, 12)
        self.b = conv(24, 12)
        self.c = conv(24, 12)
        self.head = Head(12)

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
        self.a = conv(3, 16)
        self.b = nn.Conv2d(16, 12, 3, padding=1, padding_mode="reflect")
        self.head = Head(12)

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
        self.stem = conv(3, 8)
        self.a = conv(8, 12)
        self.b = conv(8, 12)
        self.c = conv(12, 8)
        self.head = Head(8)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 3)))


@trait(least=0.2)
class ConcatThenSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12)
        self.b = conv(3, 8)
        self.c = conv(10, 12)
        self.d = conv(10, 12)
        self.head = Head(12)

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


@trait(least=0.2)
class SampledByGroups(nn.Module):
    """Groups of channels lie in the batch and are sampled at places of their own, which are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 16), nn.Conv2d(16, 5, 1)
        self.places = nn.Parameter(torch.rand(4, 6, 6, 2) * 2 - 1)

    def forward(self, x):
        y = self.a(x)
        n, _, h, w = y.shape
        y = F.grid_sample(y.reshape(n * 4, -1, h, w), self.places.repeat(n, 1, 1, 1), align_corners=False)
        return self.head(y.view(n, -1, 6, 6))
