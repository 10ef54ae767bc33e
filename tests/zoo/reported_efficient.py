"""Small classifiers after public reports: mobile blocks, re-parametrised ones, unusual heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from reports import image, reported, unit
from torch import nn


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(x, 1)))))


@reported("microsoft/nni", 5521, "hard activations, squeeze and excitation, a last convolution over one pixel")
class LcNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.stage = nn.Sequential()
        for i, (a, b, stride) in enumerate(((16, 24, 2), (24, 24, 1), (24, 32, 2))):
            by_depth = nn.Sequential(
                nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.Hardswish()
            )
            by_point = nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.Hardswish())
            self.stage.add_module(f"block{i}", nn.Sequential(by_depth, Squeeze(a), by_point))
        self.last, self.fc = nn.Conv2d(32, 40, 1, bias=False), nn.Linear(40, 5)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.stage(self.first(x)), 1)
        x = F.dropout(F.hardswish(self.last(x)), 0.2, self.training)
        return self.fc(torch.flatten(x, start_dim=1, end_dim=-1))


class RepBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.groups, self.in_channels = 1, inputs
        self.rbr_identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.rbr_dense = nn.Sequential()
        self.rbr_dense.add_module("conv", nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
        self.rbr_dense.add_module("bn", nn.BatchNorm2d(outputs))
        self.rbr_1x1 = nn.Sequential()
        self.rbr_1x1.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False))
        self.rbr_1x1.add_module("bn", nn.BatchNorm2d(outputs))

    def forward(self, x):
        if hasattr(self, "rbr_reparam"):
            return F.relu(self.rbr_reparam(x))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return F.relu(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


@reported(
    "DingXiaoH/RepVGG",
    102,
    "a 3×3, a 1×1 and an identity with a normalisation of its own are summed; children made by index in a loop",
)
class RepVgg(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage0, self.cur_layer_idx = RepBlock(3, 16, 2), 1
        self.stage1, self.stage2 = self._stage(16, 24, 2), self._stage(24, 32, 1)
        self.gap, self.linear = nn.AdaptiveAvgPool2d(output_size=1), nn.Linear(32, 5)

    def _stage(self, inputs, outputs, count):
        blocks = []
        for i in range(count):
            blocks.append(RepBlock(inputs if i == 0 else outputs, outputs, 2 if i == 0 else 1))
            self.cur_layer_idx += 1
        return nn.ModuleList(blocks)

    def forward(self, x):
        x = self.stage0(x)
        for stage in (self.stage1, self.stage2):
            for block in stage:
                x = block(x)
        x = self.gap(x)
        return self.linear(x.view(x.size(0), -1))


@reported(
    "VainF/Torch-Pruning",
    503,
    "means along height and along width share one layer, then are split again",
    image(3, 24, 32),
)
class CoordinateAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.depth = unit(3, 32, 3, 2), unit(32, 32, 3, 1, 32)
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv1, self.bn1, self.act = nn.Conv2d(32, 8, 1), nn.BatchNorm2d(8), nn.Hardswish()
        self.conv_h, self.conv_w = nn.Conv2d(8, 32, 1), nn.Conv2d(8, 32, 1)
        self.project, self.fc = nn.Conv2d(32, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.depth(self.expand(x))
        _, _, h, w = x.size()
        along_h, along_w = self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)
        y = self.act(self.bn1(self.conv1(torch.cat([along_h, along_w], dim=2))))
        along_h, along_w = torch.split(y, [h, w], dim=2)
        gate = self.conv_h(along_h).sigmoid() * self.conv_w(along_w.permute(0, 1, 3, 2)).sigmoid()
        return self.fc(self.project(x * gate).mean((2, 3)))


class DynamicConv(nn.Module):
    def __init__(self, inputs, outputs, context, groups=1, k=3):
        super().__init__()
        self.in_channels, self.out_channels, self.groups, self.k = inputs, outputs, groups, k
        self.residuals = nn.Linear(context, k)
        self.weight = nn.Parameter(torch.randn(1, k, outputs * (inputs // groups) * 9) * 0.2)

    def forward(self, x, context):
        b, _, f, t = x.size()
        attention = F.softmax(self.residuals(context).view(b, 1, self.k) / 30, dim=-1)
        weight = torch.matmul(attention, self.weight)
        weight = weight.view(b * self.out_channels, self.in_channels // self.groups, 3, 3)
        out = F.conv2d(x.reshape(1, -1, f, t), weight, None, padding=1, groups=self.groups * b)
        return out.view(b, self.out_channels, out.size(-2), out.size(-1))


@reported(
    "fschmid56/EfficientAT", 27, "filters mixed for every sample from a table that holds them flat", image(1, 24, 32)
)
class DynamicFilters(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.context = unit(1, 16, 3, 2), nn.Linear(16, 12)
        self.dynamic, self.norm = DynamicConv(16, 20, 12), nn.BatchNorm2d(20)
        self.out, self.head = unit(20, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x)
        context = F.hardswish(self.context(x.mean((2, 3))))
        return self.head(self.out(F.relu(self.norm(self.dynamic(x, context)))).mean((2, 3)))


@reported("VainF/Torch-Pruning", 146, "one map concatenated with itself")
class TwiceTheSame(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1 = nn.Sequential(
            nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.GELU(), nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24)
        )
        self.block2, self.head = nn.Sequential(nn.Conv2d(48, 24, 1), nn.BatchNorm2d(24)), nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = self.block1(x)
        return self.head(self.block2(torch.cat([x, x], dim=1)).relu()).mean((2, 3))


@reported("onnxsim/onnxsim", 1171, "the response of each channel over the mean response of all", least=0.1)
class ResponseNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(48, 16)
        self.weight, self.bias = nn.Parameter(torch.randn(48)), nn.Parameter(torch.randn(48))
        self.down, self.head = nn.Conv2d(16, 32, 2, 2), nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.gelu(self.fc1(self.norm(self.depth(x).permute(0, 2, 3, 1))))
        response = y.norm(p=2, dim=(1, 2), keepdim=True)
        response = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        y = y + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), y * response)
        x = x + self.fc2(y).permute(0, 3, 1, 2)
        return self.head(self.down(x).mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self, inputs, dims):
        super().__init__()
        layers = []
        for dim in dims:
            layers += [nn.Linear(inputs, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Dropout(p=0.2)]
            inputs = dim
        self.mlp = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, x):
        return self.mlp(x)


@reported("VainF/Torch-Pruning", 481, "a wide and a deep branch of different widths, concatenated", image(4, 5))
class WideAndDeep(nn.Module):
    def __init__(self):
        super().__init__()
        self.dims = 20
        self.mlp, self.linear, self.lin2 = Mlp(20, [32, 16]), nn.Linear(20, 12), nn.Linear(13, 1)

    def forward(self, x):
        x = x.reshape(x.shape[0], -1)
        x = torch.concat([self.linear(x), self.mlp(x)], dim=-1)
        return torch.sigmoid(self.lin2(x))


@reported(
    "microsoft/nni", 5474, "cosines to transposed, normalised weights, a margin in angles, labels that may be missing"
)
class ArcMargin(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp_batch_norm, self.features = nn.BatchNorm2d(3), nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2))
        self.fc, self.bn_final, self.mapper = nn.Linear(24, 32), nn.BatchNorm1d(32), nn.Linear(32, 6, bias=False)
        self.s, self.cos_m, self.sin_m = 8, math.cos(0.1), math.sin(0.1)

    def forward(self, x, y=None):
        feat = self.bn_final(self.fc(self.features(self.inp_batch_norm(x)).mean((2, 3))))
        cosine = torch.matmul(F.normalize(feat, dim=1), F.normalize(self.mapper.weight.T, dim=0))
        sine = torch.sqrt((1 - torch.square(cosine)).clamp(min=1e-6))
        shifted = cosine * self.cos_m - sine * self.sin_m
        if y is not None:
            hot = F.one_hot(y, 6)
            cosine = hot * shifted + (1 - hot) * cosine
        return self.s * cosine
