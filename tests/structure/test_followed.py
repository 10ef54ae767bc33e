"""A size that is read off one tensor and given to another: cutting either alone is right, in the user's own class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.testing.structure import judge

FOLLOWS: dict[str, type[nn.Module]] = {}


def follows(cls: type[nn.Module]) -> type[nn.Module]:
    FOLLOWS[cls.__name__] = cls
    return cls


class Net(nn.Module):
    """Two streams that meet nowhere but in what a subclass does to the second; each is read by layers of its own."""

    widths = (16, 16, 16)
    """Of the first stream, of the second, and of the second after ``follow``."""

    def __init__(self) -> None:
        super().__init__()
        first, second, after = self.widths
        self.a, self.b = nn.Conv2d(3, first, 3, padding=1), nn.Conv2d(3, second, 1)
        self.c, self.d, self.fc = nn.Conv2d(first, 8, 1), nn.Conv2d(after, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        first, second = F.relu(self.a(x)), torch.sigmoid(self.b(x))
        return self.fc((self.c(first) * self.d(self.follow(first, second))).mean((2, 3)))


@follows
class ViewAs(Net):
    def follow(self, first, second):
        return second.flatten(2).view_as(first)


@follows
class ReshapeAs(Net):
    def follow(self, first, second):
        return second.transpose(1, 2).transpose(1, 2).flatten(1).reshape_as(first)


@follows
class SizeOfAnother(Net):
    def follow(self, first, second):
        return second.mean((2, 3)).reshape(second.shape[0], first.shape[1], 1, 1)


@follows
class UnpackedShape(Net):
    def follow(self, first, second):
        b, c, h, w = first.size()
        return second.flatten(2).view(b, c, h, w)


@follows
class NegativeDimension(Net):
    def follow(self, first, second):
        return second.flatten(2).unflatten(2, (8, 8)).reshape(-1, first.size(dim=-3), 8, 8)


@follows
class Unflattened(Net):
    def follow(self, first, second):
        return second.flatten(1).unflatten(1, (first.size(1), 64)).unflatten(2, (8, 8))


@follows
class Cropped(Net):
    widths = (12, 16, 12)

    def follow(self, first, second):
        return second[:, : first.shape[1]]


@follows
class Narrowed(Net):
    widths = (12, 16, 12)

    def follow(self, first, second):
        return torch.narrow(second, 1, 0, first.shape[1])


@follows
class OnesBeside(Net):
    widths = (16, 8, 24)

    def follow(self, first, second):
        return torch.cat([second, first.new_ones(first.shape)], 1)


@follows
class EmptyPlaces(Net):
    """A tensor of the first one's size is filled with the second."""

    def follow(self, first, second):
        held = torch.zeros(first.shape[0], first.shape[1], 8, 8, dtype=first.dtype)
        return held + second


@follows
class ChannelAttention(Net):
    """As people write it: what is multiplied in the end meets the map anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)

    def follow(self, first, second):
        b, c, _, _ = first.shape
        y = self.excite(F.relu(self.squeeze(first.mean((2, 3)).view(b, c)))).view(b, c, 1, 1)
        return second * 0.5 + first * y.expand_as(first)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", FOLLOWS)
def test_either_alone_is_cut_in_the_users_own_class(name: str) -> None:
    model, example = FOLLOWS[name](), torch.randn(1, 3, 8, 8)
    graph = sc.trace(model, example)
    cuts = [{group.name: range(group.units * 5 // 8)} for group in graph.groups]
    cuts.append({group.name: range(1, group.units - number) for number, group in enumerate(graph.groups)})
    assert len(cuts) > 2
    for kept in cuts:
        plan = graph.plan(kept)
        assert plan.rebuild is None, kept
        assert judge(model, plan, example) < 1e-12
        assert type(sc.apply(model, plan, example)) is FOLLOWS[name]
    first = {name for group in graph.groups for name in group.layers}
    assert {"a", "b", "c", "d"} <= first


class Unrelated(Net):
    """Equal widths, and every tensor keeps its own size."""

    def follow(self, first, second):
        b, c, h, w = second.shape
        return second.flatten(2).view(b, c, h, w).reshape(b, second.size(1), -1).view(second.shape)


def test_equal_widths_alone_tie_nothing() -> None:
    graph = sc.trace(Unrelated(), torch.randn(1, 3, 8, 8))
    assert [group.name for group in graph.groups] == ["a:out", "b:out", "c:out"]


class HalfOfAnother(Net):
    """A size calculated of another's: only a rebuilt graph follows both alone."""

    widths = (16, 8, 8)

    def follow(self, first, second):
        return second.flatten(2).view(second.shape[0], first.shape[1] // 2, 8, 8)


def test_a_size_that_is_calculated_of_another_is_right_in_a_rebuilt_graph() -> None:
    model, example = HalfOfAnother(), torch.randn(1, 3, 8, 8)
    graph = sc.trace(model, example)
    for name in ("a:out", "b:out"):
        plan = graph.plan({name: range(5)})
        assert plan.rebuild is not None
        assert judge(model, plan, example) < 1e-12


class Joined(nn.Module):
    """Heads that are joined to the width of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix, self.join, self.fc = (
            nn.Linear(3, 24),
            nn.Linear(24, 72),
            nn.Linear(24, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x):
        x = self.inner(x.flatten(2).transpose(1, 2))
        b, n, width = x.shape
        q, k, v = self.mix(x).view(b, n, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        return self.fc((x + self.join(mixed)).mean(1))


def test_heads_are_not_tied_to_the_stream() -> None:
    graph = sc.trace(Joined(), torch.randn(1, 3, 4, 4))
    assert {group.name: group.units for group in graph.groups} == {"inner:out": 24, "mix:out": 4}


class Remembers(SizeOfAnother):
    """Keeps the sizes that it saw."""

    def follow(self, first, second):
        self.seen = first.shape[1]
        return super().follow(first, second)


def test_no_size_is_left_behind() -> None:
    model = Remembers()
    sc.trace(model, torch.randn(1, 3, 8, 8))
    assert not hasattr(model, "seen")
    model.seen = 3
    sc.trace(model, torch.randn(1, 3, 8, 8))
    assert type(model.seen) is int
    assert model.seen == 3


def test_a_view_as_something_that_stays_stays() -> None:
    class AsInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 3, 1), nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x)).flatten(1).view_as(x)).mean((2, 3))

    model, example = AsInput(), torch.randn(1, 3, 8, 8)
    graph = sc.trace(model, example)
    assert [group.name for group in graph.groups] == ["a:out"]
    assert judge(model, graph.plan({"a:out": range(7)}), example) < 1e-12
