"""Detectors and trackers after public reports."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reports import reported, unit
from torch import nn


@reported("open-mmlab/mmrazor", 126, "a head that every level of the pyramid shares, with a learned scale per level")
class RetinaSharedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([unit(3, 16, 3, 2), unit(16, 24, 3, 2), unit(24, 32, 3, 2)])
        self.laterals = nn.ModuleList([nn.Conv2d(24, 16, 1), nn.Conv2d(32, 16, 1)])
        self.tower = nn.Sequential(unit(16, 16, 3), unit(16, 16, 3))
        self.cls, self.box = nn.Conv2d(16, 5, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.tensor(1.0 + i)) for i in range(2)])

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.laterals[1](maps[2])
        low = self.laterals[0](maps[1]) + F.interpolate(top, scale_factor=2.0, mode="nearest")
        classes, boxes = [], []
        for level, scale in zip((low, top), self.scales, strict=True):
            shared = self.tower(level)
            classes.append(self.cls(shared))
            boxes.append((self.box(shared) * scale).exp())
        return classes, boxes


@reported("microsoft/nni", 4885, "decoded with arange, meshgrid and stack on grids that are built in the forward")
class YoloxDecode(nn.Module):
    def __init__(self):
        super().__init__()
        self.focus = unit(12, 16, 3)
        self.down = nn.ModuleList([unit(16, 24, 3, 2), unit(24, 32, 3, 2)])
        self.stems = nn.ModuleList([unit(24, 16), unit(32, 16)])
        self.cls = nn.ModuleList([nn.Sequential(unit(16, 16, 3), nn.Conv2d(16, 3, 1)) for _ in range(2)])
        self.reg = nn.ModuleList([unit(16, 16, 3) for _ in range(2)])
        self.box = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(2)])
        self.obj = nn.ModuleList([nn.Conv2d(16, 1, 1) for _ in range(2)])
        self.strides = (4, 8)

    def forward(self, x):
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = self.focus(x)
        outputs, grids, steps = [], [], []
        for i, (down, stride) in enumerate(zip(self.down, self.strides, strict=True)):
            x = down(x)
            y = self.stems[i](x)
            reg = self.reg[i](y)
            found = torch.cat([self.box[i](reg), self.obj[i](reg).sigmoid(), self.cls[i](y).sigmoid()], 1)
            h, w = found.shape[-2:]
            ys, xs = torch.meshgrid([torch.arange(h), torch.arange(w)], indexing="ij")
            grid = torch.stack((xs, ys), 2).view(1, -1, 2)
            grids.append(grid)
            steps.append(torch.full((*grid.shape[:2], 1), stride))
            outputs.append(found.flatten(start_dim=2))
        found = torch.cat(outputs, 2).permute(0, 2, 1)
        grids, steps = torch.cat(grids, 1).type(found.dtype), torch.cat(steps, 1).type(found.dtype)
        centres = (found[..., :2] + grids) * steps
        return torch.cat([centres, found[..., 2:4].exp() * steps, found[..., 4:]], -1)


class L2Norm(nn.Module):
    def __init__(self, channels, scale):
        super().__init__()
        self.n_channels, self.eps = channels, 1e-10
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x):
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + self.eps
        return self.weight.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x) * torch.div(x, norm)


@reported("VainF/Torch-Pruning", 24, "L2Norm written out with a parameter of its own between trunk and heads")
class SsdL2Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.vgg = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)])
        self.extra = nn.Sequential(nn.Conv2d(24, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.norm = L2Norm(24, 20)
        self.loc = nn.ModuleList([nn.Conv2d(24, 2 * 4, 3, padding=1), nn.Conv2d(32, 2 * 4, 3, padding=1)])
        self.conf = nn.ModuleList([nn.Conv2d(24, 2 * 6, 3, padding=1), nn.Conv2d(32, 2 * 6, 3, padding=1)])
        self.num_classes = 6

    def forward(self, x):
        for layer in self.vgg:
            x = F.max_pool2d(F.relu(layer(x)), 2)
        sources = [self.norm(x), self.extra(x)]
        loc, conf = [], []
        for source, box, score in zip(sources, self.loc, self.conf, strict=True):
            loc.append(box(source).permute(0, 2, 3, 1).contiguous())
            conf.append(score(source).permute(0, 2, 3, 1).contiguous())
        loc = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        conf = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        return loc.view(loc.size(0), -1, 4), conf.view(conf.size(0), -1, self.num_classes).softmax(-1)


class Implicit(nn.Module):
    def __init__(self, channels, start):
        super().__init__()
        self.implicit = nn.Parameter(torch.full((1, channels, 1, 1), start) + 0.02 * torch.randn(1, channels, 1, 1))
        self.add = start == 0.0

    def forward(self, x):
        return self.implicit.expand_as(x) + x if self.add else self.implicit.expand_as(x) * x


class RepConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs else None
        self.dense = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.one = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = 0 if self.identity is None else self.identity(x)
        return F.silu(self.dense(x) + self.one(x) + identity)


@reported("VainF/Torch-Pruning", 356, "implicit knowledge: parameters [1, C, 1, 1] added to and multiplied with maps")
class Yolov7Implicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = unit(3, 16, 3, 2), unit(16, 24, 3, 2)
        self.a, self.b = unit(24, 12), unit(24, 12)
        self.chain = nn.ModuleList([unit(12, 12, 3) for _ in range(4)])
        self.out = unit(48, 32)
        self.rep = RepConv(32, 32)
        self.ia, self.im = Implicit(32, 0.0), Implicit(3 * 9, 1.0)
        self.detect = nn.Conv2d(32, 3 * 9, 1)

    def forward(self, x):
        x = self.down(self.stem(x))
        parts = [self.a(x), self.b(x)]
        y = parts[-1]
        for i, layer in enumerate(self.chain):
            y = layer(y)
            if i % 2:
                parts.append(y)
        x = self.detect(self.ia(self.rep(self.out(torch.cat(parts[::-1], 1)))))
        x = self.im(x)
        bs, _, ny, nx = x.shape
        return x.view(bs, 3, 9, ny, nx).permute(0, 1, 3, 4, 2).contiguous().sigmoid()


@reported("microsoft/nni", 5568, "one block applied again and again, at every scale; max-out over background scores")
class ExtdReuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.PReLU(16))
        self.shared = nn.Sequential(
            nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.PReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            nn.BatchNorm2d(32), nn.PReLU(), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.pool = nn.MaxPool2d(2)
        self.conf = nn.ModuleList([nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 2, 3, padding=1)])
        self.loc = nn.ModuleList([nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)])

    def forward(self, x):
        x = self.stem(x)
        maps = []
        for _ in range(2):
            x = x + self.shared(x)
            x = self.pool(x)
            maps.append(x)
        scores = self.conf[0](maps[0])
        background, _ = torch.max(scores[:, 0:3, :, :], dim=1, keepdim=True)
        scores = torch.cat((background, scores[:, 3:, :, :]), dim=1)
        conf = [scores.permute(0, 2, 3, 1).contiguous(), self.conf[1](maps[1]).permute(0, 2, 3, 1).contiguous()]
        loc = [layer(m).permute(0, 2, 3, 1).contiguous() for layer, m in zip(self.loc, maps, strict=True)]
        return (
            torch.cat([o.view(o.size(0), -1) for o in loc], 1).view(x.size(0), -1, 4),
            torch.cat([o.view(o.size(0), -1) for o in conf], 1).view(x.size(0), -1, 2),
        )


@reported("VainF/Torch-Pruning", 415, "one convolution split into maps of several levels, which are resized and summed")
class Yolov9Fuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.mid = unit(3, 16, 3, 2), unit(16, 32, 3, 2)
        self.left, self.right = unit(16, 16, 3, 2), unit(16, 16)
        self.sizes = [16, 32, 32]
        self.linear = nn.Conv2d(32, sum(self.sizes), 1)
        self.again = unit(3, 16, 3, 2)
        self.main = nn.ModuleList([unit(16, 32, 3, 2), unit(32, 32, 3, 2)])
        self.head = nn.Conv2d(32, 7, 1)

    def forward(self, x):
        y = self.mid(self.stem(x))
        y = F.avg_pool2d(y, 2, 1, 0, False, True)
        one, two = y.chunk(2, 1)
        y = torch.cat((self.left(one), self.right(F.max_pool2d(two, 3, 2, 1))), 1)
        levels = self.linear(y).split(self.sizes, dim=1)
        z = self.again(x)
        z = torch.sum(torch.stack([F.interpolate(levels[0], size=z.shape[2:], mode="nearest"), z]), dim=0)
        for level, layer in zip(levels[1:], self.main, strict=True):
            z = layer(z)
            z = torch.sum(torch.stack([F.interpolate(level, size=z.shape[2:], mode="nearest"), z]), dim=0)
        return self.head(z)


@reported("VainF/Torch-Pruning", 188, "learned queries that read maps at places which they predict themselves")
class BoxQueries(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2), nn.Conv2d(24, 24, 1))
        self.queries, self.boxes = nn.Parameter(torch.randn(5, 24)), nn.Parameter(torch.randn(5, 4))
        self.encode = nn.Linear(16, 24)
        self.where, self.weight = nn.Linear(24, 2 * 6), nn.Linear(24, 6)
        self.project, self.norm = nn.Linear(24, 24), nn.LayerNorm(24)
        self.ffn = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 24))
        self.last, self.cls, self.box = nn.LayerNorm(24), nn.Linear(24, 3), nn.Linear(24, 4)
        self.register_buffer("waves", 2.0 ** torch.arange(2.0))

    def forward(self, x):
        memory = self.trunk(x)
        n = x.shape[0]
        boxes = self.boxes.sigmoid()
        phase = boxes.unsqueeze(-1) * self.waves
        place = self.encode(torch.cat([phase.sin(), phase.cos()], -1).flatten(1))
        query = (self.queries + place).unsqueeze(0).expand(n, -1, -1)
        offsets = self.where(query).view(n, 5, 6, 2).tanh()
        points = boxes[None, :, None, :2] * 2 - 1 + offsets * boxes[None, :, None, 2:]
        seen = F.grid_sample(memory, points, align_corners=False)
        weights = self.weight(query).softmax(-1)
        query = self.norm(query + self.project((seen * weights.unsqueeze(1)).sum(-1).transpose(1, 2)))
        query = self.last(query + self.ffn(query))
        return {"logits": self.cls(query), "boxes": (self.box(query) + boxes.logit()).sigmoid()}


@reported(
    "opencv/opencv",
    17647,
    "cross-correlation by depth: features of the template are the filters",
    lambda n: (torch.randn(n, 3, 24, 24), torch.randn(n, 3, 48, 48)),
)
class SiameseDepthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2))
        self.kernel, self.search = unit(24, 24, 3), unit(24, 24, 3)
        self.head = nn.Sequential(unit(24, 24), nn.Conv2d(24, 10, 1))

    def forward(self, template, frame):
        kernel, search = self.kernel(self.trunk(template)), self.search(self.trunk(frame))
        batch, channel = kernel.size(0), kernel.size(1)
        x = search.view(1, batch * channel, search.size(2), search.size(3))
        kernel = kernel.view(batch * channel, 1, kernel.size(2), kernel.size(3))
        out = F.conv2d(x, kernel, groups=batch * channel)
        return self.head(out.view(batch, channel, out.size(2), out.size(3)))


@reported(
    "pytorch/vision",
    9321,
    "boxes above a threshold are picked in the forward: as many as the image has",
    expected="refused: branches or loops on values",
)
class PickedBoxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2))
        self.score, self.box, self.mask = nn.Conv2d(24, 1, 1), nn.Conv2d(24, 4, 1), nn.Linear(24, 9)

    def forward(self, x):
        x = self.trunk(x)
        scores = self.score(x).flatten()
        boxes, features = self.box(x).permute(0, 2, 3, 1).reshape(-1, 4), x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        keep = torch.where(scores > 0)[0]
        if keep.numel() > 100:
            keep = scores.topk(100).indices
        return boxes[keep], scores[keep], self.mask(features[keep])
