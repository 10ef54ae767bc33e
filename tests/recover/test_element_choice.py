"""Choosing kernel elements by what the rest can make up for."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from secateurs.recover.refit.element_choice import ElementCount, surgeon
from secateurs.recover.refit.least_squares import least_squares
from secateurs.recover.refit.normal_equations import NormalEquations
from secateurs.structure import trace


def drawn(unknowns: int, outputs: int, *, mixed: bool) -> tuple[NormalEquations, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, unknowns, 400, generator=generator)
    if mixed:
        x = torch.randn(1, unknowns, unknowns, generator=generator) @ x
    x -= x.mean(2, keepdim=True)
    system = NormalEquations(1, outputs, unknowns)
    system.add_inputs(x)
    return system, torch.randn(1, outputs, unknowns, generator=generator, dtype=torch.float64), x[0].double()


def lost(weight: Tensor, x: Tensor, stays: Tensor) -> float:
    """Squared output error of one block after the best refit on what stays."""
    wanted = weight @ x
    inside = x[stays]
    fitted = torch.linalg.lstsq(inside.t(), wanted.t()).solution.t()
    return float((wanted - fitted @ inside).square().sum())


def test_with_independent_inputs_it_is_magnitude() -> None:
    system, weight, _ = drawn(12, 4, mixed=False)
    system.gram = torch.eye(12, dtype=torch.float64)[None] * 400
    system.inputs.zero_()
    stays = surgeon(system, weight, ElementCount(1 / 3, 4), 0.0)[0]
    best = weight[0].square().sum(0).topk(4).indices
    assert set(stays[0].nonzero().flatten().tolist()) == set(best.tolist())
    assert torch.equal(stays, stays[:1].expand_as(stays))


def test_with_mixed_inputs_it_is_near_the_best_pattern_and_better_than_magnitude() -> None:
    system, weight, x = drawn(9, 4, mixed=True)
    stays = surgeon(system, weight, ElementCount(4 / 9, 4), 1e-9)[0, 0]
    assert int(stays.sum()) == 4
    every = []
    for picks in itertools.combinations(range(9), 4):
        pattern = torch.zeros(9, dtype=torch.bool)
        pattern[list(picks)] = True
        every.append(lost(weight[0], x, pattern))
    magnitude = torch.zeros(9, dtype=torch.bool)
    magnitude[weight[0].square().sum(0).topk(4).indices] = True
    assert lost(weight[0], x, stays) <= sorted(every)[len(every) // 10]
    assert lost(weight[0], x, stays) < lost(weight[0], x, magnitude)


@pytest.mark.parametrize("block", [8, 16, 1])
def test_blocks_share_patterns_and_keep_the_count(block: int) -> None:
    system, weight, _ = drawn(18, 20, mixed=True)
    stays = surgeon(system, weight, ElementCount(4 / 9, block), 0.01)[0]
    for first in range(0, 20, block):
        part = stays[first : first + block]
        assert torch.equal(part, part[:1].expand_as(part))
        assert int(part[0].sum()) == 8


def test_least_squares_prunes_on_the_way_and_follows_dense() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    plan = trace(dense, torch.randn(1, 3, 8, 8)).plan({})
    batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    small = copy.deepcopy(dense)
    done = least_squares(dense, small, plan, batches, counts={"2.weight": ElementCount(4 / 9, 8)})
    assert list(done.masks) == ["2.weight"]
    mask = done.masks["2.weight"]
    assert mask.shape == (16, 16, 3, 3)
    assert int(mask.sum()) == 16 * 64
    assert not small[2].weight[~mask].any()
    assert done.errors["2.weight"][1] < 0.5


def test_blocks_are_cut_in_the_given_order() -> None:
    system, weight, _ = drawn(18, 20, mixed=True)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    stays = surgeon(system, weight, ElementCount(4 / 9, 8, tuple(order.tolist())), 0.01)
    assert torch.equal(stays[:, order], surgeon(system, weight[:, order], ElementCount(4 / 9, 8), 0.01))
    assert not torch.equal(stays, surgeon(system, weight, ElementCount(4 / 9, 8), 0.01))
