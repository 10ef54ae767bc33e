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
        self.a, self.down, self.up, self.b, self.head = conv(3, 24), nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1), conv(24, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.b(x * gate))


@trait()
class SqueezeExciteLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b, self.head = conv(3, 24), nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 24), nn.Hardsigmoid()), conv(24, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        n, c = x.shape[:2]
        return self.head(self.b(x * self.gate(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)))


@trait(least=0.05)
class ChannelConvolution(nn.Module):
    """ECA: a 1-D convolution runs over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.eca, self.b, self.head = conv(3, 24), nn.Conv1d(1, 1, 3, padding=1, bias=False), conv(24, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        gate = self.eca(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        return self.head(self.b(x * gate.expand_as(x)))


@trait(least=0.05)
class ChannelAndSpace(nn.Module):
    """CBAM: mean and maximum over the channels steer a spatial gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mlp, self.space, self.b, self.c, self.head = (
            conv(3, 16), nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16)), nn.Conv2d(2, 1, 7, padding=3), conv(16, 24),
            conv(24, 16), Head(16),
        )  # fmt: skip

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
        self.stem, self.a, self.b, self.down, self.up, self.head = conv(3, 12), conv(12, 16), conv(12, 16, 5), nn.Linear(16, 8), nn.Linear(8, 32), Head(16)

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
        self.stem, self.a, self.down, self.up, self.head = conv(3, 16), conv(16, 32, 3, groups=2), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 32, 1), Head(16)

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
        self.stem, self.q, self.k, self.v, self.o, self.head = conv(3, 16, 3, 2), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 16, 1), Head(16)

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
        self.inp, self.n1, self.attn, self.n2, self.out = nn.Linear(16, 16), nn.LayerNorm(16), Attention(), nn.LayerNorm(16), nn.Linear(16, 5)
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
        self.q, self.k, self.v, self.out = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


@trait(TOKENS, least=0.1)
class AttentionModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.out = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(x + self.attn(x, x, x, need_weights=False)[0])


@trait(TOKENS, least=0.1)
class AttentionWithWeights(nn.Module):
    """The averaged weights are an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.a, self.b = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        y, weights = self.attn(x, x, x)
        return self.b(F.relu(self.a(x + y))), weights


@trait(TOKENS, least=0.15)
class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(self.layer(x))


@trait(TOKENS)
class SeparateProjections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o, self.out = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x):
        def heads(y):
            return y.view(y.size(0), y.size(1), 6, 4).transpose(1, 2)

        y = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))
        return self.out(self.o(y.transpose(1, 2).flatten(2)))


@trait(TOKENS, least=0.15)
class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (4, 6)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / 6**0.5
        return self.o(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(-2))


@trait(TOKENS, least=0.1)
class GroupedQueryExpand(nn.Module):
    """Two query heads share a key and value head, expanded by hand as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 5)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 8, 4).transpose(1, 2)
        k, v = (
            layer(x).view(n, t, 4, 4).transpose(1, 2)[:, :, None].expand(n, 4, 2, t, 4).reshape(n, 8, t, 4)
            for layer in (self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, 32))


@trait(TOKENS, least=0.1)
class GroupedQueryNative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 5)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (8, 4)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


@trait(lambda: (torch.randn(2, 9, 16), torch.randn(2, 5, 12)), least=0.1)
class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o, self.out = nn.Linear(16, 16), nn.Linear(12, 32), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x, context):
        n, t, c = x.shape
        q = self.q(x).view(n, t, 4, 4).transpose(1, 2)
        k, v = self.kv(context).view(n, -1, 2, 4, 4).permute(2, 0, 3, 1, 4)
        return self.out(x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)))


@trait(image(2, 8, 8, 16), least=0.1)
class WindowAttention(nn.Module):
    """Swin: shifted windows, a mask, and a table of relative biases per head."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.attn_qkv, self.proj, self.out = nn.Linear(16, 16), nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)
        self.table = nn.Parameter(torch.randn(49, 4))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        offset = (place[:, :, None] - place[:, None, :] + 3).permute(1, 2, 0)
        self.register_buffer("index", offset[..., 0] * 7 + offset[..., 1])
        self.register_buffer("mask", torch.where(torch.rand(4, 16, 16) < 0.3, -100.0, 0.0))

    def forward(self, x):
        x = self.inp(x)
        n, h, w, c = x.shape
        y = torch.roll(x, (-2, -2), (1, 2)).view(n, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.attn_qkv(y).reshape(-1, 16, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (c // 4) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(16, 16, 4).permute(2, 0, 1).unsqueeze(0)
        scores = (scores.view(n, 4, 4, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)).view(-1, 4, 16, 16).softmax(-1)
        y = self.proj((scores @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(n, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.out((x + torch.roll(y, (2, 2), (1, 2))).mean((1, 2)))


@trait(TOKENS, least=0.1)
class TalkingHeads(nn.Module):
    """Linear maps over the heads before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.pre, self.post, self.o = nn.Linear(16, 48), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(16, 5)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        scores = self.pre((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).softmax(2)
        scores = self.post(scores).permute(0, 3, 1, 2)
        return self.o((scores @ v).transpose(1, 2).reshape(n, t, c))


@trait(TOKENS, least=0.1)
class RotaryAttention(nn.Module):
    """Rotary embeddings turn pairs of features by angles fixed per position."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 5)
        angle = torch.arange(9)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def turned(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.o(y.transpose(1, 2).reshape(n, t, c))


@trait(TOKENS, least=0.1)
class LinearAttention(nn.Module):
    """The product of keys and values comes first; both head sizes are contracted at different places."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        q = F.relu(self.q(x)).unflatten(-1, (4, 4)).transpose(1, 2)
        k = F.relu(self.k(x)).unflatten(-1, (4, 4)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (4, 6)).transpose(1, 2)
        context = k.transpose(-2, -1) @ v
        return self.o((q @ context / 9).transpose(1, 2).flatten(2))


@trait(TOKENS, least=0.1)
class CrossCovariance(nn.Module):
    """XCiT: attention between features; queries and keys are normalised over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 5)
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 4, c // 4).permute(2, 0, 3, 4, 1).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.o((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(n, t, c))


@trait(image(2, 3, 12, 12), least=0.15)
class TokenMixer(nn.Module):
    """MLP-Mixer: one map over the tokens, one over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.n1, self.n2, self.out = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.LayerNorm(16), nn.Linear(16, 5)
        self.tokens = nn.Sequential(nn.Linear(9, 20), nn.GELU(), nn.Linear(20, 9))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.channels(self.n2(x))).mean(1))


@trait(image(2, 3, 12, 12), least=0.15)
class VisionTransformer(nn.Module):
    """Class token, position embedding, layer scale, the class token alone is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.attn, self.last, self.out = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), Attention(), nn.LayerNorm(16), nn.Linear(16, 5)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.randn(1, 10, 16))
        self.gamma = nn.Parameter(1e-5 * torch.ones(16))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = x + self.gamma * self.attn(self.norm(x))
        return self.out(self.last(x)[:, 0])


@trait(TOKENS, least=0.1)
class AttentionPooling(nn.Module):
    """A learned query reads the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 16))
        self.inp, self.kv, self.o = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 5)

    def forward(self, x):
        x = self.inp(x)
        n, t, c = x.shape
        k, v = self.kv(x).view(n, t, 2, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.query.expand(n, -1, -1).view(n, 1, 4, 4).transpose(1, 2)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, c))
