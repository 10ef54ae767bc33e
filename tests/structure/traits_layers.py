"""Traits of single layers: convolutions of every kind, normalisation, pooling, resampling, gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from traits import Head, conv, image, trait


@trait()
class DepthwiseSeparable(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), conv(16, 16, 3, groups=16), conv(16, 24, 1), Head(24))


@trait()
class DepthwiseMultiplier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 12), conv(12, 24, 3, groups=12), conv(24, 36, 3, groups=12), conv(36, 12, 1), Head(12))


@trait(least=0.15)
class GroupedWide(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 32), conv(32, 32, 3, groups=8), conv(32, 16, 1), Head(16))


@trait(least=0.15)
class GroupedTwo(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), conv(16, 24, 3, groups=2), conv(24, 16, 1), Head(16))


@trait(least=0.1)
class GroupedOdd(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 12), conv(12, 18, 3, groups=6), conv(18, 27, 3, groups=3), conv(27, 9, 1), Head(9))


@trait(least=0.15)
class GroupedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a = conv(16, 32, 1)
        self.b = conv(32, 32, 3, groups=4)
        self.c = conv(32, 16, 1)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.c(self.b(self.a(x))))


@trait(image(2, 3, 32))
class OneDimensional(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(3, 16, 5), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 24, 3), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5),
        )  # fmt: skip


@trait(image(2, 2, 6, 8, 8))
class ThreeDimensional(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(2, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(12, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip


@trait()
class Transposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 16, 3, 2), nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.ConvTranspose2d(12, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 3, 1),
        )  # fmt: skip


@trait(least=0.1)
class TransposedGrouped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 16), nn.ConvTranspose2d(16, 24, 3, 2, 1, groups=4), nn.ReLU(),
            nn.ConvTranspose2d(24, 24, 3, padding=1, groups=24), nn.ReLU(),
            nn.ConvTranspose2d(24, 12, 3, padding=1, groups=2), nn.ReLU(), Head(12),
        )  # fmt: skip


@trait()
class Dilated(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), nn.Conv2d(16, 16, 3, dilation=2, padding=2), nn.ReLU(), Head(16))


@trait(least=0.15)
class GroupNormPlain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3),
            nn.GroupNorm(2, 24),
            nn.ReLU(),
            Head(24),
        )


@trait(least=0.15)
class GroupNormOne(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 24, 3), Head(24))


@trait(least=0.1)
class GroupNormAfterConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12)
        self.b = conv(3, 20)
        self.norm = nn.GroupNorm(4, 32)
        self.c = conv(32, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


@trait(least=0.1)
class GroupNormUneven(nn.Module):
    """Group borders fall inside both inputs of the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 10)
        self.b = conv(3, 20)
        self.norm = nn.GroupNorm(3, 30)
        self.c = conv(30, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


@trait(least=0.1)
class GroupNormResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.na = nn.GroupNorm(8, 16)
        self.a = nn.Conv2d(16, 24, 3, padding=1)
        self.nb = nn.GroupNorm(8, 24)
        self.b = nn.Conv2d(24, 16, 3, padding=1)
        self.head = Head(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.b(F.relu(self.nb(self.a(F.relu(self.na(x)))))))


@trait()
class InstanceNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 24, 3),
            nn.InstanceNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 3),
            nn.InstanceNorm2d(12, track_running_stats=True), Head(12),
        )  # fmt: skip


@trait()
class LocalResponse(nn.Sequential):
    """The statistic runs over neighbouring channels: they have to stay."""

    def __init__(self) -> None:
        super().__init__(conv(3, 16), conv(16, 24), nn.LocalResponseNorm(3), conv(24, 16), conv(16, 16), Head(16))


@trait(image(2, 20))
class LayerNormMlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(20, 32),
            nn.LayerNorm(32),
            nn.GELU(),
            nn.Linear(32, 24),
            nn.LayerNorm(24, elementwise_affine=False),
            nn.Linear(24, 5),
        )


@trait(image(2, 20))
class RmsNormMlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(20, 32), nn.RMSNorm(32), nn.SiLU(), nn.Linear(32, 24), nn.Linear(24, 5))


@trait(image(2, 20), least=0.1)
class RmsNormByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 32), nn.Linear(32, 24), nn.Linear(24, 5)
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x):
        x = self.a(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return self.c(F.silu(self.b(x)))


@trait(least=0.1)
class LayerNormByHand(nn.Module):
    """ConvNeXt's channels-first normalisation as written out in its first release."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), Head(24)
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def forward(self, x):
        x = self.a(x)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.head(F.relu(self.b(self.weight[:, None, None] * x + self.bias[:, None, None])))


@trait()
class LayerNormChannelsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.norm = nn.LayerNorm(16)
        self.b = nn.Conv2d(16, 24, 3)
        self.head = Head(24)

    def forward(self, x):
        x = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(F.relu(self.b(x)))


@trait(least=0.15)
class LayerNormWholeMap(nn.Module):
    """Normalised over channels and space together."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.norm = nn.LayerNorm([8, 12, 12])
        self.b = conv(8, 16)
        self.head = Head(16)

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x))))


@trait(least=0.1)
class WeightStandardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.b = nn.Conv2d(16, 24, 3)
        self.c = nn.Conv2d(24, 16, 3)
        self.head = Head(16)

    def standardised(self, layer, x):
        weight = layer.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, layer.bias)

    def forward(self, x):
        x = F.relu(self.standardised(self.a, x))
        x = F.relu(self.standardised(self.b, x))
        return self.head(self.c(x))


@trait(least=0.1)
class WeightStandardisedByBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.b = nn.Conv2d(16, 24, 3)
        self.c = nn.Conv2d(24, 16, 3)
        self.head = Head(16)
        self.gain = nn.Parameter(torch.ones(24))

    def forward(self, x):
        x = F.relu(self.a(x))
        weight = self.b.weight
        flat = F.batch_norm(
            weight.reshape(1, weight.shape[0], -1), None, None, weight=self.gain, training=True, momentum=0.0
        )
        return self.head(self.c(F.relu(F.conv2d(x, flat.reshape_as(weight), self.b.bias))))


@trait()
class PReluEach(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.Conv2d(16, 24, 3), nn.PReLU(), nn.Conv2d(24, 12, 3), Head(12)
        )


@trait()
class GatedHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 24, 3), Head(12)

    def forward(self, x):
        return self.head(F.glu(self.b(F.glu(self.a(x), 1)), 1))


@trait(image(2, 6, 20))
class GatedByChunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(20, 48), nn.Linear(24, 32), nn.Linear(16, 5)

    def forward(self, x):
        value, gate = self.a(x).chunk(2, -1)
        gate2, value2 = self.b(value * F.gelu(gate)).tensor_split(2, -1)
        return self.out(value2 * gate2.sigmoid())


@trait(image(2, 8, 24))
class WaveNet(nn.Module):
    """Two convolutions gate each other; skip sums beside a residual stream; causal padding that is chomped off."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(8, 12, 1)
        self.filters = nn.ModuleList(nn.Conv1d(12, 16, 2, dilation=d, padding=d) for d in (1, 2))
        self.gates = nn.ModuleList(nn.Conv1d(12, 16, 2, dilation=d, padding=d) for d in (1, 2))
        self.mixes = nn.ModuleList(nn.Conv1d(16, 12, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(16, 20, 1) for _ in range(2))
        self.end = nn.Conv1d(20, 4, 1)

    def forward(self, x):
        x, total = self.start(x), 0
        for filters, gate, mix, skip in zip(self.filters, self.gates, self.mixes, self.skips, strict=True):
            y = torch.tanh(filters(x)) * torch.sigmoid(gate(x))
            y = y[:, :, : x.size(2)]
            x, total = x + mix(y), total + skip(y)
        return self.end(F.relu(total))


@trait()
class SpatialPyramid(nn.Module):
    """ASPP: a globally pooled branch is interpolated back and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.pooled = nn.Conv2d(12, 8, 1)
        self.a = nn.Conv2d(12, 8, 3, padding=2, dilation=2)
        self.out = nn.Conv2d(28, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        p = F.interpolate(self.pooled(F.adaptive_avg_pool2d(x, 1)), size=x.shape[-2:], mode="bilinear")
        return self.out(torch.cat([x, p, self.a(x)], 1))


@trait()
class EncoderDecoder(nn.Module):
    """U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 16)
        self.c = conv(16, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.d = conv(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.up(self.c(self.b(F.max_pool2d(a, 2))))
        return self.out(self.d(torch.cat([a, b], 1)))


@trait()
class MixedPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 16), conv(16, 12), nn.Linear(48, 5)

    def forward(self, x):
        x = F.lp_pool2d(self.a(x), 2, 2) + F.avg_pool2d(F.relu(self.a(x)), 3, 2, 1)
        x = self.b(x)
        return self.fc(
            torch.cat([F.adaptive_max_pool2d(x, 1).flatten(1), F.adaptive_avg_pool2d(x, (1, 3)).flatten(1)], 1)
        )


@trait(least=0.2)
class UnfoldPatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.head = conv(3, 8), nn.Linear(72, 16), nn.Linear(16, 5)

    def forward(self, x):
        patches = F.unfold(self.a(x), 3, padding=1).transpose(1, 2)
        return self.head(F.relu(self.mix(patches)).mean(1))


@trait(least=0.1)
class FoldPatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 32, 3, 2), conv(8, 16), Head(16)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(F.fold(x.flatten(2), (12, 12), 2, stride=2)))


@trait()
class GridSample(nn.Module):
    """A spatial transformer: positions come from the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 12)
        self.theta = nn.Linear(16, 6)
        self.head = Head(12)

    def forward(self, x):
        x = self.a(x)
        theta = self.theta(x.mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.size(0), 16, 12, 12], align_corners=False)
        return self.head(self.b(F.grid_sample(x, grid, align_corners=False)))
