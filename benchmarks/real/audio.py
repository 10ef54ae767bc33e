"""Keyword networks under the names of their published weights: KWT-1, DS-CNN and a streaming wake word."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """A block of KWT (Berg et al., arXiv 2104.00769): one head, normalisation behind every branch."""

    def __init__(self, width: int, hidden: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


class KeywordTransformer(nn.Module):
    """[batch, 98 frames, 40 coefficients] to 12 classes."""

    def __init__(self, blocks: int = 12, width: int = 64, classes: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(40, width)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 99, width))
        self.blocks = nn.ModuleList(Attention(width, 4 * width) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, frames: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(frames), -1, -1), self.embed(frames)], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Conv(nn.Module):
    """TensorFlow's SAME padding, and ReLU where that is asked for."""

    def __init__(self, before: int, after: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(same(x, self.conv.kernel_size, self.conv.stride[0])))


def same(x: Tensor, kernel: tuple[int, ...], stride: int) -> Tensor:
    """Padded so that the output has ceil(size / stride) positions."""
    pads: list[int] = []
    for size, side in zip(reversed(x.shape[2:]), reversed(kernel), strict=True):
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class SeparableKeywords(nn.Module):
    """MLPerf Tiny's DS-CNN: [batch, 1, 49, 10] to 12 classes."""

    def __init__(self, width: int = 64, classes: int = 12) -> None:
        super().__init__()
        self.conv0 = Conv(1, width, (10, 4), 2)
        self.dw = nn.ModuleList(Conv(width, width, (3, 3), groups=width) for _ in range(4))
        self.pw = nn.ModuleList(Conv(width, width, (1, 1)) for _ in range(4))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        for dw, pw in zip(self.dw, self.pw, strict=True):
            x = pw(dw(x))
        return self.fc(x.mean((2, 3)))


class WakeWord(nn.Module):
    """MLPerf Tiny's streaming wake word, separable convolutions over time: [batch, 40, 30] to 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        widths, lengths = (40, 128, 128, 128, 32), (3, 5, 10, 15)
        pairs = list(itertools.pairwise(widths))
        self.dw = nn.ModuleList(
            nn.Conv1d(before, before, length, groups=before, bias=False)
            for (before, _), length in zip(pairs, lengths, strict=True)
        )
        self.pw = nn.ModuleList(nn.Conv1d(before, after, 1, bias=False) for before, after in pairs)
        self.bn = nn.ModuleList(nn.BatchNorm1d(after, eps=1e-3) for _, after in pairs)
        self.fc = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        for dw, pw, bn in zip(self.dw, self.pw, self.bn, strict=True):
            x = F.relu(bn(pw(dw(x))))
        return self.fc(x.mean(2))
