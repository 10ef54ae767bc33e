"""Layers with one trait each, from which :mod:`secateurs.testing.structure_networks` draws random networks.

Every layer takes and gives a feature map [batch, channels, size, size] (or tokens [batch, count, features]).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Shuffle(nn.Module):
    """Channel shuffle by views."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Turn(nn.Module):
    """Channels or space flipped, rolled, or both halves swapped."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == 0:
            return x.flip(1)
        if self.kind == 1:
            return x.roll(3, 1)
        if self.kind == 2:
            return torch.roll(x, (1, -1), (2, 3)).flip(2)
        half = x.shape[1] // 2
        return torch.cat([x[:, half:], x[:, :half]], 1)


class SqueezeExcite(nn.Module):
    """A gate per channel from the pooled map, by convolutions or linear layers."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        inner = max(2, channels // 3)
        self.linear = linear
        self.down = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        self.up = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.linear:
            gate = self.up(F.relu(self.down(x.mean((2, 3)))))[:, :, None, None]
        else:
            gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


class ChannelKernel(nn.Module):
    """ECA: one kernel slides over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gate.view(x.shape[0], -1, 1, 1)


class SpaceGate(nn.Module):
    """Mean and maximum over the channels steer a gate over space."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class Selective(nn.Module):
    """Selective kernel: softmax over branches."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 2 * i + 1, padding=i) for i in range(branches))
        self.down = nn.Linear(channels, 6)
        self.up = nn.Linear(6, branches * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([conv(x) for conv in self.convs], 1)
        gate = self.up(F.relu(self.down(both.sum(1).mean((2, 3)))))
        return (both * gate.view(x.shape[0], self.branches, -1, 1, 1).softmax(1)).sum(1)


class MapNorm(nn.Module):
    """Layer normalisation over the channels of a map, by the module or by hand."""

    def __init__(self, channels: int, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.by_hand:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-5)
        return scaled * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


class Hierarchy(nn.Module):
    """Res2Net: parts of the channels, each added to the next before its convolution."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.width = channels // parts
        self.convs = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(parts - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = torch.split(x, self.width, 1)
        done, last = [first], first
        for part, conv in zip(rest, self.convs, strict=False):
            last = F.relu(conv(part + last))
            done.append(last)
        return torch.cat([*done, *rest[len(self.convs) :]], 1)


class Partial(nn.Module):
    """Only the first channels are convolved."""

    def __init__(self, channels: int, touched: int) -> None:
        super().__init__()
        self.sizes = [touched, channels - touched]
        self.conv = nn.Conv2d(touched, touched, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x.split(self.sizes, 1)
        return torch.cat([self.conv(first), rest], 1)


class Gated(nn.Module):
    """Twice the channels, one half gates the other."""

    def __init__(self, inputs: int, outputs: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(inputs, 2 * outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == 0:
            return F.glu(self.conv(x), 1)
        value, gate = self.conv(x).chunk(2, 1)
        return value * (gate.sigmoid() if self.kind == 1 else F.gelu(gate))


class ScaledBy(nn.Module):
    """Layer scale, a position embedding or a buffer, met element by element."""

    shift: torch.Tensor

    def __init__(self, channels: int, size: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))
        self.place = nn.Parameter(torch.zeros(1, channels, size, size))
        self.register_buffer("shift", torch.zeros(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == 0:
            return x * self.gamma.view(-1, 1, 1)
        return x + self.place if self.kind == 1 else x - self.shift


class Zoomed(nn.Module):
    """Down by pixels into channels (or pooling), a convolution, and up again."""

    def __init__(self, channels: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        inner = 4 * channels if kind == 0 else channels
        self.conv = nn.Conv2d(inner, inner, 1)
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == 0:
            return F.pixel_shuffle(self.conv(F.pixel_unshuffle(x, 2)), 2)
        y = self.conv(F.max_pool2d(x, 2))
        return F.interpolate(y, scale_factor=2.0, mode="bilinear") if self.kind == 1 else self.up(y)


class SpaceAttention(nn.Module):
    """Attention between positions, one head or several, queries and keys narrower than values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Conv2d(channels, 4 * heads, 1)
        self.k = nn.Conv2d(channels, 4 * heads, 1)
        self.v = nn.Conv2d(channels, 6 * heads, 1)
        self.o = nn.Conv2d(6 * heads, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        q, k, v = (layer(x).view(n, self.heads, -1, h * w).transpose(2, 3) for layer in (self.q, self.k, self.v))
        y = (q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v
        return x + self.o(y.transpose(2, 3).reshape(n, -1, h, w))


class TokenAttention(nn.Module):
    """Pre-normalised self-attention with a fused projection."""

    def __init__(self, features: int, heads: int, kind: int) -> None:
        super().__init__()
        self.heads, self.kind, self.scale = heads, kind, (features // heads) ** -0.5
        self.norm = nn.RMSNorm(features) if kind == 2 else nn.LayerNorm(features)
        self.qkv, self.proj = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        if self.kind == 0:
            q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (y.view(n, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        if self.kind == 1:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(n, t, c))


class TokenMlp(nn.Module):
    """A map over features, gated or not, or over the tokens."""

    def __init__(self, features: int, tokens: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(features)
        size = tokens if kind == 1 else features
        self.up = nn.Linear(size, 2 * size)
        self.down = nn.Linear(size if kind == 2 else 2 * size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        if self.kind == 1:
            return x + self.down(F.gelu(self.up(y.transpose(1, 2)))).transpose(1, 2)
        if self.kind == 2:
            value, gate = self.up(y).chunk(2, -1)
            return x + self.down(value * F.silu(gate))
        return x + self.down(F.gelu(self.up(y)))
