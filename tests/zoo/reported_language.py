"""Language models after public reports: tables of relative positions, rotary positions, shared keys and values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from reports import reported
from torch import nn


class T5Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), 1e-6

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class T5Block(nn.Module):
    def __init__(self, dim, heads, size):
        super().__init__()
        self.n_heads, self.key_value_proj_dim, self.inner_dim = heads, size, heads * size
        self.q, self.k, self.v = (nn.Linear(dim, self.inner_dim, bias=False) for _ in range(3))
        self.o = nn.Linear(self.inner_dim, dim, bias=False)
        self.wi, self.wo = nn.Linear(dim, 40, bias=False), nn.Linear(40, dim, bias=False)
        self.norms = nn.ModuleList([T5Norm(dim), T5Norm(dim)])

    def forward(self, x, bias):
        b = x.shape[0]

        def shape(states):
            return states.view(b, -1, self.n_heads, self.key_value_proj_dim).transpose(1, 2)

        y = self.norms[0](x)
        scores = torch.matmul(shape(self.q(y)), shape(self.k(y)).transpose(3, 2)) + bias
        mixed = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), shape(self.v(y)))
        x = x + self.o(mixed.transpose(1, 2).contiguous().view(b, -1, self.inner_dim))
        return x + self.wo(F.relu(self.wi(self.norms[1](x))))


@reported(
    "huggingface/transformers",
    17886,
    "one table of relative positions that every layer adds to its scores",
    lambda n: torch.randint(0, 30, (n, 9)),
    least=0.1,
)
class T5SharedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.relative = nn.Embedding(30, 24), nn.Embedding(8, 4)
        self.blocks = nn.ModuleList([T5Block(24, 4, 6) for _ in range(2)])
        self.final, self.head = T5Norm(24), nn.Linear(24, 30, bias=False)

    def forward(self, ids):
        x = self.shared(ids)
        at = torch.arange(ids.shape[1], device=ids.device)
        apart = at[None, :] - at[:, None]
        bucket = (apart > 0).long() * 4 + torch.min(apart.abs(), torch.full_like(apart, 3))
        bias = self.relative(bucket).permute([2, 0, 1]).unsqueeze(0)
        for block in self.blocks:
            x = block(x, bias)
        return self.head(self.final(x) * (24**-0.5))


def half_turned(x):
    one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-two, one), dim=-1)


class GroupedQueries(nn.Module):
    def __init__(self, dim, heads, kv_heads, size):
        super().__init__()
        self.num_heads, self.num_kv, self.head_dim = heads, kv_heads, size
        self.groups = heads // kv_heads
        self.q_proj = nn.Linear(dim, heads * size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(dim, kv_heads * size, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * size, dim, bias=False)

    def forward(self, x, cos, sin, mask):
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.num_kv, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.num_kv, self.head_dim).transpose(1, 2)
        q, k = q * cos + half_turned(q) * sin, k * cos + half_turned(k) * sin
        if self.groups > 1:
            shape = (b, self.num_kv, self.groups, n, self.head_dim)
            k = k[:, :, None].expand(shape).reshape(b, self.num_heads, n, self.head_dim)
            v = v[:, :, None].expand(shape).reshape(b, self.num_heads, n, self.head_dim)
        weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim) + mask
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype) if x.dtype != torch.float64 else (
            F.softmax(weights, dim=-1))  # fmt: skip
        return self.o_proj(torch.matmul(weights, v).transpose(1, 2).contiguous().reshape(b, n, -1))


class Decoder(nn.Module):
    def __init__(self, heads, kv_heads):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 24), nn.Linear(24, 20, bias=False)
        self.attn = nn.ModuleList([GroupedQueries(24, heads, kv_heads, 8) for _ in range(2)])
        self.norms = nn.ModuleList([nn.RMSNorm(24) for _ in range(5)])
        self.gate, self.up, self.down = (nn.ModuleList() for _ in range(3))
        for _ in range(2):
            self.gate.append(nn.Linear(24, 40, bias=False))
            self.up.append(nn.Linear(24, 40, bias=False))
            self.down.append(nn.Linear(40, 24, bias=False))
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8)), persistent=False)

    def forward(self, ids):
        x = self.embed(ids)
        at = torch.arange(ids.shape[1], device=ids.device, dtype=self.inv_freq.dtype)
        angles = torch.outer(at, self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        mask = torch.full((ids.shape[1], ids.shape[1]), -1e4, dtype=x.dtype).triu(1)
        for i, attn in enumerate(self.attn):
            x = x + attn(self.norms[2 * i](x), angles.cos().to(x.dtype), angles.sin().to(x.dtype), mask)
            y = self.norms[2 * i + 1](x)
            x = x + self.down[i](F.silu(self.gate[i](y)) * self.up[i](y))
        return self.head(self.norms[4](x))


@reported(
    "horseee/LLM-Pruner",
    40,
    "all queries share one head of keys and values",
    lambda n: torch.randint(0, 20, (n, 7)),
    expected="cut rebuilt",
)
class MultiQuery(Decoder):
    def __init__(self):
        super().__init__(4, 1)


@reported(
    "onnxsim/onnxsim",
    803,
    "heads of keys and values serve several heads of queries; rotary positions",
    lambda n: torch.randint(0, 20, (n, 7)),
    expected="cut rebuilt",
)
class GroupedQuery(Decoder):
    def __init__(self):
        super().__init__(6, 2)
