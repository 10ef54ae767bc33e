"""ESPNet (Mehta et al., arXiv 1803.06815), as its weights for CamVid in the benchmarks' data folder name its parts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

MEAN, STD = (110.196, 108.353, 104.950), (72.034, 72.563, 69.846)


class Conv(nn.Module):
    def __init__(self, before: int, after: int, size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = (size - 1) // 2 * dilation
        self.conv = nn.Conv2d(before, after, size, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(units, eps=1e-3), nn.PReLU(units)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class ConvNorm(Norm):
    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(after)
        self.conv = nn.Conv2d(before, after, size, stride, (size - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.conv(x))


class Pyramid(nn.Module):
    """Reduce, dilate in five widths, add up, concatenate."""

    def __init__(self, before: int, after: int, *, down: bool = False, add: bool = True) -> None:
        super().__init__()
        n = after // 5
        self.add = add and not down
        self.c1 = Conv(before, n, 3, 2) if down else Conv(before, n, 1)
        self.d1 = Conv(n, after - 4 * n, 3)
        self.d2, self.d4, self.d8, self.d16 = (Conv(n, n, 3, 1, d) for d in (2, 4, 8, 16))
        if down:
            self.bn, self.act = nn.BatchNorm2d(after, eps=1e-3), nn.PReLU(after)
        else:
            self.bn = Norm(after)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.c1(x)
        second = self.d2(reduced)
        fourth = second + self.d4(reduced)
        eighth = fourth + self.d8(reduced)
        last = eighth + self.d16(reduced)
        found = torch.cat([self.d1(reduced), second, fourth, eighth, last], 1)
        found = self.bn(x + found if self.add else found)
        return self.act(found) if hasattr(self, "act") else found


class Encoder(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.level1, self.b1 = ConvNorm(3, 16, 3, 2), Norm(19)
        self.level2_0, self.level2 = Pyramid(19, 64, down=True), nn.ModuleList([Pyramid(64, 64) for _ in range(2)])
        self.b2 = Norm(131)
        self.level3_0, self.level3 = Pyramid(131, 128, down=True), nn.ModuleList([Pyramid(128, 128) for _ in range(8)])
        self.b3, self.classifier = Norm(256), Conv(256, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = F.avg_pool2d(x, 3, 2, 1)
        quarter = F.avg_pool2d(half, 3, 2, 1)
        first = self.b1(torch.cat([self.level1(x), half], 1))
        start = found = self.level2_0(first)
        for block in self.level2:
            found = block(found)
        second = self.b2(torch.cat([found, start, quarter], 1))
        start = found = self.level3_0(second)
        for block in self.level3:
            found = block(found)
        return first, second, self.classifier(self.b3(torch.cat([start, found], 1)))


class ESPNet(nn.Module):
    """[batch, 3, height, width] to [batch, classes, height, width]; sides are multiples of 8."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.encoder = Encoder(classes)
        self.br, self.level3_C = nn.BatchNorm2d(classes, eps=1e-3), Conv(131, classes, 1)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(classes, classes, 2, 2, bias=False))
        self.combine_l2_l3 = nn.Sequential(Norm(2 * classes), Pyramid(2 * classes, classes, add=False))
        self.up_l2 = nn.Sequential(nn.ConvTranspose2d(classes, classes, 2, 2, bias=False), Norm(classes))
        self.conv = ConvNorm(classes + 19, classes, 3)
        self.classifier = nn.ConvTranspose2d(classes, classes, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.encoder(x)
        up = self.up_l3(self.br(third))
        up = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(second), up], 1)))
        return self.classifier(self.conv(torch.cat([up, first], 1)))


def trained(folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    module = ESPNet()
    held = load_file(folder / "espnet_camvid.safetensors")
    missing, unexpected = module.load_state_dict(held, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return module.eval()


def camvid(path: Path, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Batches of one image each: BGR, normalised as the weights want it, with a class per pixel."""
    import pyarrow.parquet

    table, found = pyarrow.parquet.read_table(path), []
    for row in rows:
        given: dict[str, Any] = {name: table[name][row].as_py() for name in ("jpeg", "label")}
        pixels = np.asarray(Image.open(io.BytesIO(given["jpeg"])).convert("RGB"))[:, :, ::-1].astype(np.float32)
        image = (pixels - np.float32(MEAN)) / np.float32(STD) / 255
        label = np.asarray(Image.open(io.BytesIO(given["label"]))).astype(np.int64)
        found.append((torch.from_numpy(image.transpose(2, 0, 1).copy())[None], torch.from_numpy(label)[None]))
    return found
