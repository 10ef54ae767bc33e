"""Sizes that the exporter sets apart, and no network: one sample fewer is one, a pad is nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.errors import StructureError
from secateurs.structure.comparison import relative_difference
from secateurs.structure.input_sizes import InputSizes
from secateurs.structure.scratch import mask_removed
from secateurs.testing.structure import random_cut


class Trunk(nn.Module):
    """Two convolutions and what a subclass does in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(F.relu(self.a(x))))


class ShiftedInPlace(Trunk):
    """Every sample looks at the one before it, written into a copy."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[1:] = x[1:] + x[:-1]
        return x


class ShiftedIntoZeros(Trunk):
    """The same, written into zeros, all but the last of two samples."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:-1] = x[1:]
        y[-1:] = x[:1]
        return y


class PaddedByReflection(Trunk):
    """Padded to a multiple of four, and back."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2:]
        x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4), "reflect")
        return (x.flip(-1) + x)[..., :h, :w]


class OtherwiseAtSixteen(Trunk):
    """A width of 16 is something else to the network itself."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[-1] != 16 else x.cos()


CASES = {
    ShiftedInPlace: ("[any, 3, any, any]", [(1, 3, 8, 8), (3, 3, 8, 8), (7, 3, 8, 12)], []),
    ShiftedIntoZeros: ("[any, 3, any, any]", [(1, 3, 8, 8), (3, 3, 8, 8)], []),
    PaddedByReflection: ("[any, 3, any from 3, any from 3]", [(1, 3, 12, 8), (2, 3, 9, 11), (1, 3, 16, 10)], []),
    OtherwiseAtSixteen: (None, [(1, 3, 16, 9)], [(1, 3, 8, 16)]),
}


@pytest.mark.parametrize("cls", CASES)
def test_sizes_of_a_rebuilt_network(cls: type[nn.Module]) -> None:
    text, others, declined = CASES[cls]
    torch.manual_seed(0)
    model, example = cls().eval(), torch.randn(2, 3, 10, 10)
    plan = sc.trace(model, example)
    plan = plan.plan(random_cut(plan, 0.4, 0)).model_copy(update={"rebuild": "to try it"})
    small, dense = sc.apply(model, plan, example), mask_removed(copy.deepcopy(model), plan)
    assert text is None or small.secateurs_sizes == f"x {text}"
    for shape in others:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(small(x), dense(x)) < 1e-4, shape
    for shape in declined:
        with pytest.raises(StructureError, match="this rebuilt network takes"):
            small(torch.randn(shape))


def test_sizes_of_no_step_are_said() -> None:
    sizes = InputSizes(("x",), (("s0",),), ("s0 != 24",), ((12,),))
    assert str(sizes) == "x [12 and some others]"
