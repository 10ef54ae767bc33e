"""A detector from its weights to a smaller file that is measured: YOLOX-Nano, with its own loss and decoder.

    DETECTOR_DATA=folder secateurs prune examples/yolox_nano.py:make --data examples/yolox_nano.py:data \
        --task examples/yolox_nano.py:task --latency 60% -o run

The folder holds the weights and two parquet files of images with boxes (see :data:`FILES`). What is particular to this
detector are three functions, and every detector has them in some form: ``detection_loss`` (outputs, batch) for
training, ``decoded`` (outputs, batch) for boxes, and ``task``, which puts them together. The network returns raw maps,
so that the heads' outputs stay and distillation compares what the network says before boxes are made of it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc

FILES = ("yolox_nano_coco.safetensors", "coco128_train.parquet", "coco128_val.parquet")
"""Weights; images to calibrate, and to test: ``jpeg``, ``boxes`` (x, y, width, height in pixels, flat), ``labels``."""


def folder() -> Path:
    """Where the weights and images lie."""
    return Path(os.environ.get("DETECTOR_DATA", "."))


def make() -> tuple[nn.Module, Tensor]:
    """The trained network and an example of its input."""
    network = YoloxNano()
    network.load_state_dict(load_file(folder() / FILES[0]))
    return network.eval(), torch.zeros(1, 3, 416, 416)


def data(limit: int | None = None) -> tuple[torch.utils.data.DataLoader[Any], torch.utils.data.DataLoader[Any]]:
    """Images to calibrate and train with, and to test with; ``limit``: the first so many of each."""
    train, test = (
        torch.utils.data.DataLoader(Boxes(folder() / name, limit), batch_size=4, collate_fn=listed)
        for name in FILES[1:]
    )
    return train, test


def task() -> sc.Task:
    """COCO's AP on the network's own pixels, with a plain loss."""
    return sc.task("detection", loss=detection_loss, decode=decoded)


class Boxes(torch.utils.data.Dataset[Any]):
    """Images as YOLOX takes them (BGR, 0-255, letterboxed), and their boxes in the network's pixels."""

    def __init__(self, file: Path, limit: int | None = None) -> None:
        import pyarrow.parquet

        self.table = pyarrow.parquet.read_table(file, columns=["jpeg", "boxes", "labels"]).slice(0, limit)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple[Tensor, dict[str, Tensor]]:
        held = {name: self.table[name][row].as_py() for name in self.table.column_names}
        image, scale = letterboxed(Image.open(io.BytesIO(held["jpeg"])))
        boxes = torch.tensor(held["boxes"], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * scale
        return image, {"boxes": boxes, "labels": torch.tensor(held["labels"], dtype=torch.long).reshape(-1)}


def letterboxed(image: Image.Image, size: int = 416) -> tuple[Tensor, float]:
    """[3, size, size], the image top left and grey below and beside it; and by how much it was scaled."""
    scale = min(size / image.width, size / image.height)
    sides = int(image.width * scale), int(image.height * scale)
    whole = np.full((size, size, 3), 114, np.float32)
    small = image.convert("RGB").resize(sides, Image.Resampling.BILINEAR)
    whole[: sides[1], : sides[0]] = np.asarray(small)[:, :, ::-1]
    return torch.from_numpy(whole.transpose(2, 0, 1).copy()), scale


def listed(samples: list[tuple[Tensor, Any]]) -> tuple[Tensor, list[Any]]:
    """Images stacked, targets as a list."""
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


class Conv(nn.Module):
    """A convolution with SiLU."""

    def __init__(self, before: int, after: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, side, stride, (side - 1) // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class Separable(nn.Module):
    """Depthwise, then pointwise."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.dw, self.pw = Conv(before, before, 3, stride, before), Conv(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(self.dw(x))


class Bottleneck(nn.Module):
    def __init__(self, width: int, add: bool) -> None:
        super().__init__()
        self.a, self.b, self.add = Conv(width, width), Separable(width, width), add

    def forward(self, x: Tensor) -> Tensor:
        found = self.b(self.a(x))
        return found + x if self.add else found


class Partial(nn.Module):
    """CSP: bottlenecks on the left half, beside a right half."""

    def __init__(self, before: int, after: int, count: int = 1, add: bool = False) -> None:
        super().__init__()
        self.left, self.right, self.out = Conv(before, after // 2), Conv(before, after // 2), Conv(after, after)
        self.blocks = nn.ModuleList(Bottleneck(after // 2, add) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        for block in self.blocks:
            left = block(left)
        return self.out(torch.cat([left, self.right(x)], 1))


class Pooled(nn.Module):
    """SPP: three pools beside their input."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.a, self.b = Conv(before, before // 2), Conv(2 * before, after)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.cat([x, *(F.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13))], 1))


class Head(nn.Module):
    """Boxes, objectness and classes of one level."""

    def __init__(self, before: int, classes: int) -> None:
        super().__init__()
        self.stem = Conv(before, 64)
        self.cls = nn.Sequential(Separable(64, 64), Separable(64, 64))
        self.reg = nn.Sequential(Separable(64, 64), Separable(64, 64))
        self.cls_pred, self.reg_pred = nn.Conv2d(64, classes, 1), nn.Conv2d(64, 4, 1)
        self.obj_pred = nn.Conv2d(64, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        boxes = self.reg(x)
        return torch.cat([self.reg_pred(boxes), self.obj_pred(boxes), self.cls_pred(self.cls(x))], 1)


class YoloxNano(nn.Module):
    """YOLOX-Nano (Ge et al., arXiv 2107.08430): BGR 0-255 [batch, 3, 416, 416] to raw [batch, 3549, 85]."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.stem = Conv(12, 16, 3)
        self.dark2 = nn.Sequential(Separable(16, 32, 2), Partial(32, 32, 1, add=True))
        self.dark3 = nn.Sequential(Separable(32, 64, 2), Partial(64, 64, 3, add=True))
        self.dark4 = nn.Sequential(Separable(64, 128, 2), Partial(128, 128, 3, add=True))
        self.dark5 = nn.Sequential(Separable(128, 256, 2), Pooled(256, 256), Partial(256, 256))
        self.lateral0, self.p4 = Conv(256, 128), Partial(256, 128)
        self.reduce1, self.p3 = Conv(128, 64), Partial(128, 64)
        self.down2, self.n3 = Separable(64, 64, 2), Partial(128, 128)
        self.down1, self.n4 = Separable(128, 128, 2), Partial(256, 256)
        self.head = nn.ModuleList(Head(width, classes) for width in (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        phases = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        third = self.dark3(self.dark2(self.stem(torch.cat(phases, 1))))
        fourth = self.dark4(third)
        top = self.lateral0(self.dark5(fourth))
        middle = self.reduce1(self.p4(torch.cat([F.interpolate(top, scale_factor=2), fourth], 1)))
        low = self.p3(torch.cat([F.interpolate(middle, scale_factor=2), third], 1))
        mid = self.n3(torch.cat([self.down2(low), middle], 1))
        high = self.n4(torch.cat([self.down1(mid), top], 1))
        found = [head(level) for head, level in zip(self.head, (low, mid, high), strict=True)]
        return torch.cat([one.flatten(2) for one in found], 2).transpose(1, 2)


def cells(size: int = 416, strides: tuple[int, ...] = (8, 16, 32)) -> tuple[Tensor, Tensor]:
    """Corner [cells, 2] and stride [cells, 1] of every cell, row by row."""
    places, steps = [], []
    for stride in strides:
        side = size // stride
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places.append(torch.stack([x, y], -1).reshape(-1, 2))
        steps.append(torch.full((side * side, 1), stride))
    return torch.cat(places).float(), torch.cat(steps).float()


def boxes_of(raw: Tensor) -> Tensor:
    """[..., cells, 4] as x1, y1, x2, y2 in the network's pixels."""
    place, stride = (one.to(raw.device) for one in cells())
    centre, size = (raw[..., :2] + place) * stride, raw[..., 2:4].exp() * stride
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def decoded(outputs: Tensor, batch: Any) -> list[dict[str, Tensor]]:
    """Boxes of every image: above 0.01, class-wise suppression at 0.65, the 100 best."""
    found = []
    for raw in outputs:
        scores = raw[:, 4:5].sigmoid() * raw[:, 5:].sigmoid()
        cell, label = torch.nonzero(scores > 0.01, as_tuple=True)
        boxes, kept = boxes_of(raw)[cell], scores[cell, label]
        order = kept.argsort(descending=True)[:1000]
        chosen = suppressed(boxes[order], kept[order], label[order])[:100]
        found.append({"boxes": boxes[order][chosen], "scores": kept[order][chosen], "labels": label[order][chosen]})
    return found


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, most: float = 0.65) -> Tensor:
    """Which of boxes, best first, overlap no better one of their class."""
    apart = boxes + labels[:, None] * 10_000.0
    area = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    corner = torch.minimum(apart[:, None, 2:], apart[None, :, 2:]) - torch.maximum(
        apart[:, None, :2], apart[None, :, :2]
    )
    shared = corner.clamp_min(0).prod(2)
    overlap = shared / (area[:, None] + area[None] - shared).clamp_min(1e-9)
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if stays[place]:
            stays[place + 1 :] &= overlap[place, place + 1 :] <= most
    return torch.nonzero(stays).flatten()


def detection_loss(outputs: Tensor, batch: Any) -> Tensor:
    """A plain loss: of every true box the cell at its centre, on the level of its size, answers for it.

    YOLOX's own assignment is dynamic; distillation carries most of the training here.
    """
    place, stride = cells()
    total = outputs.new_zeros(())
    for raw, target in zip(outputs, batch[1], strict=True):
        wanted = torch.zeros(len(raw), dtype=torch.long) - 1
        for number, box in enumerate(target["boxes"]):
            side = float((box[2:] - box[:2]).max())
            level = 8 if side < 64 else 16 if side < 128 else 32
            inside = (stride[:, 0] == level) & ((place + 0.5) * stride - (box[:2] + box[2:]) / 2).abs().amax(1).le(
                level / 2
            )
            wanted[torch.nonzero(inside).flatten()[:1]] = number
        cell = torch.nonzero(wanted >= 0).flatten()
        total = total + F.binary_cross_entropy_with_logits(raw[:, 4], (wanted >= 0).float(), reduction="sum")
        if len(cell):
            boxes, labels = target["boxes"][wanted[cell]], target["labels"][wanted[cell]]
            total = total + F.cross_entropy(raw[cell, 5:], labels, reduction="sum")
            total = total + 5 * (1 - overlaps(boxes_of(raw)[cell], boxes)).sum()
    return total / max(1, sum(len(target["labels"]) for target in batch[1]))


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, pair by pair."""
    sides = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp_min(0)
    shared = sides.prod(1)
    areas = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1)
    return shared / (areas - shared).clamp_min(1e-9)
