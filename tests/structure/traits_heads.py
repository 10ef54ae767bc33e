"""Traits of attention heads in every spelling, and of networks built of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import image, trait
from traits_attention import Attention

TOKENS = image(2, 9, 16)


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
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)
        self.a = nn.Linear(16, 24)
        self.b = nn.Linear(24, 5)

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
        self.q = nn.Linear(16, 24)
        self.k = nn.Linear(16, 24)
        self.v = nn.Linear(16, 24)
        self.o = nn.Linear(24, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, x):
        def heads(y):
            return y.view(y.size(0), y.size(1), 6, 4).transpose(1, 2)

        y = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))
        return self.out(self.o(y.transpose(1, 2).flatten(2)))


@trait(TOKENS, least=0.15)
class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 24)
        self.k = nn.Linear(16, 24)
        self.v = nn.Linear(16, 24)
        self.o = nn.Linear(24, 5)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (4, 6)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / 6**0.5
        return self.o(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(-2))


@trait(TOKENS, least=0.1)
class GroupedQueryExpand(nn.Module):
    """Two query heads share a key and value head, expanded by hand as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 32)
        self.k = nn.Linear(16, 16)
        self.v = nn.Linear(16, 16)
        self.o = nn.Linear(32, 5)

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
        self.q = nn.Linear(16, 32)
        self.k = nn.Linear(16, 16)
        self.v = nn.Linear(16, 16)
        self.o = nn.Linear(32, 5)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (8, 4)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


@trait(lambda: (torch.randn(2, 9, 16), torch.randn(2, 5, 12)), least=0.1)
class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.kv = nn.Linear(12, 32)
        self.o = nn.Linear(16, 16)
        self.out = nn.Linear(16, 5)

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
        self.inp = nn.Linear(16, 16)
        self.attn_qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.out = nn.Linear(16, 5)
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
        self.qkv = nn.Linear(16, 48)
        self.pre = nn.Linear(4, 4)
        self.post = nn.Linear(4, 4)
        self.o = nn.Linear(16, 5)

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
        self.q = nn.Linear(16, 16)
        self.k = nn.Linear(16, 16)
        self.v = nn.Linear(16, 24)
        self.o = nn.Linear(24, 5)

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
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.n1 = nn.LayerNorm(16)
        self.n2 = nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)
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
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.attn = Attention()
        self.last = nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)
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
