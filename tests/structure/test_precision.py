"""Modes of arithmetic in which the check runs both networks."""

from __future__ import annotations

import pytest
import torch

from secateurs.structure.precision import Settled

SORTS = {
    "sort": lambda x: torch.sort(x, 0),
    "sort_falling": lambda x: x.sort(-1, True),
    "sort_by_name": lambda x: torch.sort(x, dim=0, descending=True),
    "sort_stable": lambda x: torch.sort(x, dim=0, stable=True),
    "argsort": lambda x: (torch.argsort(x, 0), torch.argsort(x, -1, True)),
    "msort": lambda x: (torch.msort(x),),
    "topk": lambda x: torch.topk(x, 3, 0),
}


@pytest.mark.parametrize("name", SORTS)
def test_values_that_differ_by_rounding_tie_and_the_first_is_chosen(name: str) -> None:
    near = torch.tensor([1.0, 1.0 + 1e-15, 2.0, 2.0 - 1e-15], dtype=torch.float64)
    with Settled():
        found = SORTS[name](near)
    with Settled():
        same = SORTS[name](torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
