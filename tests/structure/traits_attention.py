"""Traits of attention: over channels, over tokens, heads in every spelling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait

TOKENS = image(2, 9, 16)


@trait()
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.down = nn.Conv2d(24, 6, 1)
        self.up = nn.Conv2d(6, 24, 1)
        self.b = conv(24, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.b(x * gate))


@trait()
class SqueezeExciteLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.gate = nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 24), nn.Hardsigmoid())
        self.b = conv(24, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(x)
        n, c = x.shape[:2]
        return self.head(self.b(x * self.gate(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)))


@trait()
class ChannelConvolution(nn.Module):
    """ECA: a 1-D convolution runs over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 24)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.b = conv(24, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(x)
        gate = self.eca(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        return self.head(self.b(x * gate.expand_as(x)))


@trait(least=0.05)
class ChannelAndSpace(nn.Module):
    """CBAM: mean and maximum over the channels steer a spatial gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        self.space = nn.Conv2d(2, 1, 7, padding=3)
        self.b = conv(16, 24)
        self.c = conv(24, 16)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(x)
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1).flatten(1)) + self.mlp(F.adaptive_max_pool2d(x, 1).flatten(1))
        x = x * gate.sigmoid()[:, :, None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.head(self.c(self.b(x * self.space(pooled).sigmoid())))


@trait(least=0.2)
class SelectiveKernel(nn.Module):
    """Softmax over two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.a = conv(12, 16)
        self.b = conv(12, 16, 5)
        self.down = nn.Linear(16, 8)
        self.up = nn.Linear(8, 32)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        both = torch.stack([self.a(x), self.b(x)], 1)
        attention = self.up(F.relu(self.down(both.sum(1).mean((2, 3))))).view(-1, 2, 16, 1, 1).softmax(1)
        return self.head((both * attention).sum(1))


@trait(least=0.1)
class SplitAttention(nn.Module):
    """ResNeSt: radix 2 as a grouped convolution, softmax over the radix after a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(16, 32, 3, groups=2)
        self.down = nn.Conv2d(16, 8, 1)
        self.up = nn.Conv2d(8, 32, 1)
        self.head = Head(16)

    def forward(self, x):
        x = self.a(self.stem(x))
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w)
        gate = self.up(F.relu(self.down(x.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, 2, c // 2, 1, 1)
        return self.head((x * gate).sum(1))


@trait(least=0.1)
class SoftmaxChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), Head(16)

    def forward(self, x):
        return self.head(self.b(self.a(x).softmax(1)))


@trait(least=0.2)
class SoftmaxBranches(nn.Module):
    """A weight per branch, from the network, over a stack of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = conv(3, 12), nn.Linear(12, 3), Head(16)
        self.branches = nn.ModuleList(conv(12, 16, k) for k in (1, 3, 5))

    def forward(self, x):
        x = self.stem(x)
        weights = self.gate(x.mean((2, 3))).softmax(-1)
        stacked = torch.stack([branch(x) for branch in self.branches], 1)
        return self.head(torch.einsum("bk,bkchw->bchw", weights, stacked))


@trait(least=0.1)
class NonLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3, 2)
        self.q = nn.Conv2d(16, 8, 1)
        self.k = nn.Conv2d(16, 8, 1)
        self.v = nn.Conv2d(16, 12, 1)
        self.o = nn.Conv2d(12, 16, 1)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.q(x).flatten(2), self.k(x).flatten(2), self.v(x).flatten(2)
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        y = (v @ weights.transpose(1, 2)).view(x.size(0), 12, *x.shape[2:])
        return self.head(x + self.o(y))


class Attention(nn.Module):
    """Fused projection, heads by view and permute."""

    def __init__(self, size: int = 16, heads: int = 4, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused, self.scale = heads, fused, (size // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


@trait(TOKENS)
class TransformerFused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(16, 16)
        self.n1 = nn.LayerNorm(16)
        self.attn = Attention()
        self.n2 = nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        x = self.inp(x)
        x = x + self.attn(self.n1(x))
        return self.out((x + self.mlp(self.n2(x))).mean(1))


@trait(TOKENS, least=0.15)
class AttentionByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.out = Attention(fused=False), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(x + self.attn(x))


@trait(TOKENS, least=0.15)
class AttentionTwoHeads(nn.Module):
    """Too few heads to drop one: the head size is narrowed, the scale stays."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.out = Attention(16, 2), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(x + self.attn(x))


@trait(TOKENS, least=0.15)
class AttentionTwoHeadsByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.out = Attention(16, 2, fused=False), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(x + self.attn(x))


@trait(TOKENS, least=0.15)
class AttentionOneHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 12)
        self.k = nn.Linear(16, 12)
        self.v = nn.Linear(16, 20)
        self.out = nn.Linear(20, 5)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
