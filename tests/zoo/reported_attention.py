"""Attention after public reports: written by hand, with every position table and head layout that people use."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from reports import image, reported, unit
from torch import nn


class WindowAttention(nn.Module):
    def __init__(self, dim, window, heads):
        super().__init__()
        self.window, self.heads = window, heads
        self.scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))
        self.table = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, heads, bias=False))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0)
        steps = torch.arange(-(window - 1), window)
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).float() / (window - 1)
        self.register_buffer("coords", grid.unsqueeze(0), persistent=False)
        index = (apart[..., 0] + window - 1) * (2 * window - 1) + apart[..., 1] + window - 1
        self.register_buffer("index", index, persistent=False)
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))

    def forward(self, x):
        b, n, c = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * torch.clamp(self.scale, max=math.log(1.0 / 0.01)).exp()
        table = self.table(self.coords).view(-1, self.heads)
        place = table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        attn = (attn + 16 * torch.sigmoid(place).unsqueeze(0)).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


@reported(
    "VainF/Torch-Pruning",
    258,
    "shifted windows, cosine attention, a position table from a small network, patches merged by strided slices",
    expected="cut rebuilt",
)
class SwinCosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.dim = nn.Conv2d(3, 24, 4, 4), 24
        self.window, self.shift = 4, 2
        self.attn = nn.ModuleList([WindowAttention(24, 4, 3) for _ in range(2)])
        self.norm = nn.ModuleList([nn.LayerNorm(24) for _ in range(2)])
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24), nn.LayerNorm(24))
        self.reduction, self.merged = nn.Linear(96, 48, bias=False), nn.LayerNorm(48)
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        s = self.window
        for i, (attn, norm) in enumerate(zip(self.attn, self.norm, strict=True)):
            y = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2)) if i else x
            y = y.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, s * s, c)
            y = norm(attn(y)).view(b, h // s, w // s, s, s, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)
            x = x + (torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2)) if i else y)
        x = x + self.mlp(x)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.merged(self.reduction(x.view(b, -1, 4 * c))).mean(1))


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DitBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 48), nn.GELU(approximate="tanh"), nn.Linear(48, dim))
        self.ada = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c).chunk(6, dim=1)
        b, n, d = x.shape
        y = self.qkv(modulate(self.norm1(x), shift1, scale1)).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + gate1.unsqueeze(1) * self.proj(y)
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


@reported(
    "VainF/Torch-Pruning",
    300,
    "shift, scale and gate of every block in six chunks of one layer; step and class as integers",
    lambda n: {
        "hidden_states": torch.randn(n, 4, 8, 8),
        "timestep": torch.randint(0, 1000, (n,)),
        "class_labels": torch.randint(0, 8, (n,)),
    },
    expected="cut rebuilt",
)
class DitModulated(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.place = nn.Conv2d(4, 24, 2, 2), nn.Parameter(torch.randn(1, 16, 24))
        self.step, self.label = nn.Sequential(nn.Linear(8, 24), nn.SiLU(), nn.Linear(24, 24)), nn.Embedding(8, 24)
        self.blocks = nn.ModuleList([DitBlock(24, 4) for _ in range(2)])
        self.norm, self.ada = nn.LayerNorm(24, elementwise_affine=False), nn.Linear(24, 48)
        self.out = nn.Linear(24, 2 * 2 * 4)

    def forward(self, hidden_states, timestep, class_labels):
        x = self.patch(hidden_states).flatten(2).transpose(1, 2) + self.place
        freqs = torch.exp(-math.log(10000) * torch.arange(0, 4, dtype=torch.float32) / 4).to(x.dtype)
        angles = timestep[:, None].to(x.dtype) * freqs[None]
        c = self.step(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label(class_labels)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.ada(F.silu(c)).chunk(2, dim=1)
        x = self.out(modulate(self.norm(x), shift, scale))
        x = x.reshape(shape=(x.shape[0], 4, 4, 2, 2, 4))
        return torch.einsum("nhwpqc->nchpwq", x).reshape(shape=(x.shape[0], 4, 8, 8))


@reported(
    "VainF/Torch-Pruning",
    393,
    "positions resized to the image, heads and their size read off the shape",
    image(3, 32, 32),
    expected="cut rebuilt",
)
class DinoPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 8, 8)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 1 + 9, 24))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(24), nn.LayerNorm(24), nn.LayerNorm(24)
        self.num_heads, self.scale = 4, (24 // 4) ** -0.5
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.fc1, self.fc2, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 5)

    def positions(self, x, w, h):
        dim = x.shape[-1]
        size = int(math.sqrt(self.pos_embed.shape[1] - 1))
        grid = self.pos_embed[:, 1:].reshape(1, size, size, dim).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(w // 8, h // 8), mode="bicubic", align_corners=False)
        return torch.cat((self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).view(1, -1, dim)), dim=1)

    def forward(self, x):
        b, _, w, h = x.shape
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = x + self.positions(x, w, h)
        y = self.norm1(x)
        b, n, c = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = x + self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


@reported(
    "alibaba/TinyNeuralNetwork",
    325,
    "batch and heads folded into one axis for bmm, with checks of the sizes",
    image(8, 24),
)
class WhisperEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(8, 24, 3, padding=1), nn.Conv1d(24, 24, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(12, 24).requires_grad_(False)
        self.embed_dim, self.num_heads, self.head_dim = 24, 4, 6
        self.scaling = self.head_dim**-0.5
        self.q_proj, self.v_proj, self.out_proj = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.k_proj = nn.Linear(24, 24, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.fc1, self.fc2, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 6)

    def _shape(self, x, n, b):
        return x.view(b, n, self.num_heads, self.head_dim).transpose(1, 2).contiguous()

    def forward(self, features):
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).permute(0, 2, 1)
        x = x + self.embed_positions.weight
        y = self.norm1(x)
        b, n, _ = y.size()
        q = self._shape(self.q_proj(y) * self.scaling, n, b)
        folded = (b * self.num_heads, -1, self.head_dim)
        q, k = q.view(*folded), self._shape(self.k_proj(y), -1, b).view(*folded)
        v = self._shape(self.v_proj(y), -1, b).view(*folded)
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        if weights.size() != (b * self.num_heads, n, n):
            raise ValueError(f"weights are {weights.size()}")
        out = torch.bmm(weights, v)
        if out.size() != (b * self.num_heads, n, self.head_dim):
            raise ValueError(f"outputs are {out.size()}")
        out = out.view(b, self.num_heads, n, self.head_dim).transpose(1, 2).reshape(b, n, self.embed_dim)
        x = x + self.out_proj(out)
        return self.head(x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class SpectralAttention(nn.Module):
    def __init__(self, dim, size, heads):
        super().__init__()
        self.num_heads, self.dim_head = heads, size
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, size * heads, bias=False) for _ in range(3))
        self.rescale = nn.Parameter(torch.ones(heads, 1, 1))
        self.proj, self.dim = nn.Linear(size * heads, dim), dim
        self.pos_emb = nn.Sequential(
            nn.Conv2d(dim, dim, 3, 1, 1, bias=False, groups=dim), nn.GELU(),
            nn.Conv2d(dim, dim, 3, 1, 1, bias=False, groups=dim),
        )  # fmt: skip

    def forward(self, x, mask):
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        q, k, v = (
            layer(x).view(b, h * w, self.num_heads, -1).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        v = v * mask.reshape(b, h * w, self.num_heads, -1).transpose(1, 2)
        q, k, v = q.transpose(-2, -1), k.transpose(-2, -1), v.transpose(-2, -1)
        attn = F.normalize(k, dim=-1, p=2) @ F.normalize(q, dim=-1, p=2).transpose(-2, -1)
        y = (attn * self.rescale).softmax(dim=-1) @ v
        y = y.permute(0, 3, 1, 2).reshape(b, h * w, self.num_heads * self.dim_head)
        out = self.proj(y).view(b, h, w, c)
        return out + self.pos_emb(x.reshape(b, h, w, c).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@reported(
    "VainF/Torch-Pruning",
    474,
    "attention among channels instead of places, guided by a mask of its own branch",
    image(6, 16, 16),
    expected="cut rebuilt",
)
class SpectralTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mask = nn.Conv2d(6, 16, 3, 1, 1), nn.Conv2d(6, 16, 1)
        self.attn, self.norm = SpectralAttention(16, 8, 2), nn.LayerNorm(16)
        self.net = nn.Sequential(
            nn.Conv2d(16, 48, 1), nn.GELU(), nn.Conv2d(48, 48, 3, 1, 1, groups=48), nn.GELU(), nn.Conv2d(48, 16, 1)
        )
        self.down, self.up = nn.Conv2d(16, 32, 4, 2, 1), nn.ConvTranspose2d(32, 16, 2, 2)
        self.fuse, self.out = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 6, 3, 1, 1)

    def forward(self, x):
        guide = torch.sigmoid(self.mask(x)).permute(0, 2, 3, 1)
        y = self.embed(x).permute(0, 2, 3, 1)
        y = self.attn(y, guide) + y
        y = (self.net(self.norm(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + y).permute(0, 3, 1, 2)
        up = self.up(F.gelu(self.down(y)))
        return self.out(self.fuse(torch.cat([up, y], dim=1))) + x


@reported(
    "czg1225/SlimSAM",
    10,
    "positions along height and width by einsum with the queries; windows with padding",
    image(3, 48, 48),
)
class SamRelative(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.pos = nn.Conv2d(3, 24, 8, 8), nn.Parameter(torch.randn(1, 6, 6, 24))
        self.heads, self.window = 4, 4
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.rel_h, self.rel_w = nn.Parameter(torch.randn(7, 6)), nn.Parameter(torch.randn(7, 6))
        self.norm1, self.norm2, self.fc1, self.fc2 = (
            nn.LayerNorm(24),
            nn.LayerNorm(24),
            nn.Linear(24, 40),
            nn.Linear(40, 24),
        )
        self.neck = nn.Sequential(nn.Conv2d(24, 16, 1, bias=False), nn.GroupNorm(1, 16), nn.Conv2d(16, 8, 3, padding=1))

    def attend(self, x):
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * self.heads, h * w, -1).unbind(0)
        attn = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
        at = torch.arange(h)[:, None] - torch.arange(h)[None, :] + h - 1
        rows, columns = self.rel_h[at], self.rel_w[at]
        grid = q.reshape(b * self.heads, h, w, -1)
        by_row = torch.einsum("bhwc,hkc->bhwk", grid, rows)
        by_column = torch.einsum("bhwc,wkc->bhwk", grid, columns)
        attn = attn.view(-1, h, w, h, w) + by_row[:, :, :, :, None] + by_column[:, :, :, None, :]
        attn = attn.view(-1, h * w, h * w).softmax(dim=-1)
        y = (attn @ v).view(b, self.heads, h, w, -1).permute(0, 2, 3, 1, 4).reshape(b, h, w, -1)
        return self.proj(y)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1) + self.pos
        y = self.norm1(x)
        b, h, w, c = y.shape
        s = self.window
        ph, pw = (s - h % s) % s, (s - w % s) % s
        y = F.pad(y, (0, 0, 0, pw, 0, ph)) if ph or pw else y
        hp, wp = h + ph, w + pw
        y = y.view(b, hp // s, s, wp // s, s, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, s, s, c)
        y = (
            self.attend(y)
            .view(b, hp // s, wp // s, s, s, -1)
            .permute(0, 1, 3, 2, 4, 5)
            .contiguous()
            .view(b, hp, wp, -1)
        )
        x = x + y[:, :h, :w, :].contiguous()
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.neck(x.permute(0, 3, 1, 2))


@reported(
    "d-li14/involution", 10, "filters computed from every place and shared by groups of channels", image(3, 16, 16)
)
class Involution(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.kernel_size, self.groups = unit(3, 32, 3), 3, 4
        self.group_channels = 32 // self.groups
        self.reduce, self.span = unit(32, 8), nn.Conv2d(8, 9 * self.groups, 1)
        self.unfold = nn.Unfold(3, 1, 1, 1)
        self.out, self.head = unit(32, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        weight = self.span(self.reduce(x))
        b, _, h, w = weight.shape
        weight = weight.view(b, self.groups, self.kernel_size**2, h, w).unsqueeze(2)
        patches = self.unfold(x).view(b, self.groups, self.group_channels, self.kernel_size**2, h, w)
        y = (weight * patches).sum(dim=3).view(b, x.shape[1], h, w)
        return self.head(self.out(y)).mean((2, 3))


class GraphHead(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
        self.a = nn.Parameter(torch.randn(2 * outputs, 1) * 0.3)
        self.out_features = outputs

    def forward(self, h, adj):
        wh = torch.matmul(h, self.weight)
        one = torch.matmul(wh, self.a[: self.out_features, :])
        two = torch.matmul(wh, self.a[self.out_features :, :])
        e = F.leaky_relu(one + two.transpose(-1, -2), 0.2)
        attention = F.softmax(torch.where(adj > 0, e, -9e15 * torch.ones_like(e)), dim=-1)
        return F.elu(torch.matmul(attention, wh))


@reported(
    "VainF/Torch-Pruning",
    104,
    "graph attention: weights as bare parameters, their halves read by slices",
    lambda n: (torch.randn(n, 7, 10), (torch.rand(n, 7, 7) > 0.4).float() + torch.eye(7)),
)
class GraphAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([GraphHead(10, 12) for _ in range(3)])
        self.out, self.fc = GraphHead(36, 16), nn.Linear(16, 4)

    def forward(self, x, adj):
        x = torch.cat([head(x, adj) for head in self.heads], dim=-1)
        return self.fc(self.out(x, adj).mean(1))
