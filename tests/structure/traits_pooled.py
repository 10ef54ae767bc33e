"""Traits of attention over pooled queries, and of writes through views behind a normalisation over units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import image, trait


class Pooled(nn.Module):
    """One of query, key and value, pooled over space by a depthwise convolution and normalised per head."""

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 3, stride, 1, groups=size, bias=False)
        self.norm = nn.LayerNorm(size)

    def forward(self, x, side: int):
        batch, heads, _, size = x.shape
        token, x = x[:, :, :1], x[:, :, 1:]
        x = self.conv(x.reshape(batch * heads, side, side, size).permute(0, 3, 1, 2).contiguous())
        x = x.reshape(batch, heads, size, -1).transpose(2, 3)
        return self.norm(torch.cat([token, x], 2))


class PooledAttention(nn.Module):
    """Attention with pooled queries, keys and values, a class token, relative positions and residual pooling."""

    def __init__(self, inputs: int, outputs: int, heads: int, side: int, query: int, key: int) -> None:
        super().__init__()
        size = outputs // heads
        self.heads, self.scale = heads, size**-0.5
        self.side, self.query, self.key = side, side // query, side // key
        self.qkv, self.proj = nn.Linear(inputs, 3 * outputs), nn.Linear(outputs, outputs)
        self.q, self.k, self.v = Pooled(size, query), Pooled(size, key), Pooled(size, key)
        longest = max(self.query, self.key)
        self.rows, self.columns = (nn.Parameter(torch.randn(2 * longest - 1, size)) for _ in range(2))

    def places(self):
        """Which row of the tables belongs to a query and a key position."""
        wide, narrow = max(self.key / self.query, 1.0), max(self.query / self.key, 1.0)
        apart = torch.arange(self.query)[:, None] * wide - torch.arange(self.key)[None] * narrow
        return (apart + (self.key - 1) * narrow).long()

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (pool(part, self.side) for pool, part in zip((self.q, self.k, self.v), qkv.unbind(0), strict=True))
        scores = (q * self.scale) @ k.transpose(-2, -1)
        grid = q[:, :, 1:].reshape(batch, q.shape[1], self.query, self.query, -1)
        down = torch.einsum("byhwc,hkc->byhwk", grid, self.rows[self.places()])
        across = torch.einsum("byhwc,wkc->byhwk", grid, self.columns[self.places()])
        scores[:, :, 1:, 1:] = (
            scores[:, :, 1:, 1:].view(batch, -1, self.query, self.query, self.key, self.key)
            + down.unsqueeze(-1)
            + across.unsqueeze(-2)
        ).view(batch, -1, self.query**2, self.key**2)
        x = scores.softmax(-1) @ v
        x[:, :, 1:] += q[:, :, 1:]
        return self.proj(x.transpose(1, 2).reshape(batch, -1, x.shape[1] * x.shape[3]))


class PooledBlock(nn.Module):
    """Attention and two linear layers; the shortcut is pooled as the queries are."""

    def __init__(self, inputs: int, outputs: int, heads: int, side: int, query: int, key: int) -> None:
        super().__init__()
        self.side, self.query = side, query
        self.norm1, self.norm2 = nn.LayerNorm(inputs), nn.LayerNorm(outputs)
        self.attention = PooledAttention(inputs, outputs, heads, side, query, key)
        self.short = nn.Linear(inputs, outputs)
        self.fc1, self.fc2 = nn.Linear(outputs, 2 * outputs), nn.Linear(2 * outputs, outputs)

    def forward(self, x):
        y = self.norm1(x)
        short = self.short(y)
        if self.query > 1:
            batch, _, size = short.shape
            space = short[:, 1:].reshape(batch, self.side, self.side, size).permute(0, 3, 1, 2)
            space = F.max_pool2d(space, 3, self.query, 1).flatten(2).transpose(1, 2)
            short = torch.cat([short[:, :1], space], 1)
        x = short + self.attention(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PooledNetwork(nn.Module):
    """Two blocks; the second halves the queries."""

    def __init__(self, heads: tuple[int, int]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 3, 2, 1)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.one = PooledBlock(16, 16, heads[0], 8, 1, 2)
        self.two = PooledBlock(16, 32, heads[1], 8, 2, 2)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.norm(self.two(self.one(x)))[:, 0])


@trait(image(2, 3, 16, 16), least=0.4)
class PooledQueries(PooledNetwork):
    def __init__(self) -> None:
        super().__init__((1, 2))


@trait(image(2, 3, 16, 16), least=0.4)
class PooledQueriesOfManyHeads(PooledNetwork):
    def __init__(self) -> None:
        super().__init__((4, 8))


class BehindNorm(nn.Module):
    """A convolution, a normalisation over its channels, a write through a view, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm(16)
        self.b, self.c = nn.Conv2d(16, 12, 3, padding=1), nn.Linear(12, 5)

    def written(self, y):
        """The activation after the write."""
        raise NotImplementedError

    def forward(self, x):
        y = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        return self.c(torch.relu(self.b(self.written(y))).mean((2, 3)))


@trait(least=0.4)
class SliceWritten(BehindNorm):
    def written(self, y):
        y[:, :, 1:, 1:] = y[:, :, 1:, 1:].flip(2) * 2
        return y


@trait(least=0.4)
class ViewWritten(BehindNorm):
    def written(self, y):
        flat = y.view(y.shape[0], y.shape[1], -1)
        flat.mul_(2)
        flat[:, :, 3] = 0.5 * flat[:, :, 4]
        return y


@trait(least=0.4)
class SelectionWritten(BehindNorm):
    def written(self, y):
        y.select(2, 0).add_(1.0)
        return y


@trait(least=0.4)
class TransposedWritten(BehindNorm):
    def written(self, y):
        y.transpose(2, 3).tril_()
        return y


@trait(least=0.4)
class MaskWritten(BehindNorm):
    def written(self, y):
        y[y < 0] = 0.1
        return y
