"""A rebuilt network takes every image size and length that the network itself takes, and declines the others."""

from __future__ import annotations

import builtins
import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.errors import StructureError
from secateurs.structure.comparison import relative_difference
from secateurs.structure.input_sizes import InputSizes, as_traced, misfit
from secateurs.structure.oracle import Oracle
from secateurs.structure.scratch import mask_removed
from secateurs.structure.trace import traced
from secateurs.testing.structure import random_cut

FREE: dict[str, tuple[type[nn.Module], tuple[int, ...], str, list[tuple[int, ...]], list[tuple[int, ...]]]] = {}


def takes(text: str, *others: tuple[int, ...], shape: tuple[int, ...] = (1, 3, 16, 16), declines=()):
    """Register a network with its example's shape, what is said of its sizes, and others that it takes or declines."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        FREE[cls.__name__] = (cls, shape, text, list(others), list(declines))
        return cls

    return register


class Trunk(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)

    def trunk(self, x):
        return F.relu(self.b(F.relu(self.a(x))))


@takes("[any, 3, any, any]", (2, 3, 9, 31), (1, 3, 40, 5))
class Pooled(Trunk):
    """A classifier behind a global pool."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        return self.fc(self.trunk(x).mean((2, 3)))


@takes("[any, 3, multiples of 4, multiples of 4]", (1, 3, 24, 40), (3, 3, 8, 12), declines=[(1, 3, 18, 16)])
class Skips(Trunk):
    """Two levels down and up again, with a concatenation at each."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(10, 14, 3, 2, 1), nn.Conv2d(14, 16, 3, 2, 1)
        self.up, self.last = nn.ConvTranspose2d(16, 14, 2, 2), nn.ConvTranspose2d(28, 10, 2, 2)
        self.out = nn.Conv2d(20, 3, 1)

    def forward(self, x):
        x = self.trunk(x)
        y = F.relu(self.down(x))
        z = F.relu(self.deep(y))
        z = F.relu(self.last(torch.cat([self.up(z), y], 1)))
        return self.out(torch.cat([z, x], 1))


@takes("[any, 3, any, any]", (1, 3, 13, 22))
class Resized(Trunk):
    """Interpolates to the size of another map, pads and crops."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.out = nn.Conv2d(10, 10, 3, 2, 1), nn.Conv2d(10, 3, 1)

    def forward(self, x):
        y = self.trunk(x)
        z = F.interpolate(self.down(y), size=y.shape[2:], mode="bilinear")
        return self.out(F.pad(y + z, (1, 2, 0, 1))[:, :, : x.shape[2], : x.shape[3]])


@takes("[any, 3, multiples of 4, multiples of 4]", (2, 3, 8, 20), declines=[(1, 3, 10, 16)])
class Windows(Trunk):
    """Attention inside windows of four by four."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(10, 24), nn.Linear(8, 3)

    def forward(self, x):
        b, _, h, w = x.shape
        x = self.trunk(x).view(b, 10, h // 4, 4, w // 4, 4) if False else self.trunk(x).unflatten(2, (-1, 4))
        x = x.unflatten(4, (-1, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = self.out(F.scaled_dot_product_attention(q, k, v))
        return x.unflatten(3, (4, 4)).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, 3)


@takes("[any, 3, any from 2, any from 2]", (3, 3, 20, 9), (1, 3, 7, 31), declines=[(2, 3, 1, 16)])
class Halved(Trunk):
    """Interpolates by a factor that is no whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(10, 3, 1)

    def forward(self, x):
        return self.out(F.interpolate(self.trunk(x), scale_factor=0.5))


@takes("[any, 3, any, any]", (3, 3, 20, 9), (1, 3, 7, 31))
class Counted(Trunk):
    """Asks for the batch by Python's ``len``."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.out = nn.Parameter(torch.randn(1, 10, 1)), nn.Linear(10, 3)

    def forward(self, x):
        y = self.trunk(x).view(len(x), 10, -1)
        return self.out(torch.cat([self.token.expand(len(y), -1, -1), y], 2).mean(2))


@takes("[any, 3, 4, 4]", shape=(1, 3, 4, 4), declines=[(1, 3, 8, 8), (1, 3, 4, 5)])
class Flattened(Trunk):
    """A classifier that reads every place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(160, 4)

    def forward(self, x):
        return self.fc(self.trunk(x).flatten(1))


@takes("[any, 3, any, any]", (1, 3, 7, 12), (2, 3, 21, 9))
class Anchors(Trunk):
    """Adds the place of every cell, cached by size as detectors do."""

    shape, places = None, torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        y = self.out(self.trunk(x))
        if self.shape != y.shape:
            rows, columns = torch.arange(y.shape[2]), torch.arange(y.shape[3])
            self.places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
            self.shape = y.shape
        return (y + self.places.to(y)).flatten(2)


@takes("[any, 3, any, any]", (2, 3, 9, 31), (1, 3, 20, 5))
class Relative(Trunk):
    """Shifts rows by padding them by a size of the image, along positions that stay (relative attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Parameter(torch.randn(15, 10)), nn.Linear(10, 4)

    def forward(self, x):
        y = self.trunk(x)
        b, c, h, w = y.shape
        z = F.pad(y.permute(0, 2, 3, 1).reshape(b * h, w, c) @ self.table.t(), [0, 1]).flatten(1)
        return self.fc(y.mean((2, 3))) + F.pad(z, [0, w - 1]).mean(1).reshape(b, h).mean(1)[:, None]


def partly(text: str, *others: tuple[int, ...], declines=((1, 3, 6, 8), (1, 3, 12, 8))):
    """Register a network that takes a part of its channels by the height of the image."""

    def register(part):
        class Partly(Trunk):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(10, 4)

            def forward(self, x):
                y = self.trunk(x)
                return self.fc(y.mean((2, 3))) + part(y, y.shape[2]).amax((1, 2, 3))[:, None]

        Partly.__name__ = part.__name__.title()
        return takes(text, (3, 3, 8, 8), *others, shape=(1, 3, 8, 8), declines=declines)(Partly)

    return register


of_one_size = partly("[any, 3, 8, 8]", declines=((1, 3, 6, 8), (1, 3, 8, 6)))
"""What is left of them can be told for one height alone."""


@of_one_size
def cropped(y, h):
    return F.pad(y, [0, 0, 0, 0, -h // 2, 0])


@of_one_size
def padded_before(y, h):
    return F.pad(y, [0, 0, 0, 0, h - 9, h - 6])[:, 2:]


@of_one_size
def narrowed(y, h):
    return y.narrow(1, 1, h)


@of_one_size
def narrowed_from(y, h):
    return y.narrow(1, h - 6, 5)


@of_one_size
def sliced(y, h):
    return y[:, :h]


@of_one_size
def sliced_from(y, h):
    return y[:, h - 6 :]


@of_one_size
def selected(y, h):
    return y.select(1, h - 1)[:, None]


@of_one_size
def rolled(y, h):
    return torch.roll(y, h // 2, 1)[:, :4]


@of_one_size
def split(y, h):
    return y.split([h, y.shape[1] - h], 1)[1]


@of_one_size
def split_evenly(y, h):
    return y.split(h, 1)[1]


@partly("[any, 3, any from 8 up to 9, any]", (1, 3, 9, 5))
def chunked(y, h):
    return y.chunk(h // 2, 1)[1]


@of_one_size
def split_at(y, h):
    return y.tensor_split([h // 2, h - 1], 1)[1]


@of_one_size
def split_almost_evenly(y, h):
    return y.tensor_split(h // 2, 1)[1]


@partly("[any, 3, multiples of 4 and some others up to 11, any]", (1, 3, 11, 5))
def split_by_columns(y, h):
    return y.hsplit([h // 4])[1]


@partly("[any, 3, any from 8 up to 11, any]", (1, 3, 11, 5))
def split_evenly_by_columns(y, h):
    return y.hsplit(5)[h // 4]


@takes("[any, 3, 4, 4]", (3, 3, 4, 4), shape=(1, 3, 4, 4), declines=[(1, 3, 8, 4)])
class TwoUnknown(Trunk):
    """A size that is to be inferred beside a number of units times the batch: one of the two alone can be."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.fc, self.last = nn.Conv2d(10, 24, 1), nn.Linear(2, 4), nn.Linear(48, 4)

    def forward(self, x):
        y = self.wide(self.trunk(x))
        b = y.shape[0]
        y = y.reshape(b * 12, 2, -1).transpose(1, 2)
        return self.last(self.fc(torch.cat([y, y.mean(1, keepdim=True)], 1).mean(1)).reshape(b, 48))


@takes("[any, 5, any]", (1, 5, 30), (2, 5, 9), shape=(1, 5, 20))
class Length(nn.Module):
    """One-dimensional, with a recurrence by convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv1d(5, 12, 3, padding=1), nn.Conv1d(12, 10, 3, padding=1), nn.Linear(10, 4)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).transpose(1, 2))


@takes("[any, any up to 32]", (1, 20), (3, 5), shape=(1, 12), declines=[(1, 33)])
class Words(nn.Module):
    """Learned positions for at most 32 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(40, 12), nn.Parameter(torch.randn(32, 12))
        self.mix, self.fc = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x):
        return self.fc(F.gelu(self.mix(self.table(x) + self.positions[: x.shape[1]])))


@takes("[any, any]", (1, 1), (3, 5), (2, 30), shape=(1, 12))
class Causal(nn.Module):
    """Attention that sees what came before: one token is one more length."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.fc = nn.Embedding(40, 12), nn.Linear(12, 24), nn.Linear(8, 4)

    def forward(self, x):
        q, k, v = self.qkv(self.table(x)).chunk(3, -1)
        mask = torch.full((x.shape[1], x.shape[1]), -1e4).triu(1)
        return self.fc((q @ k.transpose(1, 2) / 3 + mask).softmax(-1) @ v)


@takes("[any, 3, multiples of 4, multiples of 4]", (1, 3, 4, 4), (2, 3, 4, 24), (1, 3, 20, 4), declines=[(1, 3, 2, 4)])
class Patches(Trunk):
    """Patches of four by four in a row; one patch is one more length."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix, self.fc = nn.Conv2d(10, 12, 4, 4), nn.Linear(12, 14), nn.Linear(14, 4)

    def forward(self, x):
        b, _, h, w = x.shape
        if h % 4 or w % 4:
            raise ValueError("multiples of 4")
        x = self.patch(self.trunk(x)).flatten(2).transpose(1, 2)
        return self.fc(F.gelu(self.mix(x))).transpose(1, 2).reshape(b, 4, h // 4, w // 4)


@takes("[any, 5, any from 2]", (1, 5, 2), (3, 5, 7), shape=(1, 5, 12), declines=[(1, 5, 1)])
class Branches(nn.Module):
    """Something else is done at length one, which the graph does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(5, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(x * 2 if x.shape[2] > 1 else x - 1)


@takes("[any, any from 2]", (1, 2), (3, 7), shape=(1, 12), declines=[(1, 1)])
class Squeezes(nn.Module):
    """One token would lose its axis in the graph as in the network, but not where it is read next."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.fc = nn.Embedding(40, 12), nn.Linear(12, 14), nn.Linear(14, 4)

    def forward(self, x):
        y = self.mix(self.table(x)).relu().squeeze(1)
        return self.fc(y if y.dim() == 3 else y[:, None] * 3)


def example_of(shape: tuple[int, ...], seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 2:
        return torch.randint(0, 40, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def rebuilt(name: str) -> tuple[nn.Module, sc.Plan, nn.Module]:
    """The dense network, a plan, and what is rebuilt by it."""
    torch.manual_seed(0)
    cls, shape, *_ = FREE[name]
    model = cls().eval()
    graph = sc.trace(model, example_of(shape))
    plan = graph.plan(random_cut(graph, 0.4, 0)).model_copy(update={"rebuild": "to try it"})
    return model, plan, sc.apply(model, plan, example_of(shape))


@pytest.mark.parametrize("name", FREE)
def test_every_size_of_the_network(name: str) -> None:
    _, shape, text, others, declined = FREE[name]
    model, plan, small = rebuilt(name)
    assert small.secateurs_sizes == f"x {text}"
    dense = mask_removed(copy.deepcopy(model), plan)
    for other in (shape, *others):
        inputs = example_of(other, 7)
        with torch.no_grad():
            assert relative_difference(small(inputs), dense(inputs)) < 1e-4, other
    for other in declined:
        with pytest.raises(StructureError, match="this rebuilt network takes"):
            small(example_of(other))


@pytest.mark.parametrize("name", ["TwoUnknown", "Cropped", "Sliced", "Rolled", "Split", "Windows"])
def test_what_nobody_checks_is_right_at_once(name: str) -> None:
    """The first graph that could carry a plan out is taken there, so it must be one that can."""
    _, shape, *_ = FREE[name]
    model, plan, _ = rebuilt(name)
    inputs = example_of(shape, 7)
    small = sc.apply(model, plan, example_of(shape), check=False)
    with torch.no_grad():
        assert relative_difference(small(inputs), mask_removed(copy.deepcopy(model), plan)(inputs)) < 1e-4


@pytest.mark.parametrize("name", ["Skips", "Windows"])
def test_free_sizes_survive_copies_and_export(name: str) -> None:
    _, shape, _, others, _ = FREE[name]
    _, _, small = rebuilt(name)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(example_of(others[0])), small(example_of(others[0])))
    program = torch.export.export(small, (example_of(shape),))
    assert torch.allclose(program.module()(example_of(shape, 9)), small(example_of(shape, 9)), atol=1e-6)
    small.train()(example_of(others[0])).pow(2).mean().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_the_check_looks_at_another_size_of_a_rebuilt_network(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    case = Oracle._case

    def seen(self, *args, **kwargs):
        found = case(self, *args, **kwargs)
        if found is not None:
            shapes.append(tuple(found.inputs()[0][0].shape))
        return found

    monkeypatch.setattr(Oracle, "_case", seen)
    rebuilt("Skips")
    assert any(shape[2:] != (16, 16) for shape in shapes)


def test_two_inputs_of_one_size() -> None:
    class Both(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.mask, self.out = nn.Conv2d(1, 10, 1), nn.Conv2d(20, 2, 1)

        def forward(self, x, mask):
            return self.out(torch.cat([self.trunk(x), self.mask(mask)], 1))

    torch.manual_seed(0)
    model, inputs = Both().eval(), (torch.randn(1, 3, 16, 12), torch.randn(1, 1, 16, 12))
    graph = sc.trace(model, inputs)
    plan = graph.plan(random_cut(graph, 0.4, 0)).model_copy(update={"rebuild": "to try it"})
    small = sc.apply(model, plan, inputs)
    assert small.secateurs_sizes == "x [any, 3, any, any]; mask [any, 1, any, any]"
    other = torch.randn(2, 3, 10, 30), torch.randn(2, 1, 10, 30)
    assert torch.allclose(small(*other), mask_removed(copy.deepcopy(model), plan)(*other), atol=1e-5)
    with pytest.raises(StructureError, match="mask has shape"):
        small(torch.randn(2, 3, 10, 30), torch.randn(2, 1, 12, 30))


def test_sizes_in_words() -> None:
    sizes = InputSizes(("x",), (("s0", 3, "s1", "2*s2"),), ("s1 % 32 == 0", "s1 <= 512"), ((2, 3, 64, 8),))
    assert str(sizes) == "x [any, 3, multiples of 32, multiples of 2]"
    halved = InputSizes(("x",), (("s0", "s1"),), ("(1 + (s1 - 1) // 2) % 2 == 0",), ((2, 16),))
    assert str(halved) == "x [any, multiples of 4 and some others]"
    assert str(InputSizes(("x",), (("s0", "s1"),), ("s1 == 16",), ((2, 16),))) == "x [any, 16]"
    assert sizes.fit([(1, 3, 512, 6)])
    assert not sizes.fit([(1, 3, 544, 6)])
    assert not sizes.fit([(1, 3, 512, 7)])
    assert misfit(sizes.axes, sizes.conditions, [(1, 4, 64, 8)]) == "0"
    assert misfit(sizes.axes, sizes.conditions, [(1, 3, 48, 8)]) == "s1 % 32 == 0"


def test_lengths_that_are_taken_beside_the_conditions() -> None:
    sizes = InputSizes(("x",), (("s0", "s1", "s2"),), ("(s1 // 8) != 1", "s1 % 4 == 0", "s2 >= 2"), ((2, 32, 7),))
    assert not sizes.fit([(1, 8, 7)])
    taking = sizes.taking({"s1": [8, 12]})
    assert all(taking.fit([(1, length, 7)]) for length in (8, 12, 16))
    assert not any(taking.fit([shape]) for shape in [(1, 10, 7), (1, 8, 1), (1, 14, 7)])
    assert str(sizes) == "x [any, multiples of 16 and some others, any from 2]"
    assert str(sizes.taking({"s1": [8, 12], "s2": [1]})) == "x [any, multiples of 4, any]"


def test_inputs_that_must_be_alike_are_said_to_be() -> None:
    axes = (("s0", 3, "s1", "s2"), ("s0", 3, "s3", "s4"))
    both = InputSizes(("x", "y"), axes, ("s1*s2 == s3*s4", "s1 == s3"), ((2, 3, 16, 16), (2, 3, 16, 16)))
    assert str(both) == "x [any, 3, any, any]; y [any, 3, as x, as x]"
    apart = InputSizes(("x", "y"), axes, (), ((2, 3, 16, 16), (2, 3, 16, 16)))
    assert str(apart) == "x [any, 3, any, any]; y [any, 3, any, any]"


def test_a_refusal_names_conditions_in_plain_words() -> None:
    sizes = InputSizes(("x",), (("s0", "s1"),), ("(s1 // 8) != 1",), ((2, 32),)).taking({"s1": [8]})
    with pytest.raises(StructureError, match=re.escape("where (x.shape[1] // 8) != 1 only")):
        as_traced([torch.zeros(2, 9)], sizes.names, sizes.axes, sizes.conditions)


def test_conditions_on_numbers_that_are_not_whole() -> None:
    conditions = ("math.trunc(0.5*torch.sym_float(s1)) >= 2", "torch._sym_sqrt(torch.sym_float(s1)) <= 6")
    sizes = InputSizes(("x",), (("s0", "s1"),), conditions, ((2, 32),))
    assert str(sizes) == "x [any, any from 4 up to 36]"
    with pytest.raises(StructureError, match=re.escape("where math.trunc(0.5*float(x.shape[1])) >= 2 only")):
        as_traced([torch.zeros(2, 3)], sizes.names, sizes.axes, sizes.conditions)


def test_the_graph_is_run_where_something_has_length_one() -> None:
    """A graph that computes something else there keeps the exporter's condition."""
    example = torch.randn(2, 5, 12)
    for cls, text in ((Length, "x [any, 5, any]"), (Branches, "x [any, 5, any from 2]")):
        found = traced(cls().eval(), example, free=True).input_sizes
        assert str(found) == text
        assert found.fit([(2, 5, 1)]) is (cls is Length)


def test_pythons_own_len_stays_while_a_network_is_traced() -> None:
    """PyTorch tells built-ins by identity, also in what it first imports then; and our names leave the module again."""
    before = builtins.len

    class Watching(Counted):
        def forward(self, x):
            assert builtins.len is before
            return super().forward(x)

    sc.trace(Watching().eval(), torch.randn(1, 3, 16, 16))
    assert "len" not in globals()
