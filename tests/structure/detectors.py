"""Two small detectors as people write them: anchors, strides, grids and position tables cached while they run."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def unit(inputs, outputs, kernel=1, stride=1, groups=1):
    """Convolution, batch normalisation, SiLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Split(nn.Module):
    """Half of the channels go through bottlenecks, every stage is kept and concatenated."""

    def __init__(self, inputs, outputs, count=1):
        super().__init__()
        self.c = outputs // 2
        self.first, self.last = unit(inputs, 2 * self.c), unit((2 + count) * self.c, outputs)
        self.inner = nn.ModuleList(
            nn.Sequential(unit(self.c, self.c, 3), unit(self.c, self.c, 3)) for _ in range(count)
        )

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        for inner in self.inner:
            parts.append(parts[-1] + inner(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Repeated pooling, concatenated."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.last = unit(inputs, inputs // 2), unit(inputs * 2, outputs)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        found = [self.first(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.last(torch.cat(found, 1))


def make_anchors(features, strides, offset=0.5):
    """Centres of all cells and their strides."""
    points, sizes = [], []
    for x, stride in zip(features, strides, strict=False):
        h, w = x.shape[2:]
        sx = torch.arange(w, device=x.device, dtype=x.dtype) + offset
        sy = torch.arange(h, device=x.device, dtype=x.dtype) + offset
        sy, sx = torch.meshgrid(sy, sx, indexing="ij")
        points.append(torch.stack((sx, sy), -1).view(-1, 2))
        sizes.append(torch.full((h * w, 1), stride, dtype=x.dtype, device=x.device))
    return torch.cat(points), torch.cat(sizes)


class Expected(nn.Module):
    """Distribution over distances to their mean, by a convolution that nobody trains."""

    def __init__(self, bins):
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)
        self.bins = bins

    def forward(self, x):
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Boxes and classes of three maps; in evaluation decoded with anchors that are cached by shape."""

    dynamic = False
    export = False
    shape = None
    anchors = torch.empty(0)
    strides = torch.empty(0)

    def __init__(self, classes, channels, bins=4):
        super().__init__()
        self.nc, self.bins, self.no = classes, bins, classes + 4 * bins
        self.register_buffer("stride", torch.tensor([8.0, 16.0, 32.0]))
        self.boxes = nn.ModuleList(
            nn.Sequential(unit(c, 16, 3), unit(16, 16, 3), nn.Conv2d(16, 4 * bins, 1)) for c in channels
        )
        self.classes = nn.ModuleList(
            nn.Sequential(unit(c, c, 3, groups=c), unit(c, 16), nn.Conv2d(16, classes, 1)) for c in channels
        )
        self.expected = Expected(bins)

    def forward(self, x):
        for i in range(len(x)):
            x[i] = torch.cat((self.boxes[i](x[i]), self.classes[i](x[i])), 1)
        if self.training:
            return x
        shape = x[0].shape
        joined = torch.cat([part.view(shape[0], self.no, -1) for part in x], 2)
        if self.dynamic or self.shape != shape:
            self.anchors, self.strides = (t.transpose(0, 1) for t in make_anchors(x, [8.0, 16.0, 32.0]))
            self.shape = shape
        box, cls = joined.split((4 * self.bins, self.nc), 1)
        near, far = self.expected(box).chunk(2, 1)
        first, second = self.anchors.unsqueeze(0) - near, self.anchors.unsqueeze(0) + far
        boxes = torch.cat(((first + second) / 2, second - first), 1) * self.strides
        result = torch.cat((boxes, cls.sigmoid()), 1)
        return result if self.export else (result, x)


class YoloLike(nn.Module):
    """A one-stage detector whose layers are listed with where their inputs come from."""

    def __init__(self, classes=5):
        super().__init__()
        layers = [
            (-1, unit(3, 8, 3, 2)), (-1, unit(8, 16, 3, 2)), (-1, Split(16, 32)), (-1, unit(32, 32, 3, 2)),
            (-1, Split(32, 32)), (-1, unit(32, 48, 3, 2)), (-1, Split(48, 48)), (-1, unit(48, 64, 3, 2)),
            (-1, Pyramid(64, 64)), (-1, nn.Upsample(scale_factor=2)), ([-1, 6], None), (-1, Split(112, 48)),
            (-1, nn.Upsample(scale_factor=2)), ([-1, 4], None), (-1, Split(80, 32)), (-1, unit(32, 32, 3, 2)),
            ([-1, 11], None), (-1, Split(80, 48)), (-1, unit(48, 48, 3, 2)), ([-1, 8], None), (-1, Split(112, 64)),
            ([14, 17, 20], Detect(classes, (32, 48, 64))),
        ]  # fmt: skip
        self.model = nn.Sequential(*(nn.Identity() if layer is None else layer for _, layer in layers))
        self.sources = [source for source, _ in layers]
        self.save = {4, 6, 8, 11, 14, 17, 20}
        self.times, self.calls = [], 0

    def forward(self, x):
        kept = []
        for number, (source, layer) in enumerate(zip(self.sources, self.model, strict=False)):
            if source != -1:
                given = [x if s == -1 else kept[s] for s in source]
                x = torch.cat(given, 1) if isinstance(layer, nn.Identity) else given
            x = layer(x)
            kept.append(x if number in self.save else None)
        self.calls += 1
        return x


class Encoder(nn.Module):
    """Attention over the coarsest map with a position table that is cached for one size, then a top-down path."""

    def __init__(self, channels=(16, 24, 32), hidden=32, eval_spatial_size=None):
        super().__init__()
        self.hidden, self.eval_spatial_size = hidden, eval_spatial_size
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, hidden, 1, bias=False), nn.BatchNorm2d(hidden)) for c in channels
        )
        self.layer = nn.TransformerEncoderLayer(hidden, 4, 64, 0.0, "gelu", batch_first=True)
        self.fuse = nn.ModuleList(unit(2 * hidden, hidden, 3) for _ in range(2))
        if eval_spatial_size is not None:
            height, width = (size // 32 for size in eval_spatial_size)
            setattr(self, "pos_embed2", self.table(width, height, hidden, torch.zeros(1)))  # noqa: B010

    @staticmethod
    def table(width, height, dim, like):
        w = torch.arange(width, dtype=like.dtype, device=like.device)
        h = torch.arange(height, dtype=like.dtype, device=like.device)
        w, h = torch.meshgrid(w, h, indexing="ij")
        quarter = dim // 4
        omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=like.dtype, device=like.device) / quarter)
        w, h = w.flatten()[:, None] @ omega[None], h.flatten()[:, None] @ omega[None]
        return torch.cat([w.sin(), w.cos(), h.sin(), h.cos()], 1)[None]

    def forward(self, features):
        x = [project(feature) for project, feature in zip(self.project, features, strict=False)]
        h, w = x[2].shape[2:]
        tokens = x[2].flatten(2).permute(0, 2, 1)
        if self.training or self.eval_spatial_size is None:
            position = self.table(w, h, self.hidden, tokens)
        else:
            position = getattr(self, "pos_embed2").to(tokens)  # noqa: B009
        x[2] = self.layer(tokens + position).permute(0, 2, 1).reshape(-1, self.hidden, h, w)
        found = [x[2]]
        for feature, fuse in zip(x[1::-1], self.fuse, strict=False):
            found.append(fuse(torch.cat([F.interpolate(found[-1], scale_factor=2.0), feature], 1)))
        return found[::-1]


class Decoder(nn.Module):
    """The best queries of all positions, refined by cross-attention; anchors and their mask are cached by sizes."""

    def __init__(self, hidden=32, queries=6, classes=5, layers=2):
        super().__init__()
        self.queries, self.anchors, self.valid_mask, self.sizes = queries, None, None, None
        self.output = nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden))
        self.score, self.place = (
            nn.Linear(hidden, classes),
            nn.Sequential(nn.Linear(hidden, 24), nn.ReLU(), nn.Linear(24, 4)),
        )
        layer = nn.TransformerDecoderLayer(hidden, 4, 48, 0.0, batch_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))
        self.position = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, hidden))
        self.scores = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(layers))
        self.places = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 24), nn.ReLU(), nn.Linear(24, 4)) for _ in range(layers)
        )

    def make_anchors(self, sizes, like):
        found = []
        for level, (h, w) in enumerate(sizes):
            y = torch.arange(h, dtype=like.dtype, device=like.device)
            x = torch.arange(w, dtype=like.dtype, device=like.device)
            y, x = torch.meshgrid(y, x, indexing="ij")
            centre = (torch.stack([x, y], -1) + 0.5) / torch.tensor([w, h], dtype=like.dtype, device=like.device)
            found.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], -1).view(1, h * w, 4))
        anchors = torch.cat(found, 1)
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
        return torch.where(valid, torch.log(anchors / (1 - anchors)), math.inf), valid

    def forward(self, features):
        memory = torch.cat([feature.flatten(2).permute(0, 2, 1) for feature in features], 1)
        sizes = [list(feature.shape[2:]) for feature in features]
        if self.training or self.sizes != sizes:
            self.anchors, self.valid_mask = self.make_anchors(sizes, memory)
            self.sizes = sizes
        memory = torch.where(self.valid_mask, memory, torch.zeros((), dtype=memory.dtype, device=memory.device))
        enriched = self.output(memory)
        scores = self.score(enriched)
        boxes = self.place(enriched) + self.anchors.to(memory)
        best = scores.max(-1).values.topk(self.queries, dim=1).indices
        reference = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4)).detach().sigmoid()
        target = enriched.gather(1, best.unsqueeze(-1).repeat(1, 1, enriched.shape[-1])).detach()
        logits, found = [], []
        for layer, score, place in zip(self.layers, self.scores, self.places, strict=False):
            target = layer(target + self.position(reference), memory)
            reference = torch.sigmoid(place(target) + torch.logit(reference, eps=1e-5))
            logits.append(score(target))
            found.append(reference)
        result = {"pred_logits": logits[-1], "pred_boxes": found[-1]}
        if self.training:
            result["aux_outputs"] = [
                {"pred_logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], found[:-1], strict=False)
            ]
        return result


class DetrLike(nn.Module):
    """A backbone, a hybrid encoder and a decoder with query selection."""

    def __init__(self, eval_spatial_size=None):
        super().__init__()
        self.stem = nn.Sequential(unit(3, 8, 3, 2), unit(8, 12, 3, 2))
        self.stages = nn.ModuleList([unit(12, 16, 3, 2), unit(16, 24, 3, 2), unit(24, 32, 3, 2)])
        self.encoder, self.decoder = Encoder(eval_spatial_size=eval_spatial_size), Decoder()
        self.features = []

    def forward(self, x):
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        self.features.append(x)
        return self.decoder(self.encoder(found))


class YoloxLike(nn.Module):
    """Grids are kept in a list by level and made anew where the size of a map changes."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(unit(3, 12, 3, 2), unit(12, 24, 3, 2))
        self.down = unit(24, 32, 3, 2)
        self.heads = nn.ModuleList(nn.Conv2d(c, 5 + classes, 1) for c in (24, 32))
        self.grids, self.strides, self.no_grid = [torch.zeros(1)] * 2, [4, 8], False
        self.expanded: dict[int, torch.Tensor] = {}

    def grid(self, x, level):
        grid, (h, w) = self.grids[level], x.shape[-2:]
        if grid.shape[2:4] != x.shape[2:4]:
            y, z = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            grid = torch.stack((z, y), 2).view(1, 1, h, w, 2).to(x)
            self.grids[level] = grid
            self.expanded[level] = torch.full((1, h * w, 1), float(self.strides[level])).to(x)
        return grid.view(1, -1, 2)

    def forward(self, x):
        fine = self.stem(x)
        found = []
        for level, feature in enumerate((fine, self.down(fine))):
            y = self.heads[level](feature)
            if self.training or self.no_grid:
                found.append(y)
                continue
            grid, y = self.grid(y, level), y.flatten(2).permute(0, 2, 1)
            centre = (y[..., :2] + grid) * self.expanded[level]
            found.append(torch.cat([centre, y[..., 2:4].exp() * self.expanded[level], y[..., 4:].sigmoid()], -1))
        return found if self.training else torch.cat(found, 1)


DETECTORS = {
    "yolo": (YoloLike, 64),
    "detr": (DetrLike, 64),
    "detr_one_size": (lambda: DetrLike((64, 64)), 64),
    "yolox": (YoloxLike, 32),
}
