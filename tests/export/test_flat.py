"""Inputs and outputs of every kind that ``trace`` takes, exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from torch import nn

import secateurs
from secateurs.export.flat import exportable, flattened, is_plain
from secateurs.export.onnx import export_onnx, with_batch
from secateurs.export.program import export_program


class Pair(NamedTuple):
    """An output by name, one of them not always there."""

    first: torch.Tensor
    second: torch.Tensor | None


@dataclasses.dataclass
class Batch:
    """An input as one object."""

    image: torch.Tensor
    scale: torch.Tensor


class Net(nn.Module):
    """Takes tensors, mappings and objects, and returns whatever ``returned`` makes."""

    def __init__(self, returned: Any = lambda y: y) -> None:
        super().__init__()
        self.one, self.table, self.two, self.returned = nn.Linear(4, 8), nn.Embedding(9, 8), nn.Linear(8, 3), returned

    def forward(self, x: Any, ids: Any = None, both: Any = None, flag: bool = True) -> Any:
        if isinstance(x, Batch):
            x = x.image * x.scale
        x = x["x"] if isinstance(x, dict) else x
        y = self.one(x) if flag else self.one(x).tanh()
        if ids is not None:
            y = y + self.table(ids)
        if both is not None:
            y = y + self.one(both["one"]) * self.one(both["two"][0])
        return self.returned(self.two(y))


X, IDS = torch.randn(2, 4), torch.tensor([1, 2])
EXAMPLES = {
    "tensor": X,
    "by_name": {"x": X, "ids": IDS},
    "in_another_order": {"ids": IDS, "x": X},
    "a_mapping_last": (({"x": X},), {}),
    "nested": ((X,), {"both": {"two": [X + 1], "one": X - 1}, "flag": False}),
    "one_tensor_twice": ((X,), {"both": {"two": [X], "one": X}}),
    "an_object": Batch(X, torch.rand(2, 1)),
}
RETURNED = {
    "numbers": lambda y: {"y": y, "count": 3, "name": "x", "none": None},
    "named": lambda y: Pair(y, None),
    "object": lambda y: Batch(y, 2 * y),
    "same_twice": lambda y: [y, {"again": y}],
}


@pytest.mark.parametrize("export", [export_onnx, export_program])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_exported_and_computes_the_same(name: str, export: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert export(Net().eval(), EXAMPLES[name], tmp_path / "net").max_rel_error < 1e-5


@pytest.mark.parametrize("export", [export_onnx, export_program])
@pytest.mark.parametrize("name", RETURNED)
def test_every_output_is_exported(name: str, export: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert export(Net(RETURNED[name]).eval(), X, tmp_path / "net").max_rel_error < 1e-5


def test_an_open_batch_takes_inputs_by_name(tmp_path: Path) -> None:
    export_onnx(Net().eval(), {"ids": IDS, "x": X}, tmp_path / "net.onnx", batch=None)
    inputs = onnx.load(tmp_path / "net.onnx").graph.input
    assert [one.name for one in inputs] == ["ids", "x"]
    assert all(one.type.tensor_type.shape.dim[0].dim_param for one in inputs)


class Lists(Net):
    """Takes lists by position."""

    def forward(self, xs: list[torch.Tensor], more: dict[str, Any]) -> torch.Tensor:  # type: ignore[override]
        return self.two(self.one(xs[0]) * self.one(xs[1]) + self.one(more["a"][0]))


class Rest(Net):
    """Takes any number of tensors, and one by name only."""

    def forward(self, *rest: torch.Tensor, last: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.two(self.one(sum(rest)) * last)


class Sum(Net):
    """Takes any number of tensors."""

    def forward(self, *rest: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.two(self.one(rest[0]) - self.one(rest[1]) * rest[2].sum(1, keepdim=True))


class Required(Net):
    """One input by name only, which must be given."""

    def forward(self, x: torch.Tensor, *, last: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.two(self.one(x) * last)


class Passing(Net):
    """Gives a mask back, as detectors do."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:  # type: ignore[override]
        return self.two(self.one(x * mask)), mask


OPEN = {
    "a list": (Net(lambda y: y), ((X,), {"both": {"two": [X + 1], "one": X - 1}}), ["x", "both_two_0", "both_one"]),
    "lists alone": (Lists(), (([X, X + 1], {"a": [X]}), {}), ["xs_0", "xs_1", "more_a_0"]),
    "any number": (Rest(), ((X, X + 1), {"last": torch.rand(2, 1)}), ["rest_0", "rest_1", "last"]),
    "any number alone": (Sum(), (X, X + 1, X - 2), ["rest_0", "rest_1", "rest_2"]),
    "by name only": (Required(), ((X,), {"last": torch.rand(2, 1)}), ["x", "last"]),
    "an object": (Net(), Batch(X, torch.rand(2, 1)), ["x_image", "x_scale"]),
}


@pytest.mark.parametrize("name", OPEN)
def test_an_open_batch_takes_every_example(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example, names = OPEN[name]
    assert export_onnx(model.eval(), example, tmp_path / "net.onnx", batch=None).max_rel_error < 1e-5
    inputs = onnx.load(tmp_path / "net.onnx").graph.input
    assert [one.name for one in inputs] == names
    assert all(one.type.tensor_type.shape.dim[0].dim_param for one in inputs)


@pytest.mark.parametrize("batch", [2, None])
def test_an_input_that_is_given_back_keeps_its_name(batch: int | None, tmp_path: Path) -> None:
    model = Passing().eval()
    assert export_onnx(model, {"x": X, "mask": X > 0}, tmp_path / "net.onnx", batch=batch).max_rel_error < 1e-5
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [one.name for one in graph.input] == ["x", "mask"]
    assert len({one.name for one in (*graph.input, *graph.output)}) == 4


def test_plain_networks_are_exported_as_they_are() -> None:
    model = Net().eval()
    assert exportable(model, (X,), {})[0] is model
    assert is_plain(Net(lambda y: {"a": [y], "b": None}).eval(), (X,), {"ids": IDS})
    assert not is_plain(model, ({"x": X},), {})


def test_flattened_keeps_parameters_and_names_inputs() -> None:
    model = Net(lambda y: {"y": y, "n": 3}).eval()
    flat, inputs = flattened(model, ({"x": X},), {"both": {"one": X, "two": [X]}})
    assert [name for name, _ in flat.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert len(inputs) == 3
    (found,) = flat(*inputs)
    assert torch.equal(found, model({"x": X}, both={"one": X, "two": [X]})["y"])
    assert type(model) is Net


def test_what_is_not_of_the_batch_keeps_its_length() -> None:
    x, mask = torch.randn(2, 3, 5, 5), torch.ones(5, 5)
    sized = with_batch(((x, mask), {"also": torch.zeros(2)}), 1)
    assert [tuple(t.shape) for t in (*sized[0], sized[1]["also"])] == [(1, 3, 5, 5), (5, 5), (1,)]
    assert with_batch({"s": torch.tensor(3.0)}, 4)["s"].dim() == 0


class CountsBeside(nn.Module):
    """Returns a number and a text beside its tensors, and must be rebuilt."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Conv2d(3, 9, 1), nn.Conv2d(5, 2, 1), nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.a(x)
        found = {"y": self.b(y[:, :5] * y[:, 4:9]), "levels": 3, "name": "top"}
        return {**found, "aux": self.aux(y.mean((2, 3)))} if self.auxiliary and self.training else found

    auxiliary = False


class OfTwoModes(CountsBeside):
    """In training mode it returns more."""

    auxiliary = True


@pytest.mark.parametrize("kind", [CountsBeside, OfTwoModes])
def test_rebuilt_networks_with_numbers_among_their_outputs(kind: type[nn.Module], tmp_path: Path) -> None:
    model, example = kind().eval(), torch.randn(2, 3, 4, 4)
    graph = secateurs.trace(model, example)
    plan = graph.plan({group.name: list(range(group.units - 1)) for group in graph.groups if group.max_removable})
    small = secateurs.apply(model, plan.model_copy(update={"rebuild": "to try it"}), example)
    assert export_onnx(small, example, tmp_path / "m.onnx", batch=None).max_rel_error < 1e-4
    assert [value.name for value in onnx.load(tmp_path / "m.onnx").graph.input] == ["x"]
