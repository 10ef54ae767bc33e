"""Restoration, super-resolution and image generation after public reports."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reports import image, reported, unit
from torch import nn


class NafBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, c), nn.GroupNorm(1, c)
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sca, self.conv3 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1)), nn.Conv2d(c, c, 1)
        self.conv4, self.conv5 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.beta, self.gamma = (nn.Parameter(torch.full((1, c, 1, 1), 0.5)) for _ in range(2))

    def forward(self, x):
        one, two = self.conv2(self.conv1(self.norm1(x))).chunk(2, dim=1)
        y = one * two
        x = x + self.conv3(y * self.sca(y)) * self.beta
        one, two = self.conv4(self.norm2(x)).chunk(2, dim=1)
        return x + self.conv5(one * two) * self.gamma


@reported(
    "VainF/Torch-Pruning",
    203,
    "gates that multiply the two halves of a map; the image padded to what fits",
    image(3, 30, 30),
)
class NafNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.intro, self.ending = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)
        self.encoder, self.middle, self.decoder = NafBlock(12), NafBlock(24), NafBlock(12)
        self.down, self.up = (
            nn.Conv2d(12, 24, 2, 2),
            nn.Sequential(nn.Conv2d(24, 48, 1, bias=False), nn.PixelShuffle(2)),
        )
        self.padder_size = 4

    def forward(self, inp):
        _, _, height, width = inp.size()
        ph = (self.padder_size - height % self.padder_size) % self.padder_size
        pw = (self.padder_size - width % self.padder_size) % self.padder_size
        inp = F.pad(inp, (0, pw, 0, ph))
        skip = self.encoder(self.intro(inp))
        x = self.up(self.middle(self.down(skip))) + skip
        return (self.ending(self.decoder(x)) + inp)[:, :, :height, :width]


@reported(
    "VainF/Torch-Pruning",
    420,
    "pixel shuffle divides channels by four, twice, into a layer that is cut, too",
    image(3, 12, 12),
)
class PixelShuffleTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.PReLU()) for _ in range(2)])
        self.up1 = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.1))
        self.up2 = nn.Sequential(nn.Conv2d(16, 48, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.1))
        self.tail = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x):
        y = self.head(x)
        z = y
        for layer in self.body:
            z = z + layer(z) * 0.2
        y = self.tail(self.up2(self.up1(y + z)))
        return y + F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)


@reported(
    "openvinotoolkit/openvino",
    17637,
    "pixel unshuffle in the forward, at the start and between layers",
    image(3, 24, 24),
)
class PixelUnshuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(64, 24, 3, padding=1)
        self.third = nn.Conv2d(6 + 16, 12, 3, padding=1)

    def forward(self, rgb):
        feat = F.pixel_unshuffle(rgb, downscale_factor=2)
        one = F.relu(self.first(feat))
        two = F.relu(self.second(F.pixel_unshuffle(one, downscale_factor=2)))
        up = F.pixel_shuffle(two, 2)
        return F.pixel_shuffle(self.third(torch.cat([up, one], 1)), 2)


class IstaLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.lambda_step, self.soft_thr = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor([0.01]))
        self.conv_d = nn.Parameter(torch.randn(16, 1, 3, 3) * 0.3)
        self.conv1_forward, self.conv2_forward = (nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1) for _ in range(2))
        self.conv1_backward, self.conv2_backward = (nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1) for _ in range(2))
        self.conv_g = nn.Parameter(torch.randn(1, 16, 3, 3) * 0.1)

    def forward(self, x, observed, mask):
        x = x - self.lambda_step * torch.fft.ifft2(torch.fft.fft2(x) * mask).real + self.lambda_step * observed
        d = F.conv2d(x, self.conv_d, padding=1)
        y = F.conv2d(F.relu(F.conv2d(d, self.conv1_forward, padding=1)), self.conv2_forward, padding=1)
        shrunk = torch.mul(torch.sign(y), F.relu(torch.abs(y) - self.soft_thr))
        back = F.conv2d(F.relu(F.conv2d(shrunk, self.conv1_backward, padding=1)), self.conv2_backward, padding=1)
        again = F.conv2d(F.relu(F.conv2d(y, self.conv1_backward, padding=1)), self.conv2_backward, padding=1)
        return x + F.conv2d(back, self.conv_g, padding=1), again - d


@reported(
    "VainF/Torch-Pruning",
    167,
    "every filter is a bare parameter; unrolled steps, thresholds, a transform both ways",
    lambda n: (torch.randn(n, 1, 16, 16), (torch.rand(16, 16) > 0.5).float()),
)
class IstaNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList([IstaLayer() for _ in range(2)])

    def forward(self, observed, mask):
        x, symmetries = observed, []
        for layer in self.fcs:
            x, symmetry = layer(x, observed, mask)
            symmetries.append(symmetry.pow(2).mean())
        return x, symmetries


class FourierUnit(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv_layer, self.bn = nn.Conv2d(2 * inputs, 2 * outputs, 1, bias=False), nn.BatchNorm2d(2 * outputs)

    def forward(self, x):
        batch = x.shape[0]
        spectrum = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        spectrum = torch.stack((spectrum.real, spectrum.imag), dim=-1)
        spectrum = spectrum.permute(0, 1, 4, 2, 3).contiguous()
        y = self.conv_layer(spectrum.view((batch, -1, *spectrum.size()[3:])))
        y = torch.relu(self.bn(y))
        y = y.view((batch, -1, 2, *y.size()[2:])).permute(0, 1, 3, 4, 2).contiguous()
        return torch.fft.irfftn(torch.complex(y[..., 0], y[..., 1]), s=x.shape[-2:], dim=(-2, -1), norm="ortho")


@reported(
    "pytorch/pytorch",
    121100,
    "real and imaginary parts of a spectrum are the channels of a convolution; pairs of maps",
    image(3, 16, 16),
)
class FourierConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.split = unit(3, 24, 3), (12, 12)
        self.l2l, self.l2g, self.g2l = (nn.Conv2d(12, 12, 3, padding=1, bias=False) for _ in range(3))
        self.reduce, self.fourier, self.out = unit(12, 8), FourierUnit(8, 8), nn.Conv2d(8, 12, 1, bias=False)
        self.bn_l, self.bn_g, self.tail = nn.BatchNorm2d(12), nn.BatchNorm2d(12), nn.Conv2d(24, 3, 1)

    def forward(self, x):
        local, wide = torch.split(self.stem(x), self.split, dim=1)
        y = self.reduce(wide)
        spectral = self.out(y + self.fourier(y))
        pair = (self.l2l(local) + self.g2l(wide), self.l2g(local) + spectral)
        local, wide = F.relu(self.bn_l(pair[0])) + local, F.relu(self.bn_g(pair[1])) + wide
        joined = torch.cat((local, wide), dim=1) if torch.is_tensor(wide) else local
        return torch.sigmoid(self.tail(joined))


class Modulated(nn.Module):
    def __init__(self, inputs, outputs, style, demodulate=True):
        super().__init__()
        self.out_channels, self.kernel_size, self.padding = outputs, 3, 1
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.modulation, self.scale = nn.Linear(style, inputs), 1 / (inputs * 9) ** 0.5
        self.demodulate = demodulate
        self.bias = nn.Parameter(torch.randn(1, outputs, 1, 1))

    def forward(self, x, style):
        b, c, h, w = x.shape
        style = self.modulation(style).view(b, 1, c, 1, 1)
        weight = self.scale * self.weight * style
        if self.demodulate:
            demod = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
            weight = weight * demod.view(b, self.out_channels, 1, 1, 1)
        weight = weight.view(b * self.out_channels, c, self.kernel_size, self.kernel_size)
        out = F.conv2d(x.view(1, b * c, h, w), weight, padding=self.padding, groups=b)
        return out.view(b, self.out_channels, *out.shape[2:4]) + self.bias


@reported(
    "Unity-Technologies/barracuda-release", 270, "filters made for each sample from a style, run as groups", image(10)
)
class StyleModulated(nn.Module):
    def __init__(self):
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(10, 24), nn.LeakyReLU(0.2), nn.Linear(24, 16))
        self.start = nn.Parameter(torch.randn(1, 20, 4, 4))
        self.conv1, self.conv2 = Modulated(20, 16, 16), Modulated(16, 12, 16)
        self.rgb = Modulated(12, 3, 16, demodulate=False)

    def forward(self, z):
        z = z * torch.rsqrt(torch.mean(z**2, dim=1, keepdim=True) + 1e-8)
        style = self.mapping(z)
        x = F.leaky_relu(self.conv1(self.start.repeat(z.shape[0], 1, 1, 1), style), 0.2)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.tanh(self.rgb(F.leaky_relu(self.conv2(x, style), 0.2), style))


@reported(
    "MishaLaskin/vqvae",
    2,
    "the nearest of a table of codes, by one-hot rows and by reading the table",
    image(3, 16, 16),
)
class VectorQuantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(unit(3, 16, 4, 2), unit(16, 24, 3), nn.Conv2d(24, 12, 1))
        self.n_e, self.e_dim, self.embedding = 9, 12, nn.Embedding(9, 12)
        self.decoder = nn.Sequential(
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, x):
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, self.e_dim)
        table = self.embedding.weight
        d = flat.pow(2).sum(dim=1, keepdim=True) + table.pow(2).sum(dim=1) - 2 * torch.matmul(flat, table.t())
        index = torch.argmin(d, dim=1).unsqueeze(1)
        rows = torch.zeros(index.shape[0], self.n_e, dtype=x.dtype).scatter_(1, index, 1)
        quantised = torch.matmul(rows, table).view(z.shape)
        loss = (quantised.detach() - z).pow(2).sum() + 0.25 * (quantised - z.detach()).pow(2).sum()
        quantised = z + (quantised - z).detach()
        return loss, self.decoder(quantised.permute(0, 3, 1, 2).contiguous()), index
