"""Networks whose forward does something else in training mode, and where that is read off by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

DIFFERENT: dict[str, Different] = {}


@dataclass(frozen=True)
class Different:
    """``along``: axes of what only training reads that lose indices with the rest, (parameter, dimension)."""

    build: Callable[[], nn.Module]
    along: tuple[tuple[str, int], ...] = field(default=())


def different(*along: tuple[str, int]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        DIFFERENT[cls.__name__] = Different(cls, along)
        return cls

    return register


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Trunk(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 16), conv(16, 12), nn.Linear(12, 5)

    def classify(self, x):
        return self.fc(x.mean((2, 3)))


@different(("aux.1.weight", 1))
class PooledHead(Trunk):
    """An auxiliary head behind a global pool and a batch normalisation; a dictionary with one entry more."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 10, 1), nn.BatchNorm2d(10), nn.ReLU())
        self.last = nn.Linear(10, 5)

    def forward(self, x):
        x = self.a(x)
        found = {"out": self.classify(self.b(x))}
        if self.training:
            found["aux"] = self.last(self.aux(x).flatten(1))
        return found


@different(("aux.0.weight", 1))
class ListInTraining(Trunk):
    """Deep supervision: every stage is judged in training, the last alone in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(16, 5, 1))

    def forward(self, x):
        first = self.a(x)
        last = self.classify(self.b(first))
        return [last, self.aux(first).mean((2, 3))] if self.training else last


@different(("side.0.weight", 0), ("side.1.weight", 0), ("side.1.running_var", 0))
class SideBranch(Trunk):
    """A branch that only training adds to the stream: its outputs are in the stream's group."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x):
        y = self.a(x)
        if self.training:
            y = y + self.side(x)
        return self.classify(self.b(y))


@different(("distance.weight", 1))
class Agreement(nn.Module):
    """Two branches that only training compares: evaluation would let them be cut apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 16), conv(3, 16), nn.Linear(32, 5)
        self.distance = nn.Linear(16, 1)

    def forward(self, x):
        a, b = self.a(x).mean((2, 3)), self.b(x).mean((2, 3))
        out = self.fc(torch.cat([a, b], 1))
        return (out, self.distance(a - b)) if self.training else out


class Attends(nn.Module):
    """Attention over places with the implicit scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.width = width

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.width).unbind(2)
        return F.scaled_dot_product_attention(q, k, v)


@different(("aux.qkv.weight", 1))
class AttentiveHead(Trunk):
    """An auxiliary head that attends."""

    def __init__(self) -> None:
        super().__init__()
        self.aux, self.last = Attends(12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.b(self.a(x))
        out = self.classify(x)
        return (out, self.last(self.aux(x.flatten(2).transpose(1, 2)).mean(1))) if self.training else out


@different(("aux.weight", 1), ("norm.weight", 0))
class NormalisedHead(Trunk):
    """A layer normalisation over what goes, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aux = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.b(self.a(x))
        out = self.classify(x)
        return {"out": out, "aux": self.aux(self.norm(x.mean((2, 3))))} if self.training else {"out": out}


@different(("aux.weight", 1))
class ViewedHead(Trunk):
    """An auxiliary head that writes down how many channels it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.aux = 12, nn.Linear(12, 5)

    def forward(self, x):
        x = self.b(self.a(x))
        out = self.classify(x)
        return (out, self.aux(x.mean((2, 3)).view(-1, self.channels))) if self.training else out


class DropPath(nn.Module):
    """A residual branch is left out for some samples."""

    def forward(self, x):
        if not self.training:
            return x
        kept = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.8)
        kept.div_(0.8)
        return x * kept


@different()
class StochasticDepth(Trunk):
    """Nothing is read that evaluation does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = conv(16, 16), DropPath()

    def forward(self, x):
        x = self.a(x)
        return self.classify(self.b(x + self.drop(self.inner(x))))


@different(("aux.weight", 1))
class NoisyHead(Trunk):
    """A random slope, dropout that is no module, and an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(16, 5)

    def forward(self, x):
        x = F.rrelu(self.a(x) - 0.3, training=self.training)
        out = self.classify(F.dropout(self.b(x), 0.2, self.training))
        return (out, self.aux(x.mean((2, 3)))) if self.training else out
