"""Traits of whole building blocks as architectures have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait


@trait()
class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.expand = conv(12, 36, 1)
        self.deep = conv(36, 36, 3, groups=36)
        self.project = nn.Conv2d(36, 12, 1)
        self.head = Head(12)
        self.down, self.up = nn.Conv2d(36, 8, 1), nn.Conv2d(8, 36, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(self.expand(x))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(x + self.project(y))


@trait()
class GhostModule(nn.Module):
    """Half of the channels come from a cheap depthwise convolution of the other half; the surplus is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = conv(3, 12)
        self.cheap = conv(12, 12, 3, groups=12)
        self.b = conv(23, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.primary(x)
        return self.head(self.b(torch.cat([x, self.cheap(x)], 1)[:, :23]))


@trait()
class ParallelBranches(nn.Module):
    """RepVGG: three branches and a normalised identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.wide = nn.Conv2d(16, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 16, 1)
        self.same = nn.BatchNorm2d(16)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.wide(x) + self.narrow(x) + self.same(x)))


@trait()
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(16, 8, 1)
        self.b = conv(16, 12)
        self.c = conv(16, 6, 5)
        self.d = conv(16, 6, 1)
        self.head = Head(32)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.a(x), self.b(x), self.c(x), self.d(F.max_pool2d(x, 3, 1, 1))], 1))


@trait()
class ExchangeUnits(nn.Module):
    """HRNet: every resolution is the sum of all resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12)
        self.b = conv(3, 20, 3, 2)
        self.down = nn.Conv2d(12, 20, 3, 2, 1)
        self.up = nn.Conv2d(20, 12, 1)
        self.ha = Head(12)
        self.hb = Head(20)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        fine = F.relu(a + F.interpolate(self.up(b), scale_factor=2, mode="nearest"))
        coarse = F.relu(b + self.down(a))
        return self.ha(fine) + self.hb(coarse)


@trait()
class ConvNextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, 2)
        self.deep = nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm = nn.LayerNorm(12)
        self.up = nn.Linear(12, 48)
        self.down = nn.Linear(48, 12)
        self.head = Head(12)
        self.gamma = nn.Parameter(1e-6 * torch.ones(12))

    def forward(self, x):
        x = self.stem(x)
        y = self.gamma * self.down(F.gelu(self.up(self.norm(self.deep(x).permute(0, 2, 3, 1)))))
        return self.head(x + y.permute(0, 3, 1, 2))


@trait(least=0.1)
class GlobalResponse(nn.Module):
    """ConvNeXt V2: the response of a channel relative to the mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.b = conv(16, 16)
        self.head = Head(16)
        self.gamma, self.beta = nn.Parameter(torch.zeros(32)), nn.Parameter(torch.zeros(32))

    def forward(self, x):
        y = F.gelu(self.up(self.stem(x).permute(0, 2, 3, 1)))
        energy = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + self.gamma * y * (energy / (energy.mean(-1, keepdim=True) + 1e-6)) + self.beta
        return self.head(self.b(self.down(y).permute(0, 3, 1, 2)))


@trait()
class PoolMixer(nn.Module):
    """PoolFormer: the branch is average pooling minus the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.norm = nn.GroupNorm(1, 16)
        self.b = conv(16, 16)
        self.head = Head(16)
        self.scale = nn.Parameter(1e-5 * torch.ones(16))

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        x = x + self.scale.view(-1, 1, 1) * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        return self.head(self.b(x))


@trait()
class StarBlock(nn.Module):
    """Element-wise product of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.a = nn.Conv2d(12, 36, 1)
        self.b = nn.Conv2d(12, 36, 1)
        self.mix = nn.Conv2d(36, 12, 1)
        self.head = Head(12)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.mix(F.relu6(self.a(x)) * self.b(x)))


@trait()
class EarlyExits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 20, 3, 2)
        self.c = conv(20, 24)
        self.one = Head(16)
        self.two = Head(20)
        self.three = Head(24)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return self.one(a), self.two(b), self.three(self.c(b))


@trait(lambda: (torch.randn(2, 3, 12, 12), torch.randn(2, 3, 12, 12)))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(conv(3, 16), conv(16, 12)), nn.Linear(12, 1)

    def forward(self, left, right):
        a, b = self.body(left).mean((2, 3)), self.body(right).mean((2, 3))
        return self.fc((a - b).abs()), F.cosine_similarity(a, b)


@trait(image(2, 3, 12, 12), least=0.15)
class FocalModulation(nn.Module):
    """One projection yields query, context and gates of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.f = nn.Conv2d(16, 35, 1)
        self.near = conv(16, 16, 3, groups=16)
        self.far = conv(16, 16, 5, groups=16)
        self.h = nn.Conv2d(16, 16, 1)
        self.head = Head(16)

    def forward(self, x):
        query, context, gates = torch.split(self.f(self.stem(x)), (16, 16, 3), 1)
        context = self.near(context)
        total = context * gates[:, 0:1]
        context = self.far(context)
        total = total + context * gates[:, 1:2]
        total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, 2:]
        return self.head(query * self.h(total))


@trait(image(2, 3, 12, 12), least=0.1)
class MobileVit(nn.Module):
    """Features are unfolded into patches and attended position by position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.back = conv(32, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        y = x.reshape(n * c * 6, 2, 6, 2).transpose(1, 2).reshape(n, c, 36, 4).transpose(1, 3).reshape(n * 4, 36, c)
        q, k, v = self.qkv(y).chunk(3, -1)
        y = self.proj(F.scaled_dot_product_attention(q, k, v))
        y = y.view(n, 4, 36, c).transpose(1, 3).reshape(n * c * 6, 6, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.back(torch.cat([x, y], 1)))


@trait(image(2, 3, 12, 12), least=0.15)
class GatedSpace(nn.Module):
    """gMLP: half of the features gate the other half after a map over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.up = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(24)
        self.space = nn.Linear(9, 9)
        self.down = nn.Linear(24, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        u, v = F.gelu(self.up(x)).chunk(2, -1)
        v = self.space(self.norm(v).transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.down(u * v)).mean(1))


@trait(image(2, 3, 12, 12), least=0.15)
class AxialMix(nn.Module):
    """Vision Permutator: maps along rows, columns and channels, weighted by a softmax over the three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3, 2)
        self.rows = nn.Linear(6, 6)
        self.columns = nn.Linear(6, 6)
        self.channels = nn.Linear(16, 16)
        self.weigh = nn.Linear(16, 48)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        h = self.rows(x.transpose(1, 3)).transpose(1, 3)
        w = self.columns(x.transpose(2, 3)).transpose(2, 3)
        c = self.channels(x)
        a = self.weigh((h + w + c).mean((1, 2))).reshape(-1, 16, 3).permute(2, 0, 1).softmax(0)[:, :, None, None]
        return self.out((h * a[0] + w * a[1] + c * a[2]).mean((1, 2)))


@trait(image(2, 10, 16), least=0.1)
class SelectiveState(nn.Module):
    """A Mamba block: in-projection halves, causal depthwise convolution, a recurrence written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(16, 48)
        self.deep = nn.Conv1d(24, 24, 3, padding=2, groups=24)
        self.dt = nn.Linear(24, 24)
        self.bc = nn.Linear(24, 8)
        self.out = nn.Linear(24, 16)
        self.decay = nn.Parameter(torch.rand(24, 4))
        self.skip = nn.Parameter(torch.ones(24))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        u, gate = self.inp(x).chunk(2, -1)
        u = F.silu(self.deep(u.transpose(1, 2))[..., : x.size(1)].transpose(1, 2))
        step = F.softplus(self.dt(u))
        b, c = self.bc(u).chunk(2, -1)
        state, results = u.new_zeros(u.size(0), 24, 4), []
        for t in range(3):
            state = (
                state * torch.exp(-step[:, t, :, None] * self.decay) + (step[:, t] * u[:, t])[..., None] * b[:, t, None]
            )
            results.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(results, 1) + self.skip * u[:, :3]
        return self.head(self.out(y * F.silu(gate[:, :3])).mean(1))
