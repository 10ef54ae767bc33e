"""Outputs that are compared with PyTorch's: not finite ones, truth values, none at all, other types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.export.difference import largest_difference, redrawn
from secateurs.export.onnx import export_onnx
from secateurs.export.program import export_program

INF, NAN = float("inf"), float("nan")


class Net(nn.Module):
    """Two layers, and whatever is made of what they return."""

    def __init__(self, last: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 8), nn.Linear(8, 5), last

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> Any:
        return self.last(self.two(self.one(x).relu()), *more)


X = torch.randn(2, 4)
OUTPUTS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "infinite where masked": (lambda y: y.masked_fill(y < 0, -INF), (X,)),
    "no number somewhere": (lambda y: (y, torch.where(y > 0, y.sqrt(), NAN)), (X,)),
    "truth values": (lambda y: (y, y > 0), (X,)),
    "positions": (lambda y: (y, y.argmax(1)), (X,)),
    "nothing in it": (lambda y: (y, y[:, :0]), (X,)),
    "a double beside it": (lambda y, m: y * m.float(), (X, torch.rand(2, 1).double())),
    "a half beside it": (lambda y, m: y * m.float(), (X, torch.rand(2, 1).half())),
}


@pytest.mark.parametrize("export", [export_onnx, export_program])
@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_compared(name: str, export: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    last, example = OUTPUTS[name]
    assert export(Net(last).eval(), example, tmp_path / "net", batch=2).max_rel_error < 1e-5


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        ([1.0, -2.0, INF], 0.0),
        ([1.0, -1.0, INF], 0.5),
        ([1.0, -2.0, -INF], INF),
        ([1.0, -2.0, NAN], INF),
        ([1.0, NAN, INF], INF),
        ([INF, -2.0, INF], INF),
    ],
)
def test_what_is_not_finite_must_be_the_same(found: list[float], difference: float) -> None:
    assert largest_difference([torch.tensor([1.0, -2.0, INF])], [np.float32(found)], "f") == difference
    assert largest_difference([torch.tensor([NAN])], [torch.tensor([NAN])], "f") == 0.0


def test_other_counts_and_shapes_are_told() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(sc.ExportError, match=r"f returns 1 tensors where PyTorch returns 2"):
        largest_difference([x, x], [x], "f")
    with pytest.raises(sc.ExportError, match=r"f returns shape \(3, 2\) where PyTorch returns \(2, 3\)"):
        largest_difference([x], [x.T], "f")


def test_complex_numbers_are_compared_whole() -> None:
    x = torch.tensor([1 + 2j, 3 - 1j])
    assert largest_difference([x], [x.conj()], "f") == pytest.approx(4 / 3)
    assert largest_difference([x.conj()], [x.conj().resolve_conj()], "f") == 0.0


@pytest.mark.parametrize(
    ("model", "example", "does"),
    [
        (Net(lambda y, z: y * z.abs()), (X, torch.randn(2, 5, dtype=torch.complex64)), "takes"),
        (Net(lambda y: torch.complex(y, y)), (X,), "returns"),
    ],
)
def test_complex_numbers_are_refused_by_files(model: nn.Module, example: Any, does: str, tmp_path: Path) -> None:
    with pytest.raises(sc.ExportError, match=rf"The network {does} a tensor of torch.complex64.*view_as_real"):
        export_onnx(model.eval(), example, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_every_type_is_drawn_as_it_is() -> None:
    given = {"a": X.double(), "b": [X.half(), torch.arange(3)]}
    drawn = redrawn(given)
    assert [drawn["a"].dtype, drawn["b"][0].dtype] == [torch.float64, torch.float16]
    assert torch.equal(drawn["b"][1], torch.arange(3))
    assert not torch.equal(drawn["a"], given["a"])
