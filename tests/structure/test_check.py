"""The check sees what a user would see: other samples, sizes, integers and every leaf; and refuses nothing right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.structure import check_plan, verify
from secateurs.structure.comparison import leaves_of, relative_difference
from secateurs.testing.structure import random_cut, uncaught


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class Answer:
    """An output as libraries make them."""

    logits: torch.Tensor
    extra: Any = None


pytree.register_dataclass(Answer)


class Image(nn.Module):
    """Convolutions, a pool and a classifier: takes every size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Nested(Image):
    """The same answer in several places."""

    def forward(self, x):
        y = super().forward(x)
        parts = {"scores": [y, (y * 2, y.argmax(1))], "sure": y > 0}
        return Answer(y.softmax(1), parts)


class Words(nn.Module):
    """Tokens of a vocabulary, kinds of tokens, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(50, 12), nn.Embedding(2, 12)
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, words, kinds, mask):
        x = self.words(words) + self.kinds(kinds)
        x = F.relu(self.a(x)) * mask[..., None].to(x.dtype)
        return self.b(x.sum(1) / mask.sum(1, keepdim=True).to(x.dtype))


class Bytes(Image):
    """Pixels as they come from a camera, and a time step."""

    def forward(self, x, t):
        return super().forward(x.to(self.fc.weight.dtype) / 255) + 0.1 * t[:, None]


IMAGE = torch.zeros(1, 3, 8, 8)
BYTES = (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
WORDS = (torch.zeros(1, 7, dtype=torch.long), torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.long))


def spoiled(kind: Callable[[], nn.Module], example: Any, spoil: Callable[..., Any]) -> None:
    """Check a plan of a network whose cut is right, but for what ``spoil`` makes of inputs and output."""

    class Spoiled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any) -> Any:
            return spoil(self.inner(*inputs), *inputs)

    model = kind()
    plan = sc.trace(model, example).plan({})
    assert check_plan(model, plan, example) <= 1e-12
    cut = verify.cut_copy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "cut_copy", lambda dense, plan: Spoiled(cut(dense, plan)))
        check_plan(model, plan, example)


def off(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y + 1e-3


SPOILED: dict[str, tuple[Callable[[], nn.Module], Any, Callable[..., Any]]] = {
    "what varies within a sample": (Image, IMAGE, lambda y, x: y + 1e-3 * x.flatten(1).std(1, keepdim=True)),
    "negative inputs": (Image, IMAGE, lambda y, x: y + 1e-3 * (x < 0).any()),
    "large inputs": (Image, IMAGE, lambda y, x: y + 1e-3 * (x > 2).any()),
    "second sample": (Image, IMAGE, lambda y, x: torch.cat([y[:1], y[1:] + 1e-3])),
    "first sample of several": (Image, IMAGE, lambda y, x: y if len(y) == 1 else torch.cat([y[:1] * 1.1, y[1:]])),
    "other batch": (Image, torch.zeros(2, 3, 8, 8), lambda y, x: y if len(y) == 2 else y + 1e-3),
    "four samples or more": (Image, IMAGE, lambda y, x: y if len(y) < 4 else y * 1.001),
    "bright images": (Image, IMAGE, lambda y, x: torch.where(x.mean() > 0.3, y * 1.001, y)),
    "dark images": (Image, IMAGE, lambda y, x: torch.where(x.mean() < -0.3, y * 1.001, y)),
    "other height": (Image, IMAGE, lambda y, x: y if x.shape[2] == 8 else y * 1.001),
    "other width": (Image, IMAGE, lambda y, x: y if x.shape[3] == 8 else y * 1.001),
    "other width of an oblong": (Image, torch.zeros(1, 3, 16, 8), lambda y, x: y if x.shape[3] == 8 else y * 1.001),
    "odd height": (Image, IMAGE, lambda y, x: y * 1.001 if x.shape[2] % 2 else y),
    "odd width": (Image, IMAGE, lambda y, x: y * 1.001 if x.shape[3] % 2 else y),
    "not square": (Image, IMAGE, lambda y, x: y if x.shape[2] == x.shape[3] else y * 1.001),
    "fails at another size": (Image, IMAGE, lambda y, x: y + torch.zeros(x.shape[2]).reshape(8, 1, 1).sum()),
    "one class of one sample": (Image, IMAGE, lambda y, x: y.index_fill(1, torch.tensor([3]), 0)),
    "behind a large element": (
        lambda: nn.Sequential(Image(), Loud()),
        IMAGE,
        lambda y, x: torch.cat([y[:, :1], y[:, 1:] + 1e-4], 1),
    ),
    "tensor deep in the nest": (Nested, IMAGE, lambda y, x: _set(y, y.extra["scores"][1], 0)),
    "integers": (Nested, IMAGE, lambda y, x: _set(y, y.extra["scores"][1], 1)),
    "truth values": (Nested, IMAGE, lambda y, x: Answer(y.logits, {**y.extra, "sure": ~y.extra["sure"]})),
    "outputs that vanish": (Nested, IMAGE, lambda y, x: Answer(y.logits, {"scores": y.extra["scores"]})),
    "another nest": (Image, IMAGE, lambda y, x: [y]),
    "another type": (Image, IMAGE, lambda y, x: y.round().long()),
    "not a number": (Image, IMAGE, lambda y, x: y.index_fill(1, torch.tensor([0]), float("nan"))),
    "other words": (Words, WORDS, lambda y, w, k, m: y + 1e-3 * (w > 30).any()),
    "the last word": (Words, WORDS, lambda y, w, k, m: y + 1e-3 * (w > 45).any()),
    "the other kind": (Words, WORDS, lambda y, w, k, m: y + 1e-3 * (k == 1).any()),
    "what is masked": (Words, WORDS, lambda y, w, k, m: y + 1e-3 * (m == 0).any()),
    "bright pixels": (Bytes, BYTES, lambda y, x, t: y + 1e-3 * (x > 200).any()),
    "later time steps": (Bytes, BYTES, lambda y, x, t: y + 1e-3 * (t > 3).any()),
    "longer texts": (Words, WORDS, lambda y, w, k, m: y if w.shape[1] == 7 else y + 1e-3),
}  # fmt: skip


class Loud(nn.Module):
    """One element is so large that the others are nothing beside it."""

    def forward(self, x):
        return torch.cat([x[:, :1].abs() * 1e9 + 1e9, x[:, 1:]], 1)


def _set(answer: Answer, pair: tuple[Any, Any], which: int) -> Answer:
    changed = list(pair)
    changed[which] = pair[which] + 1 if which else pair[which] * 1.001
    return Answer(answer.logits, {**answer.extra, "scores": [answer.extra["scores"][0], tuple(changed)]})


@pytest.mark.parametrize("name", SPOILED)
def test_seen(name: str) -> None:
    with pytest.raises(sc.StructureError, match=r"computes something else|does not run"):
        spoiled(*SPOILED[name])


@pytest.mark.parametrize("kind", [Image, Nested, Words])
def test_permuted_lists_are_seen(kind: type[nn.Module]) -> None:
    example = WORDS if kind is Words else IMAGE
    model = kind()
    graph = sc.trace(model, example)
    plan = graph.plan(random_cut(graph, 0.4, 0))
    tried, missed = uncaught(model, plan, example, 8, graph=graph, by_running=True)
    assert tried >= 4
    assert missed == []


def test_ties_are_no_difference() -> None:
    """Places of a pooling window whose entries are all alike: rounding alone says which came first."""

    class Ties(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
            self.c, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x):
            x, places = F.max_pool2d(self.b(F.interpolate(self.a(x), scale_factor=2)), 2, return_indices=True)
            return self.fc(F.relu(self.c(F.max_unpool2d(x, places, 2))).mean((2, 3)))

    assert applied(Ties(), torch.zeros(1, 3, 8, 8)) < 0.7


def test_places_of_a_pool_go_back() -> None:
    class Unpooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x):
            x, places = F.max_pool2d(self.a(x), 2, return_indices=True)
            return self.fc(F.relu(F.max_unpool2d(self.b(x), places, 2)).mean((2, 3)))

    assert applied(Unpooled(), torch.zeros(1, 3, 12, 12)) < 0.7


class Closest(Image):
    """The nearest of some codes: an integer, and where it is a true tie, the first."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        y = super().forward(x)
        nearest = torch.cdist(y, torch.cat([self.codes, self.codes])).argmin(1)
        return {"nearest": nearest, "code": self.codes[nearest % 6], "sure": (y > 0).all()}


class Hidden(Image):
    """Some answers are ruled out."""

    def forward(self, x):
        y = super().forward(x)
        return y.masked_fill(y < y.mean(1, keepdim=True), float("-inf"))


class OfLogarithms(Image):
    """Takes what is positive only."""

    def forward(self, x):
        return super().forward(x.log())


class Noisy(Image):
    """Chance in the forward, of every kind, also where units run."""

    def forward(self, x):
        order = torch.randperm(x.shape[0])
        x = F.relu(self.a(x)) * torch.rand(1, self.a.out_channels, 1, 1)
        x = F.dropout(x, 0.2, training=True) + 0.1 * np.random.rand()
        return self.fc(self.b(x).mean((2, 3)))[order] + torch.randn(1)


class PositiveBuffer(Image):
    """A buffer whose logarithm is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "spread", torch.tensor([1.5, 2.0, 2.5, 3.0])[:, None, None, None].repeat(3, 1, 1, 1)[:12, 0]
        )

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x) / self.spread.log()))).mean((2, 3)))


class OneSize(Image):
    """Takes images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * 6 * 6, 5)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).flatten(1))


class OneBatch(Image):
    """Takes two images at a time."""

    def forward(self, x):
        first, second = x
        return super().forward(torch.stack([first, second]))


class Offsets(nn.Module):
    """Words of several texts one after the other, with where each begins."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.a, self.b = nn.EmbeddingBag(40, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, words, offsets):
        return self.b(F.relu(self.a(self.bag(words, offsets))))


class OfComplex(nn.Module):
    """Complex weights, and complex numbers made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, dtype=torch.complex64), nn.Conv2d(16, 5, 1, dtype=torch.complex64)

    def forward(self, x):
        y = torch.tanh(self.a(torch.fft.fft2(x)))
        return self.b(y + torch.zeros(1, dtype=torch.complex64)).abs().mean((2, 3))


class Masked(nn.Module):
    """Attention that is told what to leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.mix = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x, out):
        x = self.i(x)
        return self.o(x + self.mix(x, x, x, key_padding_mask=out)[0])


RIGHT: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "closest": (Closest, IMAGE),
    "minus infinity": (Hidden, IMAGE),
    "logarithms": (OfLogarithms, torch.rand(1, 3, 8, 8) + 0.5),
    "chance": (Noisy, torch.zeros(2, 3, 8, 8)),
    "a buffer that must be positive": (PositiveBuffer, IMAGE),
    "one size": (OneSize, IMAGE),
    "one batch": (OneBatch, torch.zeros(2, 3, 8, 8)),
    "words": (Words, WORDS),
    "complex numbers": (OfComplex, IMAGE),
    "offsets": (Offsets, (torch.arange(12), torch.tensor([0, 3, 5, 9]))),
    "what is left out": (Masked, (torch.zeros(1, 5, 6), torch.zeros(1, 5, dtype=torch.bool))),
}


def applied(model: nn.Module, example: Any) -> float:
    """Share of the parameters that is left when the network was cut and checked."""
    graph = sc.trace(model, example)
    small = sc.apply(model, graph.plan(random_cut(graph, 0.4, 0)), example)
    return sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", RIGHT)
def test_right_networks_pass(name: str) -> None:
    kind, example = RIGHT[name]
    assert applied(kind(), example) < 0.95


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(2), [torch.ones(2)]),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
        (Answer(torch.ones(2), 1), Answer(torch.ones(2), 2)),
        (Answer(torch.ones(2), "x"), Answer(torch.ones(2), "y")),
        (np.ones(3), np.zeros(3)),
        ((), ()),
        (None, None),
        ("same", "same"),
        (torch.ones(2), torch.ones(2, dtype=torch.long)),
        (torch.ones(2), torch.ones(2, 1)),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("-inf")])),
        (1.0, 2.0),
        (float("nan"), 1.0),
        ([torch.ones(2), torch.ones(1)], [torch.ones(2)]),
    ],
)
def test_outputs_that_differ_or_cannot_be_compared(first: Any, second: Any) -> None:
    assert relative_difference(first, second) > 1e-6


class Plain:
    """An object that PyTorch does not know."""

    def __init__(self, value: float) -> None:
        self.inner, self.name = [torch.full((2,), value)], "x"


def test_objects_of_any_kind_are_entered() -> None:
    assert relative_difference(Plain(1.0), Plain(1.0)) == 0
    assert relative_difference(Plain(1.0), Plain(1.1)) > 0.05
    assert [leaf if isinstance(leaf, str) else float(leaf[0]) for leaf in leaves_of(Plain(2.0))] == [2.0, "x"]


def test_a_network_that_returns_nothing_to_compare_is_refused() -> None:
    class Silent(Image):
        def forward(self, x):
            super().forward(x)

    model = Image()
    plan = sc.trace(model, IMAGE).plan({})
    model.__class__ = Silent
    with pytest.raises(sc.StructureError, match="no tensor and no number"):
        check_plan(model, plan, IMAGE)
