"""Segmentation and other dense predictors after public reports."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reports import image, reported, unit
from torch import nn


class SkipConnection(nn.Module):
    def __init__(self, submodule):
        super().__init__()
        self.submodule, self.dim = submodule, 1

    def forward(self, x):
        return torch.cat([x, self.submodule(x)], dim=self.dim)


class ResidualUnit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, 1), nn.BatchNorm3d(outputs), nn.Dropout(0.2), nn.PReLU(),
            nn.Conv3d(outputs, outputs, 3, 1, 1), nn.BatchNorm3d(outputs), nn.PReLU(),
        )  # fmt: skip
        kernel, padding = (3, 1) if stride != 1 else (1, 0)
        self.residual = nn.Conv3d(inputs, outputs, kernel, stride, padding)

    def forward(self, x):
        return self.conv(x) + self.residual(x)


def _level(inputs, outputs, channels):
    c, rest = channels[0], channels[1:]
    down = ResidualUnit(inputs, c, 2)
    inner = _level(c, c, rest) if len(rest) > 1 else ResidualUnit(c, rest[0], 1)
    joined = c + (c if len(rest) > 1 else rest[0])
    up = nn.Sequential(nn.ConvTranspose3d(joined, outputs, 3, 2, 1, 1), nn.BatchNorm3d(outputs), nn.PReLU())
    return nn.Sequential(down, SkipConnection(inner), up)


@reported(
    "VainF/Torch-Pruning", 387, "a U-Net in three dimensions as containers within containers", image(2, 16, 16, 16)
)
class MonaiUnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = _level(2, 5, (8, 16, 24))

    def forward(self, x):
        return self.model(x)


@reported(
    "open-mmlab/mmrazor",
    585,
    "the least certain places are picked, read again from fine maps and written back",
    image(3, 32, 32),
)
class PointRend(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep = unit(3, 16, 3, 2), nn.Sequential(unit(16, 24, 3, 2), unit(24, 32, 3))
        self.coarse = nn.Conv2d(32, 4, 1)
        self.fcs = nn.ModuleList([nn.Conv1d(16 + 4, 16, 1), nn.Conv1d(16 + 4, 16, 1)])
        self.point = nn.Conv1d(16 + 4, 4, 1)
        self.points = 12

    def forward(self, x):
        fine = self.stem(x)
        coarse = F.interpolate(self.coarse(self.deep(fine)), scale_factor=2, mode="bilinear", align_corners=False)
        b, c, h, w = coarse.shape
        best = torch.topk(coarse, k=2, dim=1)[0]
        unsure = (best[:, 1] - best[:, 0]).view(b, h * w)
        index = unsure.topk(self.points, dim=1)[1]
        xs = (index % w).to(x.dtype) / w + 0.5 / w
        ys = torch.div(index, w, rounding_mode="floor").to(x.dtype) / h + 0.5 / h
        grid = torch.stack([xs, ys], -1).unsqueeze(2) * 2 - 1
        at_fine = F.grid_sample(fine, grid, align_corners=False).squeeze(3)
        at_coarse = F.grid_sample(coarse, grid, align_corners=False).squeeze(3)
        y = torch.cat([at_fine, at_coarse], dim=1)
        for fc in self.fcs:
            y = torch.cat([F.relu(fc(y)), at_coarse], dim=1)
        index = index.unsqueeze(1).expand(-1, c, -1)
        return coarse.reshape(b, c, h * w).scatter(2, index, self.point(y)).view(b, c, h, w)


def double(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class Up(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.up, self.double_conv = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2), double(inputs, outputs)

    def forward(self, one, two):
        one = self.up(one)
        dy, dx = two.size()[2] - one.size()[2], two.size()[3] - one.size()[3]
        one = F.pad(one, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.double_conv(torch.cat([two, one], dim=1))


@reported(
    "microsoft/nni", 5277, "skips padded to the other's size, at an image size that does not divide", image(3, 27, 35)
)
class UnetPadded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc, self.pool = double(3, 8), nn.MaxPool2d(2)
        self.down1, self.down2 = double(8, 16), double(16, 32)
        self.up1, self.up2, self.outc = Up(32, 16), Up(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        one = self.inc(x)
        two = self.down1(self.pool(one))
        three = self.down2(self.pool(two))
        return self.outc(self.up2(self.up1(three, two), one)).sigmoid()


@reported("VainF/Torch-Pruning", 510, "a mask of one channel multiplies a map of many")
class BroadcastMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.mask = unit(3, 32, 3, 2), nn.Sequential(unit(3, 12, 3, 2), nn.Conv2d(12, 1, 3, padding=1))
        self.body, self.head = unit(32, 24, 3), nn.Conv2d(24, 4, 1)

    def forward(self, x):
        mask = torch.sigmoid(self.mask(x))
        y = mask * self.stem(x)
        return self.head(self.body(y) * (1 - mask)), mask


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


@reported("VainF/Torch-Pruning", 513, "a residual around a convolution by depth, and skips fused by one of two groups")
class CmunextFusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = unit(3, 16, 3)
        self.block = nn.Sequential(
            Residual(nn.Sequential(nn.Conv2d(16, 16, 7, groups=16, padding=3), nn.GELU(), nn.BatchNorm2d(16))),
            nn.Conv2d(16, 64, 1), nn.GELU(), nn.BatchNorm2d(64), nn.Conv2d(64, 16, 1), nn.GELU(), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.down, self.up = (
            unit(16, 32, 3),
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, padding=1)),
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.GELU(), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 1), nn.GELU(),
            nn.BatchNorm2d(64), nn.Conv2d(64, 16, 1), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.block(self.stem(x))
        y = self.up(self.down(F.max_pool2d(x, 2)))
        return self.head(self.fuse(torch.cat((x, y), dim=1)))


class ConvGru(nn.Module):
    def __init__(self, hidden, inputs):
        super().__init__()
        self.z, self.r, self.q = (nn.Conv2d(hidden + inputs, hidden, 3, padding=1) for _ in range(3))

    def forward(self, h, x):
        hx = torch.cat([h, x], dim=1)
        z, r = torch.sigmoid(self.z(hx)), torch.sigmoid(self.r(hx))
        return (1 - z) * h + z * torch.tanh(self.q(torch.cat([r * h, x], dim=1)))


@reported(
    "pytorch/vision",
    8116,
    "all places correlated with all, read around a flow that a recurrent cell updates; a root of the channels",
    lambda n: (torch.randn(n, 3, 32, 32), torch.randn(n, 3, 32, 32)),
    expected="cut rebuilt",
)
class RaftFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2), nn.Conv2d(24, 24, 1))
        self.context = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2), nn.Conv2d(24, 32, 1))
        self.motion, self.gru = nn.Conv2d(9 + 2, 14, 3, padding=1), ConvGru(16, 16 + 14)
        self.delta = nn.Sequential(nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 2, 3, padding=1))
        self.mask = nn.Sequential(nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 9 * 16, 1))
        self.sizes = (16, 16)

    def forward(self, first, second):
        one, two = self.features(first), self.features(second)
        b, c, h, w = one.shape
        volume = torch.matmul(one.view(b, c, h * w).transpose(1, 2), two.view(b, c, h * w))
        volume = (volume / torch.sqrt(torch.tensor(c).to(one.dtype))).view(b * h * w, 1, h, w)
        hidden, context = torch.split(self.context(first), self.sizes, dim=1)
        hidden, context = torch.tanh(hidden), F.relu(context)
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        base = torch.stack([xs, ys]).to(one.dtype).unsqueeze(0).expand(b, -1, -1, -1)
        places, steps = base, torch.arange(-1, 2).to(one.dtype)
        around = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(1, 3, 3, 2)
        for _ in range(2):
            places = places.detach()
            centres = places.permute(0, 2, 3, 1).reshape(b * h * w, 1, 1, 2) + around
            grid = torch.stack([2 * centres[..., 0] / (w - 1) - 1, 2 * centres[..., 1] / (h - 1) - 1], -1)
            seen = F.grid_sample(volume, grid, align_corners=True).view(b, h, w, 9).permute(0, 3, 1, 2)
            motion = F.relu(self.motion(torch.cat([seen, places - base], dim=1)))
            hidden = self.gru(hidden, torch.cat([context, motion], dim=1))
            places = places + self.delta(hidden)
        mask = self.mask(hidden).view(b, 1, 9, 4, 4, h, w).softmax(dim=2)
        flow = F.unfold(4 * (places - base), 3, padding=1).view(b, 2, 9, 1, 1, h, w)
        return torch.sum(mask * flow, dim=2).permute(0, 1, 4, 2, 5, 3).reshape(b, 2, 4 * h, 4 * w)
