"""Networks whose containers, inputs and outputs are unusual, after public reports."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from reports import image, reported, unit
from torch import nn


class Found(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor
    loss: torch.Tensor | None


@reported("microsoft/nni", 5655, "a named tuple with an empty field as output, targets that are not always given")
class NamedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2), unit(24, 24))
        self.box, self.score = nn.Linear(24, 4), nn.Linear(24, 3)

    def forward(self, images, targets=None):
        x = self.trunk(images).mean((2, 3))
        boxes, scores = self.box(x), self.score(x)
        return Found(boxes, scores, None if targets is None else F.l1_loss(boxes, targets))


class Gate(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.hidden_layer = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU())
        self.output_layer = nn.Sequential(nn.Linear(hidden, outputs), nn.Sigmoid())

    def forward(self, inputs, training=True):
        return 2 * self.output_layer(self.hidden_layer(inputs))


class Smelu(nn.Module):
    def __init__(self, beta=1.0):
        super().__init__()
        self.beta = beta

    def forward(self, x):
        return torch.where(torch.abs(x) <= self.beta, ((x + self.beta) ** 2) / (4 * self.beta), F.relu(x))


@reported(
    "pytorch/pytorch",
    151094,
    "every layer's input is scaled by a gate that sees the features, too; inputs by name",
    lambda n: {"features": torch.randn(n, 10), "domain": torch.randn(n, 6)},
)
class LearnedContribution(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_units = [24, 16]
        self.dense_layers, self.gate_nn = nn.ModuleList(), nn.ModuleList()
        size = 10
        for width in self.hidden_units:
            self.gate_nn.append(Gate(10 + 6, 12, size))
            self.dense_layers.append(nn.Sequential(nn.Linear(size, width), Smelu()))
            size = width
        self.last = nn.Linear(size, 1)

    def forward(self, features, domain):
        x = features
        context = torch.cat([features.detach(), domain], dim=-1)
        for i in range(len(self.hidden_units)):
            x = self.dense_layers[i](x * self.gate_nn[i](context))
        return self.last(x).squeeze(-1)


class FirstStages(nn.ModuleDict):
    def __init__(self, layers, wanted):
        super().__init__(layers)
        self.wanted = dict(wanted)

    def forward(self, x):
        out = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.wanted:
                out[self.wanted[name]] = x
        return out


class PoolPyramid(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.cv1, self.cv2, self.m = unit(inputs, inputs // 2), unit(inputs * 2, outputs), nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x = self.cv1(x)
        y = self.m(x)
        z = self.m(y)
        return self.cv2(torch.cat((x, y, z, self.m(z)), 1))


@reported(
    "zhiqwang/yolort",
    234,
    "a dictionary of modules is the trunk; one pool runs three times; features by name",
    least=0.15,
)
class NamedFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        layers = OrderedDict([("0", unit(3, 16, 3, 2)), ("1", unit(16, 24, 3, 2)), ("8", PoolPyramid(24, 32))])
        self.body = FirstStages(layers, {"1": "low", "8": "high"})
        self.inner_blocks = nn.ModuleList([nn.Conv2d(24, 12, 1), nn.Conv2d(32, 12, 1)])

    def forward(self, x):
        found = self.body(x)
        names, maps = list(found.keys()), list(found.values())
        return OrderedDict((name, block(m)) for name, block, m in zip(names, self.inner_blocks, maps, strict=True))


class ModelOutput(OrderedDict):
    """A mapping whose fields are attributes and positions, too; fields without a value are left out."""

    def __init__(self, **fields):
        super().__init__((name, value) for name, value in fields.items() if value is not None)

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@reported(
    "pytorch/pytorch",
    98251,
    "an output of a class of its own, which is a mapping and a tuple at once",
    lambda n: torch.randint(0, 30, (n, 9)),
)
class MappingOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(30, 16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norm, self.pooler, self.head = nn.LayerNorm(16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, ids, labels=None):
        states = self.embed(ids)
        states = self.norm(states + self.encoder(states))
        logits = self.head(torch.tanh(self.pooler(states[:, 0])))
        return ModelOutput(loss=None, logits=logits, tokens=ids)


class EasyDict(dict):
    """A dictionary whose keys are attributes."""

    def __init__(self, **fields):
        super().__init__(fields)
        self.__dict__ = self


@reported(
    "pytorch/pytorch",
    120219,
    "the input is one object of a dictionary class with attributes",
    lambda n: ((EasyDict(image=torch.randn(n, 3, 16, 16), scale=torch.rand(n, 1)),), {}),
)
class AttributeInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.fc = nn.Sequential(unit(3, 16, 3, 2), unit(16, 24, 3, 2)), nn.Linear(24, 5)

    def forward(self, batch):
        return self.fc(self.trunk(batch.image).mean((2, 3)) * batch["scale"])


@dataclasses.dataclass
class Batch:
    """Points and what is known of them."""

    points: torch.Tensor
    colours: torch.Tensor
    extra: Any = None


@reported(
    "pytorch/pytorch",
    147400,
    "the input is a dataclass of tensors",
    lambda n: ((Batch(torch.randn(n, 3, 20), torch.rand(n, 3, 20)),), {}),
)
class DataclassInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(6, 24, 1), nn.Conv1d(24, 32, 1)
        self.turn, self.head = nn.Linear(32, 9), nn.Linear(32, 5)

    def forward(self, batch):
        x = torch.cat([batch.points, batch.colours], 1)
        x = F.relu(self.two(F.relu(self.one(x)))).max(2)[0]
        turn = self.turn(x).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        return self.head(x), torch.bmm(turn, batch.points)


def _past(n):
    return tuple((torch.randn(n, 2, 4, 6), torch.randn(n, 2, 4, 6)) for _ in range(2))


@reported(
    "pytorch/pytorch",
    136582,
    "keys and values of earlier tokens come in and go out in nested tuples",
    lambda n: ((torch.randint(0, 20, (n, 3)),), {"past": _past(n), "use_cache": True}),
    least=0.1,
)
class CachedKeys(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.qkv = nn.ModuleList([nn.Linear(16, 36) for _ in range(2)])
        self.out = nn.ModuleList([nn.Linear(12, 16) for _ in range(2)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16)) for _ in range(2)])

    def forward(self, ids, past=None, use_cache=False):
        x, present = self.embed(ids), []
        for i, (qkv, out, mlp) in enumerate(zip(self.qkv, self.out, self.mlp, strict=True)):
            b, n, _ = x.shape
            q, k, v = (part.view(b, n, 2, 6).transpose(1, 2) for part in qkv(x).split(12, dim=-1))
            if past is not None:
                k, v = torch.cat([past[i][0], k], dim=2), torch.cat([past[i][1], v], dim=2)
            present.append((k, v))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 12)
            x = x + out(y)
            x = x + mlp(x)
        return {"logits": self.head(x), "past": tuple(present) if use_cache else None}


class Experts(nn.Module):
    def __init__(self, static):
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(6, 16), nn.Linear(16, 4, bias=False), nn.Linear(16, 5)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)) for _ in range(4)])
        self.top_k, self.num_experts, self.static = 2, 4, static

    def forward(self, x):
        x = self.embed(x)
        flat = x.view(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.gate(flat), dim=1), self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(flat)
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        if self.static:
            for i in range(self.num_experts):
                share = (weights * (chosen == i)).sum(-1, keepdim=True)
                out = out + self.experts[i](flat) * share
        else:
            for i in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
                place, token = torch.where(mask[i].squeeze(0))
                out.index_add_(0, token, self.experts[int(i)](flat[token]) * weights[token, place, None])
        return self.head(out.reshape(x.shape) + x)


@reported(
    "huggingface/transformers",
    40114,
    "experts that no token chose are skipped: a loop over what the data picked",
    image(5, 6),
    expected="refused: branches or loops on values",
)
class PickedExperts(Experts):
    def __init__(self):
        super().__init__(static=False)


@reported(
    "huggingface/transformers", 38518, "all experts run and are weighted by how far each token chose them", image(5, 6)
)
class WeightedExperts(Experts):
    def __init__(self):
        super().__init__(static=True)
