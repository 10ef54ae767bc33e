"""Networks whose forward leaves marks: on the instance, its class, in globals, closures, caches, settings, weights."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

NASTY: dict[str, Callable[[], nn.Module]] = {}
SEEN: list[Any] = []
TABLES: dict[Any, Any] = {}
CALLS = 0


def nasty(cls: type[nn.Module]) -> type[nn.Module]:
    """Register a network under its class name."""
    NASTY[cls.__name__] = cls
    return cls


class Net(nn.Module):
    """Two convolutions and a classifier; what a subclass does in between leaves marks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1), nn.Linear(10, 4)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x):
        x = self.norm(self.a(x))
        x = self.mark(F.relu(x))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))

    def mark(self, x):
        return x


def ramp(x):
    return torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)


@nasty
class CachedOnTheClass(Net):
    anchors, shape = torch.empty(0), None

    def mark(self, x):
        if self.shape != x.shape:
            self.anchors, self.shape = ramp(x), x.shape
        return x + self.anchors


@nasty
class CachedOnTheInstance(Net):
    def __init__(self) -> None:
        super().__init__()
        self.anchors, self.shape = torch.empty(0), None

    def mark(self, x):
        if self.shape != x.shape:
            self.anchors, self.shape = ramp(x), x.shape
        return x + self.anchors


@nasty
class CachedInABuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def mark(self, x):
        if self.grid.shape[0] != x.shape[-1]:
            self.grid = ramp(x)
        self.seen = x.detach().mean((0, 2, 3))
        return x + self.grid


class Ramp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.zeros(1))

    def forward(self, x):
        if self.grid.shape[0] != x.shape[-1]:
            self.grid = ramp(x)
        return x + self.grid


@nasty
class BufferOfASubmodule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Ramp()

    def mark(self, x):
        return self.inner(x)


@nasty
class SetForTheWholeClass(Net):
    anchors = None
    known = ()

    def mark(self, x):
        if type(self).anchors is None or type(self).anchors.shape[0] != x.shape[-1]:
            type(self).anchors = ramp(x)
        SetForTheWholeClass.known += (x.shape[-1],)
        type(self).fresh = x
        return x + type(self).anchors


@nasty
class DictOfTheClass(Net):
    tables: dict[Any, Any] = {}  # noqa: RUF012
    features: list[Any] = []  # noqa: RUF012

    def mark(self, x):
        key = x.shape[-1]
        if key not in self.tables:
            self.tables[key] = ramp(x)
        self.features.append(x)
        return x + self.tables[key]


@nasty
class TableInAGlobal(Net):
    def mark(self, x):
        global CALLS, MADE_LATER
        CALLS += 1
        MADE_LATER = x
        SEEN.append(x)
        if x.shape[-1] not in TABLES:
            TABLES[x.shape[-1]] = ramp(x)
        return x + TABLES[x.shape[-1]]


@functools.lru_cache
def cached_ramp(size):
    return torch.arange(size, dtype=torch.float32)


@nasty
class CachedFunction(Net):
    def mark(self, x):
        return x + cached_ramp(x.shape[-1]).to(x.dtype)


@nasty
class CachedMethod(Net):
    @functools.lru_cache  # noqa: B019
    def table(self, size):
        return torch.arange(size, dtype=torch.float32)

    @functools.cached_property
    def gain(self):
        return torch.ones(1) * 2

    def mark(self, x):
        return x * self.gain.to(x.dtype) + self.table(x.shape[-1]).to(x.dtype)


@nasty
class AppendsAndCounts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.last, self.recent = [], {}, collections.deque(maxlen=2)
        self.steps, self.kinds, self.names = 0, set(), {"deep": {"deeper": [1]}}
        self.ids = itertools.count()

    def mark(self, x):
        self.steps += 1
        self.features.append(x)
        self.last[next(self.ids)] = x
        self.recent.append(x)
        self.kinds.add(self.steps)
        self.names["deep"]["deeper"].append(x.shape)
        return x


class State:
    """What a network keeps outside its modules."""

    total = 0

    def __init__(self) -> None:
        self.shapes: list[Any] = []
        self.held: Any = None

    def see(self, x):
        State.total += 1
        self.shapes.append(x.shape)
        self.held = x
        return x


@nasty
class HelperObject(Net):
    def __init__(self) -> None:
        super().__init__()
        self.state = State()

    def mark(self, x):
        return self.state.see(x)


def _counted() -> Callable[[Any], Any]:
    count, shapes = 0, []

    def see(x):
        nonlocal count
        count += 1
        shapes.append(x.shape)
        see.last = x
        return x

    return see


@nasty
class ClosureAndDefaults(Net):
    def __init__(self) -> None:
        super().__init__()
        self.see = _counted()

    def remember(self, x, seen=[]):  # noqa: B006
        seen.append(x)
        return x

    def mark(self, x):
        return self.remember(self.see(x))


@nasty
class HooksThatCollect(Net):
    def __init__(self) -> None:
        super().__init__()
        found = []
        self.a.register_forward_hook(lambda module, inputs, output: found.append(output))
        self.b.register_forward_pre_hook(self.collect)
        self.seen = []

    def collect(self, module, inputs):
        self.seen.append(inputs[0])

    def mark(self, x):
        self.a.register_forward_hook(lambda module, inputs, output: None)
        return x


@nasty
class WritesWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(12))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def mark(self, x):
        self.average.mul_(0.9).add_(x.detach().mean((0, 2, 3)).to(self.average.dtype), alpha=0.1)
        self.count += 1
        return x


@nasty
class MergesInEvaluation(Net):
    """Low-rank adapters fold themselves into the weight in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.merged = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 10)), False

    def train(self, mode: bool = True):
        super().train(mode)
        if mode == self.merged:
            self.fc.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self


@nasty
class LazyParts(Net):
    def mark(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Identity()
            self.shape = x.shape
        self.temporary = x
        del self.temporary
        return self.late(x)


@nasty
class ChangesSettings(Net):
    def mark(self, x):
        random.random()
        np.random.rand()
        torch.manual_seed(3)
        os.environ["NASTY"] = str(x.shape[-1])
        self.b.weight.requires_grad_(self.training)
        return x


@nasty
class OwnRandomness(Net):
    def __init__(self) -> None:
        super().__init__()
        self.dice, self.draws, self.table = random.Random(1), np.random.default_rng(1), np.zeros(3)

    def mark(self, x):
        self.table[0] += 1
        return x * (1 + 0 * self.dice.random() + 0 * float(self.draws.random()))


class Grid:
    """Slots instead of a dictionary."""

    __slots__ = ("size", "table")

    def __init__(self) -> None:
        self.size, self.table = None, None


@nasty
class SlotsAndTuples(Net):
    def __init__(self) -> None:
        super().__init__()
        self.parts = (Grid(), [])

    def mark(self, x):
        grid, seen = self.parts
        if grid.size != x.shape[-1]:
            grid.size, grid.table = x.shape[-1], ramp(x)
        seen.append(x.shape)
        return x + grid.table


class Fails(Net):
    """Leaves its marks, then fails at a call of its choice."""

    anchors = None

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.seen = at, []

    def mark(self, x):
        type(self).anchors = ramp(x)
        self.latest = x
        self.seen.append(x)
        SEEN.append(x)
        random.random()
        if len(SEEN) >= self.at:
            raise RuntimeError("no more")
        return x
